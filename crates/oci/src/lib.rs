//! Documents of OCI images. No I/O.
//!
//! A [`Digest`] identifies a blob, a [`Descriptor`] describes it, a [`Manifest`] or an
//! [`ImageIndex`] refers to several blobs, and an image reference ([`mod@reference`]) identifies a
//! manifest or an index in a registry. JSON is written byte for byte as Go's library writes it
//! ([`json`]).

#![warn(missing_docs)]

pub mod descriptor;
pub mod digest;
pub mod json;
pub mod manifest;
pub mod media_type;
pub mod platform;
pub mod reference;

pub use descriptor::{Annotations, Descriptor};
pub use digest::{Digest, Verifier};
pub use manifest::{Document, ImageConfig, ImageIndex, Manifest};
pub use platform::Platform;
