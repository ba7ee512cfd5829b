//! Stored data is corrupted on disk.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use soci_tests::image::noise;
use soci_tests::node::SOCI;
use soci_tests::process::Program;
use soci_tests::tar::{directory, file};
use soci_tests::{Image, Site, stored, walk};

const SIZE: usize = 4 << 20;
/// Offset of the first file in `data`.
const LEAD: u64 = 8 << 20;
const PAGE: usize = 4096;

fn scrub(root: &Path, arguments: &[&str]) -> Result<String> {
    Program::ours("soci-snapshotter-grpc")?
        .args(["scrub", "--root"])
        .args([root])
        .args(arguments)
        .succeed()
}

/// The stored layer whose first file has this content.
fn layer_of(root: &Path, content: &[u8]) -> Result<PathBuf> {
    let begins = |folder: &PathBuf| {
        let mut found = vec![0; PAGE];
        let data = fs::File::open(folder.join("data"));
        data.is_ok_and(|data| data.read_exact_at(&mut found, LEAD).is_ok())
            && found == content[..PAGE]
    };
    let mut folders = stored::layers(root)?.into_iter();
    folders.find(begins).context("no layer has the file")
}

/// Waits until a loop device is backed by this file.
fn wait_for_loop_on(file: &Path) -> Result<()> {
    let start = Instant::now();
    let is_on = || {
        let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
        let mut backings = devices.map(|device| device.path().join("loop/backing_file"));
        backings.any(|backing| {
            fs::read_to_string(backing).is_ok_and(|path| Path::new(path.trim_end()) == file)
        })
    };
    while !is_on() {
        ensure!(
            start.elapsed() < Duration::from_secs(60),
            "nothing is mounted over {}",
            file.display()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[test]
fn a_scrub_finds_damaged_data_and_downloads_it_again() -> Result<()> {
    let site = Site::new("")?;
    let big = noise(1, SIZE);
    let text: String = (0..50_000).map(|line| format!("line {line}\n")).collect();
    let image = Image::runnable(&[&[
        // In the order of the tar, which is the order of `data`.
        file("big", &big),
        directory("d"),
        file("d/text", &text),
    ]])?;
    let spans = ["--min-layer-size", "0", "--span-size", "1048576"];
    let reference = site.publish_with(&image, "scrub:1", &spans)?;
    site.node.pull(&reference, SOCI)?;
    let view = site.node.view(&reference, SOCI)?;
    let read = || -> Result<Vec<u8>> {
        walk::drop_caches()?;
        Ok(fs::read(view.join("big"))?)
    };
    assert!(read()? == big);
    let root = site.node.root().to_path_buf();
    let folder = layer_of(&root, &big)?;
    wait_for_loop_on(&folder.join("data"))?;

    let at = 2_000_003_usize;
    let data = fs::File::options().write(true).open(folder.join("data"))?;
    data.write_all_at(b"damage", LEAD + at as u64)?;
    data.sync_all()?;
    drop(data);
    let damaged = read()?;
    assert_eq!(
        &damaged[at..][..6],
        b"damage",
        "the damaged bytes on disk are read"
    );

    let said = scrub(&root, &[])?;
    let found = said
        .lines()
        .filter(|line| line.contains(" 1 differing, 1 fetched again ("));
    assert_eq!(found.count(), 1, "{said}");
    assert!(said.contains("drop_caches"), "{said}");
    assert!(read()? == big, "the same mount reads the right bytes");
    let container = ["/bin/cat", "/d/text"];
    let finished = site.node.run(&reference, SOCI, "reader", &container)?;
    assert!(finished.stdout == text, "{}", finished.stderr);
    // The layer is complete again, and its readers do not need the daemon.
    wait_for_loop_on(&folder.join("data"))?;

    let said = scrub(&root, &["--json"])?;
    let layers: Vec<serde_json::Value> = said
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    assert_eq!(layers.len(), stored::layers(&root)?.len(), "{said}");
    for layer in layers {
        assert_eq!(layer["differing"], 0, "{layer}");
        assert!(layer["checked"].as_u64() > Some(0), "{layer}");
    }
    view.close()
}

#[test]
fn a_scrub_without_a_daemon_reports_the_reason() -> Result<()> {
    let root = tempfile::tempdir()?;
    let finished = Program::ours("soci-snapshotter-grpc")?
        .args(["scrub", "--root"])
        .args([root.path()])
        .finish()?;
    assert_eq!(finished.code, Some(1));
    assert!(
        finished.stderr.contains("no daemon runs"),
        "{}",
        finished.stderr
    );
    Ok(())
}
