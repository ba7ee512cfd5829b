//! One test for each rule of unpacking.

use soci_erofs::{Attributes, Kind, NodeId, Reader, Time};

use super::archive::{Made, archive, dir, file, hardlink, made, symlink};
use super::resolve::{Effort, find};
use super::*;

const BASE: Rules = Rules {
    base: true,
    user_namespace: false,
};
const ABOVE: Rules = Rules {
    base: false,
    user_namespace: false,
};
const NO_ID: u32 = u32::MAX;

/// The tree of a layer, every file at block 100 times its ordinal.
fn build(entries: &[Made], patch: &Patch) -> Result<Tree, TreeError> {
    let toc = archive(entries);
    Tree::build(toc.entries(), 1 << 20, |at| Some(at as u64 * 100), patch)
}

fn base(entries: &[Made]) -> Tree {
    build(entries, &Patch::plain(BASE)).expect("a layer that unpacks")
}

fn above(entries: &[Made]) -> Tree {
    build(entries, &Patch::plain(ABOVE)).expect("a layer that unpacks")
}

fn refused(entries: &[Made], rules: Rules) -> (usize, Refusal) {
    let error = build(entries, &Patch::plain(rules)).expect_err("a layer that does not unpack");
    (error.ordinal, error.refusal)
}

/// What a tree shows at a path.
struct Seen<'t> {
    tree: &'t Tree,
    node: NodeId,
}

impl Tree {
    fn find(&self, path: &str) -> Option<NodeId> {
        find(&self.image, path.as_bytes(), &mut Effort(1000)).expect("a straight path")
    }

    fn at(&self, path: &str) -> Seen<'_> {
        let node = self.find(path).unwrap_or_else(|| panic!("{path} is there"));
        Seen { tree: self, node }
    }

    fn paths(&self) -> Vec<String> {
        let mut todo = vec![(String::new(), NodeId::ROOT)];
        let mut paths = Vec::new();
        while let Some((path, dir)) = todo.pop() {
            for (name, node) in self.image.children(dir) {
                let path = format!("{path}/{}", String::from_utf8_lossy(name));
                todo.push((path.clone(), node));
                paths.push(path);
            }
        }
        paths.sort();
        paths
    }
}

impl<'t> Seen<'t> {
    fn attributes(&self) -> Attributes {
        self.tree.image.attributes(self.node)
    }

    fn mode(&self) -> u16 {
        self.attributes().mode
    }

    fn owner(&self) -> (u32, u32) {
        (self.attributes().uid, self.attributes().gid)
    }

    fn time(&self) -> (i64, u32) {
        let Time { secs, nanos } = self.attributes().mtime;
        (secs, nanos)
    }

    fn kind(&self) -> Kind<'t> {
        self.tree.image.kind(self.node)
    }

    fn xattr(&self, name: &str) -> Option<&'t [u8]> {
        self.tree.image.xattr(self.node, name.as_bytes())
    }

    fn xattr_names(&self) -> Vec<String> {
        let names = self.tree.image.xattrs(self.node).map(|(name, _)| name);
        let mut names: Vec<_> = names
            .map(|name| String::from_utf8(name).expect("text"))
            .collect();
        names.sort();
        names
    }
}

/// An access control list from (tag, permissions, id).
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut value = 2u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        value.extend_from_slice(&tag.to_le_bytes());
        value.extend_from_slice(&perm.to_le_bytes());
        value.extend_from_slice(&id.to_le_bytes());
    }
    value
}

/// Owner rwx, user 1000, group r-x, mask rwx, others nothing; the numbers asked for.
fn named_acl(owner: u16, mask: u16, others: u16) -> Vec<u8> {
    acl(&[
        (1, owner, NO_ID),
        (2, 6, 1000),
        (4, 5, NO_ID),
        (16, mask, NO_ID),
        (32, others, NO_ID),
    ])
}

fn capability() -> Vec<u8> {
    [0x0200_0001u32, 1 << 10, 0, 0, 0]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect()
}

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const CAPABILITY: &str = "security.capability";

// 1. Two ways of applying.

