//! What an image refuses, with what it refused.

use std::io;

use crate::format::{MAX_DEVICE_BLOCKS, MAX_MAJOR, MAX_MINOR, MAX_NAME, MAX_SYMLINK};

/// Why something cannot be part of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// Names are 1 to 255 bytes.
    #[error("name of {0} bytes in a directory, the limit is {MAX_NAME}")]
    NameTooLong(usize),
    /// `.`, `..`, the empty name, and names with a slash or a NUL.
    #[error("{:?} cannot be a name in a directory", String::from_utf8_lossy(.0))]
    BadName(Vec<u8>),
    /// A directory has a name once.
    #[error("{:?} is already in the directory", String::from_utf8_lossy(.0))]
    Duplicate(Vec<u8>),
    /// Only directories have names in them.
    #[error("{:?} put into a node that is not a directory", String::from_utf8_lossy(.0))]
    NotADirectory(Vec<u8>),
    /// A directory is linked once, and the root nowhere.
    #[error("second link {:?} to a directory", String::from_utf8_lossy(.0))]
    DirectoryLinkedTwice(Vec<u8>),
    /// Symlink targets are 1 to 4095 bytes.
    #[error("symlink target of {0} bytes, the limits are 1 and {MAX_SYMLINK}")]
    SymlinkLength(usize),
    /// A symlink target ends at its first NUL for everybody who reads it.
    #[error("symlink target with a NUL byte")]
    SymlinkNul,
    /// The kernel keeps 12 bits of major and 20 of minor number.
    #[error("device number {major}:{minor}, the limits are {MAX_MAJOR}:{MAX_MINOR}")]
    DeviceNumber {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A file lies inside the device.
    #[error("file of {size} bytes at block {block} of a device of {blocks} blocks")]
    OutsideDevice {
        /// Bytes of the file.
        size: u64,
        /// Its first block.
        block: u64,
        /// Blocks of the device.
        blocks: u64,
    },
    /// A device has at most 2^32 - 1 blocks.
    #[error("device of {0} blocks, the limit is {MAX_DEVICE_BLOCKS}")]
    DeviceTooLarge(u64),
    /// Nanoseconds are below 10^9.
    #[error("time with {0} nanoseconds")]
    BadTime(u32),
    /// A prefix that EROFS does not know, or nothing behind it.
    #[error("extended attribute {:?} has no place in an image", String::from_utf8_lossy(.0))]
    XattrName(Vec<u8>),
    /// More than an inline attribute or an inode can hold.
    #[error("extended attribute {:?} of {value} bytes is too much for its inode",
        String::from_utf8_lossy(.name))]
    XattrTooLarge {
        /// Full name.
        name: Vec<u8>,
        /// Bytes of the value.
        value: usize,
    },
    /// 2^32 nodes, links, attributes or bytes of names.
    #[error("more {0} than an image can have")]
    TooMany(&'static str),
}

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The output refused.
    #[error("write the image")]
    Io(#[from] io::Error),
    /// Inode numbers of the writer have 32 bits: 128 GiB of inodes.
    #[error("image of {0} inodes is too large for its inode numbers")]
    TooLarge(usize),
}
