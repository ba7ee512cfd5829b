//! The registry becomes unreachable, temporarily or permanently.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use soci_tests::image::noise;
use soci_tests::node::SOCI;
use soci_tests::registry::HOST;
use soci_tests::relay::{Relay, Shape};
use soci_tests::site::NOTHING_BEHIND;
use soci_tests::tar::{directory, file};
use soci_tests::{Image, NodeOptions, Site, View};

const SIZE: usize = 2 << 20;

fn pulled(config: &str) -> Result<(Site, View)> {
    let site = Site::new(&format!("{NOTHING_BEHIND}{config}"))?;
    let image = Image::of(&[&[
        directory("d"),
        file("d/first", noise(1, SIZE)),
        file("d/second", noise(2, SIZE)),
        file("d/third", noise(3, SIZE)),
    ]])?;
    let reference = site.publish(&image, "outage:1")?;
    site.node.pull(&reference, SOCI)?;
    let view = site.node.view(&reference, SOCI)?;
    Ok((site, view))
}

#[test]
fn reads_wait_while_the_registry_is_down_and_go_on_when_it_is_back() -> Result<()> {
    let (site, view) = pulled("")?;
    assert_eq!(fs::read(view.join("d/first"))?, noise(1, SIZE));
    site.relay.cut();
    // Present data, names and attributes need no registry.
    assert_eq!(fs::read(view.join("d/first"))?, noise(1, SIZE));
    assert_eq!(fs::metadata(view.join("d/third"))?.len(), SIZE as u64);
    let path = view.join("d/second");
    let reader = std::thread::spawn(move || fs::read(path));
    std::thread::sleep(Duration::from_secs(3));
    assert!(!reader.is_finished(), "a read of missing bytes waits");
    site.relay.restore();
    assert_eq!(reader.join().expect("no panic")?, noise(2, SIZE));
    Ok(())
}

#[test]
fn reads_fail_when_the_registry_is_gone_for_good_and_nothing_wrong_is_kept() -> Result<()> {
    let (site, view) = pulled("[blob]\nread_budget_sec = 3\n")?;
    site.relay.cut();
    let start = Instant::now();
    let first = read_at(&view.join("d/first"), 0);
    let waited = start.elapsed();
    assert_eq!(
        first.err().map(|error| error.raw_os_error()),
        Some(Some(rustix::io::Errno::IO.raw_os_error()))
    );
    assert!(
        (2..30).contains(&waited.as_secs()),
        "the budget of 3 s, not {waited:?}"
    );
    // The budget applies to the outage, not to each read.
    let start = Instant::now();
    for at in 1..6 {
        assert!(read_at(&view.join("d/second"), at * 300_000).is_err());
    }
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "further reads fail at once, not after {:?}",
        start.elapsed()
    );
    site.relay.restore();
    let start = Instant::now();
    let content = loop {
        match fs::read(view.join("d/first")) {
            Ok(content) => break content,
            Err(error) => ensure!(
                start.elapsed() < Duration::from_secs(40),
                "the registry is back, and still {error}"
            ),
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    assert_eq!(content, noise(1, SIZE));
    assert_eq!(fs::read(view.join("d/second"))?, noise(2, SIZE));
    Ok(())
}

#[test]
fn an_outage_in_the_middle_of_a_long_read_loses_and_changes_nothing() -> Result<()> {
    let (site, view) = pulled("")?;
    let path = view.join("d/third");
    let reader = std::thread::spawn(move || fs::read(path));
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(60));
        site.relay.cut();
        std::thread::sleep(Duration::from_millis(150));
        site.relay.restore();
    }
    assert_eq!(reader.join().expect("no panic")?, noise(3, SIZE));
    Ok(())
}

/// Files of each image for each kind of trouble.
const TROUBLES: [&str; 3] = ["silent", "drips", "refuses"];
const READERS: u64 = 32;

fn images() -> Result<[Image; 2]> {
    let mut files = [vec![directory("d")], vec![directory("d")]];
    for (trouble, seed) in TROUBLES.iter().zip((0..).step_by(100)) {
        for reader in 0..READERS {
            files[0].push(file(
                format!("d/{trouble}-{reader}"),
                noise(seed + reader, SIZE / 8),
            ));
        }
        files[1].push(file(format!("d/{trouble}"), noise(seed + 50, 2 * SIZE)));
    }
    let [bad, good] = files;
    Ok([Image::of(&[&bad])?, Image::of(&[&good])?])
}