#[test]
fn a_base_layer_executes_whiteouts() {
    let tree = base(&[
        dir("d"),
        file("d/f", 1),
        file("d/g", 1),
        file("d/.wh.f", 0),
        file(".wh.x", 0),
    ]);
    assert_eq!(tree.paths(), ["/d", "/d/g"]);
    let gone = base(&[file("d/f", 1), file(".wh.d", 0)]);
    assert_eq!(gone.paths(), [""; 0]);
}

#[test]
fn an_opaque_marker_in_a_base_layer_spares_entries_only() {
    let tree = base(&[
        dir("d"),
        file("d/entry", 1),
        file("d/implied/inside", 1),
        dir("d/dir"),
        file("d/dir/also", 1),
        file("d/.wh..wh..opq", 0),
    ]);
    assert_eq!(tree.paths(), ["/d", "/d/dir", "/d/dir/also", "/d/entry"]);
}

#[test]
fn an_opaque_marker_spares_what_was_an_entry_at_its_path_once() {
    let tree = base(&[
        dir("d/e"),
        file("d/.wh.e", 0),
        file("d/e/f", 1),
        file("d/.wh..wh..opq", 0),
    ]);
    assert_eq!(tree.paths(), ["/d", "/d/e", "/d/e/f"]);
}

#[test]
fn a_layer_above_keeps_whiteouts_as_devices() {
    let tree = above(&[dir("d"), file("d/.wh.f", 0).owner(5, 6).mode(0o777)]);
    assert_eq!(tree.at("d/f").kind(), Kind::Char { major: 0, minor: 0 });
    assert_eq!((tree.at("d/f").mode(), tree.at("d/f").owner()), (0, (5, 6)));
}

#[test]
fn a_whiteout_of_an_own_name_fails_and_a_later_name_replaces_the_device() {
    let own = [file("f", 1), file(".wh.f", 0)];
    assert_eq!(refused(&own, ABOVE), (1, Refusal::WhiteoutOfOwn));
    let twice = [file(".wh.f", 0), file(".wh.f", 0)];
    assert_eq!(refused(&twice, ABOVE), (1, Refusal::WhiteoutOfOwn));
    let tree = above(&[file(".wh.f", 0), file("f", 7)]);
    assert_eq!(
        tree.at("f").kind(),
        Kind::Regular {
            size: 7,
            data_block: 100
        }
    );
}

#[test]
fn an_opaque_marker_above_is_an_attribute_and_removes_nothing() {
    let tree = above(&[
        file("d/before", 1),
        file("d/.wh..wh..opq", 0),
        file("d/after", 1),
    ]);
    assert_eq!(
        tree.at("d").xattr("trusted.overlay.opaque"),
        Some(&b"y"[..])
    );
    assert_eq!(tree.paths(), ["/d", "/d/after", "/d/before"]);
    let namespace = Rules {
        user_namespace: true,
        ..ABOVE
    };
    let tree = build(&[file("d/.wh..wh..opq", 0)], &Patch::plain(namespace)).expect("unpacks");
    assert_eq!(tree.at("d").xattr_names(), ["user.overlay.opaque"]);
}

#[test]
fn whiteouts_without_a_name_fail_and_unknown_markers_are_whiteouts() {
    for name in [".wh.", ".wh..", ".wh..."] {
        assert_eq!(refused(&[file(name, 0)], BASE), (0, Refusal::WhiteoutName));
        assert_eq!(refused(&[file(name, 0)], ABOVE), (0, Refusal::WhiteoutName));
    }
    let tree = above(&[file(".wh..wh.x", 0)]);
    assert_eq!(tree.paths(), ["/.wh.x"]);
}

// 2. Names and parents.

#[test]
fn names_are_cleaned_as_text() {
    let names = ["./a", "/b", "x/../c", "../../d", "e//f/", "g/./h"];
    let tree = base(&names.map(|name| file(name, 1)));
    assert_eq!(
        tree.paths(),
        ["/a", "/b", "/c", "/d", "/e", "/e/f", "/g", "/g/h"]
    );
}

