//! JSON for people: the format of Go's encoder, indented by two spaces.

use serde::Serialize;
use serde::de::IgnoredAny;
use soci_oci::json;

/// Formats a value with indentation and a final newline.
pub(crate) fn pretty<T: Serialize>(value: &T) -> String {
    let mut text = indented(&json::to_vec(value));
    text.push('\n');
    text
}

/// Indents a document without reordering its keys or rewriting its numbers and strings.
pub(crate) fn indent(document: &[u8]) -> Result<String, serde_json::Error> {
    serde_json::from_slice::<IgnoredAny>(document)?;
    Ok(indented(document))
}

/// Removes the whitespace between the parts of a document.
pub(crate) fn compact(document: &[u8]) -> Result<String, serde_json::Error> {
    serde_json::from_slice::<IgnoredAny>(document)?;
    let mut out = Vec::with_capacity(document.len());
    let mut in_string = InString::default();
    for &byte in document {
        if in_string.next(byte) || !byte.is_ascii_whitespace() {
            out.push(byte);
        }
    }
    Ok(text(out))
}

/// Encodes bytes as a string like Go's encoder: each byte that is not valid UTF-8 becomes an
/// escaped U+FFFD.
pub(crate) fn string(bytes: &[u8]) -> String {
    let mut out = String::from('"');
    for chunk in bytes.utf8_chunks() {
        let valid = text(json::to_vec(&chunk.valid()));
        out.push_str(&valid[1..valid.len() - 1]);
        out.push_str(&"\\ufffd".repeat(chunk.invalid().len()));
    }
    out.push('"');
    out
}

/// Indents valid JSON by two spaces per level.
fn indented(document: &[u8]) -> String {
    let mut out = Vec::with_capacity(document.len() * 2);
    let mut in_string = InString::default();
    let mut depth = 0_usize;
    let break_line = |out: &mut Vec<u8>, depth: usize| {
        out.push(b'\n');
        out.extend(std::iter::repeat_n(b' ', 2 * depth));
    };
    let mut opened = false;
    for &byte in document {
        if !in_string.is_inside() && byte.is_ascii_whitespace() {
            continue;
        }
        let closes = !in_string.is_inside() && matches!(byte, b'}' | b']');
        if closes {
            depth = depth.saturating_sub(1);
        }
        if opened != closes {
            break_line(&mut out, depth);
        }
        opened = false;
        out.push(byte);
        if in_string.next(byte) {
            continue;
        }
        match byte {
            b'{' | b'[' => {
                depth += 1;
                opened = true;
            }
            b',' => break_line(&mut out, depth),
            b':' => out.push(b' '),
            _ => {}
        }
    }
    text(out)
}

/// Tracks whether a byte of a document is inside a string, including the quotes.
#[derive(Default)]
struct InString {
    inside: bool,
    escaped: bool,
}

impl InString {
    fn is_inside(&self) -> bool {
        self.inside
    }

    fn next(&mut self, byte: u8) -> bool {
        let was_inside = self.inside;
        if was_inside && !self.escaped && byte == b'\\' {
            self.escaped = true;
            return true;
        }
        if byte == b'"' && !self.escaped {
            self.inside = !was_inside;
        }
        self.escaped = false;
        was_inside || self.inside
    }
}

fn text(bytes: Vec<u8>) -> String {
    match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_indented_as_go_does() {
        let document = r#" {"b":[1, 2.50,{}],"a":{"x":"{,:\"\\","y":[]} ,"":null}"#;
        let wanted = r#"{
  "b": [
    1,
    2.50,
    {}
  ],
  "a": {
    "x": "{,:\"\\",
    "y": []
  },
  "": null
}"#;
        assert_eq!(indent(document.as_bytes()).unwrap(), wanted);
        let compacted = r#"{"b":[1,2.50,{}],"a":{"x":"{,:\"\\","y":[]},"":null}"#;
        assert_eq!(compact(wanted.as_bytes()).unwrap(), compacted);
        assert!(indent(b"{").is_err());
    }

    #[test]
    fn strings_are_written_as_go_does() {
        assert_eq!(
            string(b"a<b>&\"\\\n\x01\xff\xe2\x82\xc3\xbc\xef\xbf\xbd"),
            "\"a\\u003cb\\u003e\\u0026\\\"\\\\\\n\\u0001\\ufffd\\ufffd\\ufffd\u{fc}\u{fffd}\""
        );
    }
}