#[test]
fn a_failing_registry_does_not_delay_readers_of_another() -> Result<()> {
    let site = Site::new(&format!("{NOTHING_BEHIND}[blob]\nread_budget_sec = 10\n"))?;
    let [image, other] = images()?;
    let mut registry = site.registry.another(&site.folder().join("bad"))?;
    let way = Relay::start(
        ([127, 0, 0, 1], 0).into(),
        registry.address(),
        Shape::default(),
    )?;
    registry.push(&site.converted(&image, "bad:1", &[])?, "bad:1")?;
    let bad = format!("{HOST}:{}/bad:1", way.address().port());
    let good = site.publish(&other, "good:1")?;
    for reference in [&bad, &good] {
        site.node.pull(reference, SOCI)?;
    }
    let (bad, good) = (site.node.view(&bad, SOCI)?, site.node.view(&good, SOCI)?);
    for (trouble, seed) in TROUBLES.iter().zip((0..).step_by(100)) {
        match *trouble {
            "silent" => way.silence(),
            "drips" => way.drip(),
            _ => registry.ask_for_password()?,
        }
        let asked = way.asked();
        let readers: Vec<_> = (0..READERS)
            .map(|reader| bad.join(format!("d/{trouble}-{reader}")))
            .map(|path| std::thread::spawn(move || fs::read(path)))
            .collect();
        let beside = beside(&way, asked, || {
            Ok(fs::read(good.join(format!("d/{trouble}")))?)
        });
        let still = readers
            .iter()
            .filter(|reader| !reader.is_finished())
            .count();
        // Whatever the result, no reader may remain waiting.
        way.restore();
        for reader in readers {
            // Bytes or an I/O error: both are answers.
            drop(reader.join().expect("no panic"));
        }
        let (content, took) = beside?;
        assert!(content == noise(seed + 50, 2 * SIZE));
        // A single wait for the other registry takes at least 3 s.
        ensure!(took < Duration::from_secs(2), "{trouble}: {took:?}");
        ensure!(still > 0, "{trouble}: its own readers did not wait");
    }
    Ok(())
}

/// How long it takes to read three files in sequence on a link of this rate, with a 20 ms round
/// trip.
fn slow_reads(config: &str, rate: u64) -> Result<Duration> {
    const SPAN: usize = 1 << 20;
    let shape = Shape {
        round_trip: Duration::from_millis(20),
        rate: Some(rate),
        connection_rate: None,
    };
    let options = NodeOptions {
        config: config.to_owned(),
        ..NodeOptions::default()
    };
    let site = Site::with(options, shape)?;
    let mut files = vec![directory("d")];
    files.extend((0..24).map(|seed| file(format!("d/{seed}"), noise(seed, SPAN))));
    let reference = site.publish(&Image::of(&[&files])?, "slow:1")?;
    site.node.pull(&reference, SOCI)?;
    let view = site.node.view(&reference, SOCI)?;
    if !config.contains("disable") {
        let (start, before) = (Instant::now(), site.relay.delivered());
        while site.relay.delivered() < before + (1 << 20) {
            ensure!(start.elapsed() < Duration::from_secs(20), "no background");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    let start = Instant::now();
    for seed in [20, 17, 23] {
        ensure!(
            fs::read(view.join(format!("d/{seed}")))? == noise(seed, SPAN),
            "wrong bytes"
        );
    }
    Ok(start.elapsed())
}

#[test]
fn on_a_slow_link_background_downloads_hardly_delay_readers() -> Result<()> {
    for rate in [2_000_000, 10_000_000] {
        let alone = slow_reads(NOTHING_BEHIND, rate)?;
        let beside = slow_reads("", rate)?;
        ensure!(
            beside < alone.mul_f64(1.3) + Duration::from_millis(100),
            "{rate} B/s: {beside:?} beside the background, {alone:?} alone"
        );
    }
    Ok(())
}

/// What another caller does, and how long it takes, while readers wait for this registry with as
/// many requests as they may have.
fn beside<T>(way: &Relay, before: u64, act: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let start = Instant::now();
    let (mut known, mut since) = (before, start);
    while known == before || since.elapsed() < Duration::from_millis(400) {
        ensure!(
            start.elapsed() < Duration::from_secs(10),
            "the readers do not start to wait in time"
        );
        std::thread::sleep(Duration::from_millis(10));
        let asked = way.asked();
        if asked != known {
            (known, since) = (asked, Instant::now());
        }
    }
    let start = Instant::now();
    Ok((act()?, start.elapsed()))
}

fn read_at(path: &Path, at: u64) -> std::io::Result<[u8; 4096]> {
    let mut page = [0; 4096];
    match fs::File::open(path)?.read_exact_at(&mut page, at) {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(page),
        other => other.map(|()| page),
    }
}
