#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "numbers of tests are small"
)]

use std::fs::{self, File};
use std::path::PathBuf;

use soci_bolt::testing::{Item, PLAIN, Tree, write};

use super::*;

fn varint(number: i64) -> Vec<u8> {
    let mut zigzag = ((number << 1) ^ (number >> 63)) as u64;
    let mut bytes = Vec::new();
    while zigzag >= 0x80 {
        bytes.push(zigzag as u8 | 0x80);
        zigzag >>= 7;
    }
    bytes.push(zigzag as u8);
    bytes
}

fn go_time(time: Time, zone: i16) -> Vec<u8> {
    let mut bytes = vec![1];
    bytes.extend((time.secs + 62_135_596_800).to_be_bytes());
    bytes.extend(time.nanos.to_be_bytes());
    bytes.extend(zone.to_be_bytes());
    bytes
}

fn record(entry: &Entry) -> Tree {
    let mut fields = vec![
        ("size", varint(entry.size as i64)),
        ("location", entry.location.clone().into_bytes()),
        ("oci_digest", entry.oci_digest.clone().into_bytes()),
        ("image_digest", entry.image_digest.clone().into_bytes()),
        ("platform", entry.platform.clone().into_bytes()),
        ("type", entry.kind.name().as_bytes().to_vec()),
        ("media_type", entry.media_type.clone().into_bytes()),
        ("artifact_type", entry.artifact_type.clone().into_bytes()),
        ("span_size", varint(entry.span_size as i64)),
        ("unknown", b"to be ignored".to_vec()),
    ];
    if let Some(time) = entry.created_at {
        fields.push(("created_at", go_time(time, 540)));
    }
    let item = |(key, value): (&str, Vec<u8>)| (key.as_bytes().to_vec(), Item::Bytes(value));
    fields.into_iter().map(item).collect()
}

fn database(records: impl IntoIterator<Item = (String, Tree)>) -> Tree {
    let records = records
        .into_iter()
        .map(|(key, record)| (key.into_bytes(), Item::Bucket(record)))
        .collect();
    [(b"soci_artifacts".to_vec(), Item::Bucket(records))].into()
}

fn keyed(entry: &Entry) -> (String, Tree) {
    (entry.digest.to_string(), record(entry))
}

fn sample() -> Vec<Entry> {
    let mut entries = vec![
        entry("index", Kind::Index),
        entry("ztoc", Kind::Layer),
        entry("prefetch", Kind::Prefetch),
    ];
    entries[0].artifact_type = crate::ARTIFACT_TYPE_V2.to_owned();
    entries[0].created_at = None;
    entries[1].created_at = Some(Time {
        secs: -1,
        nanos: 999_999_999,
    });
    entries.sort_by_key(|entry| entry.digest);
    entries
}

fn with_reference(file: &[u8]) -> (tempfile::TempDir, Artifacts, PathBuf) {
    let (folder, artifacts) = root();
    let path = folder.path().join("artifacts.db");
    fs::write(&path, file).unwrap();
    (folder, artifacts, path)
}

#[test]
fn records_of_the_reference_are_taken_over_once_and_its_file_stays() {
    let entries = sample();
    let file = write(&database(entries.iter().map(keyed)), PLAIN);
    let (_folder, artifacts, path) = with_reference(&file);
    assert_eq!(artifacts.all().unwrap(), entries);
    assert_eq!(artifacts.get(&entries[0].digest).unwrap(), entries[0]);

    artifacts.remove(&[entries[0].digest]).unwrap();
    assert_eq!(artifacts.all().unwrap(), entries[1..]);
    assert_eq!(fs::read(path).unwrap(), file);
}

#[test]
fn writing_takes_over_as_well() {
    let entries = sample();
    let file = write(&database(entries[1..].iter().map(keyed)), PLAIN);
    let (_folder, artifacts, _) = with_reference(&file);
    artifacts.put(&entries[..1]).unwrap();
    assert_eq!(artifacts.all().unwrap(), entries);
}

#[test]
fn a_reference_that_recorded_nothing_is_as_good_as_none() {
    for file in [Vec::new(), write(&Tree::new(), PLAIN)] {
        let (_folder, artifacts, _) = with_reference(&file);
        assert_eq!(artifacts.all().unwrap(), []);
        let error = artifacts.get(&Digest::sha256(b"a")).unwrap_err();
        assert!(matches!(error, ArtifactsError::NeverWritten), "{error}");
        assert!(!artifacts.path().exists());
    }
    // A bucket whose entries were all removed.
    let (_folder, artifacts, _) = with_reference(&write(&database([]), PLAIN));
    let error = artifacts.get(&Digest::sha256(b"a")).unwrap_err();
    assert!(matches!(error, ArtifactsError::NotFound(_)), "{error}");
}

