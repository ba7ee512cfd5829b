//! Names and bytes of OCI images.
//!
//! *Names*: a [`Digest`] names a blob, a [`Descriptor`] says what the blob is, a [`Manifest`] or an
//! [`ImageIndex`] ties blobs together, and an image reference names one of those in a registry.
//! JSON that is written has the exact bytes that Go's library would write ([`json`]).
//!
//! *Bytes*: they come in ranges from a registry ([`fetch`], [`registry`]) or whole from a
//! [`store`]: an OCI layout on disk or containerd's content store. HTTP, TLS and the containerd
//! client live in this package and only here.

#![warn(missing_docs)]

pub mod credentials;
pub mod descriptor;
pub mod digest;
pub mod fetch;
pub mod json;
pub mod manifest;
pub mod media_type;
pub mod platform;
pub mod reference;
pub mod registry;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
pub mod url;

pub use descriptor::{Annotations, Descriptor};
pub use digest::{Digest, Verifier};
pub use manifest::{Document, ImageConfig, ImageIndex, Manifest};
pub use platform::Platform;
