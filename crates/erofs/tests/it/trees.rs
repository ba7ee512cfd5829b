//! Random trees: what is in them, the same as an image, and the device their files lie on.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use soci_erofs::{Attributes, Image, Inode, Kind, NodeId, Time};

const BLOCK: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    File(Vec<u8>),
    Directory,
    Symlink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
}

#[derive(Debug, Clone)]
pub(crate) struct Thing {
    pub(crate) content: Content,
    pub(crate) attributes: Attributes,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A wish: a thing at a name in one of the directories so far, or one more link to a thing so far.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    parent: Index,
    name: Vec<u8>,
    thing: Thing,
    link_to: Option<Index>,
}

/// A tree by path (`""` is the root); things by number, so that hard links can be seen.
#[derive(Debug, Clone)]
pub(crate) struct Tree {
    pub(crate) things: Vec<Thing>,
    pub(crate) paths: BTreeMap<Vec<u8>, usize>,
}

impl Tree {
    pub(crate) fn links(&self, thing: usize) -> usize {
        self.paths.values().filter(|&&at| at == thing).count()
    }

    fn grow(root: Thing, wishes: Vec<Wish>) -> Self {
        let mut tree = Self {
            things: vec![root],
            paths: BTreeMap::from([(Vec::new(), 0)]),
        };
        let mut dirs = vec![Vec::new()];
        for wish in wishes {
            let parent: &Vec<u8> = wish.parent.get(&dirs);
            let mut path = parent.clone();
            path.push(b'/');
            path.extend_from_slice(&wish.name);
            if tree.paths.contains_key(&path) || path.len() > 3000 {
                continue;
            }
            let target = wish.link_to.map(|to| to.index(tree.things.len()));
            let target = target.filter(|&to| tree.things[to].content != Content::Directory);
            let thing = target.unwrap_or_else(|| {
                if wish.thing.content == Content::Directory {
                    dirs.push(path.clone());
                }
                tree.things.push(wish.thing);
                tree.things.len() - 1
            });
            tree.paths.insert(path, thing);
        }
        tree
    }

    /// The image of the tree and the device its files lie on, one block of rubbish in front.
    pub(crate) fn image(&self) -> (Image, Vec<u8>) {
        let mut device = vec![0xa5; BLOCK];
        let mut places = Vec::new();
        for thing in &self.things {
            places.push((device.len() / BLOCK) as u64);
            if let Content::File(bytes) = &thing.content {
                device.extend_from_slice(bytes);
                device.resize(device.len().next_multiple_of(BLOCK), 0);
            }
        }
        let blocks = (device.len() / BLOCK) as u64;
        let mut image = Image::new(blocks, self.things[0].attributes).expect("root");
        let mut nodes = vec![NodeId::ROOT];
        for (thing, &data_block) in self.things.iter().zip(&places).skip(1) {
            let kind = match &thing.content {
                Content::File(bytes) => Kind::Regular {
                    size: bytes.len() as u64,
                    data_block,
                },
                Content::Directory => Kind::Directory,
                Content::Symlink(target) => Kind::Symlink(target),
                Content::Char(major, minor) => Kind::Char {
                    major: *major,
                    minor: *minor,
                },
                Content::Block(major, minor) => Kind::Block {
                    major: *major,
                    minor: *minor,
                },
                Content::Fifo => Kind::Fifo,
            };
            nodes.push(
                image
                    .inode(&Inode {
                        kind,
                        attributes: thing.attributes,
                    })
                    .expect("node"),
            );
        }
        for (thing, &node) in self.things.iter().zip(&nodes) {
            for (name, value) in &thing.xattrs {
                image.set_xattr(node, name, value).expect("xattr");
            }
        }
        for (path, &thing) in &self.paths {
            let Some(slash) = path.iter().rposition(|&byte| byte == b'/') else {
                continue;
            };
            let parent = nodes[self.paths[&path[..slash]]];
            image
                .link(parent, &path[slash + 1..], nodes[thing])
                .expect("link");
        }
        image.set_uuid([7; 16]);
        (image, device)
    }
}

/// Which names and attributes a tree may have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taste {
    /// Names of any bytes, or of plain letters only.
    pub(crate) any_bytes: bool,
    pub(crate) max_things: usize,
}

