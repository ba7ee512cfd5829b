//! Names and bytes of OCI images.

pub mod credentials;
pub mod descriptor;
pub mod digest;
pub mod fetch;
pub mod manifest;
pub mod reference;
pub mod registry;
pub mod store;
#[cfg(feature = "testing")]
pub mod testing;
pub mod url;
