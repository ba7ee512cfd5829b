//! Decides where everything in an image is stored, before the first byte is written.
//!
//! Inodes are ordered by directory, breadth first, so that the inodes of one listing are adjacent.
//! The data of a directory or symlink follows its inode if both fit into one block, because the
//! kernel rejects a tail that crosses a block. Whole blocks follow all inodes, in the order of
//! their owners.

use super::{Image, NodeId, WriteError};
use crate::format::{
    BLOCK_SIZE, CHUNK_INDEX_SIZE, DEVICE_SLOT_SIZE, DIRENT_SIZE, INODE_SIZE, Layout, S_IFDIR,
    S_IFLNK, S_IFMT, S_IFREG, SLOT_SIZE, SUPERBLOCK_AT, SUPERBLOCK_SIZE, chunk_bits, xattr_area,
};

/// Link numbers that stand for `.` and `..` in a directory.
pub(super) const DOT: u32 = u32::MAX - 1;
pub(super) const DOTDOT: u32 = u32::MAX;

const BLOCK: usize = 4096;
const _: () = assert!(BLOCK as u64 == BLOCK_SIZE, "one block size");

/// Offset of the first inode, which is the root.
const FIRST_INODE: u64 = (SUPERBLOCK_AT + SUPERBLOCK_SIZE + DEVICE_SLOT_SIZE) as u64;

/// The placement of a node. `nid` 0 means "not placed", because no inode has that number.
#[derive(Debug, Clone, Default)]
pub(super) struct Placed {
    pub(super) nid: u32,
    pub(super) nlink: u32,
    /// Directory: its index in [`Plan::dirs`]. Symlink: its block, counted from the end of the
    /// inodes, or [`INLINE`].
    pub(super) extra: u32,
}

/// The data follows the inode.
pub(super) const INLINE: u32 = u32::MAX;

/// A directory: its links in [`Plan::links`], sorted, and its data.
#[derive(Debug, Clone)]
pub(super) struct Dir {
    pub(super) node: NodeId,
    pub(super) first: usize,
    pub(super) end: usize,
    /// Bytes of its data: full blocks plus the used part of the last one.
    pub(super) size: u64,
    /// First block of its data, counted from the end of the inodes.
    pub(super) block: u32,
    pub(super) layout: Layout,
}

impl Dir {
    /// Bytes that follow the inode.
    pub(super) fn tail(&self) -> u64 {
        if self.layout == Layout::Inline {
            self.size % BLOCK_SIZE
        } else {
            0
        }
    }

    /// Number of whole blocks.
    fn blocks(&self) -> u64 {
        (self.size - self.tail()).div_ceil(BLOCK_SIZE)
    }
}

/// The layout of an image.
#[derive(Debug)]
pub(super) struct Plan {
    /// Nodes in the order of their inodes.
    pub(super) order: Vec<NodeId>,
    /// Indexed by node.
    pub(super) placed: Vec<Placed>,
    pub(super) dirs: Vec<Dir>,
    /// The links of all directories of `dirs`, with [`DOT`] and [`DOTDOT`].
    pub(super) links: Vec<u32>,
    /// Symlinks whose target has its own block, in block order.
    pub(super) long_symlinks: Vec<NodeId>,
    /// End of the inodes in bytes, a multiple of the block size.
    pub(super) inodes_end: u64,
    /// Number of blocks after the inodes.
    pub(super) own_blocks: u64,
    cursor: u64,
    keys: Vec<(u64, u32)>,
}

impl Plan {
    pub(super) fn new(image: &Image) -> Result<Self, WriteError> {
        let mut plan = Self {
            order: Vec::with_capacity(image.nodes.len()),
            placed: vec![Placed::default(); image.nodes.len()],
            dirs: Vec::new(),
            links: Vec::with_capacity(image.links.len()),
            long_symlinks: Vec::new(),
            inodes_end: 0,
            own_blocks: 0,
            cursor: FIRST_INODE,
            keys: Vec::new(),
        };
        plan.place(image, NodeId::ROOT)?;
        let mut next = 0;
        while let Some(dir) = plan.dirs.get(next) {
            let Dir { first, end, .. } = *dir;
            for at in first..end {
                let link = plan.links[at];
                if link >= DOT {
                    continue;
                }
                let child = NodeId(image.links[link as usize].child);
                if plan.placed[child.index()].nid == 0 {
                    plan.place(image, child)?;
                } else {
                    plan.placed[child.index()].nlink += 1;
                }
            }
            next += 1;
        }
        plan.keys = Vec::new();
        plan.inodes_end = plan.cursor.next_multiple_of(BLOCK_SIZE);
        plan.place_blocks(image);
        Ok(plan)
    }

