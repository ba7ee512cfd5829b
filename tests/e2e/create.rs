//! Version 1 indexes of images in containerd: creation, reuse, and garbage collection.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use soci_tests::image::{Compressor, Layer, noise};
use soci_tests::node::NodeOptions;
use soci_tests::process::{Finished, binary};
use soci_tests::tar::{file, write};
use soci_tests::{Image, Series, Shape, Site};

const SPANS: [&str; 4] = ["--min-layer-size", "0", "--span-size", "65536"];

fn create(site: &Site, global: &[&str], words: &[&str]) -> Result<Finished> {
    site.node
        .soci(global)?
        .args(["create"])
        .args(SPANS)
        .args(words)
        .finish()
}

/// Parses the output of `create --json`, which must succeed without other output.
fn created(site: &Site, words: &[&str]) -> Result<Value> {
    let words: Vec<&str> = ["--json"].iter().chain(words).copied().collect();
    let ran = create(site, &[], &words)?;
    ensure!(ran.code == Some(0) && ran.stderr.is_empty(), "{ran:?}");
    serde_json::from_str(&ran.stdout).context("one object")
}

fn texts<'a>(report: &'a Value, of: impl Fn(&'a Value) -> Vec<&'a Value>) -> Vec<&'a str> {
    let platforms = report["platforms"].as_array().into_iter().flatten();
    platforms.flat_map(of).filter_map(Value::as_str).collect()
}

fn indexes(report: &Value) -> Vec<&str> {
    texts(report, |platform| vec![&platform["index"]["digest"]])
}

fn ztocs(report: &Value) -> Vec<&str> {
    texts(report, |platform| {
        let layers = platform["layers"].as_array().into_iter().flatten();
        layers.map(|layer| &layer["ztoc"]["digest"]).collect()
    })
}

fn outcomes(report: &Value) -> Vec<&str> {
    texts(report, |platform| {
        let layers = platform["layers"].as_array().into_iter().flatten();
        layers.map(|layer| &layer["outcome"]).collect()
    })
}

fn content(site: &Site) -> Result<String> {
    site.node.ctr(["content", "ls", "-q"])?.succeed()
}

fn collect_garbage(site: &Site) -> Result<()> {
    let prune = ["content", "prune", "references"];
    site.node.ctr(prune)?.succeed().map(drop)
}

fn layer(seed: u64) -> Result<Layer> {
    Layer::of(&[file("data", noise(seed, 200_000)), file("etc/app", "x")])
}

#[test]
fn indexes_of_all_platforms_and_span_sizes_live_as_long_as_the_image() -> Result<()> {
    for series in [Series::Current, Series::V1_7] {
        indexes_live_with(series).with_context(|| format!("{series:?}"))?;
    }
    Ok(())
}

fn indexes_live_with(series: Series) -> Result<()> {
    let options = NodeOptions {
        oracle_only: true,
        series,
        ..NodeOptions::default()
    };
    let site = Site::with(options, Shape::default())?;
    let (amd64, arm64) = (Image::new(vec![layer(1)?]), Image::new(vec![layer(2)?]));
    let name = "registry.example/app:1";
    site.import(name, &[("amd64", &amd64), ("arm64", &arm64)])?;
    let first = created(&site, &["--all-platforms", name])?;
    let second = created(&site, &["--all-platforms", "--span-size=131072", name])?;
    ensure!(indexes(&first).len() == 2, "{first:#}");
    collect_garbage(&site)?;
    let there = content(&site)?;
    let empty_config = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    ensure!(there.contains(empty_config), "{there}");
    for report in [&first, &second] {
        for digest in indexes(report).into_iter().chain(ztocs(report)) {
            ensure!(there.contains(digest), "{digest} is not in:\n{there}");
        }
    }
    // Only labels keep them now: there is no lease.
    let leases = site.node.ctr(["leases", "ls", "-q"])?.succeed()?;
    ensure!(leases.trim().is_empty(), "{leases}");

    site.node.remove_image(name)?;
    collect_garbage(&site)?;
    let there = content(&site)?;
    for digest in indexes(&first).into_iter().chain(ztocs(&second)) {
        ensure!(!there.contains(digest), "{digest} is still in:\n{there}");
    }
    Ok(())
}

