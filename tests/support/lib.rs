//! Shared code of the end-to-end tests: real parts around the programs under test.
//!
//! A [`Node`] is one machine: its own containerd with our daemon as the snapshotter `soci`, next to
//! containerd's overlayfs, which serves as the oracle of every root file system. A [`TlsRegistry`]
//! is a real registry behind TLS. Faults come from a [`Relay`] in front of it and from changes of
//! its files. Images are built entry by entry with [`tar`] and [`Image`], so that a test can use
//! any layer content.
//!
//! Everything a test starts or mounts belongs to a guard that removes it. The tests run in
//! `scripts/sandbox` (`make test`, `make e2e`), whose namespaces remove what a killed test leaves.

pub mod containerd;
pub mod cri;
pub mod disk;
pub mod image;
pub mod loops;
pub mod mapped;
pub mod network;
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
