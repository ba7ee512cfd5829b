//! The containerd remote snapshotter of SOCI: lazy layers, layers pulled whole, plain overlay snapshots.

pub mod args;
pub mod config;
pub mod cpu;
pub mod daemon;
pub mod device;
pub mod fetch;
pub mod grpc;
pub mod image;
pub mod layer;
pub mod listen;
pub mod logging;
pub mod mount;
pub mod places;
pub mod snapshots;
pub mod store;
pub mod sync;
pub mod tree;
