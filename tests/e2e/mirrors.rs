//! One `hosts.toml` for containerd and the daemon: a mirror with an authority of its own.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use soci_tests::image::noise;
use soci_tests::node::SOCI;
use soci_tests::registry::{HOST, TlsRegistry};
use soci_tests::tar::file;
use soci_tests::{Image, Site};

/// Writes the settings of the site's registry: a mirror and its authority. Nothing else trusts it.
fn name_mirror(site: &Site, hosts: &Path, mirror: &TlsRegistry) -> Result<()> {
    let own = hosts.join(format!("{HOST}_{}_", site.relay.address().port()));
    fs::create_dir_all(&own)?;
    fs::copy(mirror.authority(), own.join("ca.pem"))?;
    let address = mirror.reference("");
    let address = address.trim_end_matches('/');
    let text = format!(
        "[host.\"https://{address}\"]\ncapabilities = [\"pull\", \"resolve\"]\nca = \"ca.pem\"\n"
    );
    Ok(fs::write(own.join("hosts.toml"), text)?)
}

#[test]
fn an_image_runs_lazily_from_a_mirror_while_its_registry_is_down() -> Result<()> {
    let hosts = tempfile::tempdir()?;
    let folder = hosts.path().to_str().context("test paths are text")?;
    let site = Site::new(&format!("[registry]\nconfig_path = \"{folder}\"\n"))?;
    let mirror = TlsRegistry::start(&site.folder().join("mirror"))?;
    name_mirror(&site, hosts.path(), &mirror)?;
    let image = Image::runnable(&[&[file("hello", noise(3, 1 << 20))]])?;
    mirror.push(&site.converted(&image, "app:1", &[])?, "app:1")?;
    let reference = site.reference("app:1");
    site.relay.cut();

    let pull = [
        "images",
        "pull",
        "--snapshotter",
        SOCI,
        "--hosts-dir",
        folder,
    ];
    site.node.ctr(pull)?.args([&reference]).succeed()?;
    let said = site
        .node
        .run(&reference, SOCI, "one", &["/bin/sh", "-c", "wc -c </hello"])?;
    assert_eq!(said.stdout.trim(), (1 << 20).to_string(), "{}", said.stderr);
    let view = site.node.view(&reference, SOCI)?;
    ensure!(fs::read(view.join("hello"))? == noise(3, 1 << 20));
    let log = site.node.snapshotter_log();
    ensure!(
        log.contains("remote snapshot successfully prepared."),
        "{log}"
    );
    ensure!(!log.contains("deferring to container runtime"), "{log}");
    Ok(())
}
