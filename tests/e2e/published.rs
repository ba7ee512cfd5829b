//! Configurations that published guides and machine images have: the daemon takes their settings,
//! and an image runs.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use soci_tests::image::noise;
use soci_tests::node::SOCI;
use soci_tests::process::{Program, repository};
use soci_tests::tar::file;
use soci_tests::{Image, Site};

const LAZY: &str = "remote snapshot successfully prepared.";
const WHOLE: &str = "preparing snapshot with parallel pull/unpack";
/// Programs that decompress gzip, as configured.
const PROGRAMS: [&str; 2] = ["/usr/bin/unpigz", "/usr/bin/soci-gunzip"];

/// Starts a daemon with this configuration, whose containerd and programs are those of this
/// machine, and runs an image that has an index. Checks the settings in effect and what is logged.
fn runs(path: &str, dumped: &[&str], logged: &[&str]) -> Result<()> {
    let folder = tempfile::tempdir()?;
    // On some machines it is a link, to one of several programs.
    let program = folder.path().join("gunzip");
    symlink("/usr/bin/unpigz", &program)?;
    let text = fs::read_to_string(repository().join(path)).with_context(|| path.to_owned())?;
    let mut text = text.replace("/run/containerd/containerd.sock", "@containerd@");
    for configured in PROGRAMS {
        text = text.replace(configured, program.to_str().context("text")?);
    }
    let site = Site::new(&text)?;
    let dump = Program::ours("soci-snapshotter-grpc")?
        .args([Path::new("--config"), &site.node.folder().join("soci.toml")])
        .args(["config", "dump"])
        .succeed()?;
    for line in dumped {
        ensure!(dump.contains(line), "{path}: no {line} in\n{dump}");
    }
    let image = Image::runnable(&[&[file("hello", "hello\n"), file("big", noise(9, 1 << 20))]])?;
    let reference = site.publish(&image, "published:1")?;
    site.node.pull(&reference, SOCI)?;
    let said = site
        .node
        .run(&reference, SOCI, "published", &["/bin/cat", "/hello"])?;
    ensure!(said.stdout == "hello\n", "{path}: {}", said.stderr);
    let log = site.node.snapshotter_log();
    for words in logged {
        ensure!(log.contains(words), "{path}: no {words} in\n{log}");
    }
    let fails = ["deferring to container runtime", "\"level\":\"error\""];
    for words in fails {
        ensure!(!log.contains(words), "{path}: {words} in\n{log}");
    }
    Ok(())
}

fn fixture(name: &str) -> String {
    format!("tests/fixtures/configurations/{name}.toml")
}

#[test]
fn the_configuration_of_the_reference_runs() -> Result<()> {
    let path = "crates/snapshotter/src/config/tests/default.toml";
    runs(path, &["type = 'soci'"], &[LAZY])
}

#[test]
fn the_configuration_of_al2023_runs() -> Result<()> {
    runs(
        &fixture("al2023"),
        &[
            "max_concurrent_downloads_per_image = 20",
            "concurrent_download_chunk_size = '16mb'",
            "max_concurrent_unpacks_per_image = 12",
            "enable_keychain = true",
        ],
        &[WHOLE],
    )
}

#[test]
fn the_configuration_of_bottlerocket_runs() -> Result<()> {
    runs(
        &fixture("bottlerocket"),
        &[
            "https://mirror.example:5000",
            "discard_unpacked_layers = false",
        ],
        &[WHOLE, "unknown keys"],
    )
}

#[test]
fn the_configuration_of_guides_for_eks_runs() -> Result<()> {
    runs(
        &fixture("eks-guide"),
        &[
            "concurrent_download_chunk_size = '16mb'",
            "discard_unpacked_layers = true",
        ],
        &[WHOLE],
    )
}

#[test]
fn the_configuration_of_the_deep_learning_ami_runs() -> Result<()> {
    runs(
        &fixture("deep-learning-ami"),
        &[
            "max_concurrent_downloads = 50",
            "max_concurrent_unpacks = 20",
            "max_concurrent_unpacks_per_image = 1",
        ],
        &[WHOLE],
    )
}

#[test]
fn the_limits_of_parallel_pulls_may_stand_under_blob() -> Result<()> {
    runs(
        &fixture("limits-under-blob"),
        &[
            "max_concurrent_downloads_per_image = 20",
            "concurrent_download_chunk_size = '16mb'",
            "max_concurrent_unpacks_per_image = 12",
        ],
        &[LAZY, "under [blob]"],
    )
}
