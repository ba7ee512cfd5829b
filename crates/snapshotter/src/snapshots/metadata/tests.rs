use std::path::Path;

use super::*;

mod disk;
mod groups;
mod import;

/// Runs a future that the writer thread completes.
fn wait<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(work)
}

struct Fixture {
    metadata: Metadata,
    root: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self::at(tempfile::tempdir().unwrap())
    }

    fn at(root: tempfile::TempDir) -> Self {
        let metadata = Metadata::open(&root.path().join("snapshots.redb"), 0).unwrap();
        Self { metadata, root }
    }

    fn reopened(self, used: u64) -> Self {
        let Self { metadata, root } = self;
        drop(metadata);
        let metadata = Metadata::open(&root.path().join("snapshots.redb"), used).unwrap();
        Self { metadata, root }
    }

    fn create(&self, kind: Kind, name: &str, parent: &str) -> Result<Record, MetadataError> {
        let id = self.metadata.reserve_id();
        let parent = (!parent.is_empty()).then_some(parent);
        wait(
            self.metadata
                .create(id, kind, name, parent, Labels::new(), Lasts::Always),
        )
    }

    fn commit(&self, key: &str, name: &str) -> Result<Record, MetadataError> {
        wait(self.metadata.commit(key, name, Commit::default()))
    }

    fn remove(&self, name: &str) -> Result<Record, MetadataError> {
        wait(self.metadata.remove(name))
    }

    fn update(
        &self,
        name: &str,
        labels: &Labels,
        which: &LabelUpdate,
    ) -> Result<Record, MetadataError> {
        wait(self.metadata.update(name, labels, which))
    }

    /// Two committed snapshots, and an active one and a view each without and with a parent.
    fn populated() -> Self {
        let fixture = Self::new();
        fixture.create(Kind::Active, "tmp-1", "").unwrap();
        fixture.commit("tmp-1", "committed-1").unwrap();
        fixture
            .create(Kind::Active, "tmp-2", "committed-1")
            .unwrap();
        fixture.commit("tmp-2", "committed-2").unwrap();
        fixture.create(Kind::Active, "active-1", "").unwrap();
        fixture
            .create(Kind::Active, "active-2", "committed-2")
            .unwrap();
        fixture.create(Kind::View, "view-1", "").unwrap();
        fixture.create(Kind::View, "view-2", "committed-2").unwrap();
        // The copies are written after the answers.
        wait(fixture.metadata.sync()).unwrap();
        fixture
    }
}

