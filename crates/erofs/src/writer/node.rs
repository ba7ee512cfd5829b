//! What a node of an image is.

/// A node of an [`Image`](crate::Image).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub(super) u32);

impl NodeId {
    /// The root directory.
    pub const ROOT: Self = Self(0);

    /// The node's ordinal: nodes are numbered from 0 in the order of their creation.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A time in seconds since 1970 and nanoseconds below 10^9.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    /// Seconds since 1970, possibly negative.
    pub secs: i64,
    /// Nanoseconds, below 10^9.
    pub nanos: u32,
}

/// Attributes that every node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Attributes {
    /// Permissions, setuid, setgid and sticky: the low twelve bits of `st_mode`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Time,
}

/// The type of a node and the data specific to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind<'a> {
    /// A file of `size` bytes that begins at block `data_block` of the device. The block is ignored
    /// if the size is 0.
    Regular {
        /// Size in bytes.
        size: u64,
        /// First 4 KiB block on the device.
        data_block: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link with its target.
    Symlink(&'a [u8]),
    /// A character device.
    Char {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A fifo.
    Fifo,
    /// A socket.
    Socket,
}

/// The type and attributes of a node to create.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Inode<'a> {
    /// Its type.
    pub kind: Kind<'a>,
    /// Its attributes.
    pub attributes: Attributes,
}
