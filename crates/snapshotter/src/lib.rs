//! The containerd remote snapshotter of SOCI: lazy layers, layers pulled whole, plain overlay snapshots.
//!
//! **The idea.** A layer is one data file (`places`, `store`), the contents of its tar's files in tar order, each from a
//! page boundary, and a map of it that the kernel mounts (`tree`, `mount`). While bytes are missing the map's device is a
//! file of the node's one FUSE mount (`device`); when they are all there it is the data file, and we are not needed.
//!
//! **Prepare**, from containerd to a mounted layer:
//!
//! ```text
//! grpc        the request becomes names and labels
//! snapshots   `plan` decides: plain, known, deferred, or a layer; record and directory are made
//! image       index, zTOC (`discover`, `content`); the layer is opened (`open`), its tree made (`show`), mounted (`mounts`)
//! snapshots   the record is committed under the target: "already exists" is containerd's word for done
//! ```
//!
//! **A read** of a byte that is not in the page cache:
//!
//! ```text
//! device      READ of a layer's file; parked as a value if bytes are missing
//! layer       which spans; each is demanded once
//! fetch       demands become few, large requests; a reader goes before the background
//! layer       digest, inflate, tar headers; then data, and everybody who waits
//! ```
//!
//! **The rest** of a layer is one more demand, of the lowest class; when it is there `image::mounts` moves the layer's loop
//! device to the data file.
//!
//! A module uses those after it in this order, never those before: `keeper` and `daemon`; `listen`, `grpc`, `args`; `snapshots`; `image`;
//! `mount`; `device`; `layer`; `store`, `tree`, `places`, `fetch`; and everything uses `config` (its own part), `cpu`, `sync`.

pub mod args;
pub mod config;
pub mod cpu;
pub mod daemon;
pub mod device;
pub mod fetch;
pub mod grpc;
pub mod image;
pub mod keeper;
pub mod layer;
pub mod listen;
pub mod logging;
pub mod mount;
pub mod places;
pub mod snapshots;
pub mod store;
pub mod sync;
pub mod tree;
