//! The errors of building and writing an image.

use std::io;

use crate::format::{MAX_DEVICE_BLOCKS, MAX_MAJOR, MAX_MINOR, MAX_NAME, MAX_SYMLINK};

/// Why something cannot be part of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// A name must have 1 to 255 bytes.
    #[error("name of {0} bytes in a directory, the limit is {MAX_NAME}")]
    NameTooLong(usize),
    /// `.`, `..`, the empty name, and names with a slash or a NUL.
    #[error("{:?} cannot be a name in a directory", String::from_utf8_lossy(.0))]
    BadName(Vec<u8>),
    /// The directory already contains this name.
    #[error("{:?} is already in the directory", String::from_utf8_lossy(.0))]
    Duplicate(Vec<u8>),
    /// Only directories can contain names.
    #[error("{:?} put into a node that is not a directory", String::from_utf8_lossy(.0))]
    NotADirectory(Vec<u8>),
    /// A directory can be linked only once, and the root cannot be linked.
    #[error("second link {:?} to a directory", String::from_utf8_lossy(.0))]
    DirectoryLinkedTwice(Vec<u8>),
    /// A symlink target must have 1 to 4095 bytes.
    #[error("symlink target of {0} bytes, the limits are 1 and {MAX_SYMLINK}")]
    SymlinkLength(usize),
    /// Every reader ends a symlink target at its first NUL.
    #[error("symlink target with a NUL byte")]
    SymlinkNul,
    /// The kernel stores 12 bits of the major and 20 bits of the minor number.
    #[error("device number {major}:{minor}, the limits are {MAX_MAJOR}:{MAX_MINOR}")]
    DeviceNumber {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A file must be within the device.
    #[error("file of {size} bytes at block {block} of a device of {blocks} blocks")]
    OutsideDevice {
        /// Size of the file in bytes.
        size: u64,
        /// Its first block.
        block: u64,
        /// Size of the device in blocks.
        blocks: u64,
    },
    /// A device has at most 2^32 - 1 blocks.
    #[error("device of {0} blocks, the limit is {MAX_DEVICE_BLOCKS}")]
    DeviceTooLarge(u64),
    /// Nanoseconds must be below 10^9.
    #[error("time with {0} nanoseconds")]
    BadTime(u32),
    /// EROFS does not support the prefix, or nothing follows it.
    #[error("extended attribute {:?} has no place in an image", String::from_utf8_lossy(.0))]
    XattrName(Vec<u8>),
    /// The attribute does not fit: an inline attribute or an inode has no room for it.
    #[error("extended attribute {:?} of {value} bytes is too much for its inode",
        String::from_utf8_lossy(.name))]
    XattrTooLarge {
        /// Full name.
        name: Vec<u8>,
        /// Size of the value in bytes.
        value: usize,
    },
    /// The image has 2^32 nodes, links, attributes or bytes of names.
    #[error("more {0} than an image can have")]
    TooMany(&'static str),
}

/// Why an image could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The output returned an error.
    #[error("write the image")]
    Io(#[from] io::Error),
    /// The writer's inode numbers have 32 bits, enough for 128 GiB of inodes.
    #[error("image of {0} inodes is too large for its inode numbers")]
    TooLarge(usize),
}
