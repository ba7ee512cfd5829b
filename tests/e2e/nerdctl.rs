//! The exact commands that nerdctl and Finch run, with output read as nerdctl does: standard output
//! by lines until its end, and only then standard error, from pipes of 64 KiB.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use soci_tests::image::{Layer, noise};
use soci_tests::process::binary;
use soci_tests::tar::{file, hardlink, write};
use soci_tests::{Image, Site};

/// Longest line that nerdctl can read, in bytes.
const MAX_LINE: usize = 64 << 10;

/// nerdctl does not pass the state directory, so mount the test's own directory, `$0`, at its
/// default location.
const AT_HOME: &str = "mount -t tmpfs tmpfs /var/lib && mkdir /var/lib/soci-snapshotter-grpc && \
     mount --bind \"$0\" /var/lib/soci-snapshotter-grpc && exec \"$@\"";

/// The lines of standard output, and all of standard error. The exit code must be 0.
fn run(site: &Site, command: &[&str]) -> Result<(Vec<String>, String)> {
    let state = site.folder().join("state");
    std::fs::create_dir_all(&state)?;
    let mut soci = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", AT_HOME])
        .args([state, binary("soci")?])
        .arg("--address")
        .arg(site.node.containerd_socket())
        .args(["--namespace", "default"])
        .args(command)
        .env("HOME", site.folder())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut lines = Vec::new();
    for line in BufReader::new(soci.stdout.take().context("stdout")?).lines() {
        let line = line?;
        ensure!(line.len() < MAX_LINE, "a line of {} bytes", line.len());
        lines.push(line);
    }
    let mut stderr = String::new();
    soci.stderr
        .take()
        .context("stderr")?
        .read_to_string(&mut stderr)?;
    let status = soci.wait()?;
    ensure!(status.success(), "{status}: {lines:?} {stderr}");
    Ok((lines, stderr))
}

fn layer(seed: u64) -> Result<Layer> {
    Layer::of(&[file("data", noise(seed, 200_000))])
}

#[test]
fn image_convert_and_push_run_as_nerdctl_calls_them() -> Result<()> {
    let site = &Site::oracle_only()?;
    let (source, converted) = ("registry.example/app:1", "registry.example/app:1-soci");
    let images = [Image::new(vec![layer(1)?]), Image::new(vec![layer(2)?])];
    site.import(source, &[("amd64", &images[0]), ("arm64", &images[1])])?;
    let sizes = ["--span-size", "2097152", "--min-layer-size", "1000"];
    for platforms in [
        &["--platform", "linux/amd64", "--platform", "linux/arm64"][..],
        &["--all-platforms"],
    ] {
        let convert = [&["convert"], platforms, &sizes, &[source, converted]].concat();
        let (lines, stderr) = run(site, &convert)?;
        ensure!(lines.len() == 2 && stderr.is_empty(), "{lines:?} {stderr}");
        let create = [&["create"], platforms, &sizes, &[source]].concat();
        let (lines, stderr) = run(site, &create)?;
        ensure!(lines.len() == 2 && stderr.is_empty(), "{lines:?} {stderr}");
    }
    // What nerdctl and Finch's tests look for afterwards.
    let listed = site.node.ctr(["images", "ls", "-q"])?.succeed()?;
    ensure!(listed.lines().any(|line| line == converted), "{listed}");
    let (lines, _) = run(site, &["index", "list"])?;
    for name in [source, converted] {
        let is_named = |line: &String| line.split_whitespace().any(|word| word == name);
        ensure!(lines.iter().any(is_named), "{name} is not in {lines:?}");
    }
    Ok(())
}

#[test]
fn a_flood_of_warnings_does_not_fill_the_pipe() -> Result<()> {
    let site = Site::oracle_only()?;
    let name = "registry.example/odd:1";
    // Hard links with a size, which cause only warnings, with names of the maximum length.
    let layers = (0..20).map(|number| {
        let long = format!("{number}/{}", "n".repeat(3000));
        let links: Vec<_> = (0..20)
            .map(|it| hardlink(format!("{long}{it}"), "data"))
            .collect();
        let mut entries = vec![file("data", "content")];
        entries.extend(links);
        let mut tar = write(&entries);
        state_sizes(&mut tar);
        Layer::compressed(tar, soci_tests::image::Compressor::None)
    });
    site.import(
        name,
        &[("amd64", &Image::new(layers.collect::<Result<_>>()?))],
    )?;
    let create = ["create", "--min-layer-size", "0", name];
    let (lines, stderr) = run(&site, &create)?;
    assert_eq!(lines.len(), 20);
    ensure!(stderr.contains("states a size of 1 bytes"), "{stderr}");
    ensure!(stderr.contains("more warnings are not shown"), "{stderr}");
    ensure!(stderr.len() < 60_000, "{} bytes", stderr.len());
    Ok(())
}

/// Sets the size of every hard link in an archive to one byte.
fn state_sizes(tar: &mut [u8]) {
    for header in tar.chunks_exact_mut(512) {
        if &header[257..262] == b"ustar" && header[156] == b'1' {
            header[124..136].copy_from_slice(b"00000000001\0");
            header[148..156].fill(b' ');
            let sum: u64 = header.iter().map(|&byte| u64::from(byte)).sum();
            header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
    }
}
