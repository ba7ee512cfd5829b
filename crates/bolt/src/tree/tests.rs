#![allow(
    clippy::cast_possible_truncation,
    reason = "numbers of tests are small"
)]

use proptest::prelude::*;

use super::{Bolt, BoltError, Bucket, Value};
use crate::testing::{Item, Layout, Tree, meta, write};

#[test]
fn circles_end() {
    // A branch that refers to itself, and a tree that contains its pages twice.
    let size = 4096;
    let branch = |page: u64, children: &[u64]| {
        let mut bytes = page.to_le_bytes().to_vec();
        bytes.extend(1_u16.to_le_bytes());
        bytes.extend((children.len() as u16).to_le_bytes());
        bytes.extend(0_u32.to_le_bytes());
        for child in children {
            bytes.extend(0_u64.to_le_bytes());
            bytes.extend(child.to_le_bytes());
        }
        bytes.resize(size, 0);
        bytes
    };
    for children in [vec![2], vec![3, 3], vec![3, 2]] {
        let mut file = Vec::new();
        for page in [0, 1] {
            file.extend(meta(page, 2, 4, page, size));
            file.resize((page as usize + 1) * size, 0);
        }
        file.extend(branch(2, &children));
        file.extend(branch(3, &[]));
        let mut bolt = Bolt::open(&file).unwrap();
        let root = bolt.root();
        let error = bolt.entries(root).unwrap_err();
        let what = "in the trees twice";
        assert!(
            matches!(error, BoltError::Page { what: found, .. } if found == what),
            "{error}"
        );
    }
}

fn read_back<'a>(bolt: &mut Bolt<'a>, bucket: Bucket<'a>) -> Tree {
    let entries = bolt.entries(bucket).unwrap();
    let item = |bolt: &mut Bolt<'a>, value: Value<'a>| match value {
        Value::Bytes(bytes) => Item::Bytes(bytes.to_vec()),
        Value::Bucket(bucket) => match bucket.sequence() {
            0 => Item::Bucket(read_back(bolt, bucket)),
            sequence => Item::Counted(read_back(bolt, bucket), sequence),
        },
    };
    entries
        .into_iter()
        .map(|(key, value)| (key.to_vec(), item(bolt, value)))
        .collect()
}

fn trees() -> impl Strategy<Value = Tree> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..300);
    let key = || prop::collection::vec(any::<u8>(), 1..40);
    let long = prop::collection::vec(any::<u8>(), 4000..20_000);
    let leaf = prop_oneof![
        9 => bytes().prop_map(Item::Bytes),
        1 => long.prop_map(Item::Bytes),
    ];
    let item = leaf.prop_recursive(3, 60, 12, move |inner| {
        let bucket = prop::collection::btree_map(key(), inner, 0..12);
        (bucket, 0..3_u64).prop_map(|(bucket, sequence)| match sequence {
            0 => Item::Bucket(bucket),
            sequence => Item::Counted(bucket, sequence << 40),
        })
    });
    prop::collection::btree_map(prop::collection::vec(any::<u8>(), 1..40), item, 0..40)
}

fn layouts() -> impl Strategy<Value = Layout> {
    (9..17_u32, 2..9_usize, 0..3000_usize).prop_map(|(bits, fanout, inline)| Layout {
        page_size: 1 << bits,
        fanout,
        inline,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn prop_every_tree_is_read_back(tree in trees(), layout in layouts()) {
        let file = write(&tree, layout);
        let mut bolt = Bolt::open(&file).unwrap();
        let root = bolt.root();
        prop_assert_eq!(read_back(&mut bolt, root), tree);
    }
}
