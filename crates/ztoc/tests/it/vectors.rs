//! Compares with the reference's results for the layers in `tests/fixtures/layers` (see the README
//! there).

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use soci_ztoc::{BuildOptions, Builder, Compression};

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/layers")
}

#[test]
fn ztocs_have_the_references_digests_and_its_refusals_are_ours() {
    let expected = fs::read_to_string(fixtures().join("expected.json")).unwrap();
    let expected: serde_json::Map<String, Value> = serde_json::from_str(&expected).unwrap();
    assert!(expected.len() >= 72);
    let mut wrong = Vec::new();
    for (case, expected) in &expected {
        let (file, span_size) = case.rsplit_once('@').unwrap();
        let layer = fs::File::open(fixtures().join(file)).unwrap();
        let compression = if file.ends_with(".tar") {
            Compression::Plain
        } else {
            Compression::Gzip
        };
        let options = BuildOptions {
            span_size: span_size.parse().unwrap(),
            ..BuildOptions::default()
        };
        let digest = Builder::new(options)
            .build(layer, compression)
            .map_err(|error| error.to_string())
            .map(|mut built| {
                let mut bytes = Vec::new();
                let size = built.encode(&mut bytes).unwrap();
                assert_eq!(size, bytes.len() as u64, "{case}");
                soci_ztoc::Ztoc::parse(&bytes).unwrap();
                format!("sha256:{}", crate::sha256(&bytes))
            });
        match (expected["rc"].as_i64(), &digest) {
            (Some(0), Ok(digest)) if *digest == expected["ztocs"][0] => {}
            (Some(0), _) => wrong.push(format!("{case}: {digest:?}")),
            (_, Ok(_)) => wrong.push(format!("{case}: made, but the reference refuses")),
            (_, Err(error)) => {
                let theirs = expected["err"][0].as_str().unwrap();
                let theirs = theirs.rsplit_once("; ").unwrap().1;
                if !error.starts_with(theirs) {
                    wrong.push(format!("{case}: {error}, not {theirs}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