#[test]
fn an_index_has_its_form_and_refers_to_the_manifest() -> Result<()> {
    let site = Site::oracle_only()?;
    let name = "registry.example/app:1";
    site.import(name, &[("amd64", &Image::new(vec![layer(3)?, layer(4)?]))])?;
    let report = created(&site, &["--prefetch-file=/etc/app,/none", name]);
    // A missing file only causes a warning.
    ensure!(report.is_err(), "a warning was expected");
    let report = created(&site, &["--prefetch-file=/etc/app", name])?;
    let platform = &report["platforms"][0];
    let index = platform["index"]["digest"].as_str().context("a digest")?;
    let text = site.node.ctr(["content", "get", index])?.succeed()?;
    let index: Value = serde_json::from_str(&text)?;
    assert_eq!(
        index["config"]["mediaType"],
        "application/vnd.amazon.soci.index.v1+json"
    );
    assert_eq!(index["subject"]["digest"], platform["manifest"]);
    let layers = index["layers"].as_array().context("layers")?;
    let types: Vec<_> = layers
        .iter()
        .filter_map(|it| it["mediaType"].as_str())
        .collect();
    let ztoc = "application/octet-stream";
    let prefetch = "application/vnd.amazon.soci.prefetch.v1+json";
    assert_eq!(types, [ztoc, ztoc, prefetch]);
    // The upper layer contains the file.
    let of_layer = "com.amazon.soci.image-layer-digest";
    assert_eq!(
        layers[2]["annotations"][of_layer],
        platform["layers"][1]["digest"]
    );
    let digest = layers[2]["digest"].as_str().context("a digest")?;
    let artifact = site.node.ctr(["content", "get", digest])?.succeed()?;
    assert_eq!(
        artifact,
        r#"{"version":"1.0","prefetch_spans":[{"start_span":3,"end_span":3}]}"#
    );
    Ok(())
}

#[test]
fn existing_ztocs_are_reused() -> Result<()> {
    let site = Site::oracle_only()?;
    let name = "registry.example/app:1";
    site.import(name, &[("amd64", &Image::new(vec![layer(5)?, layer(6)?]))])?;
    let ran = create(&site, &[], &[name])?;
    ensure!(
        ran.code == Some(0) && !ran.stdout.contains("(already exists)"),
        "{ran:?}"
    );
    let again = create(&site, &[], &[name])?;
    let expected: String = ran
        .stdout
        .lines()
        .map(|line| format!("{line} (already exists)\n"))
        .collect();
    assert_eq!((again.stdout, again.stderr), (expected, String::new()));
    let forced = create(&site, &[], &["--force", name])?;
    assert_eq!(forced.stdout, ran.stdout);

    let report = created(&site, &[name])?;
    assert_eq!(outcomes(&report), ["reused", "reused"]);
    let gone = ztocs(&report)[0];
    site.node.ctr(["content", "rm", gone])?.succeed()?;
    let rebuilt = created(&site, &[name])?;
    assert_eq!(outcomes(&rebuilt), ["built", "reused"]);
    assert_eq!(indexes(&rebuilt), indexes(&report));
    Ok(())
}

#[test]
fn the_state_folder_is_a_store_of_its_own() -> Result<()> {
    let site = Site::oracle_only()?;
    let name = "registry.example/app:1";
    site.import(name, &[("amd64", &Image::new(vec![layer(7)?]))])?;
    let in_containerd = created(&site, &[name])?;
    // The records contain the zTOC, but this store does not.
    let local = ["--content-store", "soci"];
    let ran = create(&site, &local, &["--json", name])?;
    ensure!(ran.code == Some(0) && ran.stderr.is_empty(), "{ran:?}");
    let report: Value = serde_json::from_str(&ran.stdout)?;
    assert_eq!(outcomes(&report), ["built"]);
    assert_eq!(indexes(&report), indexes(&in_containerd));
    let store = site.node.folder().join("soci-cli/content");
    for digest in indexes(&report).into_iter().chain(ztocs(&report)) {
        ensure!(store.join("blobs").join(digest.replace(':', "/")).is_file());
    }
    let listed = fs::read_to_string(store.join("index.json"))?;
    ensure!(listed.contains(indexes(&report)[0]), "{listed}");
    let again = create(&site, &local, &[name])?;
    ensure!(again.stdout.ends_with("(already exists)\n"), "{again:?}");
    // A damaged zTOC in the store is built again.
    let ztoc = store
        .join("blobs")
        .join(ztocs(&report)[0].replace(':', "/"));
    let mut bytes = fs::read(&ztoc)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::remove_file(&ztoc)?;
    fs::write(&ztoc, bytes)?;
    let again = create(&site, &local, &[name])?;
    ensure!(again.stdout == ran_line(&report), "{again:?}");
    ensure!(again.stderr.contains("built again"), "{again:?}");
    ensure!(again.stderr.contains("digest mismatch"), "{again:?}");
    Ok(())
}

fn ran_line(report: &Value) -> String {
    let layer = &report["platforms"][0]["layers"][0];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    format!(
        "layer {} -> ztoc {}\n",
        text(&layer["digest"]),
        text(&layer["ztoc"]["digest"])
    )
}

