//! Convert, push, pull, run, read, and remove everything again.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use soci_tests::image::noise;
use soci_tests::node::{OVERLAYFS, SOCI};
use soci_tests::site::NOTHING_BEHIND;
use soci_tests::tar::{directory, file, symlink, whiteout};
use soci_tests::{Image, NodeOptions, Shape, Site};

const MEGABYTE: usize = 1 << 20;

#[test]
fn a_converted_image_runs_before_it_is_downloaded() -> Result<()> {
    let site = Site::new(NOTHING_BEHIND)?;
    let image = Image::runnable(&[
        &[
            directory("data"),
            file("data/big", noise(1, 8 * MEGABYTE)),
            file("data/small", "small\n"),
        ],
        &[
            file("data/small", "smaller\n"),
            symlink("link", "data/small"),
        ],
    ])?;
    let spans = ["--min-layer-size", "0", "--span-size", "1048576"];
    let reference = site.publish_with(&image, "lazy:1", &spans)?;
    site.node.pull(&reference, SOCI)?;
    let prepared = site
        .node
        .snapshotter_log()
        .matches("remote snapshot successfully prepared.")
        .count();
    assert_eq!(prepared, 3, "every layer is lazy");
    let said = site
        .node
        .run(&reference, SOCI, "one", &["/bin/cat", "/link"])?;
    assert_eq!(said.stdout, "smaller\n", "{}", said.stderr);
    let delivered = site.relay.delivered();
    assert!(
        delivered < 4 << 20,
        "{delivered} bytes came, and nobody has read the big file"
    );
    Ok(())
}

/// The registry does not list referrers, so the list is under the tag of the manifest's digest.
#[test]
fn an_image_with_an_index_beside_it_runs_before_it_is_downloaded() -> Result<()> {
    let site = Site::new(&format!(
        "{NOTHING_BEHIND}[pull_modes.soci_v1]\nenable = true\n"
    ))?;
    let big = file("data/big", noise(3, 8 * MEGABYTE));
    let image = Image::runnable(&[&[directory("data"), big, file("data/small", "small\n")]])?;
    let reference = site.publish_plain(&image, "beside:1")?;
    let create = ["create", "--standalone", "--min-layer-size", "0"];
    site.node
        .soci(create)?
        .env("SSL_CERT_FILE", site.registry.authority())
        .args(["--span-size", "1048576", &format!("docker://{reference}")])
        .succeed()?;
    let before = site.relay.delivered();
    site.node.pull(&reference, SOCI)?;
    let said = site
        .node
        .run(&reference, SOCI, "one", &["/bin/cat", "/data/small"])?;
    assert_eq!(said.stdout, "small\n", "{}", said.stderr);
    let log = site.node.snapshotter_log();
    assert!(log.contains("among the referrers of the manifest"), "{log}");
    let delivered = site.relay.delivered() - before;
    assert!(delivered < 4 << 20, "{delivered} bytes came");
    Ok(())
}

#[test]
fn a_container_writes_over_lazy_layers_as_over_any_others() -> Result<()> {
    let site = Site::new(NOTHING_BEHIND)?;
    let image = Image::runnable(&[&[
        directory("d"),
        file("d/change", noise(2, 300_000)),
        file("d/remove", "gone soon"),
        file("d/keep", "kept\n"),
    ]])?;
    let reference = site.publish(&image, "write:1")?;
    site.node.pull(&reference, SOCI)?;
    let script = "echo more >> /d/change && rm /d/remove && echo new > /d/new && ls /d && cat /d/keep && \
                  stat -c %s /d/change";
    let said = site
        .node
        .run(&reference, SOCI, "writer", &["/bin/sh", "-c", script])?;
    assert_eq!(
        said.stdout, "change\nkeep\nnew\nkept\n300005\n",
        "{}",
        said.stderr
    );
    let again = site
        .node
        .run(&reference, SOCI, "reader", &["/bin/ls", "/d"])?;
    assert_eq!(
        again.stdout, "change\nkeep\nremove\n",
        "the layers themselves are as they were: {}",
        again.stderr
    );
    Ok(())
}

#[test]
fn two_containers_of_one_image_run_at_once() -> Result<()> {
    let site = Site::new("")?;
    let image = Image::runnable(&[&[file("shared", noise(3, 2 * MEGABYTE))]])?;
    let reference = site.publish(&image, "twice:1")?;
    site.node.pull(&reference, SOCI)?;
    let script = "md5sum /shared; sleep 1; echo done";
    let (node, reference) = (&site.node, &reference);
    let said: Vec<_> = std::thread::scope(|scope| {
        let runs: Vec<_> = ["left", "right"]
            .into_iter()
            .map(|id| {
                scope.spawn(move || node.run(reference, SOCI, id, &["/bin/sh", "-c", script]))
            })
            .collect();
        runs.into_iter()
            .map(|run| run.join().expect("no panic"))
            .collect::<Result<_>>()
    })?;
    assert_eq!(said[0].stdout, said[1].stdout, "{said:?}");
    assert!(said[0].stdout.ends_with("done\n"), "{said:?}");
    Ok(())
}

