//! Kinds of entries: files of every size, links, devices, and entries that unpacking refuses.

use anyhow::Result;
use soci_tests::image::noise;
use soci_tests::tar::{Entry, block_device, char_device, directory, fifo, file, hardlink, symlink};

use super::{Case, Way, assert_equal, assert_refused};

fn capability() -> Vec<u8> {
    // Version 2: CAP_NET_RAW permitted and effective.
    [0x0200_0001_u32, 1 << 13, 0, 0, 0]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect()
}

pub(super) fn sizes() -> Vec<Case> {
    let sizes = [
        0, 1, 511, 512, 513, 4095, 4096, 4097, 8192, 65_535, 65_536, 65_537, 131_072, 1_000_000,
        3_145_729,
    ];
    let noisy = sizes
        .iter()
        .map(|&size| file(format!("noise-{size}"), noise(size as u64, size)));
    let zeros = sizes
        .iter()
        .map(|&size| file(format!("zeros-{size}"), vec![0; size]));
    let padded =
        [1, 600, 5000].map(|size| file(format!("padded-{size}"), noise(1, size)).padding(0xFF));
    vec![("sizes", vec![noisy.chain(zeros).chain(padded).collect()])]
}

#[test]
fn files_of_every_size_have_their_content() -> Result<()> {
    assert_equal(Way::Lazy, sizes())
}

pub(super) fn links_and_devices() -> Vec<Case> {
    [devices_and_symlinks(), hard_links_and_folders()].concat()
}

fn devices_and_symlinks() -> Vec<Case> {
    let base = |entries: Vec<Entry>| vec![entries];
    vec![
        (
            "devices",
            base(vec![
                char_device("null", 1, 3).mode(0o666),
                block_device("disk", 8, 17).owner(0, 6),
                char_device("big", 4095, 1_048_575),
                char_device("zero", 0, 0),
                fifo("pipe").mode(0o600).owner(1, 2),
            ]),
        ),
        (
            "symlinks",
            base(vec![
                symlink("relative", "a/b")
                    .owner(1, 2)
                    .mode(0o600)
                    .mtime(1_500_000_000, 123_456_789),
                symlink("absolute", "/etc/passwd"),
                symlink("far", "x/".repeat(400)),
                symlink("up", "../../../.."),
                symlink("self", "self"),
                symlink("odd", b"\xff bytes"),
            ]),
        ),
    ]
}

fn hard_links_and_folders() -> Vec<Case> {
    let base = |entries: Vec<Entry>| vec![entries];
    vec![
        (
            "hard-links",
            base(vec![
                directory("d"),
                file("d/a", "shared")
                    .xattr("user.old", "1")
                    .xattr("user.both", "1"),
                hardlink("b", "d/a")
                    .owner(7, 8)
                    .mode(0o4711)
                    .mtime(1_400_000_000, 1)
                    .xattr("user.both", "2"),
                symlink("to-d", "d"),
                hardlink("c", "to-d/a"),
                symlink("s", "nowhere"),
                hardlink("s2", "s"),
                fifo("p"),
                hardlink("p2", "/p"),
                file("x", "x"),
                hardlink("x", "d/a"),
            ]),
        ),
        (
            "a-hard-link-drops-a-capability",
            base(vec![
                file("cap", "c")
                    .mode(0o755)
                    .xattr("security.capability", capability()),
                hardlink("dropped", "cap").owner(1, 1),
                file("cap2", "c")
                    .mode(0o755)
                    .xattr("security.capability", capability()),
                hardlink("kept", "cap2")
                    .mode(0o755)
                    .xattr("security.capability", capability()),
            ]),
        ),
        (
            "old-names-of-kinds",
            base(vec![
                file("old", "type byte zero").kind(0),
                file("folder/", "").kind(0),
                file("folder/f", "f"),
            ]),
        ),
        (
            "times-of-folders-are-set-at-the-end-by-path",
            base(vec![
                directory("d").mtime(1_100_000_000, 0),
                file("d/later", "changes the folder"),
                directory("e").mtime(1_200_000_000, 0),
                directory("gone").mtime(1_300_000_000, 0),
                symlink("gone", "e"),
                directory("now-a-file").mtime(1_350_000_000, 0),
                file("now-a-file", "f").mtime(1_250_000_000, 0),
            ]),
        ),
    ]
}

#[test]
fn links_and_devices_are_those_of_the_archive() -> Result<()> {
    assert_equal(Way::Lazy, links_and_devices())
}

pub(super) fn refused() -> Vec<Case> {
    let base = |entries: Vec<Entry>| vec![entries];
    vec![
        (
            "a-hard-link-to-nothing",
            base(vec![hardlink("h", "nothing")]),
        ),
        (
            "a-hard-link-to-what-comes-later",
            base(vec![hardlink("h", "later"), file("later", "l")]),
        ),
        (
            "a-hard-link-to-a-folder",
            base(vec![directory("d"), hardlink("h", "d")]),
        ),
        (
            "a-folder-that-vanishes",
            base(vec![
                directory("d"),
                directory("d/gone"),
                file("d", "takes its place"),
            ]),
        ),
    ]
}

#[test]
fn kinds_that_unpacking_refuses_are_refused() -> Result<()> {
    assert_refused(Way::Lazy, refused())
}

/// Archives that can be unpacked but not indexed.
pub(super) fn only_without_an_index() -> Vec<Case> {
    let entries = vec![file("f", "f"), global("pax_global_header"), file("g", "g")];
    let before = vec![
        global("f"),
        file("f", "comes later"),
        directory("d"),
        global("./"),
    ];
    let below = vec![file("f", "below"), directory("d").mode(0o700)];
    let above = vec![global("f"), global("d"), file("g", "g")];
    vec![
        ("a-global-header-is-ignored", vec![entries]),
        ("a-global-header-before-its-name", vec![before]),
        ("a-global-header-over-a-lower-name", vec![below, above]),
    ]
}

fn global(name: &str) -> Entry {
    file(name, "19 comment=ignored\n").kind(b'g')
}

/// Global headers with an effect on the tree, which only unpacking applies.
pub(super) fn left_to_containerd() -> Vec<Case> {
    let lower = || {
        vec![
            directory("d").mode(0o750).owner(12, 34),
            file("d/f", "below"),
            file("f", "below"),
            symlink("l", "d"),
        ]
    };
    let over = |entries: Vec<Entry>| vec![lower(), entries];
    vec![
        (
            "a-global-header-makes-parents",
            over(vec![global("d/new/g"), file("x", "x")]),
        ),
        (
            "a-global-header-hides-a-link",
            over(vec![global("l/g"), file("x", "x")]),
        ),
        (
            "a-global-header-whites-out",
            over(vec![global(".wh.f"), file("x", "x")]),
        ),
        (
            "a-global-header-removes-a-file",
            over(vec![file("a", "a"), global("a"), file("x", "x")]),
        ),
    ]
}

/// Archives that can be neither unpacked nor indexed.
pub(super) fn refused_by_convert_too() -> Vec<Case> {
    vec![
        ("a-contiguous-file", vec![vec![file("f", "f").kind(b'7')]]),
        ("an-unknown-kind", vec![vec![file("f", "").kind(b'Z')]]),
        // Its time cannot be set at the end.
        (
            "a-global-header-removes-a-folder",
            vec![vec![
                directory("e"),
                file("e/f", "f"),
                global("e"),
                file("x", "x"),
            ]],
        ),
    ]
}
