//! What containers read first: recorded on the status socket, and replayed from the artifacts of an
//! index.

use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use soci_index::prefetch::{SpanRange, encode};
use soci_index::starts::StartRecord;

use super::*;

/// The span size of the images.
const SPAN: u64 = 64 << 10;

/// Two layers with a file each.
fn two_layers(registry: &TestRegistry, artifacts: &[Vec<u8>]) -> Image {
    let tars = [("base", 1), ("app", 2)];
    let tars = tars.map(|(name, seed)| tar(&[file(name, &noise(seed, SIZE))]));
    let shape = Shape {
        recorded: artifacts,
        ..Shape::default()
    };
    Image::publish(registry, &tars, shape)
}

/// Prepares both layers.
async fn pull_both(place: &Place, image: &Image) {
    let mut client = connect(place.path("s/s.sock")).await;
    for (layer, parent) in [(0, String::new()), (1, image.target(0))] {
        let key = format!("key-{layer}");
        let request = prepare_request("default", &key, &parent, image.labels(layer));
        let said = client.prepare(request).await.unwrap_err();
        assert_eq!(said.code(), Code::AlreadyExists, "{said}");
    }
}

/// Reads a little of a file of an image, at this span of the file.
fn read_at(place: &Place, name: &'static str, span: u64) {
    let snapshots = fs::read_dir(place.path("root/snapshotter/snapshots")).unwrap();
    let of = |snapshot: PathBuf| snapshot.join("fs").join(name);
    let mut files = snapshots.map(|entry| of(entry.unwrap().path()));
    let path = files.find(|path| path.exists()).expect("the file");
    let reading = std::thread::spawn(move || {
        let file = fs::File::open(path).unwrap();
        file.read_exact_at(&mut [0; 100], span * SPAN).unwrap();
    });
    reading.join().unwrap();
}

fn record(place: &Place, image: &Image) -> StartRecord {
    let stream = UnixStream::connect(place.path("s/status.sock")).expect("the socket");
    let path = format!("{}{}", soci_status::STARTS_PATH, image.manifest);
    let answer = Scrape::from(stream, &path).expect("an answer");
    assert!(answer.head.starts_with("HTTP/1.1 200 "), "{answer:?}");
    StartRecord::read(answer.body.as_bytes()).expect("a record")
}

