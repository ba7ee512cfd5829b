//! Reads bbolt files, the format in which containerd and the reference implementation keep their
//! records: [`read()`] a whole file, walk its buckets with [`Bolt`], and decode what the programs
//! store in them with [`value`].
//!
//! Files are read only, and their content is not trusted: they come from other programs and may be
//! damaged.

mod file;
#[cfg(feature = "testing")]
pub mod testing;
mod tree;
pub mod value;

pub use file::{ReadError, read};
pub use tree::{Bolt, BoltError, Bucket, Value};
