//! Durability in a power failure: results are synced before they are renamed, and their names are
//! synced before the command ends.
//!
//! `strace` shows the order of syncs and renames. If it is missing or may not trace, the test is
//! skipped.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::site::{layer, layout};
use crate::soci::{names, tar_of};

/// The syncs and renames of a conversion, in order.
fn traced(from: &Path, to: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut strace = Command::new("strace");
    strace.args([
        "-f",
        "-y",
        "-e",
        "trace=/^(fsync|fdatasync|rename.*)$",
        "-o",
    ]);
    strace.arg(&log);
    let status = strace
        .arg(env!("CARGO_BIN_EXE_soci"))
        .args(["convert", "--standalone", "--min-layer-size", "0"])
        .arg(from)
        .arg(to)
        .status()
        .unwrap();
    let lines = fs::read_to_string(&log).unwrap();
    assert!(status.success(), "{lines}");
    lines.lines().map(str::to_owned).collect()
}

fn can_trace() -> bool {
    let traced = Command::new("strace")
        .args(["-o", "/dev/null", "true"])
        .status();
    traced.is_ok_and(|status| status.success())
}

/// The position of the last line with this call and text.
fn last(lines: &[String], call: &str, text: &str) -> usize {
    let found = lines
        .iter()
        .rposition(|line| line.contains(call) && line.contains(text));
    found.unwrap_or_else(|| panic!("no {call} of {text}: {lines:#?}"))
}

#[test]
fn an_archive_is_on_the_disk_before_it_replaces_another() {
    if !can_trace() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    layout(&folder.join("in"), &[layer(1, 3000)]);
    let out = folder.join("out.tar");
    fs::write(&out, "old").unwrap();
    let lines = traced(&folder.join("in"), out.to_str().unwrap());
    let contents = last(&lines, "fsync", "/.out.tar.");
    let place = last(&lines, "rename", &format!("{}\"", out.display()));
    let name = last(&lines, "fsync", &format!("<{}>", folder.display()));
    assert!(contents < place && place < name, "{lines:#?}");
}

#[test]
fn a_layout_is_on_the_disk_before_its_index_names_an_image() {
    if !can_trace() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    layout(&folder.join("in"), &[layer(1, 3000)]);
    fs::write(folder.join("in.tar"), tar_of(&folder.join("in"))).unwrap();
    let (out, shown) = (folder.join("out"), folder.join("out").display().to_string());

    let lines = traced(&folder.join("in.tar"), &format!("oci:{shown}:one"));
    let blobs = names(&out.join("blobs/sha256")).len();
    let synced = lines
        .iter()
        .filter(|it| it.contains("fsync") && it.contains("/ingest/"));
    assert!(synced.count() >= blobs, "{lines:#?}");
    let listed = last(&lines, "fsync", ".tmp/blobs/sha256>");
    let place = last(&lines, "rename", &format!("{shown}\""));
    let name = last(&lines, "fsync", &format!("<{}>", folder.display()));
    assert!(listed < place && place < name, "{lines:#?}");

    let lines = traced(&folder.join("in.tar"), &format!("oci:{shown}:two"));
    let listed = last(&lines, "fsync", &format!("<{shown}/blobs/sha256>"));
    let place = last(&lines, "rename", &format!("{shown}/index.json\""));
    let name = last(&lines, "fsync", &format!("<{shown}>"));
    assert!(listed < place && place < name, "{lines:#?}");
}
