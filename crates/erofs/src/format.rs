//! The parts of the on-disk format that these images use: field offsets and limits.
//!
//! Source: the kernel's `erofs_fs.h` as of Linux 6.12. Every number is little endian. Parts that
//! are not listed here (compression, fragments, shared xattrs, 48-bit addresses) are neither
//! written nor read.

/// Bytes in a block of the image and of the device.
pub const BLOCK_SIZE: u64 = 4096;
/// log2 of [`BLOCK_SIZE`].
pub const BLOCK_BITS: u8 = 12;

/// Longest name in a directory, in bytes (the kernel's `NAME_MAX`).
pub const MAX_NAME: usize = 255;
/// Longest symlink target, in bytes (the kernel's `PATH_MAX` less its NUL).
pub const MAX_SYMLINK: usize = 4095;
/// Most blocks of a device: block numbers have 32 bits, and the last number means "a hole".
pub const MAX_DEVICE_BLOCKS: u64 = 0xffff_ffff;
/// Longest name of an extended attribute with its prefix (the kernel's `XATTR_NAME_MAX`).
pub const MAX_XATTR_NAME: usize = 255;
/// Longest value of an inline extended attribute, in bytes: its length has 16 bits.
pub const MAX_XATTR_VALUE: usize = 0xffff;
/// Most bytes of inline attributes per inode, without the 12-byte header. The inode counts them in
/// units of four bytes with 16 bits, and one unit stands for the header.
pub const MAX_XATTR_BODY: usize = 0xfffe * 4;
/// Largest major number. The kernel stores it with a 20-bit minor number in 32 bits.
pub const MAX_MAJOR: u32 = 0xfff;
/// Largest minor number.
pub const MAX_MINOR: u32 = 0xf_ffff;

/// File type bits of a mode, as in `stat(2)`.
pub const S_IFMT: u16 = 0o170_000;
/// A fifo.
pub const S_IFIFO: u16 = 0o010_000;
/// A character device.
pub const S_IFCHR: u16 = 0o020_000;
/// A directory.
pub const S_IFDIR: u16 = 0o040_000;
/// A block device.
pub const S_IFBLK: u16 = 0o060_000;
/// A regular file.
pub const S_IFREG: u16 = 0o100_000;
/// A symbolic link.
pub const S_IFLNK: u16 = 0o120_000;
/// A socket.
pub const S_IFSOCK: u16 = 0o140_000;

/// Offset of the superblock in the image.
pub(crate) const SUPERBLOCK_AT: usize = 1024;
pub(crate) const SUPERBLOCK_SIZE: usize = 128;
pub(crate) const MAGIC: u32 = 0xe0f5_e1e2;
/// Compatible feature: the stored times are modification times.
pub(crate) const COMPAT_MTIME: u32 = 0x2;
/// Incompatible features: chunk-based files; a device table.
pub(crate) const INCOMPAT_CHUNKED_FILE: u32 = 0x4;
pub(crate) const INCOMPAT_DEVICE_TABLE: u32 = 0x8;

/// Field offsets in the superblock.
pub(crate) mod sb {
    pub(crate) const MAGIC: usize = 0;
    pub(crate) const FEATURE_COMPAT: usize = 8;
    pub(crate) const BLOCK_BITS: usize = 12;
    pub(crate) const ROOT_NID: usize = 14;
    pub(crate) const INODES: usize = 16;
    pub(crate) const BLOCKS: usize = 36;
    pub(crate) const META_BLOCK: usize = 40;
    pub(crate) const UUID: usize = 48;
    pub(crate) const FEATURE_INCOMPAT: usize = 80;
    pub(crate) const EXTRA_DEVICES: usize = 86;
    pub(crate) const DEVICE_SLOT: usize = 88;
}

/// A device slot: a tag of 64 bytes, then the number of blocks. The tag stays empty, because the
/// device is named when the image is mounted.
pub(crate) const DEVICE_SLOT_SIZE: usize = 128;
pub(crate) const DEVICE_SLOT_BLOCKS: usize = 64;
/// The device that holds all file contents.
pub(crate) const DEVICE_ID: u16 = 1;

/// An inode number is an offset from the metadata area, in slots of this many bytes.
pub(crate) const SLOT_SIZE: u64 = 32;
/// All inodes are extended: compact ones have neither nanoseconds nor 32-bit owners.
pub(crate) const INODE_SIZE: usize = 64;
pub(crate) const INODE_EXTENDED: u16 = 1;