pub(crate) fn tree(taste: Taste) -> impl Strategy<Value = Tree> {
    let wish = (
        any::<Index>(),
        name(taste),
        thing(),
        prop::option::weighted(0.1, any::<Index>()),
    )
        .prop_map(|(parent, name, thing, link_to)| Wish {
            parent,
            name,
            thing,
            link_to,
        });
    (attributes(), xattrs(true), vec(wish, 0..taste.max_things)).prop_map(
        |(attributes, xattrs, wishes)| {
            Tree::grow(
                Thing {
                    content: Content::Directory,
                    attributes,
                    xattrs,
                },
                wishes,
            )
        },
    )
}

fn name(taste: Taste) -> BoxedStrategy<Vec<u8>> {
    let letters = "[a-z0-9.+_ -]{1,20}".prop_map(String::into_bytes);
    let long = "file-[0-9]{1,250}".prop_map(String::into_bytes);
    let bytes = vec(any::<u8>(), 1..=255);
    let names = if taste.any_bytes {
        prop_oneof![4 => letters, 1 => long, 1 => bytes].boxed()
    } else {
        prop_oneof![4 => letters, 1 => long].boxed()
    };
    names
        .prop_filter("a name", |name| {
            !matches!(name.as_slice(), b"." | b"..")
                && name.iter().all(|&byte| byte != 0 && byte != b'/')
        })
        .boxed()
}

fn thing() -> impl Strategy<Value = Thing> {
    let size = prop_oneof![
        Just(0usize),
        1..300usize,
        4090..4100usize,
        8000..30_000usize
    ];
    let file = (size, any::<u8>()).prop_map(|(size, seed)| {
        Content::File(
            (0..size)
                .map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed))
                .collect(),
        )
    });
    let target = prop_oneof![4 => vec(1..=255u8, 1..40), 1 => vec(1..=255u8, 3900..=4095)];
    let content = prop_oneof![
        6 => file,
        4 => Just(Content::Directory),
        2 => target.prop_map(Content::Symlink),
        1 => (0..4096u32, 0..(1u32 << 20)).prop_map(|(major, minor)| Content::Char(major, minor)),
        1 => (0..4096u32, 0..(1u32 << 20)).prop_map(|(major, minor)| Content::Block(major, minor)),
        1 => Just(Content::Fifo),
    ];
    content.prop_flat_map(|content| {
        let link = matches!(content, Content::Symlink(_));
        let plain = matches!(content, Content::File(_) | Content::Directory);
        (Just(content), attributes(), xattrs(plain)).prop_map(
            move |(content, attributes, xattrs)| {
                let mode = if link { 0o777 } else { attributes.mode };
                Thing {
                    content,
                    attributes: Attributes { mode, ..attributes },
                    xattrs,
                }
            },
        )
    })
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let id = || prop_oneof![Just(0u32), 1..70_000u32, Just(u32::MAX - 1)];
    let secs = prop_oneof![
        0..2_000_000_000i64,
        Just(0),
        Just(5_000_000_000),
        Just(9_223_372_036)
    ];
    (0..0o10_000u16, id(), id(), secs, 0..1_000_000_000u32).prop_map(
        |(mode, uid, gid, secs, nanos)| Attributes {
            mode,
            uid,
            gid,
            mtime: Time { secs, nanos },
        },
    )
}

/// Attributes; `plain` is for files and directories, where `user.` and ACLs may be.
fn xattrs(plain: bool) -> impl Strategy<Value = BTreeMap<Vec<u8>, Vec<u8>>> {
    let spaces: &[&str] = if plain {
        &["user.", "security.", "trusted."]
    } else {
        &["trusted."]
    };
    let name = (prop::sample::select(spaces), "[a-z.]{1,30}")
        .prop_map(|(space, rest)| [space.as_bytes(), rest.as_bytes()].concat())
        .prop_filter("capabilities and hashes have a form", |name| {
            !matches!(
                name.as_slice(),
                b"security.capability" | b"security.ima" | b"security.evm"
            )
        });
    let value = prop_oneof![4 => vec(any::<u8>(), 0..40), 1 => vec(any::<u8>(), 3000..9000)];
    let some = prop::collection::btree_map(name, value, 1..5);
    prop_oneof![3 => Just(BTreeMap::new()), 1 => some]
}
