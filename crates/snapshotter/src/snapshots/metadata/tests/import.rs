//! The first start on a state directory where the reference ran.

use std::fs;

use super::super::reference::tests::{file, snapshot};
use super::*;

/// A state directory with this `metadata.db` and the directories of [`two`].
fn with_reference(content: &[u8]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("metadata.db"), content).unwrap();
    for id in [3, 4] {
        fs::create_dir_all(root.path().join(format!("snapshots/{id}/fs"))).unwrap();
    }
    root
}

/// The names in a directory below the root.
fn names(fixture: &Fixture, directory: &str) -> Vec<String> {
    let entries = fs::read_dir(fixture.root.path().join(directory)).unwrap();
    let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
    let mut names: Vec<_> = entries.flatten().map(name).collect();
    names.sort();
    names
}

/// Where the import moved snapshots to.
fn aside(fixture: &Fixture) -> Option<String> {
    let mut names = names(fixture, "").into_iter();
    names.find(|name| name.starts_with("snapshots.unread-"))
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
    assert_eq!(aside(&fixture), None);
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
        let root = with_reference(content);
        fs::write(root.path().join("snapshots/4/fs/mine"), b"of a container").unwrap();
        let fixture = Fixture::at(root);
        assert!(fixture.metadata.ids().unwrap().is_empty());
        fixture.create(Kind::Active, "new", "").unwrap();
        let file = fixture.root.path().join("metadata.db");
        assert_eq!(fs::read(file).unwrap(), content);
        // Cleanups delete what is in `snapshots` and has no record.
        assert!(names(&fixture, "snapshots").is_empty());
        let aside = aside(&fixture).unwrap();
        assert_eq!(names(&fixture, &aside), ["3", "4"]);
        assert_eq!(names(&fixture, &format!("{aside}/4/fs")), ["mine"]);
    }
}

#[test]
fn a_file_that_cannot_be_read_stops_the_start() {
    let root = with_reference(b"");
    let path = root.path().join("metadata.db");
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    let database = root.path().join("snapshots.redb");
    let error = Metadata::open(&database, 0).unwrap_err();
    assert!(matches!(error, OpenError::Reference { .. }), "{error}");
    assert!(error.to_string().contains("metadata.db: make"), "{error}");
    fs::remove_dir(&path).unwrap();
    fs::write(&path, two()).unwrap();
    let metadata = Metadata::open(&database, 0).unwrap();
    assert_eq!(metadata.ids().unwrap().len(), 2, "nothing was begun before");
}

#[test]
fn records_without_files_are_left_out_with_those_on_them() {
    let records = [
        ("base", snapshot(3, 3, "", &[])),
        ("gone", snapshot(7, 3, "base", &[])),
        ("on-gone", snapshot(4, 2, "gone", &[])),
        ("good", snapshot(8, 2, "base", &[])),
    ];
    let fixture = Fixture::at(with_reference(&file(9, &records)));
    let found = fixture.metadata.list(|_| true).unwrap();
    let found: Vec<_> = found.into_iter().map(|info| info.name).collect();
    assert_eq!(found, ["base", "good"]);
    assert_eq!(names(&fixture, "snapshots"), ["3"]);
    assert_eq!(names(&fixture, &aside(&fixture).unwrap()), ["4"]);
    assert_eq!(fixture.metadata.reserve_id(), SnapshotId(10));
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
