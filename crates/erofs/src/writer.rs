//! The tree of an image under construction, and the checks on what is added to it.
//!
//! A few arenas hold everything: 40 bytes per node, 20 per link plus 12 for its index; names and
//! attribute values share one byte string. Nodes are never removed. [`Image::write`] skips nodes
//! that are not reachable from the root, and computes the link counts.

mod emit;
mod error;
mod index;
mod layout;
mod links;
mod node;
mod xattrs;

use std::io::Write;

use crate::format::{
    BLOCK_SIZE, MAX_MAJOR, MAX_MINOR, MAX_SYMLINK, NULL_BLOCK, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO,
    S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK, decode_device, encode_device,
};
pub use error::{ImageError, WriteError};
use index::LinkIndex;
use links::Link;
pub use node::{Attributes, Inode, Kind, NodeId, Time};
use xattrs::Xattr;

/// "No node", "no link", "no attribute" in the arenas.
const NONE: u32 = u32::MAX;

/// A node in its arena. The meaning of `place` and `extra` depends on the type:
///
/// | kind | `place` | `extra` |
/// |--|--|--|
/// | regular | size | first block |
/// | directory | first link in it | its parent, [`NONE`] while not linked |
/// | symlink | offset of the target in `bytes` | its length |
/// | device | device number | |
#[derive(Debug, Clone)]
struct Node {
    place: u64,
    mtime_secs: i64,
    extra: u32,
    uid: u32,
    gid: u32,
    mtime_nanos: u32,
    xattrs: u32,
    mode: u16,
}

/// A tree that can be written as an EROFS image.
///
/// ```
/// use soci_erofs::{Attributes, Image, Inode, Kind, NodeId, Reader};
/// let mut image = Image::new(1, Attributes { mode: 0o755, ..Attributes::default() })?;
/// let attributes = Attributes { mode: 0o644, ..Attributes::default() };
/// let hello = image.inode(&Inode { kind: Kind::Regular { size: 5, data_block: 0 }, attributes })?;
/// image.link(NodeId::ROOT, b"hello", hello)?;
/// let mut bytes = Vec::new();
/// image.write(&mut bytes)?;
/// let reader = Reader::open(&bytes)?;
/// let nid = reader.lookup(reader.root(), b"hello")?.expect("just written");
/// assert_eq!(reader.stat(nid)?.size, 5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Image {
    nodes: Vec<Node>,
    links: Vec<Link>,
    index: LinkIndex,
    xattrs: Vec<Xattr>,
    bytes: Vec<u8>,
    device_blocks: u32,
    uuid: [u8; 16],
}

impl Image {
    /// Creates an image with an empty root, over a device of `device_blocks` 4 KiB blocks.
    ///
    /// # Errors
    /// [`ImageError::DeviceTooLarge`], and [`ImageError::BadTime`] for the root's time.
    pub fn new(device_blocks: u64, root: Attributes) -> Result<Self, ImageError> {
        let mut image = Self {
            nodes: Vec::new(),
            links: Vec::new(),
            index: LinkIndex::default(),
            xattrs: Vec::new(),
            bytes: Vec::new(),
            device_blocks: 0,
            uuid: [0; 16],
        };
        image.set_device_blocks(device_blocks)?;
        let root = image.inode(&Inode {
            kind: Kind::Directory,
            attributes: root,
        })?;
        // The root is its own parent, so it cannot be linked.
        image.nodes[root.index()].extra = root.0;
        Ok(image)
    }

    /// Changes the size of the device. Does not check existing files again.
    ///
    /// # Errors
    /// [`ImageError::DeviceTooLarge`].
    pub fn set_device_blocks(&mut self, blocks: u64) -> Result<(), ImageError> {
        self.device_blocks =
            u32::try_from(blocks).map_err(|_| ImageError::DeviceTooLarge(blocks))?;
        Ok(())
    }

    /// Gives the image an identity. Overlayfs uses it to distinguish its lower layers, and keeps
    /// inode numbers across a copy-up only for layers with a unique identity.
    pub fn set_uuid(&mut self, uuid: [u8; 16]) {
        self.uuid = uuid;
    }

    /// Reserves memory for this many more nodes.
    pub fn reserve(&mut self, nodes: usize) {
        self.nodes.reserve(nodes);
        self.links.reserve(nodes);
    }

    /// Adds a node without links.
    ///
    /// # Errors
    /// Fails if the format cannot represent the node; see [`ImageError`].
    pub fn inode(&mut self, inode: &Inode<'_>) -> Result<NodeId, ImageError> {
        check_time(inode.attributes.mtime)?;
        let id = u32::try_from(self.nodes.len()).unwrap_or(NONE);
        if id == NONE {
            return Err(ImageError::TooMany("nodes"));
        }
        let (kind, place, extra) = self.place_of(inode.kind)?;
        let Attributes {
            mode,
            uid,
            gid,
            mtime,
        } = inode.attributes;
        self.nodes.push(Node {
            place,
            mtime_secs: mtime.secs,
            extra,
            uid,
            gid,
            mtime_nanos: mtime.nanos,
            xattrs: NONE,
            mode: kind | (mode & !S_IFMT),
        });
        Ok(NodeId(id))
    }

