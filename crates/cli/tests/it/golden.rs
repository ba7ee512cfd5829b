//! Compares the digests of everything that convert creates with those of the reference.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use soci_oci::Digest;

use crate::soci::{
    blob, convert, converted, member, names, one_layer, one_layer_with, read_json, tar,
};

fn layers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/layers")
}

#[test]
fn every_layer_gives_the_references_digests_or_its_refusal() {
    let expected = read_json(&layers().join("expected.json"));
    let expected = expected.as_object().unwrap();
    assert!(expected.len() >= 72, "{}", expected.len());
    for (key, row) in expected {
        let (file, span_size) = key.split_once('@').unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (input, output) = (folder.path().join("in"), folder.path().join("out"));
        let layer = fs::read(layers().join(file)).unwrap();
        one_layer(&input, &layer, file.ends_with("gz"));
        let ran = convert(
            &["--format", "oci-dir", "--span-size", span_size],
            &input,
            &output,
        );
        let rc = row["rc"].as_i64().unwrap();
        assert_eq!(ran.code.map(i64::from), Some(rc), "{key}: {ran:?}");
        if rc != 0 {
            let prefix = "soci: errors encountered while building soci layers; ";
            assert!(ran.stderr.starts_with(prefix), "{key}: {ran:?}");
            assert!(
                ran.stderr.contains(&Digest::sha256(&layer).to_string()),
                "{key}: {ran:?}"
            );
            assert_eq!(names(folder.path()), ["in"], "{key}");
            continue;
        }
        let image = read_json(&output.join("index.json"))["manifests"][0]["digest"].clone();
        assert_eq!(image, row["image"], "{key}");
        let image = read_json(&blob(&output, image.as_str().unwrap()));
        let index = &image["manifests"][1]["digest"];
        assert_eq!(*index, row["soci"], "{key}");
        let index = read_json(&blob(&output, index.as_str().unwrap()));
        let ztocs: Vec<_> = index["layers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| &it["digest"])
            .collect();
        let wanted: Vec<_> = row["ztocs"].as_array().unwrap().iter().collect();
        assert_eq!(ztocs, wanted, "{key}");
    }
}

/// gzip without compression, as in the vectors of the specification.
pub(crate) fn stored_gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    let mut blocks = bytes.chunks(65535).peekable();
    while let Some(block) = blocks.next() {
        let length = u16::try_from(block.len()).unwrap();
        out.push(u8::from(blocks.peek().is_none()));
        out.extend(length.to_le_bytes());
        out.extend((!length).to_le_bytes());
        out.extend(block);
    }
    let crc = bytes.iter().fold(!0_u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 0 {
                crc >> 1
            } else {
                (crc >> 1) ^ 0xedb8_8320
            }
        })
    });
    out.extend((!crc).to_le_bytes());
    out.extend(u32::try_from(bytes.len()).unwrap().to_le_bytes());
    out
}

#[test]
fn the_specifications_chain_comes_out_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let archive = tar(&[member("hello.txt", b'0', "", b"hello world\n")]);
    let digest = Digest::sha256(&archive).to_string();
    assert_eq!(
        digest,
        "sha256:14b9e3ce79a7ed19aea622afea090892b63f13dd3fe8478e8325a6f2afa155ac"
    );
    let layer = stored_gzip(&archive);
    assert_eq!(
        Digest::sha256(&layer).to_string(),
        "sha256:2562b8e1901461f31523267bc0a4269ccc575e4d0ee7d8ab5a7c2d1ef3f4a2b0"
    );
    one_layer_with(&path("in"), &layer, true, &digest);
    let manifest = "5f121f476c9b39a860a1cec014d1e02754ade3f8c246d04ee0059b845dca5f84";
    assert_eq!(
        fs::metadata(path("in").join("blobs/sha256").join(manifest))
            .unwrap()
            .len(),
        402
    );

    let ran = converted(&[], &path("in"), &path("out.tar"));
    assert_eq!(
        ran.stdout,
        "layer sha256:2562b8e1901461f31523267bc0a4269ccc575e4d0ee7d8ab5a7c2d1ef3f4a2b0 -> ztoc sha256:728f97ef3a6edeea755b7413980012f66eae112977b96887d51a04bb472901c0\n"
    );
    let out = fs::read(path("out.tar")).unwrap();
    assert_eq!(out.len(), 47616);
    assert_eq!(
        Digest::sha256(&out).to_string(),
        "sha256:c5e23820b96019d31d99db19e7c0afc575685924804c4ca3f695b5a235116c8c"
    );

    converted(&["--format=oci-dir"], &path("in"), &path("out"));
    for (digest, size) in [
        (
            "e403a98767df8a98f8b81f3048d040f543fc8713ef9b4a09057dcbe3badf6976",
            801,
        ),
        (
            "fea31cbbf148efb73ca4fe1eaf833ec64cee225f4c03ce28eade733c460f46fe",
            523,
        ),
        (
            "a39af3cead70beaa1d7a283662dc8613ae5decf0ee5ce7eb351f0cfde456ab36",
            710,
        ),
        (
            "728f97ef3a6edeea755b7413980012f66eae112977b96887d51a04bb472901c0",
            33200,
        ),
    ] {
        let path = path("out").join("blobs/sha256").join(digest);
        assert_eq!(fs::metadata(path).unwrap().len(), size, "{digest}");
    }

    converted(&[], &path("out.tar"), &path("again.tar"));
    assert_eq!(fs::read(path("again.tar")).unwrap(), out);
    converted(&[], &path("out"), &path("folder.tar"));
    assert_eq!(fs::read(path("folder.tar")).unwrap(), out);
}

#[test]
fn the_time_zone_does_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in"), folder.path().join("out.tar"));
    one_layer(
        &input,
        &fs::read(layers().join("v-s.tar.gz")).unwrap(),
        true,
    );
    let mut archives = Vec::new();
    for zone in ["UTC", "Asia/Kathmandu"] {
        let ran = crate::soci::command()
            .env("TZ", zone)
            .args(["convert", "--standalone", "--min-layer-size=0"])
            .args([&input, &output])
            .output()
            .unwrap();
        assert!(ran.status.success());
        std::io::stderr().write_all(&ran.stderr).unwrap();
        archives.push(fs::read(&output).unwrap());
    }
    assert_eq!(archives[0], archives[1]);
}
