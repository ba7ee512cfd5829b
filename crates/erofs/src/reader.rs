//! Reads an image: names, attributes, symlink targets, and the location of file contents.
//!
//! Every access is bounds-checked, so a damaged image causes an error, never a panic. Loops are
//! bounded by the length of the image. Features that [`crate::Image`] does not write (compression,
//! shared attributes, compact inodes) are rejected.

mod dir;

use crate::format::{
    BLOCK_BITS, BLOCK_SIZE, CHUNK_BITS_MASK, CHUNK_INDEX_SIZE, CHUNK_INDEXES, DEVICE_ID,
    DEVICE_SLOT_BLOCKS, DEVICE_SLOT_SIZE, INCOMPAT_CHUNKED_FILE, INCOMPAT_DEVICE_TABLE,
    INODE_EXTENDED, INODE_SIZE, Layout, MAGIC, NULL_BLOCK, S_IFBLK, S_IFCHR, S_IFDIR, S_IFLNK,
    S_IFMT, S_IFREG, SLOT_SIZE, SUPERBLOCK_AT, SUPERBLOCK_SIZE, XATTR_ENTRY_SIZE,
    XATTR_HEADER_SIZE, XATTR_PREFIXES, decode_device, inode, sb,
};
use crate::writer::{Attributes, Time};
pub use dir::DirEntry;

/// An inode's number in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nid(pub u64);

/// Why an image cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// An offset points past the end of the image.
    #[error("{len} bytes at {at} of an image of {size}")]
    OutOfBounds {
        /// Offset in the image.
        at: u64,
        /// Bytes requested there.
        len: u64,
        /// Size of the image in bytes.
        size: usize,
    },
    /// The superblock is missing or belongs to another kind of image.
    #[error("superblock: {0}")]
    Superblock(&'static str),
    /// An inode that this reader cannot use.
    #[error("inode {nid}: {what}")]
    Inode {
        /// Its inode number.
        nid: u64,
        /// What is wrong.
        what: &'static str,
    },
}

/// The fields of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Its inode number.
    pub nid: Nid,
    /// Type bits as in `st_mode`: one of the `S_IF` constants of [`crate::format`].
    pub file_type: u16,
    /// Permissions, owner and time.
    pub attributes: Attributes,
    /// Number of links.
    pub nlink: u32,
    /// Bytes of a file, a symlink target or a directory's blocks.
    pub size: u64,
    /// Major and minor number of a device node.
    pub device: (u32, u32),
    layout: Layout,
    union: u32,
    xattr_size: usize,
    /// Offset of the inode in the image.
    at: u64,
}

impl Stat {
    /// Whether this is a directory.
    #[must_use]
    pub fn is_dir(&self) -> bool {
        self.file_type == S_IFDIR
    }

    /// Whether this is a regular file.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.file_type == S_IFREG
    }

    /// Whether this is a symbolic link.
    #[must_use]
    pub fn is_symlink(&self) -> bool {
        self.file_type == S_IFLNK
    }

    fn error(&self, what: &'static str) -> ReadError {
        ReadError::Inode {
            nid: self.nid.0,
            what,
        }
    }
}

/// A contiguous range of a file on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// First block on the device.
    pub block: u32,
    /// Length in bytes; the last block of a file may be used partially.
    pub len: u64,
}

/// An image in memory or in a memory mapping.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    image: &'a [u8],
    base: u64,
    root: Nid,
    inodes: u64,
    device_blocks: u32,
    uuid: [u8; 16],
}

