//! EROFS metadata images whose files lie on an external device.
//!
//! An image holds names, attributes, symlink targets and directories, and no byte of any file. A
//! regular file is *chunk based*: its inode is followed by one or a few chunk indexes that say at
//! which 4 KiB block of **device 1** its content begins. The kernel is told where that device is
//! when it mounts the image (`device=PATH`), so the same image works over a file that a server
//! answers for and over a plain file.
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
//! * [`Image`] is the tree while it is made: an arena of nodes and links that can be changed until
//!   [`Image::write`] lays it out. What cannot be said in the format is refused when it is put in.
//! * [`Reader`] reads such an image, bounds-checked: bytes of any content give an error, no panic.
//!
//! Invariants of an image: directories are sorted by name as bytes and hold `.` and `..`; no inode
//! has number 0 (readdir of glibc hides it); a name occurs once in a directory; only what can be
//! reached from the root is written; the same tree, built in the same order, gives the same bytes.

pub mod format;
mod reader;
mod writer;

pub use reader::{DirEntry, Extent, Nid, ReadError, Reader, Stat};
pub use writer::{Attributes, Image, ImageError, Inode, Kind, NodeId, Time, WriteError};