/// Field offsets in an extended inode.
pub(crate) mod inode {
    pub(crate) const FORMAT: usize = 0;
    pub(crate) const XATTR_COUNT: usize = 2;
    pub(crate) const MODE: usize = 4;
    pub(crate) const SIZE: usize = 8;
    /// First block, device number or chunk format, depending on layout and file type.
    pub(crate) const UNION: usize = 16;
    pub(crate) const INO: usize = 20;
    pub(crate) const UID: usize = 24;
    pub(crate) const GID: usize = 28;
    pub(crate) const MTIME: usize = 32;
    pub(crate) const MTIME_NANOS: usize = 40;
    pub(crate) const NLINK: usize = 44;
}

/// Where an inode's data is stored (bits 1 to 3 of its format).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Whole blocks of the image.
    Plain = 0,
    /// Whole blocks of the image, then a tail after the inode.
    Inline = 2,
    /// Chunk indexes after the inode.
    Chunks = 4,
}

impl Layout {
    pub(crate) fn of_format(format: u16) -> Option<Self> {
        match (format >> 1) & 7 {
            0 => Some(Self::Plain),
            2 => Some(Self::Inline),
            4 => Some(Self::Chunks),
            _ => None,
        }
    }

    pub(crate) fn to_format(self) -> u16 {
        INODE_EXTENDED | ((self as u16) << 1)
    }
}

/// Chunk format: the low five bits are log2 of the blocks per chunk; bit 5 means "8-byte indexes".
pub(crate) const CHUNK_BITS_MASK: u16 = 0x1f;
pub(crate) const CHUNK_INDEXES: u16 = 0x20;
/// `{u16 advise, u16 device, u32 block}`, aligned to its size.
pub(crate) const CHUNK_INDEX_SIZE: usize = 8;
/// The block number that means "no block".
pub(crate) const NULL_BLOCK: u32 = 0xffff_ffff;

/// `{u64 nid, u16 name offset, u8 type, u8 0}`.
pub(crate) const DIRENT_SIZE: usize = 12;

/// Inline xattrs: a header of 12 bytes, then entries `{u8 name length, u8 prefix, u16 value
/// length}` with name and value, each entry padded to four bytes.
pub(crate) const XATTR_HEADER_SIZE: usize = 12;
pub(crate) const XATTR_ENTRY_SIZE: usize = 4;

/// Prefixes of attribute names that are stored as numbers.
pub(crate) const XATTR_PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// Bytes that inline attributes take after the inode, header included. `body` excludes the header.
pub(crate) fn xattr_area(body: usize) -> usize {
    if body == 0 {
        0
    } else {
        XATTR_HEADER_SIZE + body
    }
}

/// Bytes of one attribute entry, padding included.
pub(crate) fn xattr_entry_size(name_suffix: usize, value: usize) -> usize {
    (XATTR_ENTRY_SIZE + name_suffix + value).next_multiple_of(4)
}

/// The type byte of a directory entry, from the type bits of a mode.
pub(crate) fn dirent_type(mode: u16) -> u8 {
    match mode & S_IFMT {
        S_IFREG => 1,
        S_IFDIR => 2,
        S_IFCHR => 3,
        S_IFBLK => 4,
        S_IFIFO => 5,
        S_IFSOCK => 6,
        S_IFLNK => 7,
        _ => 0,
    }
}

/// log2 of the blocks per chunk that gives a file of this many blocks the fewest indexes.
pub(crate) fn chunk_bits(blocks: u64) -> u16 {
    let mut bits = 0;
    while bits < CHUNK_BITS_MASK && (1u64 << bits) < blocks {
        bits += 1;
    }
    bits
}

/// A device number in the kernel's 32-bit encoding.
pub(crate) fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The major and minor number from [`encode_device`].
pub(crate) fn decode_device(device: u32) -> (u32, u32) {
    (
        (device >> 8) & MAX_MAJOR,
        (device & 0xff) | ((device >> 12) & 0xf_ff00),
    )
}

/// Copies bytes into a record at a field's offset.
pub(crate) fn put<const N: usize>(record: &mut [u8], at: usize, bytes: [u8; N]) {
    record[at..at + N].copy_from_slice(&bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive_their_encoding() {
        for (major, minor) in [(0, 0), (1, 3), (8, 255), (259, 256), (MAX_MAJOR, MAX_MINOR)] {
            assert_eq!(decode_device(encode_device(major, minor)), (major, minor));
        }
    }

    #[test]
    fn one_chunk_covers_a_file_up_to_eight_tebibytes() {
        assert_eq!(chunk_bits(1), 0);
        assert_eq!(chunk_bits(2), 1);
        assert_eq!(chunk_bits(3), 2);
        assert_eq!(chunk_bits(1 << 31), 31);
        assert_eq!(chunk_bits(MAX_DEVICE_BLOCKS), 31);
    }
}
