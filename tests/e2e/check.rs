//! `soci-snapshotter-grpc check` on a node, and the settings that it writes for containerd.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use soci_tests::node::{NodeOptions, OVERLAYFS};
use soci_tests::process::Program;
use soci_tests::site::NOTHING_BEHIND;
use soci_tests::tar::file;
use soci_tests::{Image, Site};

const LIMIT: Duration = Duration::from_secs(15);

/// The program's answer and whether it found no problem.
fn checked(site: &Site, arguments: &[&str]) -> Result<(Vec<Value>, bool)> {
    let finished = Program::ours("soci-snapshotter-grpc")?
        .args(site.node.snapshotter_arguments()?)
        .args([Path::new("--address"), &site.node.snapshotter_socket()])
        .args(["check", "--json", "--containerd-config"])
        .args([site.node.folder().join("containerd.toml")])
        .args(arguments)
        .env("SSL_CERT_FILE", site.registry.authority())
        .finish()?;
    let answer: Value = serde_json::from_str(&finished.stdout)
        .with_context(|| format!("{}{}", finished.stdout, finished.stderr))?;
    ensure!(answer["schema_version"] == 1, "{answer}");
    let ok = answer["ok"].as_bool().context("ok")?;
    ensure!(finished.code == Some(i32::from(!ok)), "{finished:?}");
    let rows = answer["rows"].as_array().context("rows")?;
    Ok((rows.clone(), ok))
}

fn row<'a>(rows: &'a [Value], name: &str) -> Result<&'a Value> {
    let mut found = rows.iter().filter(|row| row["name"] == name);
    found
        .next()
        .with_context(|| format!("no row {name}: {rows:#?}"))
}

#[test]
fn a_node_that_serves_pods_is_ready_and_one_without_its_daemon_is_not() -> Result<()> {
    let mut site = Site::for_pods("typo = 1\n")?;
    let image = Image::runnable(&[&[file("hello", "hello\n")]])?;
    let indexed = site.publish(&image, "indexed:1")?;
    let plain = site.publish_plain(&image, "plain:1")?;
    let before = site.node.mounts()?;
    let (rows, ok) = checked(&site, &["--image", &indexed])?;
    ensure!(ok, "{rows:#?}");
    for (name, words) in [
        ("mount", "works, over FUSE and over plain data"),
        ("user namespaces", "ID-mapped mounts work"),
        ("containerd config", "version 3"),
        ("containerd cri", "transfer service"),
        ("socket", "answers after"),
        ("image index", "version 2"),
        ("image ranges", "1024 bytes"),
    ] {
        let row = row(&rows, name)?;
        let found = row["found"].as_str().unwrap_or_default();
        ensure!(row["level"] == "ok" && found.contains(words), "{row}");
    }
    let configuration = row(&rows, "configuration")?;
    ensure!(configuration["level"] == "warning", "{configuration}");
    ensure!(
        configuration["found"]
            .as_str()
            .unwrap_or_default()
            .ends_with("1 unknown key: typo"),
        "{configuration}"
    );
    ensure!(site.node.mounts()? == before, "the probe leaves no mount");
    let (rows, _) = checked(&site, &["--only", "image", "--image", &plain])?;
    ensure!(
        row(&rows, "image index")?["level"] == "warning",
        "{rows:#?}"
    );
    let (rows, ok) = checked(&site, &["--only=image", "--image", &site.reference("no:1")])?;
    ensure!(!ok && rows.len() == 1, "{rows:#?}");
    let mut watch = Program::ours("soci-snapshotter-grpc")?
        .args(["check", "--only", "socket", "--watch", "1s", "--address"])
        .args([site.node.snapshotter_socket()])
        .spawn(&site.folder().join("watch.log"))?;
    watch.wait_until("ok", LIMIT, |log| log.contains("ok       socket"))?;
    site.node.snapshotter()?.kill_all(LIMIT)?;
    let (rows, ok) = checked(&site, &["--only", "socket"])?;
    ensure!(!ok && rows.len() == 1, "{rows:#?}");
    watch.wait_until("alarmed", LIMIT, |log| log.contains("problem  socket"))?;
    ensure!(
        watch.log().matches("socket  ").count() == 2,
        "{}",
        watch.log()
    );
    ensure!(watch.terminate(LIMIT)? == Some(0), "{}", watch.log());
    Ok(())
}

#[test]
fn pods_start_lazily_with_the_settings_that_are_added() -> Result<()> {
    let site = Site::for_pods_with(NodeOptions {
        config: NOTHING_BEHIND.to_owned(),
        fixed: true,
        ..NodeOptions::default()
    })?;
    let image = Image::runnable(&[&[file("hello", "hello\n")]])?;
    let reference = site.publish(&image, "fixed:1")?;
    let cri = site.node.cri()?;
    cri.pull(&reference)?;
    let log = site.node.snapshotter_log();
    let lazy = log.matches("remote snapshot successfully prepared.");
    ensure!(lazy.count() == 2, "{log}");
    let pod = cri.run_pod("fixed")?;
    let container = pod.start("main", &reference, &["/bin/sleep", "3600"])?;
    let said = container.exec(&["/bin/cat", "/hello"])?;
    ensure!(said.stdout == "hello\n", "{said:?}");
    pod.remove()?;
    // containerd's own snapshotter stays usable.
    site.node.pull(&reference, OVERLAYFS)
}

/// What containerd itself makes of a configuration file.
fn dumped(program: &str, config: &Path) -> Result<String> {
    let arguments = [Path::new("--config"), config];
    Program::tool(program)?
        .args(arguments)
        .args(["config", "dump"])
        .succeed()
}

#[test]
fn the_defaults_of_containerd_are_completed_in_a_file_of_their_own() -> Result<()> {
    for (program, wanted) in [
        (
            "containerd-1.7/containerd",
            &[
                "snapshotter = \"soci\"",
                "disable_snapshot_annotations = false",
            ][..],
        ),
        (
            "containerd",
            &[
                "snapshotter = 'soci'",
                "disable_snapshot_annotations = false",
                "enable_remote_snapshot_annotations = 'true'",
            ],
        ),
    ] {
        let folder = tempfile::tempdir()?;
        let config = folder.path().join("config.toml");
        let defaults = Program::tool(program)?
            .args(["config", "default"])
            .succeed()?;
        // A setting in a section that the new file repeats.
        let own = defaults.replace(
            "discard_unpacked_layers = false",
            "discard_unpacked_layers = true",
        );
        ensure!(own != defaults, "{defaults}");
        fs::write(&config, &own)?;
        let check = |argument: &str| {
            Program::ours("soci-snapshotter-grpc")?
                .args([
                    "check",
                    "--only",
                    "containerd",
                    argument,
                    "--containerd-config",
                ])
                .args([&config])
                .finish()
        };
        let fixed = check("--fix")?;
        ensure!(fixed.code == Some(0), "{program}: {}", fixed.stdout);
        let dump = dumped(program, &config)?;
        for line in wanted.iter().chain(&[
            "discard_unpacked_layers = true",
            "/run/soci-snapshotter-grpc/",
        ]) {
            ensure!(dump.contains(line), "{program}: no {line} in\n{dump}");
        }
        ensure!(
            dump.contains("overlayfs"),
            "other users keep their snapshotter: {dump}"
        );
        ensure!(check("--fix")?.stdout.contains("nothing was changed"));
        ensure!(
            check("--undo")?.code == Some(1),
            "the settings are missing again"
        );
        ensure!(fs::read_to_string(&config)? == own);
        ensure!(fs::read_dir(folder.path())?.count() == 1, "nothing is left");
    }
    Ok(())
}
