//! `fsck.erofs` accepts what is written, and extracts the tree that was meant.
//!
//! Needs erofs-utils 1.8: the variable `SOCI_FSCK_EROFS` names the command (`make test` sets it).

#![allow(
    clippy::cast_possible_truncation,
    reason = "small numbers of the tests' own"
)]

#[path = "it/trees.rs"]
mod trees;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use trees::{Content, Taste, Tree, tree};

/// Writes image and device into a folder and runs `fsck.erofs` on them.
fn fsck(tree: &Tree, folder: &Path, more: &[&str]) {
    let command = std::env::var_os("SOCI_FSCK_EROFS")
        .expect("SOCI_FSCK_EROFS names fsck.erofs 1.8; `make test` gets it and sets the variable");
    let (image, device) = tree.image();
    let (meta, data) = (folder.join("meta"), folder.join("data"));
    image
        .write(File::create(&meta).expect("meta"))
        .expect("write");
    File::create(&data)
        .expect("data")
        .write_all(&device)
        .expect("device");
    let output = Command::new(command)
        .arg("-d3")
        .arg(format!("--device={}", data.display()))
        .args(more)
        .arg(&meta)
        .output()
        .expect("run fsck.erofs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    let verdict = ["No errors found", "Extracted filesystem successfully"];
    assert!(verdict.iter().any(|good| said.contains(good)), "{said}");
}

fn extracted_equals(tree: &Tree, root: &Path) {
    let mut inodes: BTreeMap<usize, u64> = BTreeMap::new();
    for (path, &number) in &tree.paths {
        let thing = &tree.things[number];
        let relative = std::ffi::OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(path));
        let at = root.join(relative);
        let stat = fs::symlink_metadata(&at).expect("extracted");
        assert_eq!(
            *inodes.entry(number).or_insert(stat.ino()),
            stat.ino(),
            "hard links of {at:?}"
        );
        assert_eq!(
            (stat.uid(), stat.gid()),
            (thing.attributes.uid, thing.attributes.gid)
        );
        let kind = stat.file_type();
        match &thing.content {
            Content::File(bytes) => assert!(fs::read(&at).expect("read") == *bytes),
            Content::Directory => assert!(kind.is_dir()),
            Content::Symlink(target) => {
                assert_eq!(
                    fs::read_link(&at).expect("link").as_os_str().as_bytes(),
                    target
                );
            }
            Content::Char(major, minor) => {
                assert!(kind.is_char_device());
                assert_eq!(stat.rdev(), rustix::fs::makedev(*major, *minor));
            }
            Content::Block(..) => assert!(kind.is_block_device()),
            Content::Fifo => assert!(kind.is_fifo()),
        }
        if !kind.is_dir() {
            assert_eq!(stat.nlink(), tree.links(number) as u64, "links of {at:?}");
        }
        if matches!(thing.content, Content::File(_) | Content::Fifo) {
            assert_eq!(
                stat.mode() & 0o7777,
                u32::from(thing.attributes.mode),
                "mode of {at:?}"
            );
            assert_eq!(stat.mtime(), thing.attributes.mtime.secs);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn prop_fsck_accepts_every_image(
        tree in tree(Taste { any_bytes: true, max_things: 300 })
    ) {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("folder");
        fsck(&tree, folder.path(), &[]);
    }

    #[test]
    fn prop_fsck_extracts_the_tree_that_was_written(
        tree in tree(Taste { any_bytes: false, max_things: 120 })
    ) {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("folder");
        let out = folder.path().join("out");
        let extract = format!("--extract={}", out.display());
        fsck(&tree, folder.path(), &[&extract]);
        extracted_equals(&tree, &out);
    }
}
