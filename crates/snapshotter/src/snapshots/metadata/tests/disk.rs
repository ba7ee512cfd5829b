//! The disk of the records fails or is full. The failures are real: the file's descriptor is
//! replaced with one that fails, until the file is reopened.

#![allow(unsafe_code, reason = "replaces a descriptor that redb owns")]

use std::fs;
use std::os::fd::{FromRawFd as _, IntoRawFd as _, OwnedFd};

use super::*;

/// Redirects every access to the open database file to `instead`.
fn replace(fixture: &Fixture, instead: &str) {
    let path = fixture.root.path().join("snapshots.redb");
    let path = path.canonicalize().unwrap();
    let instead = fs::File::options()
        .read(true)
        .write(true)
        .open(instead)
        .unwrap();
    let mut replaced = 0;
    for entry in fs::read_dir("/proc/self/fd").unwrap().flatten() {
        if fs::read_link(entry.path()).is_ok_and(|target| target == path) {
            let number = entry.file_name().to_string_lossy().parse().unwrap();
            // JUSTIFICATION: redb owns the descriptor, and there is no other way to make its file
            // fail.
            // SAFETY: the number stays open: it is replaced in one step and its owner closes it.
            let mut fd = unsafe { OwnedFd::from_raw_fd(number) };
            rustix::io::dup2(&instead, &mut fd).unwrap();
            let _ = fd.into_raw_fd();
            replaced += 1;
        }
    }
    assert!(replaced > 0, "the database file is open");
}

/// Reads and writes at small offsets fail with EIO, because nothing is mapped there.
const FAILS: &str = "/proc/self/mem";
/// Reads return zeros and writes fail.
const ZEROS: &str = "/dev/full";

#[test]
fn a_single_disk_failure_has_no_effect() {
    let fixture = Fixture::populated();
    let before = fixture.metadata.list(|_| true).unwrap();
    replace(&fixture, FAILS);
    fixture.create(Kind::Active, "later", "").unwrap();
    replace(&fixture, FAILS);
    fixture.remove("later").unwrap();
    replace(&fixture, FAILS);
    fixture.commit("active-1", "committed-3").unwrap();
    assert_eq!(fixture.metadata.list(|_| true).unwrap().len(), before.len());
    let fixture = fixture.reopened(0);
    assert!(fixture.metadata.get("committed-3").is_ok());
    assert!(fixture.metadata.find("later").unwrap().is_none());
}

#[test]
fn corrupt_pages_affect_at_most_one_request() {
    let fixture = Fixture::populated();
    replace(&fixture, ZEROS);
    for _ in 0..4 {
        drop(fixture.remove("view-1"));
    }
    fixture.create(Kind::Active, "later", "").unwrap();
    assert!(fixture.metadata.find("view-1").unwrap().is_none());
}

#[test]
fn answered_changes_survive_a_disk_failure() {
    let fixture = Fixture::populated();
    let id = fixture.metadata.reserve_id();
    let metadata = &fixture.metadata;
    let created = metadata.create(
        id,
        Kind::Active,
        "layer",
        None,
        Labels::new(),
        Lasts::UnlessRepeated,
    );
    wait(created).unwrap();
    fixture.remove("view-1").unwrap();
    replace(&fixture, FAILS);
    fixture.commit("layer", "committed").unwrap();
    assert!(fixture.metadata.find("view-1").unwrap().is_none());
    let fixture = fixture.reopened(0);
    assert!(fixture.metadata.find("view-1").unwrap().is_none());
    assert_eq!(fixture.metadata.get("committed").unwrap().id, id);
}

