//! Writes the bytes of an image in order, following the layout.

use std::io::{self, Write};

use super::layout::{self, DOT, DOTDOT, Dir, INLINE, Plan};
use super::{Image, NodeId, WriteError};
use crate::format::{
    BLOCK_BITS, BLOCK_SIZE, CHUNK_INDEX_SIZE, CHUNK_INDEXES, COMPAT_MTIME, DEVICE_ID,
    DEVICE_SLOT_BLOCKS, DEVICE_SLOT_SIZE, DIRENT_SIZE, INCOMPAT_CHUNKED_FILE,
    INCOMPAT_DEVICE_TABLE, INODE_SIZE, Layout, MAGIC, S_IFBLK, S_IFCHR, S_IFDIR, S_IFLNK, S_IFMT,
    S_IFREG, SLOT_SIZE, SUPERBLOCK_AT, SUPERBLOCK_SIZE, XATTR_HEADER_SIZE, chunk_bits, dirent_type,
    inode, put, sb, xattr_area,
};

/// Bytes buffered before a write.
const BUFFER: usize = 64 << 10;

/// The output and its position.
struct Out<W> {
    inner: W,
    buffer: Vec<u8>,
    written: u64,
}

impl<W: Write> Out<W> {
    fn at(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Writes zeros up to a position, which is at most a few blocks away.
    fn zeros_to(&mut self, position: u64) {
        let missing = position.saturating_sub(self.at());
        let missing = usize::try_from(missing).unwrap_or(0);
        self.buffer.resize(self.buffer.len() + missing, 0);
    }

    fn pad(&mut self, multiple: u64) {
        self.zeros_to(self.at().next_multiple_of(multiple));
    }

    fn flush_if_full(&mut self) -> io::Result<()> {
        if self.buffer.len() >= BUFFER {
            self.flush()
        } else {
            Ok(())
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.write_all(&self.buffer)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

pub(super) fn emit(image: &Image, plan: &Plan, inner: impl Write) -> Result<u64, WriteError> {
    let mut out = Out {
        inner,
        buffer: Vec::with_capacity(BUFFER * 2),
        written: 0,
    };
    head(image, plan, &mut out);
    for (ordinal, &node) in plan.order.iter().enumerate() {
        out.zeros_to(u64::from(plan.placed[node.index()].nid) * SLOT_SIZE);
        one_inode(image, plan, node, ordinal, &mut out);
        out.flush_if_full()?;
    }
    out.zeros_to(plan.inodes_end);
    for dir in &plan.dirs {
        let whole = (dir.size - dir.tail()).div_ceil(BLOCK_SIZE);
        for (run, _) in dir_blocks(image, plan, dir).take(usize::try_from(whole).unwrap_or(0)) {
            dir_block(image, plan, dir, run, &mut out);
            out.pad(BLOCK_SIZE);
            out.flush_if_full()?;
        }
    }
    for &node in &plan.long_symlinks {
        out.bytes(target(image, node));
        out.pad(BLOCK_SIZE);
        out.flush_if_full()?;
    }
    out.flush()?;
    out.inner.flush()?;
    Ok(out.written)
}

/// Superblock and device slot.
fn head<W: Write>(image: &Image, plan: &Plan, out: &mut Out<W>) {
    let blocks = plan.inodes_end / BLOCK_SIZE + plan.own_blocks;
    let root = u16::try_from(plan.placed[0].nid).unwrap_or(0);
    let slot = u16::try_from((SUPERBLOCK_AT + SUPERBLOCK_SIZE) / DEVICE_SLOT_SIZE).unwrap_or(0);
    let mut block = [0; SUPERBLOCK_SIZE];
    put(&mut block, sb::MAGIC, MAGIC.to_le_bytes());
    put(&mut block, sb::FEATURE_COMPAT, COMPAT_MTIME.to_le_bytes());
    put(&mut block, sb::BLOCK_BITS, [BLOCK_BITS]);
    put(&mut block, sb::ROOT_NID, root.to_le_bytes());
    put(
        &mut block,
        sb::INODES,
        (plan.order.len() as u64).to_le_bytes(),
    );
    put(
        &mut block,
        sb::BLOCKS,
        u32::try_from(blocks).unwrap_or(u32::MAX).to_le_bytes(),
    );
    put(&mut block, sb::UUID, image.uuid);
    let features = INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE;
    put(&mut block, sb::FEATURE_INCOMPAT, features.to_le_bytes());
    put(&mut block, sb::EXTRA_DEVICES, 1u16.to_le_bytes());
    put(&mut block, sb::DEVICE_SLOT, slot.to_le_bytes());

    let mut device = [0; DEVICE_SLOT_SIZE];
    put(
        &mut device,
        DEVICE_SLOT_BLOCKS,
        image.device_blocks.to_le_bytes(),
    );
    out.zeros_to(SUPERBLOCK_AT as u64);
    out.bytes(&block);
    out.bytes(&device);
}

fn one_inode<W: Write>(image: &Image, plan: &Plan, id: NodeId, ordinal: usize, out: &mut Out<W>) {
    let node = &image.nodes[id.index()];
    let placed = &plan.placed[id.index()];
    let dir = plan
        .dirs
        .get(placed.extra as usize)
        .filter(|dir| dir.node == id);
    let (layout, size, union) = match (node.mode & S_IFMT, dir) {
        (S_IFREG, _) if node.place > 0 => {
            let format = CHUNK_INDEXES | chunk_bits(node.place.div_ceil(BLOCK_SIZE));
            (Layout::Chunks, node.place, u32::from(format))
        }
        (S_IFDIR, Some(dir)) => (dir.layout, dir.size, dir.block),
        (S_IFLNK, _) if placed.extra == INLINE => (Layout::Inline, node.extra.into(), 0),
        (S_IFLNK, _) => (Layout::Plain, node.extra.into(), placed.extra),
        (S_IFCHR | S_IFBLK, _) => (Layout::Plain, 0, u32::try_from(node.place).unwrap_or(0)),
        _ => (Layout::Plain, 0, 0),
    };
    let body = image.xattr_body(id);
    let xattr_count = if body == 0 { 0 } else { 1 + body / 4 };

    let mut bytes = [0; INODE_SIZE];
    put(&mut bytes, inode::FORMAT, layout.to_format().to_le_bytes());
    put(
        &mut bytes,
        inode::XATTR_COUNT,
        u16::try_from(xattr_count).unwrap_or(0).to_le_bytes(),
    );
    put(&mut bytes, inode::MODE, node.mode.to_le_bytes());
    put(&mut bytes, inode::SIZE, size.to_le_bytes());
    put(&mut bytes, inode::UNION, union.to_le_bytes());
    put(
        &mut bytes,
        inode::INO,
        u32::try_from(ordinal + 1).unwrap_or(u32::MAX).to_le_bytes(),
    );
    put(&mut bytes, inode::UID, node.uid.to_le_bytes());
    put(&mut bytes, inode::GID, node.gid.to_le_bytes());
    put(&mut bytes, inode::MTIME, node.mtime_secs.to_le_bytes());
    put(
        &mut bytes,
        inode::MTIME_NANOS,
        node.mtime_nanos.to_le_bytes(),
    );
    put(&mut bytes, inode::NLINK, placed.nlink.to_le_bytes());
    out.bytes(&bytes);
    xattrs(image, id, body, out);

    match (layout, dir) {
        (Layout::Chunks, _) => chunks(node.place, node.extra, out),
        (Layout::Inline, Some(dir)) => {
            if let Some((run, _)) = dir_blocks(image, plan, dir).last() {
                dir_block(image, plan, dir, run, out);
            }
        }
        (Layout::Inline, None) => out.bytes(target(image, id)),
        (Layout::Plain, _) => {}
    }
}

fn xattrs<W: Write>(image: &Image, id: NodeId, body: usize, out: &mut Out<W>) {
    if body == 0 {
        return;
    }
    let end = out.at() + xattr_area(body) as u64;
    // Twelve zeros: no name filter and no shared attributes.
    out.bytes(&[0; XATTR_HEADER_SIZE]);
    for xattr in image.xattrs_of(id) {
        let name = image.xattr_name(xattr);
        let value = image.xattr_value(xattr);
        let value_len = u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes();
        let name_len = u8::try_from(name.len()).unwrap_or(u8::MAX);
        out.bytes(&[name_len, xattr.prefix, value_len[0], value_len[1]]);
        out.bytes(name);
        out.bytes(value);
        out.pad(4);
    }
    debug_assert_eq!(out.at(), end, "attributes take what was planned");
}

fn chunks<W: Write>(size: u64, first_block: u32, out: &mut Out<W>) {
    out.pad(CHUNK_INDEX_SIZE as u64);
    let step = 1u64 << chunk_bits(size.div_ceil(BLOCK_SIZE));
    for chunk in 0..layout::chunks(size) {
        let block = u64::from(first_block) + chunk * step;
        out.bytes(&0u16.to_le_bytes());
        out.bytes(&DEVICE_ID.to_le_bytes());
        // The file is within the device, so its block numbers fit into 32 bits.
        out.bytes(&u32::try_from(block).unwrap_or(u32::MAX).to_le_bytes());
    }
}

fn target(image: &Image, id: NodeId) -> &[u8] {
    let node = &image.nodes[id.index()];
    image.kept(u32::try_from(node.place).unwrap_or(0), node.extra as usize)
}

fn dir_blocks<'a>(
    image: &'a Image,
    plan: &'a Plan,
    dir: &Dir,
) -> impl Iterator<Item = (&'a [u32], usize)> {
    layout::blocks(image, &plan.links[dir.first..dir.end])
}

/// One block of a directory: its entries, then their names.
fn dir_block<W: Write>(image: &Image, plan: &Plan, dir: &Dir, run: &[u32], out: &mut Out<W>) {
    let mut name_at = run.len() * DIRENT_SIZE;
    for &link in run {
        let node = match link {
            DOT => dir.node,
            DOTDOT => image.parent(dir.node).unwrap_or(NodeId::ROOT),
            _ => NodeId(image.links[link as usize].child),
        };
        let kind = dirent_type(image.nodes[node.index()].mode);
        out.bytes(&u64::from(plan.placed[node.index()].nid).to_le_bytes());
        out.bytes(&u16::try_from(name_at).unwrap_or(u16::MAX).to_le_bytes());
        out.bytes(&[kind, 0]);
        name_at += layout::name_of(image, link).len();
    }
    for &link in run {
        out.bytes(layout::name_of(image, link));
    }
}
