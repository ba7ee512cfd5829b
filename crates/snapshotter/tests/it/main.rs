//! The snapshots service over its socket, as containerd's own suite checks an overlay snapshotter.

mod server;
mod suite;
