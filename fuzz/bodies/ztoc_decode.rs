//! Any bytes as a zTOC.

use soci_ztoc::{Decoder, VerifiedSpan, Ztoc, verify_header};

/// Parses `data` and, if that succeeds, walks everything that it offers.
pub(crate) fn run(data: &[u8]) {
    let Ok(ztoc) = Ztoc::parse(data) else { return };
    let spans = ztoc.spans();
    let mut end = 0;
    let mut strings = 0;
    for (index, entry) in ztoc.entries().enumerate() {
        assert!(
            entry.offset >= entry.header_start,
            "headers lie in front of the content"
        );
        assert!(entry.header_start >= end, "headers follow each other");
        end = entry.header_start;
        strings += entry.name.len() + entry.link.len() + entry.uname.len() + entry.gname.len();
        strings += entry
            .pax
            .iter()
            .map(|(key, value)| key.len() + value.len())
            .sum::<usize>();
        let again = ztoc
            .entry(index)
            .expect("every index below the count has an entry");
        assert_eq!(
            (again.offset, again.header_start),
            (entry.offset, entry.header_start)
        );
        assert!(entry.content().end <= spans.archive_size() || entry.content().is_empty());
        let _refused = verify_header(&entry, &data[..data.len().min(1024)]);
    }
    // A table may be shared by several entries, but the verifier bounds how much that gives.
    assert!(strings <= data.len().saturating_mul(4) + 1024);
    let mut decoder = Decoder::new();
    for id in spans.ids() {
        let compressed = spans.compressed(id);
        let uncompressed = spans.uncompressed(id);
        assert!(compressed.start <= compressed.end && compressed.end <= spans.layer_size());
        assert!(uncompressed.start <= uncompressed.end);
        let at = ztoc.checkpoint(id);
        let len = compressed.end - compressed.start;
        if len <= data.len() as u64 && uncompressed.end - uncompressed.start < 1 << 20 {
            let bytes = &data[..len as usize];
            let span = VerifiedSpan::with_digest(id, bytes, *spans.digest(id), &spans)
                .expect("length and digest are those of the map");
            let _damaged = decoder.decode(&span, &at, &spans);
        }
    }
    assert!(spans.covering(0..u64::MAX).len() <= spans.len());
    let _unfit = ztoc.check_servable();
    assert_eq!(ztoc.detach().attach(data).entry_count(), ztoc.entry_count());
}
