//! The snapshots service over its socket, with the checks of containerd's suite for snapshotters.

#[path = "../support/archive.rs"]
#[expect(dead_code, reason = "the tests beside the tree's code use more of it")]
mod archive;
mod configuration;
mod credentials;
mod device_erofs;
mod discovery;
mod drain;
mod ending;
mod faults;
mod health;
mod image;
mod layers;
mod lines;
mod logs;
mod metrics;
mod mirrors;
mod owners;
mod parallel;
mod prefetch;
mod process;
mod proxy;
mod registries;
mod server;
mod starting;
mod suite;
mod supervision;
mod tree;
mod usage;