#[test]
fn requests_fail_while_the_disk_fails_and_succeed_afterwards() {
    let fixture = Fixture::populated();
    let file = fixture.root.path().join("snapshots.redb");
    let away = fixture.root.path().join("away");
    replace(&fixture, FAILS);
    // Reopening fails too.
    fs::rename(&file, &away).unwrap();
    fs::create_dir(&file).unwrap();
    for _ in 0..2 {
        let error = fixture.create(Kind::Active, "new", "").unwrap_err();
        assert!(error.is_storage(), "{error}");
        let error = fixture.metadata.get("view-1").unwrap_err();
        assert!(error.is_storage(), "{error}");
    }
    fs::remove_dir(&file).unwrap();
    fs::rename(&away, &file).unwrap();
    assert!(fixture.metadata.get("view-1").is_ok());
    fixture.create(Kind::Active, "new", "").unwrap();
}

#[test]
fn a_start_without_changes_writes_nothing() {
    let fixture = Fixture::populated().reopened(0);
    let Fixture { metadata, root } = fixture;
    drop(metadata);
    let modified = |name: &str| {
        let found = fs::metadata(root.path().join(name)).unwrap();
        found.modified().unwrap()
    };
    let before = modified("records");
    let file = fs::read(root.path().join("snapshots.redb")).unwrap();
    let metadata = Metadata::open(&root.path().join("snapshots.redb"), 0).unwrap();
    let now = fs::read(root.path().join("snapshots.redb")).unwrap();
    // One byte of the header marks the file as open.
    let differs = file.iter().zip(&now).filter(|(was, is)| was != is).count();
    assert!(differs <= 1 && file.len() == now.len(), "{differs}");
    assert_eq!(before, modified("records"));
    drop(metadata);
}

/// A tmpfs of the given size in megabytes.
struct Small(tempfile::TempDir);

impl Small {
    fn new(megabytes: u32) -> Self {
        let at = tempfile::tempdir().unwrap();
        let size = std::ffi::CString::new(format!("size={megabytes}m")).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("tmpfs", at.path(), "tmpfs", flags, size.as_c_str()).unwrap();
        Self(at)
    }

    fn fill(&self) -> std::path::PathBuf {
        let ballast = self.0.path().join("ballast");
        let mut file = fs::File::create(&ballast).unwrap();
        let full = std::io::copy(&mut std::io::repeat(1), &mut file).unwrap_err();
        assert!(reserve::is_full(&full), "{full}");
        ballast
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::DETACH;
        // If this fails, the end of the sandbox removes the mount.
        let _ = rustix::mount::unmount(self.0.path(), flags);
    }
}

#[test]
fn a_full_disk_allows_removals_and_rejects_new_snapshots_with_a_remedy() {
    if std::env::var_os("SOCI_SANDBOX").is_none() {
        return;
    }
    let small = Small::new(32);
    let fixture = Fixture::at(tempfile::tempdir_in(small.0.path()).unwrap());
    let long = labels(&[("label", &"x".repeat(2000))]);
    let count = 600;
    let create = |n: u64| {
        let id = fixture.metadata.reserve_id();
        let (name, labels) = (format!("name-{n}"), long.clone());
        let created = fixture
            .metadata
            .create(id, Kind::Active, &name, None, labels, Lasts::Always);
        wait(created)
    };
    for n in 0..count {
        create(n).unwrap();
    }
    let ballast = small.fill();
    let mut made = 0;
    let error = loop {
        match create(count + made) {
            Ok(_) => made += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, MetadataError::Full { .. }), "{error}");
    assert!(error.to_string().contains("remove images"), "{error}");
    let fixture = fixture.reopened(0);
    for n in 0..count + made {
        let name = format!("name-{n}");
        let changed = labels(&[("changed", &"y".repeat(2000))]);
        fixture
            .update(&name, &changed, &LabelUpdate::Replace)
            .unwrap();
        fixture.remove(&name).unwrap();
    }
    wait(fixture.metadata.sync()).unwrap();
    assert!(fixture.metadata.list(|_| true).unwrap().is_empty());
    fs::remove_file(ballast).unwrap();
    fixture.create(Kind::Active, "again", "").unwrap();
}
