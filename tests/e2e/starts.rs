//! Recorded starts: what a container reads first comes first on the next node.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use soci_tests::image::noise;
use soci_tests::node::SOCI;
use soci_tests::process::Program;
use soci_tests::site::NOTHING_BEHIND;
use soci_tests::tar::{directory, file};
use soci_tests::{Image, Site};

const MEGABYTE: usize = 1 << 20;
const SPANS: [&str; 4] = ["--min-layer-size", "0", "--span-size", "1048576"];
/// Reads megabytes 14, 3 and 9 of the big file.
const SCRIPT: &str =
    "for at in 14 3 9; do dd if=/data/big bs=1048576 skip=$at count=1 | md5sum; done";

fn image(tag: &str) -> Result<Image> {
    Image::runnable(&[
        &[directory("data"), file("data/big", noise(1, 16 * MEGABYTE))],
        &[file("tag", tag)],
    ])
}

fn status_socket(site: &Site) -> PathBuf {
    let socket = site.node.snapshotter_socket();
    socket.with_file_name("status.sock")
}

fn soci(site: &Site, words: &[&str]) -> Result<Program> {
    let socket = status_socket(site);
    let program = Program::ours("soci")?.args(words);
    Ok(program.args([Path::new("--socket"), &socket]))
}

/// The status of an image.
fn status(site: &Site, reference: &str) -> Result<Value> {
    let text = soci(site, &["status", "--json", reference])?.succeed()?;
    let status: Value = serde_json::from_str(&text)?;
    Ok(status["images"][0].clone())
}

/// Where the recorded spans begin in their layers, in the order of the record.
fn offsets(record: &Path) -> Result<Vec<u64>> {
    let record: Value = serde_json::from_slice(&std::fs::read(record)?)?;
    let layers = record["layers"].as_array().context("layers")?;
    let wants = layers
        .iter()
        .flat_map(|layer| layer["wants"].as_array().into_iter().flatten());
    Ok(wants.filter_map(|want| want["offset"].as_u64()).collect())
}

fn run(site: &Site, reference: &str, id: &str) -> Result<String> {
    let said = site
        .node
        .run(reference, SOCI, id, &["/bin/sh", "-c", SCRIPT])?;
    ensure!(said.code == Some(0), "{}", said.stderr);
    Ok(said.stdout)
}

#[test]
fn a_recorded_start_is_on_the_disk_before_the_container_asks() -> Result<()> {
    let site = Site::new(NOTHING_BEHIND)?;
    let reference = site.publish_with(&image("one")?, "recorded:1", &SPANS)?;
    site.node.pull(&reference, SOCI)?;
    let refused = soci(&site, &["prefetch", "record", &reference])?.finish()?;
    assert_eq!(refused.code, Some(1));
    assert!(
        refused.stderr.contains("nothing was recorded"),
        "{}",
        refused.stderr
    );
    let read = run(&site, &reference, "first")?;
    let record = site.folder().join("start.json");
    let file = record.to_str().context("a name")?;
    soci(&site, &["prefetch", "record", &reference, "-o", file])?.succeed()?;
    let recorded = offsets(&record)?;
    let place = |megabyte: u64| {
        let is = |offset: &u64| offset.abs_diff(megabyte << 20) < 1 << 20;
        recorded.iter().position(is)
    };
    let places = [place(14), place(3), place(9)];
    assert!(
        places.iter().all(Option::is_some) && places.is_sorted(),
        "{recorded:?}"
    );

    // Another build of the image: the big layer is the same, the small one is not.
    let mut arguments = SPANS.to_vec();
    arguments.extend(["--prefetch-record", file]);
    let next = site.publish_with(&image("two")?, "recorded:2", &arguments)?;
    site.node.remove_image(&reference)?;
    site.node.pull(&next, SOCI)?;
    let begun = Instant::now();
    loop {
        let now = status(&site, &next)?;
        let came = now["spans_background"].as_u64().context("a number")?;
        if came >= recorded.len() as u64 - 1 {
            break;
        }
        ensure!(
            begun.elapsed() < Duration::from_secs(30),
            "{now:#} {recorded:?}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(run(&site, &next, "second")?, read);
    let after = status(&site, &next)?;
    let on_demand = after["spans_on_demand"].as_u64().context("a number")?;
    // The file that tells the builds apart is in a layer of its own.
    assert!(
        on_demand <= 1,
        "{on_demand} of the spans were not recorded: {after:#}"
    );
    Ok(())
}

#[test]
fn a_start_is_recorded_without_a_node() -> Result<()> {
    let site = Site::new(NOTHING_BEHIND)?;
    let reference = site.publish_with(&image("one")?, "alone:1", &SPANS)?;
    let record = site.folder().join("start.json");
    let tools = soci_tests::process::tool("ctr")?;
    let tools = tools.parent().context("a folder")?;
    let ours = soci_tests::process::binary("soci-snapshotter-grpc")?;
    let ours = ours.parent().context("a folder")?;
    let path = format!(
        "{}:{}:/usr/sbin:/usr/bin:/sbin:/bin",
        ours.display(),
        tools.display()
    );
    let run = |words: &[&str]| {
        let words = [&["prefetch", "record", "--run", "--within", "20s"], words].concat();
        let program = Program::ours("soci")?.args(words);
        program
            .env("PATH", &path)
            .env("TMPDIR", site.folder())
            .env("SSL_CERT_FILE", site.registry.authority())
            .finish()
    };
    let file = record.to_str().context("a name")?;
    let done = run(&["-o", file, "--", &reference, "/bin/sh", "-c", SCRIPT])?;
    assert_eq!(done.code, Some(0), "{}{}", done.stdout, done.stderr);
    let recorded = offsets(&record)?;
    assert!(
        recorded
            .iter()
            .any(|offset| offset.abs_diff(14 << 20) < 1 << 20),
        "{recorded:?}"
    );
    let left = std::fs::read_dir(site.folder())?.flatten();
    let left: Vec<_> = left.map(|it| it.file_name()).collect();
    let is_left = |name: &std::ffi::OsString| name.to_string_lossy().starts_with("soci-record-");
    assert!(!left.iter().any(is_left), "{left:?}");
    Ok(())
}
