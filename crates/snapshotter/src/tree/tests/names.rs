//! Names, parents, and replacement of existing nodes.

use super::*;

#[test]
fn names_are_cleaned_lexically() {
    let names = ["./a", "/b", "x/../c", "../../d", "e//f/", "g/./h"];
    let tree = base(&names.map(|name| file(name, 1)));
    assert_eq!(
        tree.paths(),
        ["/a", "/b", "/c", "/d", "/e", "/e/f", "/g", "/g/h"]
    );
}

#[test]
fn links_in_the_parent_are_followed_within_the_layer() {
    let tree = base(&[
        dir("b"),
        symlink("a", "b"),
        file("a/f", 1),
        symlink("up", "../../../b"),
        file("up/g", 1),
        symlink("gone", "not/there"),
        file("gone/h", 1),
        symlink("a", "/"),
        file("a/i", 1),
    ]);
    let paths = [
        "/a",
        "/b",
        "/b/f",
        "/b/g",
        "/gone",
        "/i",
        "/not",
        "/not/there",
        "/not/there/h",
        "/up",
    ];
    assert_eq!(tree.paths(), paths);
    assert_eq!(
        tree.at("a").kind(),
        Kind::Symlink(b"/"),
        "the last part is not followed"
    );
}

#[test]
fn entries_for_the_root_are_ignored() {
    let tree = base(&[
        dir("./").mode(0o700).owner(1, 2),
        dir("/").mode(0o700),
        dir("a/..").owner(3, 3),
    ]);
    assert_eq!(
        tree.at("").attributes(),
        Attributes {
            mode: 0o755,
            ..Attributes::default()
        }
    );
    assert_eq!(tree.paths(), [""; 0]);
}

#[test]
fn implied_directories_have_defaults_in_a_base_layer() {
    let tree = base(&[file("a/b/f", 1).owner(7, 8).mtime("50")]);
    assert_eq!(
        (tree.at("a/b").mode(), tree.at("a/b").owner()),
        (0o755, (0, 0))
    );
    assert_eq!(tree.implied().collect::<Vec<_>>(), [&b"a"[..], b"a/b"]);
}

#[test]
fn a_parent_that_is_not_a_directory_fails() {
    let parent = (1, Refusal::ParentNotADirectory);
    assert_eq!(refused(&[file("f", 1), file("f/g", 1)], BASE), parent);
    assert_eq!(refused(&[file("f", 1), file("f/g/h", 1)], ABOVE), parent);
    let through = [file("f", 1), symlink("l", "f"), file("l/g", 1)];
    assert_eq!(refused(&through, BASE), (2, Refusal::ParentNotADirectory));
}

#[test]
fn paths_that_unpacking_may_not_reach_are_refused() {
    let long = ["x".repeat(250).as_str(); 16].join("/");
    assert_eq!(
        refused(&[file(&long, 0)], BASE),
        (0, Refusal::PathTooLong(16 * 251 - 1))
    );
    let circle = [symlink("a", "b"), symlink("b", "a"), file("a/f", 1)];
    assert_eq!(refused(&circle, BASE), (2, Refusal::TooManyLinks));
    let name = "x".repeat(256);
    assert_eq!(
        refused(&[file(&name, 0)], BASE),
        (0, ImageError::NameTooLong(256).into())
    );
}

#[test]
fn a_default_list_is_inherited_by_entries_and_implied_directories() {
    let tree = base(&[
        dir("d").xattr(DEFAULT, named_acl(7, 7, 0)),
        file("d/i/f", 1).mode(0o640),
        symlink("d/l", "x"),
    ]);
    assert_eq!(
        tree.at("d/i").xattr(DEFAULT),
        Some(named_acl(7, 7, 0).as_slice())
    );
    assert_eq!(
        tree.at("d/i").xattr(ACCESS),
        Some(named_acl(7, 5, 5).as_slice())
    );
    assert_eq!(tree.at("d/i").mode(), 0o755);
    assert_eq!(
        tree.at("d/i/f").xattr(ACCESS),
        Some(named_acl(6, 4, 0).as_slice())
    );
    assert_eq!(tree.at("d/i/f").xattr(DEFAULT), None);
    assert_eq!(tree.at("d/l").xattr_names(), [""; 0]);
}

#[test]
fn implied_directories_inherit_the_setgid_group_but_not_the_bit() {
    let tree = base(&[
        dir("d").mode(0o2755).owner(3, 50),
        file("d/i/f", 1),
        file("d/kept", 1).owner(u32::MAX, u32::MAX),
    ]);
    assert_eq!(
        (tree.at("d/i").mode(), tree.at("d/i").owner()),
        (0o755, (0, 50))
    );
    assert_eq!(tree.at("d/kept").owner(), (0, 50));
}

#[test]
fn two_directories_merge_and_anything_else_is_replaced() {
    let tree = base(&[
        dir("d")
            .mode(0o700)
            .owner(1, 1)
            .xattr("user.old", "1")
            .xattr("user.both", "1"),
        file("d/f", 1),
        dir("d").mode(0o711).owner(2, 2).xattr("user.both", "2"),
        dir("e"),
        file("e/f", 1),
        file("e", 1),
        file("e", 5),
    ]);
    assert_eq!((tree.at("d").mode(), tree.at("d").owner()), (0o711, (2, 2)));
    assert_eq!(tree.at("d").xattr_names(), ["user.both", "user.old"]);
    assert_eq!(tree.at("d").xattr("user.both"), Some(&b"2"[..]));
    assert_eq!(tree.paths(), ["/d", "/d/f", "/e"]);
    assert_eq!(
        tree.at("e").kind(),
        Kind::Regular {
            size: 5,
            data_block: 600
        }
    );
}

#[test]
fn an_older_hard_link_keeps_the_old_inode() {
    let tree = base(&[file("a", 3), hardlink("b", "a"), file("a", 4)]);
    assert_eq!(
        tree.at("b").kind(),
        Kind::Regular {
            size: 3,
            data_block: 0
        }
    );
    assert_eq!(
        tree.at("a").kind(),
        Kind::Regular {
            size: 4,
            data_block: 200
        }
    );
}
