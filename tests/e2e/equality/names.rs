//! Where an entry is created: cleaned names, links in the parent path, missing parents.

use anyhow::Result;
use soci_tests::tar::{Entry, directory, fifo, file, hardlink, symlink, whiteout};

use super::{Case, Way, assert_equal, assert_refused};

pub(super) fn cleaned() -> Vec<Case> {
    let base = |entries: Vec<Entry>| vec![entries];
    let long = "n".repeat(255);
    vec![
        (
            "cleaned",
            base(vec![
                file("./dot", "1"),
                file("a//b/../c", "2"),
                file("/absolute", "3"),
                file("../../up", "4"),
                file("x/./y/../z", "5"),
                directory("./"),
            ]),
        ),
        (
            "the-root-entry",
            base(vec![
                directory("./").mode(0o700).owner(5, 6),
                file("f", "f"),
            ]),
        ),
        (
            "odd-names",
            base(vec![
                file("blank and\nnewline", "1"),
                file(b"bytes-\xff\xfe\x80", "2"),
                file("ünïcödé", "3"),
                file(format!("{long}/{long}/{long}"), "5")
                    .mode(0o600)
                    .owner(1, 2),
                file("back\\slash", "6"),
                file("...", "7"),
            ]),
        ),
        (
            "links-in-parents",
            base(vec![
                directory("b"),
                symlink("a", "b"),
                file("a/f", "through"),
                symlink("abs", "/b"),
                file("abs/g", "absolute"),
                symlink("b/up", "../.."),
                file("b/up/h", "cannot leave"),
                symlink("one", "two"),
                symlink("two", "b"),
                file("one/i", "chain"),
                symlink("nowhere", "not/yet"),
                file("nowhere/j", "made"),
            ]),
        ),
        (
            "links-of-lower-layers-are-not-followed",
            vec![
                vec![directory("real").mode(0o711), symlink("ln", "real")],
                vec![file("ln/f", "hides the link")],
            ],
        ),
        (
            "a-folder-of-many",
            base(
                (0..3000)
                    .map(|n| file(format!("many/file-{n:05}"), n.to_string()))
                    .collect(),
            ),
        ),
    ]
}

#[test]
fn names_are_cleaned_and_links_of_the_same_layer_are_followed() -> Result<()> {
    assert_equal(Way::Lazy, cleaned())
}

pub(super) fn implied() -> Vec<Case> {
    let lower = || {
        vec![
            directory("tmp").mode(0o1777),
            directory("own")
                .mode(0o750)
                .owner(12, 34)
                .xattr("user.k", "v")
                .mtime(1_600_000_000, 5),
            directory("own/sub").mode(0o700).owner(56, 78),
            symlink("ln", "own"),
            symlink("dangling", "nowhere"),
            file("plain", "p"),
        ]
    };
    vec![
        (
            "implied-in-a-base-layer",
            vec![vec![file("a/b/c/f", "f").owner(9, 9), fifo("a/x/p")]],
        ),
        (
            "implied-over-a-lower-folder",
            vec![lower(), vec![file("tmp/f", "f"), file("own/sub/f", "f")]],
        ),
        (
            "implied-over-a-link-below",
            vec![lower(), vec![file("ln/sub/f", "f")]],
        ),
        (
            "implied-over-a-dangling-link",
            vec![lower(), vec![file("dangling/f", "f")]],
        ),
        (
            "implied-over-a-file",
            vec![lower(), vec![file("plain/f", "f")]],
        ),
        (
            "implied-over-a-whiteout",
            vec![lower(), vec![whiteout("own")], vec![file("own/f", "f")]],
        ),
        (
            "the-nearest-layer-counts",
            vec![
                lower(),
                vec![directory("own").mode(0o555).owner(1, 1)],
                vec![file("own/sub/f", "f")],
            ],
        ),
        (
            "implied-over-implied",
            vec![
                lower(),
                vec![file("own/sub/one", "1")],
                vec![file("own/sub/two", "2"), file("tmp/three", "3")],
            ],
        ),
        (
            "hard-link-in-an-implied-folder",
            vec![lower(), vec![file("f", "f"), hardlink("tmp/h", "f")]],
        ),
    ]
}

#[test]
fn missing_parents_are_made_as_unpacking_makes_them() -> Result<()> {
    assert_equal(Way::Lazy, implied())
}

pub(super) fn repeated() -> Vec<Case> {
    let base = |entries: Vec<Entry>| vec![entries];
    vec![
        (
            "folders-merge",
            base(vec![
                directory("d")
                    .mode(0o700)
                    .xattr("user.one", "1")
                    .xattr("user.both", "old"),
                file("d/f", "stays"),
                directory("d")
                    .mode(0o755)
                    .owner(3, 4)
                    .xattr("user.two", "2")
                    .xattr("user.both", "new"),
            ]),
        ),
        (
            "file-replaces-file",
            base(vec![
                file("f", "old").xattr("user.k", "v"),
                file("f", "new").mode(0o600),
            ]),
        ),
        (
            "file-replaces-folder",
            base(vec![
                directory("d"),
                file("d/a/b", "x"),
                file("d", "now a file"),
            ]),
        ),
        (
            "folder-replaces-file",
            base(vec![file("x", "file"), directory("x"), file("x/y", "y")]),
        ),
        (
            "link-replaces-folder",
            base(vec![
                directory("d"),
                file("d/a", "a"),
                symlink("d", "e"),
                directory("e"),
            ]),
        ),
        (
            "folder-replaces-link",
            base(vec![
                directory("e"),
                symlink("l", "e"),
                directory("l"),
                file("l/f", "f"),
            ]),
        ),
        (
            "older-hard-links-keep-the-inode",
            base(vec![
                file("a", "first"),
                hardlink("b", "a"),
                file("a", "second"),
                hardlink("c", "a"),
            ]),
        ),
    ]
}

#[test]
fn an_entry_whose_path_exists_merges_or_replaces() -> Result<()> {
    assert_equal(Way::Lazy, repeated())
}

pub(super) fn refused() -> Vec<Case> {
    vec![
        (
            "a-parent-that-is-a-file",
            vec![vec![file("f", "f"), file("f/below", "b")]],
        ),
        (
            "a-parent-that-is-a-fifo",
            vec![vec![fifo("p"), file("p/below", "b")]],
        ),
        (
            "a-folder-that-became-a-dangling-link",
            vec![vec![directory("d"), symlink("d", "nowhere")]],
        ),
        // Below a lower path that is not a directory, the parent's attributes cannot be read.
        (
            "two-levels-over-a-file",
            vec![vec![file("p", "p")], vec![file("p/q/f", "f")]],
        ),
        (
            "two-levels-over-a-whiteout",
            vec![
                vec![file("d/e/f", "f")],
                vec![whiteout("d")],
                vec![file("d/e/f", "f")],
            ],
        ),
        ("a-name-too-long", vec![vec![file("n".repeat(256), "f")]]),
    ]
}

#[test]
fn names_that_unpacking_refuses_are_refused() -> Result<()> {
    assert_refused(Way::Lazy, refused())
}
