//! The loop devices of layers: they leave the daemon when a layer is complete, and the machine when
//! it is removed.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use soci_tests::image::{digest, noise};
use soci_tests::node::SOCI;
use soci_tests::site::NOTHING_BEHIND;
use soci_tests::tar::{directory, file};
use soci_tests::{Image, Program, Site, View, loops, walk};

const SIZE: usize = 2 << 20;
const LIMIT: Duration = Duration::from_secs(15);
/// Time limit for operations that must not wait.
const AT_ONCE: Duration = Duration::from_secs(5);

fn image() -> Result<Image> {
    let mut entries = vec![directory("d")];
    entries.extend((0..4).map(|n| file(format!("d/f{n}"), noise(n + 1, SIZE))));
    Image::runnable(&[&entries])
}

/// Waits until a condition becomes true.
fn until(what: &str, limit: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !holds()? {
        ensure!(start.elapsed() < limit, "not {what} within {limit:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Files below a directory that any process has open.
fn open_below(folder: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for process in fs::read_dir("/proc")?.flatten() {
        // Entries that are not processes have no such directory, and a process may end in the
        // meantime.
        let Ok(files) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        for file in files.flatten() {
            if let Ok(target) = fs::read_link(file.path())
                && target.starts_with(folder)
            {
                found.push(format!("{} {}", file.path().display(), target.display()));
            }
        }
    }
    Ok(found)
}

#[test]
fn a_running_container_is_free_of_the_daemon_when_its_layers_are_complete() -> Result<()> {
    let mut site = Site::for_pods("")?;
    let reference = site.publish(&image()?, "freed:1")?;
    site.node.pull(&reference, SOCI)?;
    let cri = site.node.cri()?;
    let pod = cri.run_pod("freed")?;
    let container = pod.start("main", &reference, &["/bin/sleep", "3600"])?;
    let root = site.node.root_of(container.id())?;
    let open = File::open(root.join("d/f1"))?;
    site.node.wait_complete(2)?;
    let served = site.node.served()?;
    until("free", AT_ONCE, || {
        let devices = loops::below(&served)?;
        Ok(devices.is_empty() && open_below(&served)?.is_empty())
    })?;
    let devices = loops::below(site.node.root())?;
    ensure!(
        devices.len() >= 4,
        "meta and data of two layers: {devices:#?}"
    );

    site.node.snapshotter()?.kill_all(LIMIT)?;
    site.relay.cut();
    walk::drop_caches()?;
    let mut content = vec![0; SIZE];
    open.read_exact_at(&mut content, 0)?;
    ensure!(content == noise(2, SIZE), "through a file opened before");
    for n in 0..4 {
        let said = container.exec(&["/bin/busybox", "sha256sum", &format!("/d/f{n}")])?;
        let want = digest(&noise(n + 1, SIZE));
        let sum = said.stdout.split(' ').next().unwrap_or_default();
        ensure!(!sum.is_empty() && want.ends_with(sum), "f{n}: {said:?}");
    }
    // The next daemon starts with the remaining devices, without the registry.
    site.node.start_snapshotter()?;
    walk::drop_caches()?;
    let view = site.view_when_connected(&reference)?;
    ensure!(fs::read(view.join("d/f3"))? == noise(4, SIZE));
    view.close()?;
    pod.remove()
}

#[test]
fn a_removed_image_leaves_no_device() -> Result<()> {
    let site = Site::new("")?;
    let reference = site.publish(&image()?, "gone:1")?;
    site.node.pull(&reference, SOCI)?;
    let view = site.node.view(&reference, SOCI)?;
    ensure!(fs::read(view.join("d/f0"))? == noise(1, SIZE));
    ensure!(!loops::below(site.node.root())?.is_empty());
    view.close()?;
    site.node.remove_image(&reference)?;
    let left = || loops::below(site.node.root());
    until("without devices", AT_ONCE, || Ok(left()?.is_empty()))
        .with_context(|| format!("{:#?}", left()))
}

/// A view of an image, and a process that waits for a file in it while the registry is down.
fn waiting(name: &str) -> Result<(Site, String, View, Child)> {
    let site = Site::new(NOTHING_BEHIND)?;
    let reference = site.publish(&image()?, name)?;
    site.node.pull(&reference, SOCI)?;
    let view = site.node.view(&reference, SOCI)?;
    site.relay.cut();
    let mut reader = Command::new("cat")
        .arg(view.join("d/f2"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start cat")?;
    let stat = format!("/proc/{}/stat", reader.id());
    until("waiting", AT_ONCE, || {
        ensure!(reader.try_wait()?.is_none(), "it has ended");
        Ok(fs::read_to_string(&stat)?.contains(") D "))
    })?;
    Ok((site, reference, view, reader))
}

/// Removes the image while its registry is down. Nothing may remain, and a sync must not block.
fn assert_removed_at_once(site: &Site, reference: &str) -> Result<()> {
    site.within(AT_ONCE, "the removal", || site.node.remove_image(reference))?;
    site.within(AT_ONCE, "sync", || {
        let folder = site.node.root();
        Program::at(Path::new("sync"))
            .args(["-f".as_ref(), folder.as_os_str()])
            .succeed()
    })?;
    let left = || loops::below(site.node.root());
    until("without devices", AT_ONCE, || Ok(left()?.is_empty()))
        .with_context(|| format!("{:#?}\n{}", left(), site.node.snapshotter_log()))
}

#[test]
fn an_image_whose_reader_was_killed_is_removed_at_once_while_its_registry_is_down() -> Result<()> {
    let (site, reference, view, mut reader) = waiting("killed-reader:1")?;
    reader.kill()?;
    until("ended", AT_ONCE, || Ok(reader.try_wait()?.is_some()))?;
    site.within(AT_ONCE, "unmounting the view", || view.close())?;
    assert_removed_at_once(&site, &reference)
}

#[test]
fn an_image_is_removed_at_once_while_a_reader_waits_for_a_registry_that_is_down() -> Result<()> {
    let (site, reference, view, mut reader) = waiting("live-reader:1")?;
    // Its snapshot is removed, and the reader keeps what it has open.
    site.within(AT_ONCE, "detaching the view", || {
        rustix::mount::unmount(view.path(), rustix::mount::UnmountFlags::DETACH)?;
        view.close()
    })?;
    site.within(AT_ONCE, "the removal", || {
        site.node.remove_image(&reference)
    })?;
    site.within(AT_ONCE, "the reader", || {
        until("answered", 2 * AT_ONCE, || Ok(reader.try_wait()?.is_some()))
    })?;
    let left = || loops::below(site.node.root());
    until("without devices", AT_ONCE, || Ok(left()?.is_empty()))
        .with_context(|| format!("{:#?}\n{}", left(), site.node.snapshotter_log()))
}
