//! Output of `soci-snapshotter-grpc reads`: reads that waited for bytes, and why.

use std::io::{self, Write};

use crate::layer::ReadWait;

/// Prints the header of the table.
pub(super) fn show_head(to: &mut dyn Write) -> io::Result<()> {
    writeln!(
        to,
        "{:>9} {:>7} {:>7} {:>7} {:>7} {:>7} {:>6}  {:<19} {:>12} {:>8}  IMAGE",
        "TOOK_MS", "QUEUE", "WIRE", "POOL", "INFLATE", "WRITE", "SPANS", "LAYER", "OFFSET", "BYTES"
    )
}

/// Prints one read. For several spans, each step shows the longest time, because they run in
/// parallel.
pub(super) fn show(to: &mut dyn Write, wait: &ReadWait) -> io::Result<()> {
    let longest = |step: fn(&crate::layer::SpanWait) -> u64| {
        let longest = wait.spans.iter().map(step).max();
        millis(longest.unwrap_or_default())
    };
    let layer = wait.layer.get(..19).unwrap_or(&wait.layer);
    write!(
        to,
        "{:>9} {:>7} {:>7} {:>7} {:>7} {:>7} {:>6}  {layer:<19} {:>12} {:>8}  {}",
        millis(wait.took_us),
        longest(|span| span.queue_us),
        longest(|span| span.wire_us),
        longest(|span| span.pool_us),
        longest(|span| span.inflate_us),
        longest(|span| span.write_us),
        wait.spans.len(),
        wait.offset,
        wait.bytes,
        wait.image
    )?;
    match &wait.error {
        Some(error) => writeln!(to, " FAILED: {error}"),
        None => writeln!(to),
    }
}

fn millis(micros: u64) -> String {
    format!("{}.{}", micros / 1000, micros / 100 % 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::SpanWait;

    #[test]
    fn a_line_shows_the_longest_of_each_step() {
        let span = |queue_us, wire_us| SpanWait {
            queue_us,
            wire_us,
            ..SpanWait::default()
        };
        let wait = ReadWait {
            image: "app:1".to_owned(),
            layer: "sha256:0123456789abcdef".to_owned(),
            took_us: 53_210,
            offset: 4096,
            bytes: 512,
            spans: vec![span(100, 51_000), span(2000, 7)],
            ..ReadWait::default()
        };
        let mut shown = Vec::new();
        show_head(&mut shown).unwrap();
        show(&mut shown, &wait).unwrap();
        let shown = String::from_utf8(shown).unwrap();
        let words: Vec<&str> = shown.lines().nth(1).unwrap().split_whitespace().collect();
        let wanted = "53.2 2.0 51.0 0.0 0.0 0.0 2 sha256:0123456789ab 4096 512 app:1";
        assert_eq!(words.join(" "), wanted);
    }
}
