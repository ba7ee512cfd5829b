//! Runs the fuzz target on stable Rust, with mutations of a file of the reference and with noise.

use proptest::prelude::*;

use soci_bolt::testing::{Item, Layout, Tree, write};

#[path = "../../../../fuzz/bodies/bolt_read.rs"]
mod bolt_read;

/// Records that are stored inline or on their own pages, below branches.
fn file() -> Vec<u8> {
    let record = |number: u8| {
        let long = "x".repeat(usize::from(number) * 100);
        let fields = [
            ("size", "\u{8}"),
            ("type", "soci_index"),
            ("platform", &long),
        ];
        let item = |(key, value): (&str, &str)| (key.into(), Item::Bytes(value.into()));
        fields.into_iter().map(item).collect::<Tree>()
    };
    let records = (0..12).map(|number| {
        let digest = format!("sha256:{}", format!("{number:02x}").repeat(32));
        (digest.into_bytes(), Item::Bucket(record(number)))
    });
    let tree = [(b"soci_artifacts".to_vec(), Item::Bucket(records.collect()))].into();
    let layout = Layout {
        page_size: 512,
        fanout: 3,
        inline: 300,
    };
    write(&tree, layout)
}

#[test]
fn the_corpus_passes() {
    bolt_read::run(&file());
    bolt_read::run(&[]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn prop_mutated_files_do_no_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop_oneof![0..8_u8, any::<u8>()]), 1..6),
        length in any::<prop::sample::Index>(),
        cut in prop::bool::weighted(0.1),
    ) {
        let mut file = file();
        for (at, value) in changes {
            *at.get_mut(&mut file) = value;
        }
        if cut {
            file.truncate(length.index(file.len()));
        }
        bolt_read::run(&file);
    }

    #[test]
    fn prop_noise_does_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        bolt_read::run(&bytes);
    }
}