    fn place_of(&mut self, kind: Kind<'_>) -> Result<(u16, u64, u32), ImageError> {
        let device = |major, minor| {
            if major > MAX_MAJOR || minor > MAX_MINOR {
                return Err(ImageError::DeviceNumber { major, minor });
            }
            Ok(u64::from(encode_device(major, minor)))
        };
        Ok(match kind {
            Kind::Regular { size: 0, .. } => (S_IFREG, 0, NULL_BLOCK),
            Kind::Regular { size, data_block } => {
                let end = data_block.checked_add(size.div_ceil(BLOCK_SIZE));
                let blocks = u64::from(self.device_blocks);
                match u32::try_from(data_block) {
                    Ok(block) if end.is_some_and(|end| end <= blocks) => (S_IFREG, size, block),
                    _ => {
                        return Err(ImageError::OutsideDevice {
                            size,
                            block: data_block,
                            blocks,
                        });
                    }
                }
            }
            Kind::Directory => (S_IFDIR, u64::from(NONE), NONE),
            Kind::Symlink(target) => {
                if target.is_empty() || target.len() > MAX_SYMLINK {
                    return Err(ImageError::SymlinkLength(target.len()));
                }
                if target.contains(&0) {
                    return Err(ImageError::SymlinkNul);
                }
                let offset = self.keep(target)?;
                (
                    S_IFLNK,
                    u64::from(offset),
                    u32::try_from(target.len()).unwrap_or(NONE),
                )
            }
            Kind::Char { major, minor } => (S_IFCHR, device(major, minor)?, 0),
            Kind::Block { major, minor } => (S_IFBLK, device(major, minor)?, 0),
            Kind::Fifo => (S_IFIFO, 0, 0),
            Kind::Socket => (S_IFSOCK, 0, 0),
        })
    }

    /// Appends bytes to the arena and returns their offset.
    fn keep(&mut self, bytes: &[u8]) -> Result<u32, ImageError> {
        let too_many = ImageError::TooMany("bytes of names");
        let Ok(offset) = u32::try_from(self.bytes.len()) else {
            return Err(too_many);
        };
        self.bytes.extend_from_slice(bytes);
        Ok(offset)
    }

    fn kept(&self, offset: u32, len: usize) -> &[u8] {
        &self.bytes[offset as usize..][..len]
    }

    /// Whether a node is a directory.
    ///
    /// # Panics
    /// If a node belongs to another image that has more nodes.
    #[must_use]
    pub fn is_dir(&self, node: NodeId) -> bool {
        self.nodes[node.index()].mode & S_IFMT == S_IFDIR
    }

    /// The type of a node and the data specific to it.
    ///
    /// # Panics
    /// If a node belongs to another image that has more nodes.
    #[must_use]
    pub fn kind(&self, node: NodeId) -> Kind<'_> {
        let node = &self.nodes[node.index()];
        let number = u32::try_from(node.place).unwrap_or(NONE);
        let (major, minor) = decode_device(number);
        match node.mode & S_IFMT {
            S_IFREG => Kind::Regular {
                size: node.place,
                data_block: u64::from(node.extra),
            },
            S_IFDIR => Kind::Directory,
            S_IFLNK => Kind::Symlink(self.kept(number, node.extra as usize)),
            S_IFCHR => Kind::Char { major, minor },
            S_IFBLK => Kind::Block { major, minor },
            S_IFIFO => Kind::Fifo,
            _ => Kind::Socket,
        }
    }

    /// A node's attributes.
    ///
    /// # Panics
    /// If a node belongs to another image that has more nodes.
    #[must_use]
    pub fn attributes(&self, node: NodeId) -> Attributes {
        let node = &self.nodes[node.index()];
        Attributes {
            mode: node.mode & !S_IFMT,
            uid: node.uid,
            gid: node.gid,
            mtime: Time {
                secs: node.mtime_secs,
                nanos: node.mtime_nanos,
            },
        }
    }

    /// Replaces a node's attributes.
    ///
    /// # Errors
    /// [`ImageError::BadTime`].
    ///
    /// # Panics
    /// If a node belongs to another image that has more nodes.
    pub fn set_attributes(&mut self, node: NodeId, to: Attributes) -> Result<(), ImageError> {
        check_time(to.mtime)?;
        let node = &mut self.nodes[node.index()];
        node.mode = (node.mode & S_IFMT) | (to.mode & !S_IFMT);
        node.uid = to.uid;
        node.gid = to.gid;
        node.mtime_secs = to.mtime.secs;
        node.mtime_nanos = to.mtime.nanos;
        Ok(())
    }

    /// Number of nodes created so far, linked or not.
    #[must_use]
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Lays out the tree and writes it. Returns the size of the image in bytes, a multiple of 4096.
    ///
    /// The output is written sequentially, in pieces of about 64 KiB, without seeking.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub fn write(&self, out: impl Write) -> Result<u64, WriteError> {
        let plan = layout::Plan::new(self)?;
        emit::emit(self, &plan, out)
    }
}

fn check_time(time: Time) -> Result<(), ImageError> {
    if time.nanos >= 1_000_000_000 {
        return Err(ImageError::BadTime(time.nanos));
    }
    Ok(())
}