#[test]
fn records_that_make_no_sense_are_left_out() {
    let good = entry("good", Kind::Index);
    let without = |name: &str| {
        let mut fields = record(&good);
        fields.remove(name.as_bytes());
        fields
    };
    let with = |name: &str, value: &[u8]| {
        let mut fields = record(&good);
        fields.insert(name.as_bytes().to_vec(), Item::Bytes(value.to_vec()));
        fields
    };
    let digest = |number: u8| Digest::sha256(&[number]).to_string();
    let damaged = [
        ("sha256:short".to_owned(), record(&good)),
        (digest(0), without("size")),
        (digest(1), with("size", &varint(-1))),
        (digest(2), with("size", &[0x80; 12])),
        (digest(3), with("size", &[])),
        (digest(4), without("type")),
        (digest(5), with("type", b"soci_thing")),
        (digest(6), with("created_at", &[1; 14])),
        (digest(7), with("created_at", &[0xff; 15])),
        (digest(8), with("platform", &[b'x'; 5000])),
        (digest(9), Tree::new()),
    ];
    let count = damaged.len();
    let file = write(&database(damaged.into_iter().chain([keyed(&good)])), PLAIN);
    let imported = parse_reference(&file).unwrap().unwrap();
    assert_eq!(imported.entries, [good]);
    assert_eq!(imported.skipped, count);
}

#[test]
fn old_records_lack_fields_and_may_have_other_bytes() {
    let mut fields = record(&entry("old", Kind::Layer));
    for name in ["span_size", "artifact_type", "created_at", "location"] {
        fields.remove(name.as_bytes());
    }
    fields.insert(b"platform".to_vec(), Item::Bytes(b"linux/\xff".to_vec()));
    let time = go_time(Time::YEAR_ONE, -1);
    fields.insert(b"created_at".to_vec(), Item::Bytes(time));
    let digest = Digest::sha256(b"old").to_string();
    let file = write(&database([(digest, fields)]), PLAIN);
    let imported = parse_reference(&file).unwrap().unwrap();
    let [old] = &imported.entries[..] else {
        panic!("{imported:?}")
    };
    assert_eq!((old.span_size, old.created_at), (0, None));
    assert_eq!(old.platform, "linux/\u{fffd}");
    assert_eq!(old.location, "");
}

#[test]
fn either_meta_alone_is_enough() {
    let entries = sample();
    let whole = write(&database(entries.iter().map(keyed)), PLAIN);
    let mut second = whole.clone();
    second[16] ^= 1;
    assert_eq!(parse_reference(&second).unwrap().unwrap().entries, entries);
    // Without the newer meta page, the older one is used: it has no records.
    let mut first = whole;
    first[PLAIN.page_size + 40] ^= 1;
    assert_eq!(parse_reference(&first).unwrap(), None);
    first[16 + 60] ^= 1;
    assert_eq!(parse_reference(&first), Err(BoltError::NoMeta));
}

#[test]
fn a_damaged_file_is_an_error_until_the_records_are_rebuilt() {
    let mut file = write(&database(sample().iter().map(keyed)), PLAIN);
    file.truncate(2 * PLAIN.page_size);
    let (_folder, artifacts, path) = with_reference(&file);
    for error in [
        artifacts.all().unwrap_err(),
        artifacts.put(&sample()).unwrap_err(),
    ] {
        assert_eq!(error.to_string(), "artifacts.db is not available");
    }
    assert!(!artifacts.path().exists());
    artifacts.begin().unwrap();
    assert_eq!(artifacts.all().unwrap(), []);
    artifacts.put(&sample()).unwrap();
    assert_eq!(fs::read(path).unwrap(), file);
}

#[test]
fn a_reference_at_work_is_waited_for() {
    let file = write(&database(sample().iter().map(keyed)), PLAIN);
    let (_folder, artifacts, path) = with_reference(&file);
    let holder = File::open(&path).unwrap();
    holder.lock().unwrap();
    let reader = std::thread::spawn({
        let artifacts = artifacts.clone();
        move || artifacts.all().map(|all| all.len())
    });
    std::thread::sleep(Duration::from_millis(200));
    assert!(!reader.is_finished());
    drop(holder);
    assert_eq!(reader.join().unwrap().unwrap(), 3);
}

#[test]
fn what_is_no_file_is_not_read() {
    let (folder, artifacts) = root();
    fs::create_dir(folder.path().join("artifacts.db")).unwrap();
    let error = artifacts.all().unwrap_err();
    assert!(matches!(error, ArtifactsError::Unavailable), "{error}");
}