#[test]
fn a_layer_that_an_image_contains_twice_is_mounted_twice() -> Result<()> {
    let mut site = Site::new(NOTHING_BEHIND)?;
    let image = Image::runnable(&[&[], &[file("between", "both\n")], &[]])?;
    let reference = site.publish(&image, "repeated:1")?;
    site.node.pull(&reference, SOCI)?;
    let read = |site: &Site, id| {
        site.node
            .run(&reference, SOCI, id, &["/bin/cat", "/between"])
    };
    let said = read(&site, "first")?;
    assert_eq!(said.stdout, "both\n", "{}", said.stderr);
    site.node.snapshotter()?.kill(Duration::from_secs(10))?;
    site.node.start_snapshotter()?;
    site.view_when_connected(&reference)?.close()?;
    let said = read(&site, "second")?;
    assert_eq!(said.stdout, "both\n", "after a restart: {}", said.stderr);
    Ok(())
}

#[test]
fn removing_an_image_frees_its_space_and_mounts() -> Result<()> {
    let site = Site::new("")?;
    let image = Image::runnable(&[&[file("big", noise(4, 8 * MEGABYTE))], &[whiteout("big")]])?;
    let reference = site.publish(&image, "removed:1")?;
    site.node.pull(&reference, SOCI)?;
    let said = site.node.run(&reference, SOCI, "user", &["/bin/true"])?;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let view = site.node.view(&reference, SOCI)?;
    assert!(!view.join("big").exists());
    view.close()?;
    // The node's FUSE mount stays, but layers are unmounted.
    let layers = || {
        Ok::<_, anyhow::Error>(
            site.node
                .mounts()?
                .iter()
                .filter(|line| line.contains(" - erofs "))
                .count(),
        )
    };
    assert!(layers()? >= 3, "{:?}", site.node.mounts()?);
    site.node.remove_image(&reference)?;
    let start = Instant::now();
    while layers()? > 0 || allocated(site.node.root())? > 4 << 20 {
        ensure!(
            start.elapsed() < Duration::from_secs(20),
            "still {} bytes and {:#?}\n{}",
            allocated(site.node.root())?,
            site.node.mounts()?,
            soci_tests::Program::at(Path::new("find"))
                .args([site.node.root()])
                .args(["-xdev", "-size", "+20k", "-ls"])
                .succeed()?
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    // It can be pulled again.
    site.node.pull(&reference, SOCI)?;
    let said = site.node.run(&reference, SOCI, "again", &["/bin/true"])?;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    Ok(())
}

#[test]
fn two_images_that_share_a_layer_share_its_bytes() -> Result<()> {
    let site = Site::new(NOTHING_BEHIND)?;
    let shared = noise(5, 2 * MEGABYTE);
    let one = Image::runnable(&[&[file("shared", &shared)], &[file("own", "one")]])?;
    let two = Image::runnable(&[&[file("shared", &shared)], &[file("own", "two")]])?;
    let (one, two) = (site.publish(&one, "one:1")?, site.publish(&two, "two:1")?);
    site.node.pull(&one, SOCI)?;
    let view = site.node.view(&one, SOCI)?;
    assert_eq!(std::fs::read(view.join("shared"))?, shared);
    site.node.pull(&two, SOCI)?;
    let before = site.relay.delivered();
    let view = site.node.view(&two, SOCI)?;
    assert_eq!(std::fs::read(view.join("shared"))?, shared);
    assert!(
        site.relay.delivered() - before < MEGABYTE as u64,
        "the shared layer did not come twice"
    );
    Ok(())
}

/// Disk usage of the files below a directory. Files that disappear during the walk are not counted.
fn allocated(folder: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let device = std::fs::metadata(folder)?.dev();
    let (mut sum, mut folders) = (0, vec![folder.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.flatten() {
            match entry.path().symlink_metadata() {
                Ok(meta) if meta.dev() != device => {}
                Ok(meta) if meta.is_dir() => folders.push(entry.path()),
                Ok(meta) => sum += meta.blocks() * 512,
                Err(_) => {}
            }
        }
    }
    Ok(sum)
}

#[test]
fn a_container_in_a_user_namespace_has_the_owners_of_the_image() -> Result<()> {
    for remaps in [true, false] {
        let options = NodeOptions {
            remaps,
            ..NodeOptions::default()
        };
        let site = Site::with(options, Shape::default())?;
        let owned = file("data/owned", "by another\n").owner(5, 7);
        let image = Image::runnable(&[
            &[directory("data"), file("data/file", "by root\n")],
            &[owned],
        ])?;
        let reference = site.publish(&image, "owners:1")?;
        let run = |snapshotter: &str, id: &str| -> Result<String> {
            site.node.pull(&reference, snapshotter)?;
            let map = "0:100000:65536";
            let words = [
                "run",
                "--rm",
                "--snapshotter",
                snapshotter,
                "--uidmap",
                map,
                "--gidmap",
                map,
                "--remap-labels",
                &reference,
                id,
                "/bin/sh",
                "-c",
                "cat /data/file && stat -c '%u:%g %n' /data /data/file /data/owned && echo new >/data/new && stat -c '%u:%g %n' /data/new",
            ];
            site.node.ctr(words)?.succeed()
        };
        let expected = run(OVERLAYFS, &format!("theirs-{remaps}"))?;
        ensure!(expected.contains("by root"), "{expected}");
        let found = run(SOCI, &format!("ours-{remaps}"))?;
        ensure!(found == expected, "{found}\nnot\n{expected}");
    }
    Ok(())
}
