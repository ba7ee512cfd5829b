//! The snapshots service over its socket, as containerd's own suite checks an overlay snapshotter.

mod device_erofs;
mod drain;
mod image;
mod layers;
mod logs;
mod process;
mod server;
mod suite;
