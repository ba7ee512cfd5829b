//! Kinds of files.

use super::*;

#[test]
fn files_without_a_place_in_the_data_are_refused() {
    let toc = archive(&[file("f", 1)]);
    let error = Tree::build(toc.entries(), 1, |_| None, &Patch::plain(BASE)).expect_err("no place");
    assert_eq!(error.refusal, Refusal::NoData);
    let error =
        Tree::build(toc.entries(), 1, |_| Some(1), &Patch::plain(BASE)).expect_err("outside");
    assert!(matches!(
        error.refusal,
        Refusal::Image(ImageError::OutsideDevice { .. })
    ));
}

#[test]
fn directory_times_are_set_again_at_the_end_by_path_and_through_links() {
    let tree = base(&[
        dir("d").mtime("500.25"),
        file("d/f", 1),
        dir("file").mtime("501"),
        file("file", 1).mtime("9"),
        dir("target").mtime("1"),
        dir("link").mtime("502"),
        symlink("link", "target").mtime("9"),
    ]);
    assert_eq!(tree.at("d").time(), (500, 250_000_000));
    assert_eq!(tree.at("file").time(), (501, 0));
    assert_eq!(tree.at("target").time(), (502, 0));
    assert_eq!(tree.at("link").time(), (9, 0));
    let vanished = [dir("d"), file(".wh.d", 0)];
    assert_eq!(refused(&vanished, BASE), (0, Refusal::Vanished));
}

#[test]
fn a_symlink_keeps_its_target_and_has_mode_0777() {
    let tree = base(&[symlink("l", "../../no where//")
        .mode(0o600)
        .owner(4, 5)
        .mtime("77")]);
    assert_eq!(tree.at("l").kind(), Kind::Symlink(b"../../no where//"));
    assert_eq!((tree.at("l").mode(), tree.at("l").owner()), (0o777, (4, 5)));
    assert_eq!(tree.at("l").time(), (77, 0));
}

#[test]
fn a_hard_link_applies_its_attributes_to_the_shared_inode() {
    let tree = base(&[
        file("a", 1)
            .mode(0o4755)
            .owner(1, 1)
            .xattr("user.a", "1")
            .xattr("user.b", "1"),
        dir("d"),
        symlink("s", "d"),
        hardlink("s/b", "./a")
            .mode(0o600)
            .owner(2, 3)
            .mtime("99")
            .xattr("user.b", "2"),
        hardlink("c", "s/b").owner(2, 3),
        hardlink("e", "d/x/../../s/b"),
    ]);
    assert_eq!(tree.at("a").node, tree.at("d/b").node);
    assert_eq!(tree.at("a").node, tree.at("e").node);
    assert_eq!(tree.at("a").owner(), (0, 0));
    assert_eq!(tree.at("a").xattr_names(), ["user.a", "user.b"]);
    assert_eq!(tree.at("a").xattr("user.b"), Some(&b"2"[..]));
}

#[test]
fn a_hard_link_to_nothing_or_to_a_directory_fails() {
    let missing = Refusal::HardlinkTarget(b"b".to_vec());
    assert_eq!(
        refused(&[hardlink("a", "b"), file("b", 1)], BASE),
        (0, missing)
    );
    for target in ["d", "d/", "d/..", ".."] {
        let directory = Refusal::HardlinkToDirectory(target.as_bytes().to_vec());
        assert_eq!(
            refused(&[dir("d"), hardlink("a", target)], BASE),
            (1, directory)
        );
    }
    let itself = Refusal::HardlinkTarget(b"a".to_vec());
    assert_eq!(
        refused(&[file("a", 1), hardlink("a", "a")], BASE),
        (1, itself)
    );
}

#[test]
fn a_hard_link_to_a_symlink_shares_the_symlink() {
    let tree = base(&[
        symlink("l", "x"),
        hardlink("m", "l").owner(8, 9).mode(0o600),
    ]);
    assert_eq!(tree.at("l").node, tree.at("m").node);
    assert_eq!((tree.at("l").mode(), tree.at("l").owner()), (0o777, (8, 9)));
}

#[test]
fn devices_are_created_except_in_a_user_namespace_and_fifos_always() {
    let entries = [
        Made {
            device: (8, 300),
            ..made(b'4', "block")
        }
        .mode(0o6660),
        Made {
            device: (4096 + 1, 3),
            ..made(b'3', "char")
        },
        Made {
            device: (8, 1),
            ..made(b'6', "fifo")
        },
    ];
    let tree = base(&entries);
    assert_eq!(
        tree.at("block").kind(),
        Kind::Block {
            major: 8,
            minor: 300
        }
    );
    assert_eq!(tree.at("block").mode(), 0o6660);
    assert_eq!(
        tree.at("char").kind(),
        Kind::Char { major: 1, minor: 3 },
        "truncated like in mknod"
    );
    assert_eq!(tree.at("fifo").kind(), Kind::Fifo);
    let namespace = Rules {
        user_namespace: true,
        ..BASE
    };
    let tree = build(&entries, &Patch::plain(namespace)).expect("unpacks");
    assert_eq!(tree.paths(), ["/fifo"]);
}
