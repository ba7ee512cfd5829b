use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use super::*;

/// A scrape of a node with this many mounted layers.
fn scraped(metrics: &Metrics, layers: usize) -> String {
    let layers = (0..layers).map(|number| LayerFigures {
        digest: Digest::sha256(&number.to_le_bytes()),
        mountpoint: format!("/var/lib/soci-snapshotter-grpc/snapshotter/snapshots/{number}/fs"),
        size: 1 << 20,
        fetched: 1 << 10,
    });
    let figures = Figures {
        complete: 1,
        layers: layers.collect(),
        cache: Some(CacheFigures::default()),
        ..Figures::default()
    };
    let mut text = String::new();
    for family in metrics.gather(&figures) {
        encode(&family, &mut text).unwrap();
    }
    text
}

fn used(layers: usize) -> Metrics {
    let metrics = Metrics::new();
    metrics.serve();
    for number in 0..layers {
        let layer = Digest::sha256(&number.to_le_bytes());
        let series = metrics.operations.layer(&layer).unwrap();
        series.read(Duration::from_micros(100), 4096);
        for (what, _) in <Timed as values::Value>::TABLE {
            metrics
                .operations
                .took(*what, &layer, Duration::from_millis(5));
        }
        metrics.operations.event(LayerEvent::ResolveMiss, &layer);
        metrics.reads_failed(ReadFailure::Download, Some(&layer), 1);
    }
    metrics
}

#[test]
fn every_series_is_defined_and_every_definition_is_a_series() {
    let text = scraped(&used(1), 1);
    let found: BTreeSet<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .collect();
    let defined = DEFINITIONS
        .iter()
        .map(|of| format!("{} {}", of.name, of.kind.name()));
    let defined: BTreeSet<String> = defined.collect();
    assert_eq!(found, defined.iter().map(String::as_str).collect());
    for of in DEFINITIONS {
        let help = format!("# HELP {} {}\n", of.name, of.help);
        assert!(text.contains(&help), "{help}");
        assert!(of.labels.is_sorted(), "{}", of.name);
    }
}

#[test]
fn names_follow_the_conventions() {
    for of in DEFINITIONS.iter().filter(|of| of.origin == Origin::Own) {
        assert!(of.name.starts_with("soci_"), "{}", of.name);
        let is_total = of.name.ends_with("_total");
        assert_eq!(is_total, of.kind == Kind::Counter, "{}", of.name);
    }
}

#[test]
fn the_series_of_the_reference_are_printed_as_it_prints_them() {
    let text = scraped(&used(1), 1);
    let layer = Digest::sha256(&0_usize.to_le_bytes());
    for line in [
        r#"soci_fs_operation_count{layer="",operation_type="fuse_mount_failure_count"} 0"#.to_owned(),
        r#"soci_fs_operation_count{layer="",operation_type="background_fetch_work_queue_evicted"} 0"#
            .to_owned(),
        r#"soci_fs_image_operation_count_key{image="",operation_type="background_fetch_work_queue_size"} 0"#
            .to_owned(),
        format!(r#"soci_fs_operation_count{{layer="{layer}",operation_type="synchronous_read_count"}} 1"#),
        format!(r#"soci_fs_bytes_served{{layer="{layer}",operation_type="synchronous_bytes_served"}} 4096"#),
        format!(
            r#"soci_fs_operation_duration_microseconds_bucket{{layer="{layer}",operation_type="synchronous_read",le="128"}} 1"#
        ),
        format!(
            r#"soci_fs_operation_duration_milliseconds_bucket{{layer="{layer}",operation_type="mount",le="4"}} 0"#
        ),
        format!(
            r#"soci_fs_operation_duration_milliseconds_bucket{{layer="{layer}",operation_type="mount",le="+Inf"}} 1"#
        ),
        "# TYPE soci_fs_layer_size_bytes counter".to_owned(),
        format!(
            r#"soci_fs_layer_size_bytes{{digest="{layer}",mountpoint="/var/lib/soci-snapshotter-grpc/snapshotter/snapshots/0/fs"}} 1048576"#
        ),
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}

#[test]
fn a_scrape_of_a_hundred_layers_is_fast() {
    let metrics = used(100);
    let took = (0..5).map(|_| {
        let begin = Instant::now();
        assert!(scraped(&metrics, 100).len() > 100_000);
        begin.elapsed()
    });
    let took = took.min().unwrap();
    // The program is compiled with more optimization than this test.
    assert!(took < Duration::from_millis(200), "{took:?}");
}

#[test]
fn answers_are_sorted_by_status() {
    for (status, wanted) in [
        (200, Answer::Success),
        (206, Answer::Success),
        (307, Answer::Redirect),
        (401, Answer::Denied),
        (404, Answer::ClientError),
        (429, Answer::Throttled),
        (503, Answer::ServerError),
    ] {
        assert_eq!(Answer::of(status), wanted, "{status}");
    }
}

/// To write the page anew: `SOCI_WRITE_DOCS=1 cargo test -p soci-snapshotter the_page`.
#[test]
fn the_page_about_metrics_is_up_to_date() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
    if std::env::var_os("SOCI_WRITE_DOCS").is_some() {
        std::fs::write(&page, document()).unwrap();
    }
    let found = std::fs::read_to_string(&page).unwrap_or_default();
    assert!(found == document(), "docs/metrics.md differs from the code");
}
