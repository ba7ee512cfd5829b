//! Whiteouts and opaque directories.

use anyhow::Result;
use soci_tests::tar::{Entry, directory, file, opaque, symlink, whiteout};

use super::{Case, Way, assert_equal, assert_refused};

fn lower() -> Vec<Entry> {
    vec![
        directory("d"),
        file("d/a", "a"),
        file("d/b", "b"),
        directory("d/sub").mode(0o750),
        file("d/sub/x", "x"),
        file("top", "top"),
        symlink("link", "d"),
    ]
}

pub(super) fn of_a_base_layer() -> Vec<Case> {
    let with = |more: Vec<Entry>| vec![[lower(), more].concat()];
    vec![
        (
            "base-whiteout",
            with(vec![whiteout("d/a"), whiteout("top")]),
        ),
        (
            "base-whiteout-folder",
            with(vec![file("implied/x", "x"), whiteout("implied")]),
        ),
        (
            "base-whiteout-then-file",
            with(vec![whiteout("d/a"), file("d/a", "new")]),
        ),
        ("base-whiteout-of-nothing", with(vec![whiteout("d/never")])),
        (
            "base-opaque",
            with(vec![opaque("d"), file("d/later", "later")]),
        ),
        (
            "base-opaque-first",
            vec![[vec![directory("d"), opaque("d")], lower()].concat()],
        ),
        (
            "base-whiteout-of-a-marker",
            with(vec![file("d/.wh..wh.x", "")]),
        ),
    ]
}

#[test]
fn markers_of_a_base_layer_are_executed() -> Result<()> {
    assert_equal(Way::Lazy, of_a_base_layer())
}

pub(super) fn of_a_layer_with_parents() -> Vec<Case> {
    let over = |more: Vec<Entry>| vec![lower(), more];
    vec![
        (
            "whiteout",
            over(vec![directory("d"), whiteout("d/a"), whiteout("top")]),
        ),
        ("whiteout-in-an-implied-folder", over(vec![whiteout("d/a")])),
        (
            "whiteout-of-a-folder",
            over(vec![directory("d"), whiteout("d/sub")]),
        ),
        (
            "whiteout-of-nothing",
            over(vec![directory("d"), whiteout("d/never")]),
        ),
        (
            "whiteout-then-real",
            over(vec![
                directory("d"),
                whiteout("d/a"),
                file("d/a", "new").mode(0o600),
            ]),
        ),
        (
            "whiteout-then-folder",
            over(vec![whiteout("top"), directory("top"), file("top/x", "x")]),
        ),
        (
            "whiteout-with-an-owner",
            over(vec![directory("d"), whiteout("d/a").owner(7, 8)]),
        ),
        (
            "whiteout-in-a-new-folder",
            over(vec![
                directory("new"),
                whiteout("new/a"),
                file("new/b", "b"),
            ]),
        ),
        ("opaque", over(vec![directory("d"), opaque("d")])),
        (
            "opaque-and-files",
            over(vec![
                directory("d"),
                file("d/new", "n"),
                opaque("d"),
                file("d/late", "l"),
            ]),
        ),
        ("opaque-in-an-implied-folder", over(vec![opaque("d/sub")])),
        (
            "opaque-in-a-new-folder",
            over(vec![directory("new"), opaque("new"), file("new/f", "f")]),
        ),
        (
            "whiteout-of-a-marker",
            over(vec![directory("d"), file("d/.wh..wh.x", "")]),
        ),
        (
            "folder-in-the-place-of-a-link",
            over(vec![directory("link"), file("link/in", "i")]),
        ),
        (
            "three-layers",
            vec![
                lower(),
                vec![whiteout("d/a"), whiteout("d/sub")],
                vec![file("d/a", "back"), directory("d/sub")],
            ],
        ),
        (
            "opaque-in-the-middle",
            vec![
                lower(),
                vec![directory("d"), opaque("d"), file("d/m", "m")],
                vec![file("d/top", "t")],
            ],
        ),
    ]
}

#[test]
fn markers_of_a_layer_with_parents_hide_what_is_below() -> Result<()> {
    assert_equal(Way::Lazy, of_a_layer_with_parents())
}

pub(super) fn refused() -> Vec<Case> {
    let over = |more: Vec<Entry>| vec![lower(), more];
    vec![
        (
            "whiteout-after-the-file",
            over(vec![directory("d"), file("d/a", "a"), whiteout("d/a")]),
        ),
        (
            "whiteout-twice",
            over(vec![directory("d"), whiteout("d/a"), whiteout("d/a")]),
        ),
        (
            "whiteout-without-a-name",
            over(vec![directory("d"), file("d/.wh.", "")]),
        ),
        (
            "whiteout-of-dot",
            over(vec![directory("d"), file("d/.wh..", "")]),
        ),
        (
            "whiteout-of-dot-dot",
            over(vec![directory("d"), file("d/.wh...", "")]),
        ),
        // At the end, the times of the removed directory cannot be set.
        (
            "base-whiteout-of-an-entry-that-is-a-folder",
            vec![[lower(), vec![whiteout("d/sub")]].concat()],
        ),
        (
            "whiteout-without-a-name-in-a-base-layer",
            vec![vec![directory("d"), file("d/.wh.", "")]],
        ),
    ]
}

#[test]
fn markers_that_unpacking_refuses_are_refused() -> Result<()> {
    assert_refused(Way::Lazy, refused())
}
