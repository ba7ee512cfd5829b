use tonic::Code;

use super::*;
use crate::cpu::Lost;
use crate::snapshots::metadata::SnapshotId;

fn name() -> String {
    "n".to_owned()
}

#[test]
fn every_error_has_the_status_that_containerd_expects() {
    use MetadataError as M;
    use SnapshotError as S;
    let io = || std::io::Error::other("x");
    let storage = || Box::new(redb::Error::DatabaseAlreadyOpen);
    let damaged = serde_json::from_str::<u8>("x").unwrap_err();
    let cases: Vec<(SnapshotError, Code)> = vec![
        (M::NotFound { name: name() }.into(), Code::NotFound),
        (
            M::AlreadyExists { name: name() }.into(),
            Code::AlreadyExists,
        ),
        (
            M::NotActive { name: name() }.into(),
            Code::FailedPrecondition,
        ),
        (
            M::ParentNotCommitted { name: name() }.into(),
            Code::InvalidArgument,
        ),
        (
            M::ParentChanged {
                name: name(),
                parent: name(),
            }
            .into(),
            Code::InvalidArgument,
        ),
        (
            M::HasChildren { name: name() }.into(),
            Code::FailedPrecondition,
        ),
        (
            M::Storage {
                action: "a",
                source: storage(),
            }
            .into(),
            Code::Unknown,
        ),
        (
            M::Damaged {
                name: name(),
                source: damaged,
            }
            .into(),
            Code::Unknown,
        ),
        (S::TargetExists { target: name() }, Code::AlreadyExists),
        (S::NoNamespace, Code::Unknown),
        (S::NotMountable { key: name() }, Code::FailedPrecondition),
        (S::Empty { field: "key" }, Code::InvalidArgument),
        (
            S::Files {
                action: "a",
                id: SnapshotId(1),
                source: io(),
            },
            Code::Unknown,
        ),
        (
            S::Folder {
                path: "/".into(),
                source: io(),
            },
            Code::Unknown,
        ),
        (S::Lost(Lost::Closed), Code::Unknown),
    ];
    for (error, wanted) in cases {
        let text = error.to_string();
        let found = status(error);
        assert_eq!(found.code(), wanted, "{text}");
        assert!(
            found.message().starts_with(&text),
            "{text}: {}",
            found.message()
        );
    }
}

#[test]
fn causes_are_part_of_the_text() {
    let source = std::io::Error::other("the disk is away");
    let error = SnapshotError::Files {
        action: "create the directory",
        id: SnapshotId(4),
        source,
    };
    let found = status(error);
    assert_eq!(
        found.message(),
        "cannot create the directory of snapshot 4: the disk is away"
    );
}

#[test]
fn a_field_mask_names_labels_only() {
    let paths = |paths: &[&str]| paths.iter().map(|&path| path.to_owned()).collect();
    let keys = |keys: &[&str]| LabelUpdate::Keys(paths(keys));
    assert_eq!(label_update(paths(&[])).unwrap(), LabelUpdate::Replace);
    assert_eq!(
        label_update(paths(&["labels"])).unwrap(),
        LabelUpdate::Replace
    );
    let dotted = label_update(paths(&["labels.a", "labels.b.c/d"])).unwrap();
    assert_eq!(dotted, keys(&["a", "b.c/d"]));
    for refused in ["parent", "kind", "name", "created_at", "label", ""] {
        let error = label_update(paths(&["labels.a", refused])).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{refused}");
    }
}
