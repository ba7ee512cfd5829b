use super::*;

const EMPTY_JSON: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";

#[test]
fn text_and_hash_agree() {
    let digest = Digest::sha256(b"{}");
    assert_eq!(digest.to_string(), EMPTY_JSON);
    assert_eq!(EMPTY_JSON.parse(), Ok(digest));
    assert_eq!(digest.hex(), EMPTY_JSON[7..]);
    assert!(digest.matches(b"{}"));
    assert!(!digest.matches(b"{} "));
}

#[test]
fn longer_algorithms_round_trip() {
    for algorithm in [Algorithm::Sha384, Algorithm::Sha512] {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(b"x");
        let digest = hasher.finish();
        assert_eq!(digest.as_bytes().len(), algorithm.size());
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert!(digest.matches(b"x"));
    }
}

#[test]
fn bad_texts_are_told_apart_as_the_go_library_does() {
    let hex = &EMPTY_JSON[7..];
    for (text, error) in [
        (String::new(), DigestError::Format),
        ("sha256".to_owned(), DigestError::Format),
        (":".to_owned(), DigestError::Format),
        (format!(":{hex}"), DigestError::Format),
        ("sha256:".to_owned(), DigestError::Format),
        ("sha256:12".to_owned(), DigestError::Length),
        (format!("sha256:{hex}0"), DigestError::Length),
        (format!("sha512:{hex}"), DigestError::Length),
        (
            format!("sha256:{}", hex.to_uppercase()),
            DigestError::Format,
        ),
        (
            format!("sha256:{}../../../x", &hex[12..]),
            DigestError::Length,
        ),
        (
            format!("sha256:../../../{}", &hex[9..]),
            DigestError::Format,
        ),
        (format!("md5:{hex}"), DigestError::Algorithm),
        (
            "multihash+base58:QmRZxt2b1FVZPNqd8hsiykDL3TdBDeTSPX9Kv46HmX4Gx8".to_owned(),
            DigestError::Algorithm,
        ),
        (format!("sha256+:{hex}"), DigestError::Format),
        (format!("md5:{hex}/"), DigestError::Format),
    ] {
        assert_eq!(text.parse::<Digest>(), Err(error), "{text}");
    }
}

#[test]
fn order_is_that_of_the_text() {
    let mut digests: Vec<Digest> = (0_u8..50).map(|byte| Digest::sha256(&[byte])).collect();
    digests.sort();
    let texts: Vec<String> = digests.iter().map(ToString::to_string).collect();
    assert!(texts.is_sorted());
}

#[test]
fn reader_ends_with_an_error_when_the_bytes_are_wrong() {
    let digest = Digest::sha256(b"hello");
    let read =
        |bytes: &'static [u8], size| io::read_to_string(VerifyingReader::new(bytes, digest, size));
    assert_eq!(read(b"hello", 5).unwrap(), "hello");
    for (bytes, size) in [
        (&b"hellO"[..], 5),
        (b"hell", 5),
        (b"hello!", 5),
        (b"hello", 6),
        (b"", 5),
    ] {
        assert_eq!(
            read(bytes, size).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}

#[test]
fn the_last_bytes_are_not_given_before_the_verdict() {
    let digest = Digest::sha256(b"hello");
    for (bytes, chunk, given) in [
        (&b"hello"[..], 2, 5),
        (b"hellO", 2, 4),
        (b"hellO", 5, 0),
        (b"hello!", 5, 0),
        (b"hello!", 1, 4),
    ] {
        let mut reader = VerifyingReader::new(bytes, digest, 5);
        let (mut buffer, mut got) = (vec![0; chunk], 0);
        while let Ok(read @ 1..) = reader.read(&mut buffer) {
            got += read;
        }
        assert_eq!(got, given, "{bytes:?} by {chunk}");
    }
    let mut empty = VerifyingReader::new(&b""[..], Digest::sha256(b""), 0);
    assert_eq!(empty.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn writer_counts_and_hashes() {
    let mut writer = Sha256Writer::new(Vec::new());
    writer.write_all(b"{").unwrap();
    writer.write_all(b"}").unwrap();
    let (bytes, digest, length) = writer.finish();
    assert_eq!(
        (bytes.as_slice(), digest.to_string().as_str(), length),
        (&b"{}"[..], EMPTY_JSON, 2)
    );
}
