//! Owners, modes, extended attributes, and times.

use super::*;

#[test]
fn an_owner_of_all_ones_is_unchanged() {
    let tree = base(&[
        file("new", 1).owner(u32::MAX, 7),
        dir("d").owner(3, 4),
        dir("d").owner(u32::MAX, u32::MAX),
    ]);
    assert_eq!(tree.at("new").owner(), (0, 7));
    assert_eq!(tree.at("d").owner(), (3, 4));
}

#[test]
fn attributes_are_filtered_by_namespace_and_kind() {
    let all = |entry: Made| {
        entry
            .xattr("user.u", b"\xff\0")
            .xattr("user.empty", "")
            .xattr("trusted.t", "1")
            .xattr("trusted.overlay.opaque", "y")
            .xattr("security.s", "1")
            .xattr("system.other", "1")
            .xattr("what", "1")
            .xattr("user.overlay.opaque", "y")
    };
    let entries = [
        all(file("f", 1)),
        all(dir("d")),
        all(symlink("l", "x")),
        all(made(b'6', "p")),
    ];
    let tree = base(&entries);
    for path in ["f", "d"] {
        let names = ["security.s", "user.empty", "user.overlay.opaque", "user.u"];
        assert_eq!(tree.at(path).xattr_names(), names);
        assert_eq!(tree.at(path).xattr("user.u"), Some(&b"\xff\0"[..]));
    }
    for path in ["l", "p"] {
        assert_eq!(tree.at(path).xattr_names(), ["security.s"]);
    }
    let namespace = Rules {
        user_namespace: true,
        ..BASE
    };
    let tree = build(&entries, &Patch::plain(namespace)).expect("unpacks");
    assert_eq!(
        tree.at("f").xattr_names(),
        ["security.s", "user.empty", "user.u"]
    );
}

#[test]
fn names_and_values_that_the_kernel_rejects_fail() {
    let long = format!("user.{}", "x".repeat(251));
    let bad: [(&str, Vec<u8>); 9] = [
        ("", vec![]),
        ("user.", vec![]),
        ("security.", vec![]),
        (&long, vec![]),
        (CAPABILITY, b"not one".to_vec()),
        (
            CAPABILITY,
            [0x0300_0000u32, 1, 0, 0, 0, NO_ID]
                .map(u32::to_le_bytes)
                .concat(),
        ),
        (ACCESS, b"\x02\0\0\0xyz".to_vec()),
        (ACCESS, acl(&[(1, 7, NO_ID)])),
        (DEFAULT, named_acl(7, 7, 7)),
    ];
    for (name, value) in bad {
        let wanted = (0, Refusal::Xattr(name.as_bytes().to_vec()));
        assert_eq!(refused(&[file("f", 1).xattr(name, value)], BASE), wanted);
    }
}

#[test]
fn chown_drops_a_capability_that_is_not_set_again() {
    let tree = base(&[
        file("a", 1).xattr(CAPABILITY, capability()),
        file("b", 1).xattr(CAPABILITY, capability()),
        hardlink("c", "b"),
        hardlink("d", "a").xattr(CAPABILITY, capability()),
    ]);
    assert_eq!(
        tree.at("a").xattr(CAPABILITY),
        Some(capability().as_slice())
    );
    assert_eq!(tree.at("b").xattr(CAPABILITY), None);
}

#[test]
fn a_capability_for_root_is_kept_in_its_short_form() {
    let long = [0x0300_0001u32, 1 << 10, 0, 0, 0, 0]
        .map(u32::to_le_bytes)
        .concat();
    let tree = base(&[file("f", 1).xattr(CAPABILITY, long)]);
    assert_eq!(
        tree.at("f").xattr(CAPABILITY),
        Some(capability().as_slice())
    );
}

#[test]
fn the_mode_rewrites_an_access_list_and_three_entries_are_not_stored() {
    let three = acl(&[(1, 7, NO_ID), (4, 7, NO_ID), (32, 7, NO_ID)]);
    let tree = base(&[
        file("f", 1).mode(0o6640).xattr(ACCESS, named_acl(7, 7, 7)),
        file("g", 1).mode(0o600).xattr(ACCESS, &three),
        dir("d").xattr(DEFAULT, &three),
        dir("m").xattr(ACCESS, named_acl(7, 7, 7)),
        dir("m").mode(0o700).xattr(ACCESS, &three),
        symlink("l", "x").xattr(ACCESS, &three),
        file("v", 1).xattr(ACCESS, b"\x03\0\0\0"),
    ]);
    assert_eq!(
        tree.at("f").xattr(ACCESS),
        Some(named_acl(6, 4, 0).as_slice())
    );
    assert_eq!(tree.at("f").mode(), 0o6640);
    assert_eq!(
        (tree.at("g").xattr(ACCESS), tree.at("g").mode()),
        (None, 0o600)
    );
    assert_eq!(tree.at("d").xattr(DEFAULT), Some(three.as_slice()));
    assert_eq!(tree.at("m").xattr(ACCESS), None);
    assert_eq!(tree.at("l").xattr_names(), [""; 0]);
    assert_eq!(tree.at("v").xattr_names(), [""; 0]);
}

#[test]
fn times_that_unpacking_cannot_set_become_1970() {
    let times = [
        "-1",
        "-0.5",
        "9223372036.854775807",
        "9223372037",
        "99999999999",
        "5.000000007",
    ];
    let tree = base(&times.map(|time| file(format!("at{time}"), 0).mtime(time)));
    let wanted = [
        (0, 0),
        (0, 0),
        (9_223_372_036, 854_775_807),
        (0, 0),
        (0, 0),
        (5, 7),
    ];
    assert_eq!(
        times.map(|time| tree.at(&format!("at{time}")).time()),
        wanted
    );
}
