//! What the end-to-end tests share: real parts around the programs under test.
//!
//! A [`Node`] is what one machine runs: a containerd of its own with our daemon as its snapshotter `soci`, next to
//! containerd's overlayfs, which is the oracle of every root file system. A [`TlsRegistry`] is a real registry behind
//! TLS; faults come from a [`Relay`] in front of it and from its files, which a test may change. Images
//! are made entry by entry with [`tar`] and [`Image`], so that a test can hold anything a layer may hold.
//!
//! Everything a test starts or mounts belongs to a guard that ends it. The tests run inside `scripts/sandbox` (`make
//! test`, `make e2e`), which is the last guard: what a killed test leaves behind ends with its namespaces.

pub mod containerd;
pub mod cri;
pub mod disk;
pub mod image;
pub mod loops;
pub mod mapped;
pub mod node;
pub mod process;
pub mod registry;
pub mod relay;
pub mod site;
pub mod stored;
pub mod tar;
pub mod tokens;
pub mod transcript;
pub mod unit;
pub mod walk;

pub use containerd::Series;
pub use cri::Cri;
pub use image::{Compressor, Image, Layer};
pub use node::{Node, NodeOptions, View};
pub use process::{Daemon, Program};
pub use registry::TlsRegistry;
pub use relay::{Relay, Shape};
pub use site::Site;
pub use tokens::Tokens;
