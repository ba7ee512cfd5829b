//! JSON encoding and decoding that match Go's `encoding/json`.
//!
//! The digests of converted images depend on these bytes, and the reference daemon re-encodes a
//! fetched index and compares it. Fields are in declaration order, there is no white space, maps
//! are sorted by key, and characters that are special in HTML are escaped.

use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::ser::{CompactFormatter, Formatter};

/// Encodes a value.
///
/// # Panics
///
/// Never for the types of this crate, because all of their keys are strings.
pub fn to_vec<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, GoFormatter);
    value
        .serialize(&mut serializer)
        .expect("string keys and infallible writer");
    bytes
}

/// Decodes a value. Each byte of invalid UTF-8 becomes U+FFFD.
pub fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    match std::str::from_utf8(bytes) {
        Ok(text) => serde_json::from_str(text),
        Err(_) => serde_json::from_str(&replace_invalid(bytes)),
    }
}

fn replace_invalid(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    text
}

/// Decodes `null` as the default value, as Go does.
pub(crate) fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Standard base64 with padding, as Go encodes a byte slice.
pub(crate) mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<u8>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
        STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}

struct GoFormatter;

impl Formatter for GoFormatter {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(['<', '>', '&', '\u{2028}', '\u{2029}']) {
            let (plain, escaped) = rest.split_at(at);
            CompactFormatter.write_string_fragment(writer, plain)?;
            let character = escaped.chars().next().expect("found just above");
            write!(writer, "\\u{:04x}", u32::from(character))?;
            rest = &escaped[character.len_utf8()..];
        }
        CompactFormatter.write_string_fragment(writer, rest)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn characters_of_html_are_escaped_and_others_are_not() {
        let text = "a<b>&\u{2028}\u{2029}é\u{7f}\"\\\u{8}\u{c}\n\r\t\u{1}/";
        let json = String::from_utf8(to_vec(&text)).unwrap();
        assert_eq!(
            json,
            "\"a\\u003cb\\u003e\\u0026\\u2028\\u2029é\u{7f}\\\"\\\\\\b\\f\\n\\r\\t\\u0001/\""
        );
        assert_eq!(from_slice::<String>(json.as_bytes()).unwrap(), text);
    }

    #[test]
    fn keys_are_sorted_and_escaped() {
        let map: BTreeMap<_, _> = [("b", 1), ("<", 2), ("a", 3)].into();
        assert_eq!(to_vec(&map), br#"{"\u003c":2,"a":3,"b":1}"#);
    }

    #[test]
    fn every_invalid_byte_is_replaced() {
        assert_eq!(
            from_slice::<String>(b"\"a\xe2\x82b\xff\"").unwrap(),
            "a\u{fffd}\u{fffd}b\u{fffd}"
        );
    }

    proptest::proptest! {
        #[test]
        fn prop_texts_come_back(text in "\\PC{0,20}|[<>&\u{2028}\u{2029}\"\\\\]{0,9}") {
            let json = to_vec(&text);
            proptest::prop_assert!(!json.iter().any(|byte| b"<>&".contains(byte)));
            proptest::prop_assert_eq!(from_slice::<String>(&json).unwrap(), text);
        }

        #[test]
        fn prop_any_bytes_are_a_text_or_an_error(bytes: Vec<u8>) {
            let quoted = [b"\"".as_slice(), &bytes, b"\""].concat();
            if let Ok(text) = from_slice::<String>(&quoted) {
                proptest::prop_assert_eq!(from_slice::<String>(&to_vec(&text)).unwrap(), text);
            }
        }
    }
}
