//! The first start on a state directory where the reference ran.

use std::fs;

use super::super::reference::tests::{file, snapshot};
use super::*;

/// A state directory with this `metadata.db`.
fn with_reference(content: &[u8]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("metadata.db"), content).unwrap();
    root
}

fn two() -> Vec<u8> {
    let records = [
        ("base", snapshot(3, 3, "", &[])),
        ("running", snapshot(4, 2, "base", &[("kept", "x")])),
    ];
    file(9, &records)
}

#[test]
fn its_records_are_imported_once_and_its_file_stays() {
    let root = with_reference(&two());
    fs::create_dir_all(root.path().join("snapshots/4/fs")).unwrap();
    std::os::unix::fs::lchown(root.path().join("snapshots/4/fs"), Some(5), Some(6)).unwrap();
    let fixture = Fixture::at(root);
    let running = fixture.metadata.get("running").unwrap();
    assert_eq!((running.id, running.kind), (SnapshotId(4), Kind::Active));
    assert_eq!(running.owner, Owner { uid: 5, gid: 6 });
    assert_eq!(fixture.metadata.reserve_id(), SnapshotId(10));
    let error = fixture.remove("base").unwrap_err();
    assert!(
        matches!(error, MetadataError::HasChildren { .. }),
        "{error}"
    );
    fixture.remove("running").unwrap();
    let fixture = fixture.reopened(0);
    assert!(fixture.metadata.find("running").unwrap().is_none());
    assert_eq!(fixture.metadata.reserve_id(), SnapshotId(10));
    fixture.remove("base").unwrap();
    let kept = fs::read(fixture.root.path().join("metadata.db")).unwrap();
    assert_eq!(kept, two());
}

#[test]
fn a_lost_database_gets_the_copies_and_not_the_reference_again() {
    let fixture = Fixture::at(with_reference(&two()));
    fixture.remove("running").unwrap();
    wait(fixture.metadata.sync()).unwrap();
    let Fixture { metadata, root } = fixture;
    drop(metadata);
    fs::write(root.path().join("snapshots.redb"), b"damaged").unwrap();
    let fixture = Fixture::at(root);
    assert!(fixture.metadata.find("running").unwrap().is_none());
    assert!(fixture.metadata.find("base").unwrap().is_some());
}

#[test]
fn a_damaged_file_costs_only_its_records() {
    let mut damaged = two();
    damaged.truncate(2 * 4096);
    for content in [&damaged[..], b"no database", b""] {
        let fixture = Fixture::at(with_reference(content));
        assert!(fixture.metadata.ids().unwrap().is_empty());
        fixture.create(Kind::Active, "new", "").unwrap();
        let file = fixture.root.path().join("metadata.db");
        assert_eq!(fs::read(file).unwrap(), content);
    }
}

#[test]
fn a_reference_that_still_runs_stops_the_start() {
    let root = with_reference(&two());
    let writer = fs::File::open(root.path().join("metadata.db")).unwrap();
    writer.lock().unwrap();
    let database = root.path().join("snapshots.redb");
    let error = Metadata::open(&database, 0).unwrap_err();
    assert!(error.to_string().contains("stop it first"), "{error}");
    drop(writer);
    let metadata = Metadata::open(&database, 0).unwrap();
    assert_eq!(metadata.ids().unwrap().len(), 2, "nothing was begun before");
}
