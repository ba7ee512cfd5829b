use soci_bolt::testing::{Item, PLAIN, Tree, write};

use super::*;

/// Encodes like `binary.PutUvarint`.
pub(in super::super) fn uvarint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    bytes.push(number.to_le_bytes()[0]);
    bytes
}

/// Encodes like `time.Time.MarshalBinary` in UTC.
fn time(secs: i64, nanos: u32) -> Vec<u8> {
    let mut bytes = vec![1];
    bytes.extend((secs + 62_135_596_800).to_be_bytes());
    bytes.extend(nanos.to_be_bytes());
    bytes.extend((-1_i16).to_be_bytes());
    bytes
}

fn tree(fields: &[(&str, Vec<u8>)]) -> Tree {
    let item =
        |(key, value): &(&str, Vec<u8>)| (key.as_bytes().to_vec(), Item::Bytes(value.clone()));
    fields.iter().map(item).collect()
}

pub(in super::super) fn snapshot(id: u64, kind: u8, parent: &str, labels: &[(&str, &str)]) -> Tree {
    let mut fields = vec![
        ("id", uvarint(id)),
        ("kind", vec![kind]),
        ("createdat", time(1_700_000_000, 5)),
        ("updatedat", time(1_700_000_001, 6)),
        ("inodes", uvarint(2 * 3)),
        ("size", uvarint(2 * 4096)),
    ];
    if !parent.is_empty() {
        fields.push(("parent", parent.as_bytes().to_vec()));
    }
    let mut fields = tree(&fields);
    if !labels.is_empty() {
        let labels: Vec<_> = labels
            .iter()
            .map(|(key, value)| (*key, value.as_bytes().to_vec()))
            .collect();
        fields.insert(b"labels".to_vec(), Item::Bucket(tree(&labels)));
    }
    fields
}

pub(in super::super) fn file(sequence: u64, snapshots: &[(&str, Tree)]) -> Vec<u8> {
    let record =
        |(name, tree): &(&str, Tree)| (name.as_bytes().to_vec(), Item::Bucket(tree.clone()));
    let snapshots = Item::Counted(snapshots.iter().map(record).collect(), sequence);
    let version: Tree = [
        (b"snapshots".to_vec(), snapshots),
        (b"parents".to_vec(), Item::Bucket(Tree::new())),
    ]
    .into();
    write(&[(b"v1".to_vec(), Item::Bucket(version))].into(), PLAIN)
}

const DIGEST: &str = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

fn names(reference: &Reference) -> Vec<&str> {
    let names = reference.records.iter().map(|info| info.name.as_str());
    names.collect()
}

#[test]
fn every_field_of_a_record_is_read() {
    let lazy = [
        (labels::REMOTE, "remote snapshot"),
        (labels::LAYER_DIGEST, DIGEST),
        ("empty", ""),
    ];
    let file = file(
        9,
        &[
            ("ns/1/base", snapshot(1, 3, "", &lazy)),
            (
                "ns/2/top",
                snapshot(2, 3, "ns/1/base", &[("kept", "as it is")]),
            ),
            ("ns/3/running", snapshot(5, 2, "ns/2/top", &[])),
            ("ns/4/seen", snapshot(300, 1, "ns/2/top", &[])),
        ],
    );
    let reference = parse(&file).unwrap();
    assert_eq!((reference.last, reference.skipped.len()), (300, 0));
    let of = |name: &str| {
        let found = reference.records.iter().find(|info| info.name == name);
        found.unwrap().record.clone()
    };
    let base = of("ns/1/base");
    assert_eq!(
        base.layer,
        Some(LayerUse {
            layer: LayerKey {
                layer: DIGEST.parse().unwrap(),
                ztoc: None
            },
            patch: String::new()
        })
    );
    assert_eq!(base.labels.len(), 2, "no empty label: {:?}", base.labels);
    let top = of("ns/2/top");
    assert_eq!(
        top,
        Record {
            id: SnapshotId(2),
            kind: Kind::Committed,
            parent: Some("ns/1/base".to_owned()),
            created: UNIX_EPOCH + Duration::new(1_700_000_000, 5),
            updated: UNIX_EPOCH + Duration::new(1_700_000_001, 6),
            labels: [("kept".to_owned(), "as it is".to_owned())].into(),
            usage: Usage {
                size: 4096,
                inodes: 3
            },
            owner: Owner::default(),
            layer: None,
            remapped: false,
        }
    );
    assert_eq!(
        (of("ns/3/running").kind, of("ns/4/seen").kind),
        (Kind::Active, Kind::View)
    );
    let position = |name: &str| names(&reference).iter().position(|found| *found == name);
    assert!(position("ns/1/base") < position("ns/2/top"));
}

#[test]
fn the_sequence_counts_even_if_its_snapshots_are_gone() {
    assert_eq!(parse(&file(41, &[])).unwrap().last, 41);
    assert_eq!(
        parse(&write(&Tree::new(), PLAIN)).unwrap(),
        Reference::default()
    );
}

#[test]
fn a_snapshot_whose_owners_containerd_changed_is_known_by_its_name() {
    let file = file(
        3,
        &[
            ("ns/1/sha256:a", snapshot(1, 3, "", &[])),
            (
                "ns/2/sha256:a-1000-1000",
                snapshot(2, 3, "ns/1/sha256:a", &[]),
            ),
            ("ns/3/sha256:b", snapshot(3, 3, "ns/1/sha256:a", &[])),
        ],
    );
    let mut remapped = parse(&file).unwrap().records;
    remapped.retain(|info| info.record.remapped);
    let remapped: Vec<_> = remapped.into_iter().map(|info| info.name).collect();
    assert_eq!(remapped, ["ns/2/sha256:a-1000-1000"]);
}

#[test]
fn records_that_make_no_sense_are_left_out_with_those_on_them() {
    let with = |key: &str, value: &[u8]| {
        let mut fields = snapshot(50, 3, "", &[]);
        fields.insert(key.into(), Item::Bytes(value.to_vec()));
        fields
    };
    let file = file(
        60,
        &[
            ("good", snapshot(1, 3, "", &[])),
            ("kind", with("kind", &[4])),
            ("id", with("id", &[0xff; 12])),
            ("zero", with("id", &[0])),
            (
                "no-layer",
                snapshot(7, 3, "", &[(labels::REMOTE, "remote snapshot")]),
            ),
            ("on-nothing", snapshot(8, 2, "missing", &[])),
            ("on-kind", snapshot(9, 3, "kind", &[])),
            ("on-on-kind", snapshot(10, 2, "on-kind", &[])),
            ("circle-a", snapshot(11, 3, "circle-b", &[])),
            ("circle-b", snapshot(12, 3, "circle-a", &[])),
            ("active", snapshot(13, 2, "", &[])),
            ("on-active", snapshot(14, 2, "active", &[])),
            ("same-id", snapshot(1, 3, "", &[])),
        ],
    );
    let reference = parse(&file).unwrap();
    let mut found = names(&reference);
    found.sort_unstable();
    assert_eq!(found, ["active", "good"]);
    let mut skipped: Vec<_> = reference
        .skipped
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    skipped.sort_unstable();
    assert_eq!(
        skipped,
        [
            "circle-a",
            "circle-b",
            "id",
            "kind",
            "no-layer",
            "on-active",
            "on-kind",
            "on-nothing",
            "on-on-kind",
            "same-id",
            "zero"
        ]
    );
}
