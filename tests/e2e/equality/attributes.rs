//! Owners, extended attributes, modes and times, in the order in which unpacking applies them.

use anyhow::Result;
use soci_tests::tar::{Entry, char_device, directory, fifo, file, symlink};

use super::{Case, Way, assert_equal, assert_refused};

const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const MASK: u16 = 16;
const OTHER: u16 = 32;
const NOBODY: u32 = u32::MAX;

/// A POSIX ACL as the kernel stores it: version 2, then (tag, permissions, id).
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn full_acl() -> Vec<u8> {
    acl(&[
        (USER_OBJ, 6, NOBODY),
        (USER, 7, 1000),
        (GROUP_OBJ, 4, NOBODY),
        (MASK, 7, NOBODY),
        (OTHER, 0, NOBODY),
    ])
}

fn base(entries: Vec<Entry>) -> Vec<Vec<Entry>> {
    vec![entries]
}

pub(super) fn plain() -> Vec<Case> {
    let modes = [0, 0o644, 0o777, 0o1777, 0o2755, 0o4755, 0o6711, 0o7777];
    let files = modes
        .iter()
        .map(|&mode| file(format!("f{mode:o}"), "f").mode(mode).owner(1, 2));
    let folders = modes
        .iter()
        .map(|&mode| directory(format!("d{mode:o}")).mode(mode).owner(3, 4));
    vec![
        ("modes", base(files.chain(folders).collect())),
        (
            "owners",
            base(vec![
                file("plain", "").owner(1000, 1000),
                file("large", "").owner(3_000_000_000, 4_000_000_000),
                file("largest", "").owner(4_294_967_294, 4_294_967_294),
                file("unchanged", "").owner(4_294_967_295, 4_294_967_295),
                directory("folder").owner(65_536, 100_000),
                symlink("link", "plain").owner(12, 34),
                fifo("pipe").owner(56, 78),
            ]),
        ),
        (
            "times",
            base(vec![
                file("epoch", "").mtime(0, 0),
                file("before", "").mtime(-1, 0),
                file("long-before", "").mtime(-2_000_000_000, 500_000_000),
                file("nanoseconds", "").mtime(1_234_567_890, 123_456_789),
                file("last", "").mtime(1_234_567_890, 999_999_999),
                file("beyond-32-bits", "").mtime(5_000_000_000, 1),
                file("far", "").mtime(9_223_372_036, 0),
                file("too-far", "").mtime(9_300_000_000, 0),
                directory("folder").mtime(987_654_321, 987_654_321),
                symlink("link", "x").mtime(1, 1),
                file("atime", "")
                    .mtime(1_000, 0)
                    .record("atime", "2000.5")
                    .record("ctime", "3000"),
            ]),
        ),
    ]
}

#[test]
fn owners_modes_and_times_are_those_of_the_archive() -> Result<()> {
    assert_equal(Way::Lazy, plain())
}

pub(super) fn extended() -> Vec<Case> {
    [xattrs(), inherited_and_acls()].concat()
}

fn xattrs() -> Vec<Case> {
    let binary: Vec<u8> = (0..=255).collect();
    let capability: Vec<u8> = [0x0200_0001_u32, 1 << 10, 0, 0, 0]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    vec![(
        "xattrs",
        base(vec![
            file("user", "")
                .xattr("user.a", "1")
                .xattr("user.empty", "")
                .xattr("user.binary", binary),
            file("large", "").xattr("user.large", vec![b'x'; 3000]),
            directory("folder").xattr("user.on.folder", "yes"),
            file("trusted", "")
                .xattr("trusted.hidden", "1")
                .xattr("user.shown", "1"),
            directory("opaque-by-hand").xattr("trusted.overlay.opaque", "y"),
            directory("user-overlay").xattr("user.overlay.opaque", "y"),
            file("unknown", "")
                .xattr("nonsense.name", "1")
                .xattr("user.k", "v"),
            symlink("on-a-link", "x").xattr("user.dropped", "1"),
            fifo("on-a-pipe").xattr("user.dropped", "1"),
            char_device("on-a-device", 1, 3).xattr("user.dropped", "1"),
            file("capability", "x")
                .mode(0o755)
                .xattr("security.capability", &capability),
            file("chowned-capability", "x")
                .owner(5, 5)
                .mode(0o755)
                .xattr("security.capability", &capability),
            file("many", "")
                .xattr("user.1", "1")
                .xattr("user.2", "2")
                .xattr("user.3", "3"),
            file("many-too", "")
                .xattr("user.1", "1")
                .xattr("user.2", "2")
                .xattr("user.3", "3"),
        ]),
    )]
}

fn inherited_and_acls() -> Vec<Case> {
    vec![
        (
            "acls",
            base(vec![
                file("full", "")
                    .mode(0o640)
                    .xattr("system.posix_acl_access", full_acl()),
                file("mode-wins", "")
                    .mode(0o600)
                    .xattr("system.posix_acl_access", full_acl()),
                file("three", "").mode(0o640).xattr(
                    "system.posix_acl_access",
                    acl(&[
                        (USER_OBJ, 6, NOBODY),
                        (GROUP_OBJ, 4, NOBODY),
                        (OTHER, 0, NOBODY),
                    ]),
                ),
                directory("folder")
                    .mode(0o750)
                    .xattr("system.posix_acl_access", full_acl()),
            ]),
        ),
        (
            "an-acl-of-another-version-is-dropped",
            base(vec![
                file("f", "")
                    .mode(0o640)
                    .xattr("system.posix_acl_access", "nonsense"),
            ]),
        ),
        (
            "default-acls-are-inherited",
            base(vec![
                directory("d")
                    .mode(0o770)
                    .xattr("system.posix_acl_default", full_acl()),
                file("d/file", "").mode(0o664),
                file("d/implied/file", "").mode(0o644),
                directory("d/folder").mode(0o755),
                directory("d/folder/below").mode(0o700),
                symlink("d/link", "file"),
                fifo("d/pipe"),
            ]),
        ),
        (
            "set-group-id-folders",
            base(vec![
                directory("d").mode(0o2775).owner(1, 50),
                file("d/file", "").owner(2, 60),
                file("d/implied/file", "").owner(3, 70),
                directory("d/folder").owner(4, 80),
            ]),
        ),
    ]
}

#[test]
fn extended_attributes_are_filtered_and_applied_as_by_unpacking() -> Result<()> {
    assert_equal(Way::Lazy, extended())
}

pub(super) fn refused() -> Vec<Case> {
    vec![
        (
            "a-malformed-capability",
            base(vec![file("f", "").xattr("security.capability", "nonsense")]),
        ),
        (
            "a-malformed-acl",
            base(vec![
                // An unknown tag. An unknown *version* would be ignored like an unknown namespace.
                file("f", "").xattr("system.posix_acl_access", acl(&[(77, 7, NOBODY)])),
            ]),
        ),
    ]
}

#[test]
fn attributes_that_unpacking_refuses_are_refused() -> Result<()> {
    assert_refused(Way::Lazy, refused())
}