#[test]
fn errors_are_reported_in_the_documented_order() -> Result<()> {
    let site = Site::oracle_only()?;
    let name = "registry.example/app:1";
    site.import(name, &[("amd64", &Image::new(vec![layer(8)?]))])?;
    let both = "registry.example/both:1";
    let zstd = Image::new(vec![layer(9)?]);
    site.import(
        both,
        &[("amd64", &Image::new(vec![layer(8)?])), ("arm64", &zstd)],
    )?;
    for (global, words, message) in [
        (&[][..], &["none:1"][..], "image \"none:1\": not found"),
        (
            &["--content-store=tape"],
            &["none:1"],
            "image \"none:1\": not found",
        ),
        (
            &["--content-store=tape"],
            &["-p", "linux/*", name],
            "unknown content store type: tape; must be one of [soci containerd]",
        ),
        (
            &[],
            &["-p", "linux/*", "--span-size=-1", name],
            "could not parse platform linux/*: \"linux/*\": wildcards not yet supported: invalid argument",
        ),
        (
            &[],
            &["--prefetch-files-json=/none.json", "--span-size=-1", name],
            "failed to parse prefetch files: failed to load prefetch files from JSON: failed to read JSON file: open /none.json: no such file or directory",
        ),
        (&[], &["--span-size=-1", name], "span size must be >= 0"),
        (
            &[],
            &["--min-layer-size=-1", name],
            "min layer size must be >= 0",
        ),
        (
            &[],
            &["-p", "linux/arm64", name],
            "image manifest for linux/arm64: not found; the image has linux/amd64 (select with --platform or -p)",
        ),
        (
            &[],
            &["-p", "linux/s390x", both],
            "image manifest for linux/s390x: not found; the image has linux/amd64, linux/arm64 (select with --platform or -p)",
        ),
        (
            &[],
            &["--min-layer-size=10485760", name],
            "no ztocs created, all layers either skipped or produced errors",
        ),
    ] {
        let ran = create(&site, global, words)?;
        let expected = format!("soci: {message}\n");
        ensure!(
            ran.code == Some(1) && ran.stderr == expected,
            "{words:?}: {ran:?}"
        );
    }
    Ok(())
}

/// A layer with some gigabytes of zeros as its tar: many identical gzip members.
fn slow_layer() -> Result<Layer> {
    // The size field of a tar header is limited to 8 GiB.
    const CHUNKS: u64 = 120;
    let chunk = Layer::compressed(vec![0; 64 << 20], Compressor::Gzip)?.blob;
    let mut head = write(&[file("zeros", [])]);
    head.truncate(512);
    let size = format!("{:011o}", CHUNKS * (64 << 20));
    head[124..135].copy_from_slice(size.as_bytes());
    head[148..156].fill(b' ');
    let sum: u64 = head.iter().map(|&byte| u64::from(byte)).sum();
    head[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut layer = Layer::compressed(head, Compressor::Gzip)?;
    for _ in 0..CHUNKS {
        layer.blob.extend(&chunk);
    }
    Ok(layer)
}

#[test]
fn an_interrupted_command_leaves_no_lease_and_no_ingest() -> Result<()> {
    let site = Site::oracle_only()?;
    let name = "registry.example/slow:1";
    site.import(name, &[("amd64", &Image::new(vec![slow_layer()?]))])?;
    let before = content(&site)?;
    let temporary = site.folder().join("tmp");
    fs::create_dir(&temporary)?;
    let mut soci = Command::new(binary("soci")?)
        .arg("--address")
        .arg(site.node.containerd_socket())
        .arg("--root")
        .arg(site.folder().join("cli"))
        .args(["create", "--min-layer-size=0", name])
        .env("TMPDIR", &temporary)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let leases = || site.node.ctr(["leases", "ls", "-q"])?.succeed();
    let start = Instant::now();
    while leases()?.trim().is_empty() {
        ensure!(
            start.elapsed() < Duration::from_secs(30),
            "it took no lease"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = soci.id().to_string();
    ensure!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()?
            .success()
    );
    let output = soci.wait()?;
    let stderr = std::io::read_to_string(soci.stderr.take().context("its errors")?)?;
    assert_eq!(
        (output.code(), stderr.as_str()),
        (Some(130), "soci: interrupted\n")
    );
    assert_eq!(leases()?.trim(), "");
    let active = site.node.ctr(["content", "active"])?.succeed()?;
    assert_eq!(active.lines().count(), 1, "{active}");
    for line in content(&site)?.lines() {
        ensure!(before.contains(line), "{line} is new");
    }
    ensure!(is_empty(&temporary)?, "temporary files were left");

    // The same when the timeout expires.
    let late = site
        .node
        .soci(["--timeout", "500ms", "create", "--min-layer-size=0", name])?
        .finish()?;
    let expected = "soci: context deadline exceeded\n";
    ensure!(late.code == Some(1) && late.stderr == expected, "{late:?}");
    assert_eq!(leases()?.trim(), "");
    Ok(())
}

fn is_empty(folder: &Path) -> Result<bool> {
    Ok(fs::read_dir(folder)?.next().is_none())
}
