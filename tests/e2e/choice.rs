//! How a layer is provided: lazily, whole, or by containerd.

use anyhow::Result;
use soci_tests::image::{Compressor, noise};
use soci_tests::node::{OVERLAYFS, SOCI};
use soci_tests::process::Program;
use soci_tests::tar::{self, directory, file};
use soci_tests::{Image, Layer, Site, walk};

#[test]
fn an_image_whose_layers_the_registry_does_not_give_is_left_to_containerd() -> Result<()> {
    let site = Site::new("")?;
    let image = Image::runnable(&[&[file("hello", "hello\n")]])?;
    let reference = site.publish(&image, "refused:1")?;
    let blob = site.registry.blob_file(&image.layers[0].digest())?;
    let kept = std::fs::read(&blob)?;
    std::fs::remove_file(&blob)?;
    let refused = site
        .node
        .pull(&reference, SOCI)
        .expect_err("a layer is missing");
    let refused = format!("{refused:#}");
    assert!(refused.contains(&image.layers[0].digest()), "{refused}");
    assert!(site.node.snapshotter_log().contains("refuses its layers"));
    // Repair the registry.
    std::fs::write(&blob, kept)?;
    site.node.pull(&reference, SOCI)?;
    let said = site
        .node
        .run(&reference, SOCI, "one", &["/bin/cat", "/hello"])?;
    assert_eq!(said.stdout, "hello\n", "{}", said.stderr);
    Ok(())
}

#[test]
fn an_image_without_an_index_is_left_to_containerd_on_request() -> Result<()> {
    let site = Site::new("[pull_modes.parallel_pull_unpack]\nenable = false\n")?;
    let image = Image::runnable(&[&[file("plain", "as always\n")]])?;
    let reference = site.publish_plain(&image, "plain:1")?;
    site.node.pull(&reference, SOCI)?;
    let said = site
        .node
        .run(&reference, SOCI, "one", &["/bin/cat", "/plain"])?;
    assert_eq!(said.stdout, "as always\n", "{}", said.stderr);
    let log = site.node.snapshotter_log();
    assert!(log.contains("\"defer-snapshot-runtime\":\"true\""), "{log}");
    let mounts = site.node.mounts()?;
    assert!(
        !mounts.iter().any(|line| line.contains(" - erofs ")),
        "{mounts:#?}"
    );
    Ok(())
}

#[test]
fn a_strict_node_fails_the_pull_and_says_why() -> Result<()> {
    let site = Site::new("[snapshotter]\nstrict = true\n")?;
    let image = Image::runnable(&[&[file("hello", "hello\n")]])?;
    let reference = site.publish(&image, "refused:1")?;
    let blob = site.registry.blob_file(&image.layers[0].digest())?;
    let kept = std::fs::read(&blob)?;
    std::fs::remove_file(&blob)?;
    let status = || -> Result<String> {
        let socket = site.node.snapshotter_socket();
        let socket = socket.with_file_name("status.sock");
        let words = ["status".as_ref(), "--socket".as_ref(), socket.as_os_str()];
        Program::ours("soci")?.args(words).succeed()
    };
    let refused = site
        .node
        .pull(&reference, SOCI)
        .expect_err("it cannot be lazy");
    let refused = format!("{refused:#}");
    assert!(
        refused.contains("[snapshotter] strict") && refused.contains("refuses its layers"),
        "{refused}"
    );
    let said = status()?;
    assert!(
        said.contains(&reference) && said.contains("refused"),
        "{said}"
    );
    // Before its lowest layer, which both images have, is lazy.
    let plain = Image::runnable(&[&[file("plain", "as always\n")]])?;
    let plain = site.publish_plain(&plain, "plain:1")?;
    site.node.pull(&plain, SOCI)?;
    // Repair the registry.
    std::fs::write(&blob, kept)?;
    site.node.pull(&reference, SOCI)?;
    let said = status()?;
    let verdict = |reference: &str| {
        let line = said.lines().find(|line| line.starts_with(reference));
        let words = line.map(|line| line.split_whitespace().collect::<Vec<_>>());
        words.map(|words| words[1..4].join(" "))
    };
    assert_eq!(
        verdict(&reference).as_deref(),
        Some("default lazy index"),
        "{said}"
    );
    assert_eq!(
        verdict(&plain).as_deref(),
        Some("default parallel no_index"),
        "{said}"
    );
    Ok(())
}

#[test]
fn a_layer_without_a_ztoc_is_pulled_whole_and_is_the_same_tree() -> Result<()> {
    let start = walk::now();
    let site = Site::new("")?;
    let small: &[_] = &[
        directory("d"),
        file("d/small", "below the limit").mode(0o600),
        file("e", ""),
    ];
    let image = Image::of(&[
        &[file("big", noise(1, 3 << 20)), directory("d").mode(0o700)],
        small,
    ])?;
    let arguments = ["--min-layer-size", "1000000", "--span-size", "65536"];
    let reference = site.publish_with(&image, "sparse:1", &arguments)?;
    site.node.pull(&reference, SOCI)?;
    let log = site.node.snapshotter_log();
    assert_eq!(
        log.matches("remote snapshot successfully prepared.")
            .count(),
        1,
        "{log}"
    );
    assert_eq!(
        log.matches("local snapshot successfully prepared").count(),
        1,
        "{log}"
    );
    assert!(!log.contains("defer-snapshot-runtime"), "{log}");
    site.node.pull(&reference, OVERLAYFS)?;
    let views = (
        site.node.view(&reference, OVERLAYFS)?,
        site.node.view(&reference, SOCI)?,
    );
    let different = walk::differences(views.0.path(), views.1.path(), start)?;
    assert!(different.is_empty(), "{different:#?}");
    Ok(())
}

#[test]
fn every_compression_that_containerd_unpacks_gives_the_same_tree() -> Result<()> {
    let start = walk::now();
    let site = Site::new("")?;
    for (name, compressor) in [
        ("gzip", Compressor::Gzip),
        ("pigz", Compressor::Pigz),
        ("none", Compressor::None),
    ] {
        let entries = [
            directory(name),
            file("noise", noise(7, 500_000)),
            file("zeros", vec![0; 700_000]),
        ];
        let image = Image::new(vec![Layer::compressed(tar::write(&entries), compressor)?]);
        let reference = site.publish(&image, &format!("{name}:1"))?;
        site.node.pull(&reference, SOCI)?;
        site.node.pull(&reference, OVERLAYFS)?;
        let views = (
            site.node.view(&reference, OVERLAYFS)?,
            site.node.view(&reference, SOCI)?,
        );
        let different = walk::differences(views.0.path(), views.1.path(), start)?;
        assert!(different.is_empty(), "{name}: {different:#?}");
    }
    let log = site.node.snapshotter_log();
    assert_eq!(
        log.matches("remote snapshot successfully prepared.")
            .count(),
        3,
        "{log}"
    );
    Ok(())
}
