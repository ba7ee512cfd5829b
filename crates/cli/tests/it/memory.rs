//! Memory usage of conversions.

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use soci_oci::Digest;
use soci_registry::testing::TestRegistry;

use crate::golden::stored_gzip;
use crate::site::{docker, publish};
use crate::soci::{command, member, names, one_layer_with, read_json};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = Command::new("gzip")
        .arg("-1n")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    gzip.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = gzip.wait_with_output().unwrap();
    assert!(output.status.success());
    output.stdout
}

/// An archive of `files` files of `size` bytes (a multiple of 512, so that there is no padding).
/// Each header and each file is its own gzip member, so that the blob is small and quick to create.
fn layer(files: usize, size: usize) -> Vec<u8> {
    let content = gzip(&vec![0; size]);
    let mut layer = Vec::new();
    for number in 0..files {
        let name = format!("usr/lib/python3/site-packages/package/module_{number:06}.py");
        let mut header = member(&name, b'0', "", &[]);
        header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        header[148..156].fill(b' ');
        let sum: u64 = header.iter().map(|&byte| u64::from(byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        layer.extend(stored_gzip(&header));
        layer.extend(&content);
    }
    layer.extend(stored_gzip(&[0; 1024]));
    layer
}

/// Peak memory of a process so far, in bytes.
fn peak(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

/// Converts an image, which must succeed. Returns the peak memory in bytes.
fn convert(arguments: &[&OsStr]) -> u64 {
    let mut soci = command()
        .args(["convert", "--standalone"])
        .args(arguments)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut most = 0;
    let status = loop {
        most = peak(soci.id()).unwrap_or(0).max(most);
        if let Some(status) = soci.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(status.success());
    assert!(most > 4 << 20, "the memory was not measured");
    most
}

/// Converts an image of this layer in a directory.
fn convert_folder(layer: &[u8]) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in"), folder.path().join("out"));
    one_layer_with(&input, layer, true, &Digest::sha256(b"").to_string());
    let most = convert(&["--format=oci-dir".as_ref(), input.as_ref(), output.as_ref()]);
    assert!(names(&output.join("blobs/sha256")).len() >= 7);
    most
}

#[test]
fn a_layer_of_six_gigabytes_and_fifty_thousand_files_takes_64_mib_at_most() {
    let most = convert_folder(&layer(50_000, 120 << 10));
    assert!(most <= 64 << 20, "peak {} MiB", most >> 20);
}

#[test]
fn a_layer_of_two_hundred_thousand_files_takes_64_mib_at_most() {
    let most = convert_folder(&layer(200_000, 512));
    assert!(most <= 64 << 20, "peak {} MiB", most >> 20);
}

/// The layer has ten gigabytes uncompressed. It is uploaded while it is indexed.
#[test]
fn from_registry_to_registry_a_layer_of_ten_gigabytes_takes_96_mib_at_most() {
    let folder = tempfile::tempdir().unwrap();
    let layer = layer(200_000, 50 << 10);
    one_layer_with(
        folder.path(),
        &layer,
        true,
        &Digest::sha256(b"").to_string(),
    );
    let digest = Digest::sha256(&layer);
    drop(layer);
    let manifest = read_json(&folder.path().join("index.json"))["manifests"][0]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let (from, to) = (TestRegistry::start(), TestRegistry::start());
    publish(folder.path(), &manifest, &from, "in");
    let most = convert(&[
        "--plain-http".as_ref(),
        docker(&from, "in:1").as_ref(),
        docker(&to, "out:1").as_ref(),
    ]);
    assert!(to.has_blob("out", &digest));
    assert!(most <= 96 << 20, "peak {} MiB", most >> 20);
}
