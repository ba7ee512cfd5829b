//! The SOCI snapshotter for containerd: lazy layers, whole layers and plain overlay snapshots.
//!
//! A layer is one data file (`places`, `store`), which contains its files in tar order, each at a
//! page boundary, and a metadata image that the kernel mounts (`tree`, `mount`). While bytes are
//! missing, the image's device is a file of the node's FUSE mount (`device`); then it is the data
//! file.
//!
//! **Prepare**, from containerd to a mounted layer:
//!
//! ```text
//! grpc        converts the request to names and labels
//! snapshots   `plan` decides: plain, known, deferred, or a layer; creates record and directory
//! image       gets index and zTOC (`discover`, `content`), opens the layer (`open`),
//!             makes its tree (`show`) and mounts it (`mounts`)
//! snapshots   commits the record under the target; "already exists" tells containerd that it is done
//! ```
//!
//! **A read** of a byte that is not in the page cache:
//!
//! ```text
//! device      receives READ of a layer's file; parks it as a value if bytes are missing
//! layer       determines the spans; demands each one once
//! fetch       merges demands into few, large requests; readers take priority over the background
//! layer       checks digest, decompresses, checks tar headers; answers waiting reads, writes `data`
//! ```
//!
//! **The rest** of a layer is one more demand, of the lowest class. When it has arrived,
//! `image::mounts` switches the layer's loop device to the data file.
//!
//! A module uses only modules after it in this order: `check`; `keeper` and `daemon`; `listen`,
//! `grpc`, `args`; `snapshots`; `image`; `mount`; `device`; `layer`; `store`, `tree`, `places`,
//! `fetch`.
//! All use `config` (their own part of it), `metrics`, `cpu` and `sync`.

pub mod args;
pub mod check;
pub mod config;
pub mod cpu;
pub mod cri;
pub mod daemon;
pub mod device;
pub mod fetch;
pub mod grpc;
pub mod image;
pub mod keeper;
pub mod layer;
pub mod listen;
pub mod logging;
pub mod metrics;
pub mod mount;
pub mod places;
pub mod snapshots;
pub mod store;
pub mod sync;
pub mod tree;