impl<'a> Reader<'a> {
    /// Reads the superblock and the device slot.
    ///
    /// # Errors
    /// Fails if this is not an EROFS image, or if it uses features that [`crate::Image`] does not
    /// write.
    pub fn open(image: &'a [u8]) -> Result<Self, ReadError> {
        let bytes = Bytes(image);
        let block = bytes.array::<SUPERBLOCK_SIZE>(SUPERBLOCK_AT as u64)?;
        if u32_of(&block, sb::MAGIC) != MAGIC {
            return Err(ReadError::Superblock("not an EROFS image"));
        }
        if block[sb::BLOCK_BITS] != BLOCK_BITS {
            return Err(ReadError::Superblock("blocks are not of 4096 bytes"));
        }
        if u32_of(&block, sb::FEATURE_INCOMPAT) != INCOMPAT_CHUNKED_FILE | INCOMPAT_DEVICE_TABLE {
            return Err(ReadError::Superblock("features of another writer"));
        }
        if u16_of(&block, sb::EXTRA_DEVICES) != 1 {
            return Err(ReadError::Superblock("not exactly one device"));
        }
        let slot = u64::from(u16_of(&block, sb::DEVICE_SLOT)) * DEVICE_SLOT_SIZE as u64;
        let device = bytes.array::<DEVICE_SLOT_SIZE>(slot)?;
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&block[sb::UUID..][..16]);
        Ok(Self {
            image,
            base: u64::from(u32_of(&block, sb::META_BLOCK)) * BLOCK_SIZE,
            root: Nid(u64::from(u16_of(&block, sb::ROOT_NID))),
            inodes: u64_of(&block, sb::INODES),
            device_blocks: u32_of(&device, DEVICE_SLOT_BLOCKS),
            uuid,
        })
    }

    /// The root directory.
    #[must_use]
    pub fn root(&self) -> Nid {
        self.root
    }

    /// Number of inodes, according to the superblock.
    #[must_use]
    pub fn inode_count(&self) -> u64 {
        self.inodes
    }

    /// Size of the device in blocks of 4 KiB.
    #[must_use]
    pub fn device_blocks(&self) -> u32 {
        self.device_blocks
    }

    /// The identity from [`crate::Image::set_uuid`].
    #[must_use]
    pub fn uuid(&self) -> [u8; 16] {
        self.uuid
    }

    /// Reads the fields of an inode.
    ///
    /// # Errors
    /// Fails if the number is out of bounds or the inode has a format that [`crate::Image`] does
    /// not write.
    pub fn stat(&self, nid: Nid) -> Result<Stat, ReadError> {
        let wrong = |what| ReadError::Inode { nid: nid.0, what };
        let at = nid
            .0
            .checked_mul(SLOT_SIZE)
            .and_then(|offset| offset.checked_add(self.base));
        let at = at.ok_or_else(|| wrong("number out of range"))?;
        let bytes = Bytes(self.image).array::<INODE_SIZE>(at)?;
        let format = u16_of(&bytes, inode::FORMAT);
        if format & INODE_EXTENDED == 0 || format >> 4 != 0 {
            return Err(wrong("not an extended inode"));
        }
        let layout = Layout::of_format(format).ok_or_else(|| wrong("unknown layout"))?;
        let mode = u16_of(&bytes, inode::MODE);
        let union = u32_of(&bytes, inode::UNION);
        let is_device = matches!(mode & S_IFMT, S_IFCHR | S_IFBLK);
        let xattr_units = usize::from(u16_of(&bytes, inode::XATTR_COUNT));
        let nanos = u32_of(&bytes, inode::MTIME_NANOS);
        Ok(Stat {
            nid,
            file_type: mode & S_IFMT,
            attributes: Attributes {
                mode: mode & !S_IFMT,
                uid: u32_of(&bytes, inode::UID),
                gid: u32_of(&bytes, inode::GID),
                mtime: Time {
                    secs: u64_of(&bytes, inode::MTIME).cast_signed(),
                    nanos,
                },
            },
            nlink: u32_of(&bytes, inode::NLINK),
            size: u64_of(&bytes, inode::SIZE),
            device: if is_device {
                decode_device(union)
            } else {
                (0, 0)
            },
            layout,
            union,
            xattr_size: xattr_units
                .checked_sub(1)
                .map_or(0, |units| XATTR_HEADER_SIZE + units * 4),
            at,
        })
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// Fails if the inode is not a symbolic link or the image is damaged.
    pub fn symlink_target(&self, stat: &Stat) -> Result<&'a [u8], ReadError> {
        if !stat.is_symlink() {
            return Err(stat.error("not a symbolic link"));
        }
        let at = match stat.layout {
            Layout::Inline if stat.size < BLOCK_SIZE => Ok(self.tail_at(stat)),
            Layout::Plain => Ok(u64::from(stat.union) * BLOCK_SIZE),
            _ => Err(stat.error("target in a strange place")),
        };
        Bytes(self.image).slice(at?, stat.size)
    }

    /// The full names and the values of an inode's extended attributes.
    pub fn xattrs(
        &self,
        stat: &Stat,
    ) -> impl Iterator<Item = Result<(Vec<u8>, &'a [u8]), ReadError>> {
        let stat = *stat;
        let body = Bytes(self.image).slice(
            stat.at.saturating_add(INODE_SIZE as u64),
            stat.xattr_size as u64,
        );
        let (mut rest, mut failed) = match body {
            Ok(body) => (body.get(XATTR_HEADER_SIZE..).unwrap_or_default(), None),
            Err(error) => (&[][..], Some(error)),
        };
        std::iter::from_fn(move || {
            if let Some(error) = failed.take() {
                return Some(Err(error));
            }
            if rest.is_empty() {
                return None;
            }
            let xattr = next_xattr(&mut rest);
            if xattr.is_none() {
                rest = &[];
            }
            Some(xattr.ok_or_else(|| stat.error("damaged extended attributes")))
        })
    }

    /// The device ranges of a regular file, in order. Adjacent ranges are merged, so a file of
    /// [`crate::Image`] has one extent, or none if it is empty.
    ///
    /// # Errors
    /// Fails if the inode is not a regular file, the image is damaged, or a block is outside the
    /// device.
    pub fn extents(&self, stat: &Stat) -> Result<Vec<Extent>, ReadError> {
        if !stat.is_file() {
            return Err(stat.error("not a regular file"));
        }
        if stat.size == 0 {
            return Ok(Vec::new());
        }
        let format = u16::try_from(stat.union & 0xffff).unwrap_or(0);
        let blocks = stat.size.div_ceil(BLOCK_SIZE);
        if stat.layout != Layout::Chunks || format & !CHUNK_BITS_MASK != CHUNK_INDEXES {
            return Err(stat.error("not made of chunks"));
        }
        let step = 1u64 << (format & CHUNK_BITS_MASK);
        let count = blocks.div_ceil(step);
        let table = self.tail_at(stat).next_multiple_of(CHUNK_INDEX_SIZE as u64);
        let table =
            Bytes(self.image).slice(table, count.saturating_mul(CHUNK_INDEX_SIZE as u64))?;

        let mut extents: Vec<Extent> = Vec::new();
        let mut offset = 0u64;
        for index in table.as_chunks::<CHUNK_INDEX_SIZE>().0 {
            let block = u32_of(index, 4);
            let len = (step * BLOCK_SIZE).min(stat.size - offset);
            let end = u64::from(block) + len.div_ceil(BLOCK_SIZE);
            if u16_of(index, 2) != DEVICE_ID
                || block == NULL_BLOCK
                || end > u64::from(self.device_blocks)
            {
                return Err(stat.error("chunk outside the device"));
            }
            match extents.last_mut() {
                Some(last) if u64::from(last.block) + last.len / BLOCK_SIZE == u64::from(block) => {
                    last.len += len;
                }
                _ => extents.push(Extent { offset, block, len }),
            }
            offset += len;
        }
        Ok(extents)
    }

    /// Offset of the data after the inode and its attributes.
    fn tail_at(&self, stat: &Stat) -> u64 {
        stat.at
            .saturating_add(INODE_SIZE as u64)
            .saturating_add(stat.xattr_size as u64)
    }
}

