//! EROFS metadata images whose file contents are stored on an external device.
//!
//! * [`Image`] is a tree under construction: nodes and links that can be changed until
//!   [`Image::write`] lays them out. It rejects anything that the format cannot represent when it
//!   is added. The same tree, built in the same order, gives the same bytes.
//! * [`Reader`] reads such an image with bounds checks: arbitrary bytes cause an error, never a
//!   panic.
//!
//! The README of the crate shows the format of an image, and what is guaranteed about it.

pub mod format;
mod reader;
mod writer;

pub use reader::{DirEntry, Extent, Nid, ReadError, Reader, Stat};
pub use writer::{Attributes, Image, ImageError, Inode, Kind, NodeId, Time, WriteError};
