//! EROFS metadata images whose file contents are stored on an external device.
//!
//! An image contains names, attributes, symlink targets and directories, but no file content. A
//! regular file is *chunk based*: its inode is followed by chunk indexes, which give the 4 KiB
//! block of **device 1** at which its content begins. The device is named when the image is mounted
//! (`device=PATH`), so the same image works on a file that a server provides and on a plain file.
//!
//! ```text
//!   block 0                                      inode area             directory blocks
//!  +--------+-----------+-------------+---------------------------------+-----------------------+
//!  | (zero) | superblock| device slot | root inode .. inode .. inode    | blocks of directories |
//!  |        | at 1024   | at 1152     | + xattrs + chunk index or tail  | that do not fit inline|
//!  +--------+-----------+-------------+---------------------------------+-----------------------+
//!                            |                        | {device 1, block 7}
//!                            v                        v
//!                        device 1:  | file | file |  file  | ...     4 KiB blocks
//! ```
//!
//! * [`Image`] is a tree under construction: nodes and links that can be changed until
//!   [`Image::write`] lays them out. It rejects anything that the format cannot represent when it
//!   is added.
//! * [`Reader`] reads such an image with bounds checks: arbitrary bytes cause an error, never a
//!   panic.
//!
//! Invariants of an image: directories are sorted by name as bytes and contain `.` and `..`; no
//! inode has number 0 (glibc's readdir hides it); a name occurs once per directory; only nodes that
//! are reachable from the root are written; the same tree, built in the same order, gives the same
//! bytes.

pub mod format;
mod reader;
mod writer;

pub use reader::{DirEntry, Extent, Nid, ReadError, Reader, Stat};
pub use writer::{Attributes, Image, ImageError, Inode, Kind, NodeId, Time, WriteError};