/// Splits off the next attribute; `None` if it does not fit.
fn next_xattr<'a>(rest: &mut &'a [u8]) -> Option<(Vec<u8>, &'a [u8])> {
    let (head, body) = rest.split_first_chunk::<XATTR_ENTRY_SIZE>()?;
    let (_, prefix) = XATTR_PREFIXES
        .iter()
        .find(|(number, _)| *number == head[1])?;
    let (name, behind) = body.split_at_checked(usize::from(head[0]))?;
    let (value, _) = behind.split_at_checked(usize::from(u16_of(head, 2)))?;
    let size = (XATTR_ENTRY_SIZE + name.len() + value.len()).next_multiple_of(4);
    *rest = rest.get(size..)?;
    Some(([*prefix, name].concat(), value))
}

/// Checked access to the image.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn slice(&self, at: u64, len: u64) -> Result<&'a [u8], ReadError> {
        let range = usize::try_from(at).ok().zip(usize::try_from(len).ok());
        range
            .and_then(|(at, len)| self.0.get(at..at.checked_add(len)?))
            .ok_or(ReadError::OutOfBounds {
                at,
                len,
                size: self.0.len(),
            })
    }

    fn array<const N: usize>(&self, at: u64) -> Result<[u8; N], ReadError> {
        let slice = self.slice(at, N as u64)?;
        slice.try_into().map_err(|_| ReadError::OutOfBounds {
            at,
            len: N as u64,
            size: 0,
        })
    }
}

fn u16_of(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_of(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_of(bytes, at)) | (u32::from(u16_of(bytes, at + 2)) << 16)
}

fn u64_of(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_of(bytes, at)) | (u64::from(u32_of(bytes, at + 4)) << 32)
}
