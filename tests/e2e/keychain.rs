//! Private images of pods, pulled through the daemon's image service as a kubelet does.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use soci_tests::cri::Cri;
use soci_tests::image::{digest, noise};
use soci_tests::registry::LOGIN;
use soci_tests::site::NOTHING_BEHIND;
use soci_tests::tar::{directory, file};
use soci_tests::{Image, Site};

const SIZE: usize = 1 << 20;
const LIMIT: Duration = Duration::from_secs(15);
const KEYCHAIN: &str =
    "[cri_keychain]\nenable_keychain = true\nimage_service_path = \"@containerd@\"\n";

#[test]
fn a_pod_reads_a_private_image_with_the_credentials_of_its_pull() -> Result<()> {
    let mut site = Site::for_pods(&format!("{NOTHING_BEHIND}{KEYCHAIN}"))?;
    let cri = site.node.cri()?;
    // The sandbox image is public.
    let pod = cri.run_pod("private")?;
    let mut entries = vec![directory("d")];
    entries.extend((0..3).map(|n| file(format!("d/f{n}"), noise(n + 1, SIZE))));
    let reference = site.publish(&Image::runnable(&[&entries])?, "private:1")?;
    site.registry.ask_for_password()?;
    let images = Cri::connect(&site.node.snapshotter_socket())?;
    images
        .pull(&reference)
        .expect_err("the registry wants a password");
    ensure!(!images.has(&reference)?, "nothing was pulled");
    images.pull_as(&reference, LOGIN)?;
    ensure!(images.has(&reference)? && cri.has(&reference)?);
    let log = site.node.snapshotter_log();
    // The lower layer is that of the sandbox image.
    let lazy = log.matches("remote snapshot successfully prepared.");
    ensure!(lazy.count() == 1, "the layer is lazy:\n{log}");
    let container = pod.start("main", &reference, &["/bin/sleep", "3600"])?;
    let read = |n: u64| -> Result<()> {
        let path = format!("/d/f{n}");
        let said = container.exec(&["/bin/busybox", "sha256sum", &path])?;
        let want = digest(&noise(n + 1, SIZE));
        let want = want.trim_start_matches("sha256:");
        ensure!(said.stdout.starts_with(want), "{path}: {said:?}");
        Ok(())
    };
    read(0)?;

    // The keychain is empty after a restart. A read waits until the image is pulled again.
    site.node.snapshotter()?.kill_all(LIMIT)?;
    site.node.start_snapshotter()?;
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(1));
        let warned = wait_for_warning(&site, &reference);
        let waits = !reader.is_finished();
        let pulled = warned.and_then(|()| {
            let images = Cri::connect(&site.node.snapshotter_socket())?;
            images.pull_as(&reference, LOGIN)
        });
        reader.join().expect("no panic")?;
        ensure!(waits, "the reader waits for credentials");
        pulled
    })?;
    read(2)?;
    let log = site.node.snapshotter_log();
    ensure!(!log.contains(LOGIN.1), "the password is in the log:\n{log}");
    pod.remove()
}

fn wait_for_warning(site: &Site, reference: &str) -> Result<()> {
    let start = Instant::now();
    loop {
        let log = site.node.snapshotter_log();
        let words = ["there are no credentials for the image", reference];
        if log
            .lines()
            .any(|line| words.iter().all(|word| line.contains(word)))
        {
            return Ok(());
        }
        ensure!(start.elapsed() < LIMIT, "no warning:\n{log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
