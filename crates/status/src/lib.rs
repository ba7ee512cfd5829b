//! What the daemon says about its images: the document of its status socket.
//!
//! The daemon writes a [`Status`] and `soci status` reads it, possibly from a daemon of another
//! version. Fields with a fixed set of values are therefore strings in the document; [`Verdict`]
//! and [`Reason`] are their values. Adding a field or a value is compatible; anything else
//! increases [`SCHEMA_VERSION`].

#![warn(missing_docs)]

mod document;
mod words;

pub use document::{Image, Layer, Progress, Reads, Status};
pub use words::{POSSIBLE, Reason, Verdict};

/// Version of the document, shared with all JSON output of `soci`.
pub const SCHEMA_VERSION: u32 = 1;
/// Name of the status socket, in the directory of the daemon's socket.
pub const SOCKET: &str = "status.sock";
/// The status socket of a daemon with the default address.
pub const DEFAULT_SOCKET: &str = "/run/soci-snapshotter-grpc/status.sock";
/// Path of the document on the socket, which speaks HTTP.
pub const PATH: &str = "/v1/status";
/// Path of the records of starts. The digest of an image's manifest follows.
pub const STARTS_PATH: &str = "/v1/starts/";