    /// Gives a node its inode number and decides where its data is stored.
    fn place(&mut self, image: &Image, id: NodeId) -> Result<(), WriteError> {
        let node = &image.nodes[id.index()];
        let head = (INODE_SIZE + xattr_area(image.xattr_body(id))) as u64;
        let mut placed = Placed {
            nid: 0,
            nlink: 1,
            extra: 0,
        };
        let mut tail = 0;
        match node.mode & S_IFMT {
            S_IFDIR => {
                let dir = self.gather(image, id, head);
                tail = dir.tail();
                placed.nlink = 2 + self.subdirs(image, &dir);
                placed.extra = u32::try_from(self.dirs.len()).unwrap_or(INLINE);
                self.dirs.push(dir);
            }
            S_IFLNK if head + u64::from(node.extra) <= BLOCK_SIZE => {
                placed.extra = INLINE;
                tail = u64::from(node.extra);
            }
            S_IFLNK => self.long_symlinks.push(id),
            _ => {}
        }

        if tail > 0 && self.cursor % BLOCK_SIZE + head + tail > BLOCK_SIZE {
            self.cursor = self.cursor.next_multiple_of(BLOCK_SIZE);
        }
        placed.nid = u32::try_from(self.cursor / SLOT_SIZE)
            .map_err(|_| WriteError::TooLarge(image.nodes.len()))?;
        let mut size = head + tail;
        if node.mode & S_IFMT == S_IFREG && node.place > 0 {
            let index = CHUNK_INDEX_SIZE as u64;
            size = size.next_multiple_of(index) + index * chunks(node.place);
        }
        self.cursor = (self.cursor + size).next_multiple_of(SLOT_SIZE);
        self.placed[id.index()] = placed;
        self.order.push(id);
        Ok(())
    }

    /// Collects and sorts the links of a directory, and measures its data.
    fn gather(&mut self, image: &Image, node: NodeId, head: u64) -> Dir {
        let first = self.links.len();
        self.links.extend(image.links_of(node));
        self.links[first..].reverse();
        sort(image, &mut self.links[first..], &mut self.keys);
        for special in [DOT, DOTDOT] {
            let at = self.links[first..]
                .partition_point(|&link| name_of(image, link) < name_of(image, special));
            self.links.insert(first + at, special);
        }
        let end = self.links.len();
        let size = packed_size(image, &self.links[first..end]);
        let tail = size % BLOCK_SIZE;
        let layout = if tail > 0 && head + tail <= BLOCK_SIZE {
            Layout::Inline
        } else {
            Layout::Plain
        };
        Dir {
            node,
            first,
            end,
            size,
            block: 0,
            layout,
        }
    }

    fn subdirs(&self, image: &Image, dir: &Dir) -> u32 {
        let links = self.links[dir.first..dir.end]
            .iter()
            .filter(|&&link| link < DOT);
        let dirs = links.filter(|&&link| image.is_dir(NodeId(image.links[link as usize].child)));
        u32::try_from(dirs.count()).unwrap_or(u32::MAX - 2)
    }

    /// Assigns the blocks after the inodes.
    fn place_blocks(&mut self, image: &Image) {
        let base = self.inodes_end / BLOCK_SIZE;
        // 2^32 links of 255 bytes each fill fewer than 2^32 blocks, so block numbers cannot run
        // out.
        let number = |block: u64| u32::try_from(base + block).unwrap_or(INLINE - 1);
        let mut next = 0;
        for dir in &mut self.dirs {
            dir.block = number(next);
            next += dir.blocks();
        }
        for &id in &self.long_symlinks {
            self.placed[id.index()].extra = number(next);
            next += u64::from(image.nodes[id.index()].extra).div_ceil(BLOCK_SIZE);
        }
        self.own_blocks = next;
    }
}

/// Number of chunk indexes that a file of this size needs.
pub(super) fn chunks(size: u64) -> u64 {
    let blocks = size.div_ceil(BLOCK_SIZE);
    blocks.div_ceil(1 << chunk_bits(blocks))
}

pub(super) fn name_of(image: &Image, link: u32) -> &[u8] {
    match link {
        DOT => b".",
        DOTDOT => b"..",
        _ => image.name(&image.links[link as usize]),
    }
}

/// Splits sorted links into runs, one per block, and yields each run with its size in bytes.
pub(super) fn blocks<'a>(
    image: &'a Image,
    links: &'a [u32],
) -> impl Iterator<Item = (&'a [u32], usize)> {
    let mut rest = links;
    std::iter::from_fn(move || {
        let mut used = 0;
        let mut count = 0;
        for &link in rest {
            let more = DIRENT_SIZE + name_of(image, link).len();
            if used + more > BLOCK {
                break;
            }
            used += more;
            count += 1;
        }
        let (run, behind) = rest.split_at(count);
        rest = behind;
        (count > 0).then_some((run, used))
    })
}

fn packed_size(image: &Image, links: &[u32]) -> u64 {
    let mut size = 0u64;
    for (_, used) in blocks(image, links) {
        size = size.next_multiple_of(BLOCK_SIZE) + used as u64;
    }
    size
}

/// Sorts links by name. Names in one directory often share a prefix, so this compares the eight
/// bytes after the common prefix first, and the full names only if those are equal.
fn sort(image: &Image, links: &mut [u32], keys: &mut Vec<(u64, u32)>) {
    if links.is_sorted_by(|a, b| name_of(image, *a) <= name_of(image, *b)) {
        return;
    }
    let first = name_of(image, links[0]);
    let common = links.iter().fold(first.len(), |common, &link| {
        let name = name_of(image, link);
        let same = first[..common].iter().zip(name).take_while(|(a, b)| a == b);
        same.count()
    });
    keys.clear();
    keys.extend(links.iter().map(|&link| {
        let mut key = [0; 8];
        let rest = &name_of(image, link)[common..];
        let len = rest.len().min(8);
        key[..len].copy_from_slice(&rest[..len]);
        (u64::from_be_bytes(key), link)
    }));
    keys.sort_unstable_by(|a, b| {
        a.0.cmp(&b.0)
            .then_with(|| name_of(image, a.1).cmp(name_of(image, b.1)))
    });
    for (link, key) in links.iter_mut().zip(keys.iter()) {
        *link = key.1;
    }
}
