//! One test per rule of unpacking.

use soci_erofs::{Attributes, Kind, NodeId, Reader, Time};

use super::archive::{Made, archive, dir, file, hardlink, made, symlink};
use super::resolve::{Effort, find};
use super::*;

mod attributes;
mod below;
mod kinds;
mod names;
mod whiteouts;

const BASE: Rules = Rules {
    base: true,
    user_namespace: false,
};
const ABOVE: Rules = Rules {
    base: false,
    user_namespace: false,
};
const NO_ID: u32 = u32::MAX;

/// The tree of a layer. Each file is at block 100 times its index.
fn build(entries: &[Made], patch: &Patch) -> Result<Tree, TreeError> {
    let toc = archive(entries);
    Tree::build(toc.entries(), 1 << 20, |at| Some(at as u64 * 100), patch)
}

fn base(entries: &[Made]) -> Tree {
    build(entries, &Patch::plain(BASE)).expect("the layer unpacks")
}

fn above(entries: &[Made]) -> Tree {
    build(entries, &Patch::plain(ABOVE)).expect("the layer unpacks")
}

fn refused(entries: &[Made], rules: Rules) -> (usize, Refusal) {
    let error = build(entries, &Patch::plain(rules)).expect_err("the layer does not unpack");
    (error.ordinal, error.refusal)
}

/// A node of a tree.
struct Seen<'t> {
    tree: &'t Tree,
    node: NodeId,
}

impl Tree {
    fn find(&self, path: &str) -> Option<NodeId> {
        find(&self.image, path.as_bytes(), &mut Effort(1000)).expect("a straight path")
    }

    fn at(&self, path: &str) -> Seen<'_> {
        let node = self.find(path).unwrap_or_else(|| panic!("{path} exists"));
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

/// A list with user 1000 (rw-) and group r-x. The permissions of owner, mask, and others are
/// parameters.
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

#[test]
fn equal_patches_have_equal_keys_and_markers_distinguish_base_layers() {
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
fn repeated_opaque_markers_are_too_much_work() {
    let mut entries: Vec<_> = (0..9000).map(|n| file(format!("d/{n}"), 0)).collect();
    entries.extend((0..9000).map(|_| file("d/.wh..wh..opq", 0)));
    let (_, refusal) = refused(&entries, BASE);
    assert_eq!(refusal, Refusal::TooMuchWork);
}
