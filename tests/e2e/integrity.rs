//! Only verified data is served.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use soci_tests::image::{change_ztocs, noise, rename_entry};
use soci_tests::node::SOCI;
use soci_tests::site::NOTHING_BEHIND;
use soci_tests::tar::{directory, file};
use soci_tests::{Image, NodeOptions, Shape, Site, mapped, walk};

const SIZE: usize = 2 << 20;

#[test]
fn corrupted_bytes_of_the_registry_are_never_served() -> Result<()> {
    let site = Site::new(NOTHING_BEHIND)?;
    let content = noise(1, SIZE);
    let image = Image::of(&[&[file("big", &content), file("small", "untouched")]])?;
    let reference = site.publish(&image, "corrupt:1")?;
    let blob = site.registry.blob_file(&image.layers[0].digest())?;
    let good = fs::read(&blob)?;
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 0x10;
    fs::write(&blob, &bad)?;
    site.node.pull(&reference, SOCI)?;
    let view = site.node.view(&reference, SOCI)?;
    let (right, refused) = pages(&view.join("big"), &content)?;
    assert!(refused >= 1, "the changed span is refused");
    assert!(right > 100, "{right} pages of other spans are served");
    let log = site.node.snapshotter_log();
    let told = log
        .lines()
        .any(|line| line.contains(&image.layers[0].digest()[..19]) && line.contains("span"));
    assert!(told, "the log names the layer and the span:\n{log}");
    // Repair the registry: the same pages are downloaded and correct.
    fs::write(&blob, &good)?;
    let start = Instant::now();
    while pages(&view.join("big"), &content)?.1 > 0 {
        ensure!(
            start.elapsed() < Duration::from_secs(30),
            "still refused after the registry was mended"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(fs::read(view.join("small"))?, b"untouched");
    Ok(())
}

#[test]
fn a_ztoc_with_a_wrong_header_is_never_trusted() -> Result<()> {
    // Slow enough that the view exists before all bytes have been downloaded.
    let slow = Shape {
        rate: Some(300_000),
        ..Shape::default()
    };
    let mut site = Site::with(NodeOptions::default(), slow)?;
    let image = Image::of(&[&[
        directory("d"),
        file("d/honest", noise(1, 300_000)),
        file("d/was-harmless", noise(2, 300_000)).mode(0o644),
        file("d/honest-too", noise(3, 300_000)),
    ]])?;
    let converted = site.converted(&image, "lie:1", &[])?;
    change_ztocs(&converted, |ztoc| {
        rename_entry(ztoc, "d/was-harmless", "d/looks-useful")
    })?;
    let reference = site.publish_layout(&converted, "lie:1")?;
    site.node.pull(&reference, SOCI)?;
    let view = site.node.view(&reference, SOCI)?;
    site.relay.limit(100_000_000);
    let check = |folder: &Path| -> Result<()> {
        walk::drop_caches()?;
        assert_eq!(fs::read(folder.join("d/honest"))?, noise(1, 300_000));
        assert_eq!(fs::read(folder.join("d/honest-too"))?, noise(3, 300_000));
        let lie = fs::read(folder.join("d/looks-useful"));
        assert_eq!(
            lie.err().and_then(|error| error.raw_os_error()),
            Some(rustix::io::Errno::IO.raw_os_error())
        );
        Ok(())
    };
    check(view.path())?;
    // When the layer is complete, its mismatch with the index is detected. Existing views keep it.
    let layer = image.layers[0].digest();
    let start = Instant::now();
    while !site
        .node
        .snapshotter_log()
        .contains("the layer does not match its image")
    {
        ensure!(start.elapsed() < Duration::from_secs(30), "no verdict");
        std::thread::sleep(Duration::from_millis(50));
    }
    check(view.path())?;
    let log = site.node.snapshotter_log();
    assert!(
        log.contains("looks-useful") || log.contains("was-harmless"),
        "the log names the file:\n{log}"
    );
    site.node
        .snapshotter()?
        .terminate(Duration::from_secs(10))?;
    site.node.start_snapshotter()?;
    // No new view gets it, not even from the next process.
    let refused = loop {
        let refused = site.node.view(&reference, SOCI).expect_err("it is refused");
        let refused = format!("{refused:#}");
        if refused.contains(&layer) {
            break refused;
        }
        ensure!(start.elapsed() < Duration::from_secs(60), "{refused}");
        std::thread::sleep(Duration::from_millis(200));
    };
    assert!(
        refused.contains("is not what its SOCI index says"),
        "{refused}"
    );
    view.close()
}

#[test]
fn a_map_of_a_last_page_shows_zeros_behind_the_end_of_the_file() -> Result<()> {
    let site = Site::new(NOTHING_BEHIND)?;
    let lengths = [1_usize, 100, 511, 513, 4095, 4097, 70_001];
    let entries: Vec<_> = lengths
        .iter()
        .map(|&length| file(format!("f{length}"), noise(length as u64, length)).padding(0xAA))
        .collect();
    let reference = site.publish(&Image::of(&[&entries])?, "maps:1")?;
    site.node.pull(&reference, SOCI)?;
    let view = site.node.view(&reference, SOCI)?;
    for length in lengths {
        let mut expected = noise(length as u64, length);
        expected.resize(length.next_multiple_of(4096), 0);
        let found = mapped::read(&view.join(format!("f{length}")), expected.len())?;
        assert!(
            found == expected,
            "the last page of the file of {length} bytes"
        );
    }
    Ok(())
}

/// Counts how many pages of a file are correct and how many fail. A wrong page fails the test.
fn pages(path: &Path, content: &[u8]) -> Result<(usize, usize)> {
    walk::drop_caches()?;
    let file = fs::File::open(path)?;
    let (mut right, mut refused) = (0, 0);
    for (number, expected) in content.chunks(4096).enumerate() {
        let mut page = vec![0; expected.len()];
        match file.read_exact_at(&mut page, number as u64 * 4096) {
            Ok(()) => {
                assert!(
                    page == expected,
                    "page {number} was served with wrong bytes"
                );
                right += 1;
            }
            Err(error) => {
                assert_eq!(
                    error.raw_os_error(),
                    Some(rustix::io::Errno::IO.raw_os_error()),
                    "{error}"
                );
                refused += 1;
            }
        }
    }
    Ok((right, refused))
}
