//! OCI images: descriptors and manifests, and access to their bytes.
//!
//! *Metadata*: a [`Digest`] identifies a blob, a [`Descriptor`] describes it, a [`Manifest`] or an
//! [`ImageIndex`] refers to several blobs, and an image reference identifies a manifest or an index
//! in a registry. JSON is written byte for byte as Go's library writes it ([`json`]).
//!
//! *Bytes*: ranges of blobs come from a registry ([`fetch`], [`registry`]). Complete blobs also
//! come from a [`store`]: an OCI layout on disk or containerd's content store. Only this package
//! contains HTTP, TLS and the containerd client.

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