fn labels(of: &[(&str, &str)]) -> Labels {
    of.iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn a_chain_is_listed_from_the_top() {
    let fixture = Fixture::populated();
    let names: Vec<_> = fixture.metadata.chain("view-2").unwrap();
    let names: Vec<_> = names.iter().map(|info| info.name.as_str()).collect();
    assert_eq!(names, ["view-2", "committed-2", "committed-1"]);
}

#[test]
fn a_name_is_used_once() {
    let fixture = Fixture::populated();
    for taken in ["active-1", "committed-1", "view-1"] {
        let error = fixture.create(Kind::Active, taken, "").unwrap_err();
        assert!(
            matches!(error, MetadataError::AlreadyExists { .. }),
            "{error}"
        );
    }
    let error = fixture.commit("active-1", "committed-1").unwrap_err();
    assert!(
        matches!(error, MetadataError::AlreadyExists { .. }),
        "{error}"
    );
}

#[test]
fn show_is_durable_and_changes_only_the_snapshot_with_that_id() {
    let fixture = Fixture::populated();
    let digest = |text: &[u8]| soci_oci::digest::Digest::sha256(text);
    let shown = LayerUse {
        layer: crate::store::LayerKey {
            layer: digest(b"layer"),
            ztoc: None,
        },
        patch: "p".to_owned(),
    };
    let before = fixture.metadata.get("committed-2").unwrap();
    let show = |id| wait(fixture.metadata.show("committed-2", id, shown.clone()));
    let error = show(SnapshotId(before.id.0 + 1)).unwrap_err();
    assert!(matches!(error, MetadataError::NotFound { .. }), "{error}");
    assert_eq!(fixture.metadata.get("committed-2").unwrap(), before);
    let changed = show(before.id).unwrap();
    assert_eq!(
        changed,
        Record {
            layer: Some(shown),
            ..before
        }
    );
    let fixture = fixture.reopened(0);
    assert_eq!(fixture.metadata.get("committed-2").unwrap(), changed);
}

#[test]
fn a_parent_must_exist_and_be_committed() {
    let fixture = Fixture::populated();
    let error = fixture.create(Kind::Active, "new", "nobody").unwrap_err();
    assert!(matches!(error, MetadataError::NotFound { .. }), "{error}");
    let error = fixture.create(Kind::Active, "new", "active-1").unwrap_err();
    assert!(
        matches!(error, MetadataError::ParentNotCommitted { .. }),
        "{error}"
    );
}

#[test]
fn only_active_snapshots_are_committed() {
    let fixture = Fixture::populated();
    for key in ["committed-1", "view-1"] {
        let error = fixture.commit(key, "new").unwrap_err();
        assert!(matches!(error, MetadataError::NotActive { .. }), "{error}");
    }
    let error = fixture.commit("nobody", "new").unwrap_err();
    assert!(matches!(error, MetadataError::NotFound { .. }), "{error}");
}

#[test]
fn commit_keeps_the_id_and_replaces_the_labels() {
    let fixture = Fixture::new();
    let id = fixture.metadata.reserve_id();
    let before = labels(&[("old", "1"), ("empty", "")]);
    let active = fixture
        .metadata
        .create(id, Kind::Active, "key", None, before, Lasts::Always);
    let active = wait(active).unwrap();
    assert_eq!(active.labels, labels(&[("old", "1")]));
    let commit = Commit {
        labels: labels(&[("new", "2"), ("empty", "")]),
        ..Commit::default()
    };
    let committed = wait(fixture.metadata.commit("key", "name", commit)).unwrap();
    assert_eq!((committed.id, committed.kind), (id, Kind::Committed));
    assert_eq!(committed.labels, labels(&[("new", "2")]));
    assert_eq!(committed.created, committed.updated);
    assert!(fixture.metadata.find("key").unwrap().is_none());
}

#[test]
fn a_commit_can_add_but_not_change_a_parent() {
    let fixture = Fixture::populated();
    let on = |parent: &str| Commit {
        parent: Some(parent.to_owned()),
        ..Commit::default()
    };
    let commit = |key, name, parent| wait(fixture.metadata.commit(key, name, on(parent)));
    let error = commit("active-2", "new", "committed-1").unwrap_err();
    assert!(
        matches!(error, MetadataError::ParentChanged { .. }),
        "{error}"
    );
    let same = commit("active-2", "new", "committed-2").unwrap();
    assert_eq!(same.parent.as_deref(), Some("committed-2"));
    let rebased = commit("active-1", "rebased", "new").unwrap();
    assert_eq!(rebased.parent.as_deref(), Some("new"));
    let error = fixture.remove("new").unwrap_err();
    assert!(
        matches!(error, MetadataError::HasChildren { .. }),
        "{error}"
    );
}

#[test]
fn a_snapshot_with_children_cannot_be_removed() {
    let fixture = Fixture::populated();
    let error = fixture.remove("committed-2").unwrap_err();
    assert!(error.to_string().contains("remove"), "{error}");
    for name in ["active-2", "view-2", "committed-2", "committed-1"] {
        fixture.remove(name).unwrap();
    }
    let error = fixture.remove("committed-1").unwrap_err();
    assert!(matches!(error, MetadataError::NotFound { .. }), "{error}");
}

#[test]
fn an_update_changes_labels_and_the_time() {
    let fixture = Fixture::populated();
    let first = fixture
        .update(
            "active-1",
            &labels(&[("a", "1"), ("b", "2"), ("c", "3")]),
            &LabelUpdate::Replace,
        )
        .unwrap();
    assert!(first.updated > first.created);
    let keys = LabelUpdate::Keys(vec!["a".to_owned(), "b".to_owned()]);
    let second = fixture
        .update("active-1", &labels(&[("a", "x"), ("d", "4")]), &keys)
        .unwrap();
    assert_eq!(second.labels, labels(&[("a", "x"), ("c", "3")]));
}

#[test]
fn an_id_is_never_used_twice() {
    let fixture = Fixture::new();
    let first = fixture.create(Kind::Active, "a", "").unwrap().id;
    fixture.remove("a").unwrap();
    let fixture = fixture.reopened(0);
    let second = fixture.create(Kind::Active, "a", "").unwrap().id;
    assert!(second > first);
    // A crash left a directory without a record.
    let fixture = fixture.reopened(70);
    assert_eq!(
        fixture.create(Kind::Active, "b", "").unwrap().id,
        SnapshotId(71)
    );
}

#[test]
fn records_survive_reopening() {
    let fixture = Fixture::populated();
    let before = fixture.metadata.list(|_| true).unwrap();
    let fixture = fixture.reopened(0);
    assert_eq!(before, fixture.metadata.list(|_| true).unwrap());
    assert_eq!(before.len(), 6);
}

#[test]
fn a_child_inherits_the_owner_of_its_parent() {
    let fixture = Fixture::new();
    fixture.create(Kind::Active, "key", "").unwrap();
    let owner = Owner { uid: 7, gid: 8 };
    let commit = Commit {
        owner: Some(owner),
        ..Commit::default()
    };
    wait(fixture.metadata.commit("key", "name", commit)).unwrap();
    assert_eq!(
        fixture.create(Kind::Active, "child", "name").unwrap().owner,
        owner
    );
}

#[test]
fn a_second_daemon_reports_that_the_file_is_locked() {
    let fixture = Fixture::new();
    let error = Metadata::open(&fixture.root.path().join("snapshots.redb"), 0).unwrap_err();
    assert!(error.to_string().contains("another daemon"), "{error}");
}

/// Lists the snapshots before and after `change` modifies the closed file.
fn found_after(change: impl FnOnce(&Path)) -> (Vec<Info>, Vec<Info>, Fixture) {
    let fixture = Fixture::populated();
    let changed = labels(&[("changed", "yes")]);
    let updated = fixture.update("view-1", &changed, &LabelUpdate::Replace);
    updated.unwrap();
    fixture.remove("active-1").unwrap();
    let before = fixture.metadata.list(|_| true).unwrap();
    let Fixture { metadata, root } = fixture;
    drop(metadata);
    let path = root.path().join("snapshots.redb");
    change(&path);
    let metadata = Metadata::open(&path, 0).unwrap();
    let after = metadata.list(|_| true).unwrap();
    (before, after, Fixture { metadata, root })
}

#[test]
fn records_are_restored_after_their_file_was_damaged() {
    let damage = |path: &Path| std::fs::write(path, vec![0x5a; 1 << 16]).unwrap();
    let (before, after, fixture) = found_after(damage);
    assert_eq!(before, after);
    // Links between parents and children are restored, and no number is reused.
    assert!(matches!(
        fixture.remove("committed-2"),
        Err(MetadataError::HasChildren { .. })
    ));
    let used = before.iter().map(|info| info.record.id).max().unwrap();
    assert!(fixture.metadata.reserve_id() > used);
    let aside = std::fs::read_dir(fixture.root.path()).unwrap().flatten();
    let is_aside = |name: &std::ffi::OsString| name.to_string_lossy().contains(".redb.damaged-");
    assert_eq!(
        aside
            .map(|entry| entry.file_name())
            .filter(is_aside)
            .count(),
        1
    );
}

#[test]
fn records_are_restored_after_their_file_was_lost() {
    let (before, after, _fixture) = found_after(|path| std::fs::remove_file(path).unwrap());
    assert_eq!(before, after);
    let (before, after, _fixture) = found_after(|path| std::fs::write(path, "").unwrap());
    assert_eq!(before, after);
}

#[test]
fn a_start_corrects_missing_and_leftover_copies() {
    let fixture = Fixture::populated();
    let records = fixture.root.path().join("records");
    let ids = |fixture: &Fixture| {
        let names = std::fs::read_dir(fixture.root.path().join("records")).unwrap();
        let mut names: Vec<_> = names.flatten().map(|entry| entry.file_name()).collect();
        names.sort();
        names
    };
    let before = ids(&fixture);
    assert_eq!(before.len(), 6);
    std::fs::remove_file(records.join(&before[0])).unwrap();
    let mut left: serde_json::Value =
        serde_json::from_slice(&std::fs::read(records.join(&before[1])).unwrap()).unwrap();
    left["record"]["id"] = 999.into();
    std::fs::write(records.join("999"), left.to_string()).unwrap();
    let fixture = fixture.reopened(0);
    assert_eq!(ids(&fixture), before);
}