#[test]
fn links_of_this_layer_are_followed_in_the_parent_and_cannot_leave_it() {
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
fn the_root_keeps_what_it_has() {
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
fn a_parent_that_is_no_directory_fails() {
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
fn a_setgid_directory_gives_its_group_and_not_its_bit() {
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

// 3. Kinds.

#[test]
fn sparse_files_and_files_without_a_place_are_refused() {
    let toc = archive(&[file("f", 1)]);
    let error = Tree::build(toc.entries(), 1, |_| None, &Patch::plain(BASE)).expect_err("no place");
    assert_eq!(error.refusal, Refusal::NoData);
    let error =
        Tree::build(toc.entries(), 1, |_| Some(1), &Patch::plain(BASE)).expect_err("behind");
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
fn devices_and_fifos_are_made_but_devices_not_in_a_user_namespace() {
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
        "as mknod cuts it"
    );
    assert_eq!(tree.at("fifo").kind(), Kind::Fifo);
    let namespace = Rules {
        user_namespace: true,
        ..BASE
    };
    let tree = build(&entries, &Patch::plain(namespace)).expect("unpacks");
    assert_eq!(tree.paths(), ["/fifo"]);
}

// 4. Attributes.

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
fn attributes_are_taken_by_namespace_and_kind() {
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
fn names_and_values_that_the_kernel_refuses_fail() {
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
fn a_change_of_owner_drops_a_capability_that_is_not_set_again() {
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

// What the layers below say.

fn below(entries: &[Made]) -> Vec<u8> {
    let mut bytes = Vec::new();
    base(entries).image().write(&mut bytes).expect("write");
    bytes
}

#[test]
fn implied_directories_take_what_the_nearest_layer_has() {
    let far = below(&[
        dir("d").mode(0o1777).owner(9, 9),
        dir("only").mode(0o700).mtime("7"),
    ]);
    let near = below(&[
        dir("real")
            .mode(0o2750)
            .owner(5, 6)
            .xattr("user.x", "1")
            .xattr(DEFAULT, named_acl(7, 7, 0)),
        symlink("d", "real"),
        file("file", 1),
    ]);
    let layers = [&near, &far].map(|image| Below::Image(Reader::open(image).expect("open")));
    let entries = [
        file("d/f", 1),
        file("only/f", 1),
        file("file/f", 1),
        file("new/f", 1),
    ];
    let tree = above(&entries);
    let patch = tree
        .settle(|path| Lower::nearest(&layers, path))
        .expect("settled");
    assert!(!patch.is_plain());

    let tree = build(&entries, &patch).expect("unpacks");
    assert_eq!(
        (tree.at("d").mode(), tree.at("d").owner()),
        (0o2750, (5, 6))
    );
    assert_eq!(tree.at("d").xattr_names(), [DEFAULT, "user.x"]);
    assert_eq!(tree.at("d/f").owner(), (0, 0), "the entry says 0:0");
    assert!(
        tree.at("d/f").xattr(ACCESS).is_some(),
        "and inherits the list"
    );
    assert_eq!(
        (tree.at("only").mode(), tree.at("only").time()),
        (0o700, (7, 0))
    );
    assert_eq!(
        tree.at("file").mode(),
        0o755,
        "something else ends the search"
    );
    assert_eq!(tree.at("new").mode(), 0o755);
}

#[test]
fn markers_of_overlayfs_are_not_taken_from_below() {
    let mut bytes = Vec::new();
    above(&[dir("d"), file("d/.wh..wh..opq", 0)])
        .image()
        .write(&mut bytes)
        .expect("write");
    let reader = Reader::open(&bytes).expect("open");
    let Lower::Directory(directory) = lookup_in_image(&reader, b"d").expect("there") else {
        panic!("a directory");
    };
    assert_eq!(directory.xattrs, []);
    let whiteout = {
        let mut bytes = Vec::new();
        above(&[file(".wh.w", 0)])
            .image()
            .write(&mut bytes)
            .expect("write");
        bytes
    };
    let reader = Reader::open(&whiteout).expect("open");
    assert_eq!(lookup_in_image(&reader, b"w").expect("there"), Lower::Other);
    assert_eq!(
        lookup_in_image(&reader, b"x").expect("nothing"),
        Lower::Absent
    );
    assert!(matches!(
        lookup_in_image(&reader, b"w/x"),
        Err(LowerError::NotADirectory(_))
    ));
}

#[test]
fn a_directory_of_an_unpacked_layer_answers_as_our_image_does() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path();
    std::fs::create_dir_all(root.join("real/inside")).expect("mkdir");
    std::fs::set_permissions(root.join("real/inside"), PermissionsExt::from_mode(0o1750))
        .expect("chmod");
    symlink("/real", root.join("abs")).expect("link");
    symlink("../../../real", root.join("up")).expect("link");
    symlink("loop", root.join("loop")).expect("link");
    std::fs::write(root.join("file"), "x").expect("write");
    rustix::fs::setxattr(
        root.join("real/inside"),
        "user.x",
        b"1",
        rustix::fs::XattrFlags::empty(),
    )
    .expect("setxattr");

    let root = std::fs::File::open(root).expect("open");
    for path in ["real/inside", "abs/inside", "up/inside"] {
        let Lower::Directory(found) = lookup_in_directory(&root, path.as_bytes()).expect(path)
        else {
            panic!("{path} is a directory");
        };
        assert_eq!(found.attributes.mode, 0o1750);
        assert_eq!(found.xattrs, [(b"user.x".to_vec(), b"1".to_vec())]);
    }
    assert_eq!(
        lookup_in_directory(&root, b"file").expect("file"),
        Lower::Other
    );
    assert_eq!(
        lookup_in_directory(&root, b"none/x").expect("none"),
        Lower::Absent
    );
    assert!(matches!(
        lookup_in_directory(&root, b"file/x"),
        Err(LowerError::NotADirectory(_))
    ));
    assert!(matches!(
        lookup_in_directory(&root, b"loop"),
        Err(LowerError::Links(_))
    ));
}

#[test]
fn equal_patches_have_equal_keys_and_a_layer_without_markers_is_one_tree() {
    let entries = [dir("a"), file("a/f", 1), file("b/f", 1)];
    let absent = |_: &[u8]| Ok::<_, LowerError>(Lower::Absent);
    let as_base = base(&entries).settle(absent).expect("settled");
    let as_above = above(&entries).settle(absent).expect("settled");
    assert_eq!(as_base, as_above);
    assert_eq!(as_base.key(), as_above.key());
    let marked = [file(".wh.x", 0)];
    let as_base = base(&marked).settle(absent).expect("settled");
    assert_ne!(
        as_base.key(),
        above(&marked).settle(absent).expect("settled").key()
    );

    let attributes = Attributes {
        mode: 0o700,
        ..Attributes::default()
    };
    let some = |xattrs: Vec<(Vec<u8>, Vec<u8>)>| {
        let lower = Lower::Directory(Directory { attributes, xattrs });
        above(&entries)
            .settle(|_| Ok::<_, LowerError>(lower.clone()))
            .expect("settled")
            .key()
    };
    assert_eq!(some(vec![]), some(vec![]));
    assert_ne!(some(vec![]), as_above.key());
    assert_ne!(
        some(vec![(b"user.a".to_vec(), b"b".to_vec())]),
        some(vec![])
    );
    assert_eq!(as_above.key().len(), 32);
}

#[test]
fn errors_name_the_entry_and_the_rule() {
    let error = build(&[dir("ok"), file(".wh.", 0)], &Patch::plain(BASE)).expect_err("refused");
    assert_eq!(error.to_string(), "entry 1 \".wh.\"");
    assert_eq!(error.refusal.to_string(), "a whiteout without a name");
}

#[test]
fn markers_that_clean_again_and_again_end() {
    let mut entries: Vec<_> = (0..9000).map(|n| file(format!("d/{n}"), 0)).collect();
    entries.extend((0..9000).map(|_| file("d/.wh..wh..opq", 0)));
    let (_, refusal) = refused(&entries, BASE);
    assert_eq!(refusal, Refusal::TooMuchWork);
}