/// The layer, the span, and the file of each want, in the order of the start.
fn wants(record: &StartRecord, image: &Image) -> Vec<(usize, u64, String)> {
    let mut wants = Vec::new();
    for layer in &record.layers {
        let number = image.layers.iter().position(|it| *it == layer.digest);
        for want in &layer.wants {
            let name = want.files.first().map_or("", |file| &file.path);
            let found = (
                number.expect("a layer"),
                want.offset / SPAN,
                name.to_owned(),
            );
            wants.push((want.ms, found));
        }
    }
    wants.sort_by_key(|(ms, _)| *ms);
    wants.into_iter().map(|(_, found)| found).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_first_is_recorded_and_outlives_the_process() {
    let registry = TestRegistry::start();
    let image = two_layers(&registry, &[]);
    let place = Place::with(NOTHING_BEHIND);
    let mut running = Running::start(place.command());
    pull_both(&place, &image).await;
    assert!(
        record(&place, &image).is_empty(),
        "no container has started"
    );
    let reads = [("app", 9), ("base", 4), ("app", 2)];
    for (name, span) in reads {
        read_at(&place, name, span);
        std::thread::sleep(Duration::from_millis(5));
    }
    let first = record(&place, &image);
    let seen = wants(&first, &image);
    // The kernel reads more than is asked for, and the header of a file is needed too.
    let place_of = |layer: usize, span: u64| {
        let wanted = |it: &(usize, u64, String)| (it.0, it.1) == (layer, span);
        seen.iter().position(wanted)
    };
    let places = [place_of(1, 9), place_of(0, 4), place_of(1, 2)];
    assert!(
        places.iter().all(Option::is_some) && places.is_sorted(),
        "{seen:?}"
    );
    let named = seen.iter().filter(|(_, _, name)| !name.is_empty());
    let names: Vec<_> = named.map(|(layer, _, name)| (*layer, &**name)).collect();
    assert!(
        names.contains(&(0, "base")) && names.contains(&(1, "app")),
        "{seen:?}"
    );
    assert_eq!(first.manifest, image.manifest.to_string());
    assert_eq!(running.end(Signal::TERM).code(), Some(0));
    let mut running = Running::start(place.command());
    assert_eq!(record(&place, &image), first);
    assert_eq!(running.end(Signal::TERM).code(), Some(0));
}

/// The artifact of a recorded start: spans with the time of their first use.
fn artifact(uses: &[(u64, u64)]) -> Vec<u8> {
    let range = |(span, ms): &(u64, u64)| SpanRange {
        start: *span,
        end: *span,
        priority: 0,
        first_use_ms: Some(*ms),
    };
    encode(&uses.iter().map(range).collect::<Vec<_>>())
}

/// The spans of the image's layers that were requested, each once, in order.
fn requested(registry: &TestRegistry, image: &Image) -> Vec<(usize, u64)> {
    let layer_of = |path: &str| {
        let is = |layer: &Digest| path.ends_with(&layer.to_string());
        image.layers.iter().position(is)
    };
    let mut spans: Vec<(usize, u64)> = Vec::new();
    for seen in registry.seen() {
        let found = layer_of(&seen.path).zip(seen.range);
        let Some((layer, Range { start, end })) = found else {
            continue;
        };
        for span in start / SPAN..end.div_ceil(SPAN) {
            if !spans.contains(&(layer, span)) {
                spans.push((layer, span));
            }
        }
    }
    spans
}

/// How many of these artifacts were requested.
fn read_artifacts(registry: &TestRegistry, artifacts: &[Vec<u8>]) -> usize {
    let seen = registry.seen();
    let is_seen = |artifact: &&Vec<u8>| {
        let digest = Digest::sha256(artifact).to_string();
        seen.iter().any(|it| it.path.ends_with(&digest))
    };
    artifacts.iter().filter(is_seen).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_start_is_replayed_in_order_before_the_rest() {
    /// Requests of an image at a time, which may overtake each other.
    const AT_ONCE: usize = 3;
    let registry = TestRegistry::start();
    let artifacts = [
        artifact(&[(10, 20), (4, 30), (12, 50), (1, 70)]),
        artifact(&[(7, 0), (2, 10), (13, 40), (5, 60)]),
    ];
    let order = [
        (1, 7),
        (1, 2),
        (0, 10),
        (0, 4),
        (1, 13),
        (0, 12),
        (1, 5),
        (0, 1),
    ];
    let image = two_layers(&registry, &artifacts);
    for behind in [false, true] {
        registry.forget_seen();
        let place = Place::with(if behind { "" } else { NOTHING_BEHIND });
        let mut running = Running::start(place.command());
        pull_both(&place, &image).await;
        let all = if behind {
            2 * SIZE as u64 / SPAN
        } else {
            order.len() as u64
        };
        let begun = Instant::now();
        while (requested(&registry, &image).len() as u64) < all {
            assert!(begun.elapsed() < LONG, "{:?}", requested(&registry, &image));
            std::thread::sleep(Duration::from_millis(10));
        }
        let spans = requested(&registry, &image);
        for (place, span) in order.iter().enumerate() {
            let at = spans.iter().position(|it| it == span);
            let at = at.unwrap_or_else(|| panic!("{span:?} is not requested: {spans:?}"));
            // A layer may be opened before the other one, and the first byte of each layer is
            // requested when it is opened.
            let near = place.abs_diff(at) <= 2 * AT_ONCE;
            assert!(near, "{span:?} at {at}, not {place}: {spans:?}");
        }
        assert_eq!(running.end(Signal::TERM).code(), Some(0));
        assert_eq!(read_artifacts(&registry, &artifacts), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_start_is_not_replayed_if_that_is_disabled() {
    let registry = TestRegistry::start();
    let artifacts = [artifact(&[(2, 20)]), artifact(&[(7, 0)])];
    let image = two_layers(&registry, &artifacts);
    let settings = format!("{NOTHING_BEHIND}[prefetch]\nreplay = false\nrecord = false\n");
    let place = Place::with(&settings);
    let mut running = Running::start(place.command());
    pull_both(&place, &image).await;
    read_at(&place, "base", 4);
    assert!(record(&place, &image).is_empty());
    assert_eq!(running.end(Signal::TERM).code(), Some(0));
    assert_eq!(read_artifacts(&registry, &artifacts), 0);
    let spans = requested(&registry, &image);
    assert!(
        !spans.contains(&(0, 2)) && !spans.contains(&(1, 7)),
        "{spans:?}"
    );
}
