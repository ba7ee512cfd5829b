//! Whether the erofs way works here, tried in the state folder with everything a layer needs.
//!
//! A tiny image is mounted twice, with a file of the FUSE mount as its device and with a plain file,
//! and each time looked at directly and through overlayfs, as a container would see it. A new mount
//! has nothing cached, so every byte that is compared went the whole way.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::{Advice, CWD};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};
use soci_erofs::{Attributes, Image, Inode, Kind, NodeId, Time};
use thiserror::Error;

use super::thread::{MountThread, Unfinished};
use super::{LayerImage, MountError, Supply, detach, erofs, refused};
use crate::device::Device;
use crate::layer::{DeviceFile, ReadDone};

/// The device file of the probe. Layers are numbered from 2 upwards and never get here.
const PROBE_NUMBER: u64 = u64::MAX / 2;

/// How long the probe may take. It is done in milliseconds or hangs.
const LIMIT: Duration = Duration::from_secs(30);

const BLOCK: usize = 4096;

/// A file with a tail of 904 bytes in its second block, and one that fills its block.
const TAIL_SIZE: usize = 5000;
const FULL_SIZE: usize = BLOCK;

const ACL: &str = "system.posix_acl_access";
const CAPABILITY: &str = "security.capability";
const OPAQUE: &str = "trusted.overlay.opaque";

/// rw- for owner, user 1, group and mask, r-- for others, in the layout of `posix_acl_xattr.h`.
const ACL_VALUE: &[u8] = b"\x02\0\0\0\
    \x01\0\x06\0\xff\xff\xff\xff\x02\0\x06\0\x01\0\0\0\x04\0\x06\0\xff\xff\xff\xff\
    \x10\0\x06\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";

/// CAP_NET_BIND_SERVICE, permitted and effective, revision 2.
const CAPABILITY_VALUE: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// Why the way does not work.
#[derive(Debug, Error)]
pub(super) enum ProbeError {
    #[error("probe files cannot be made in {}: {source}", folder.display())]
    Prepare {
        folder: PathBuf,
        source: std::io::Error,
    },
    #[error("{step}: {source}")]
    Mount { step: &'static str, source: Chain },
    #[error("{step}: {what} cannot be read: {source}")]
    Read {
        step: &'static str,
        what: &'static str,
        source: std::io::Error,
    },
    #[error("{step}: {what} is not what the image says")]
    Wrong {
        step: &'static str,
        what: &'static str,
    },
    #[error("probe did not end within {} s", LIMIT.as_secs())]
    Hangs,
    #[error(transparent)]
    Unfinished(#[from] Unfinished),
}

/// A mount error with its cause, in one line.
#[derive(Debug, Error)]
#[error("{0}: {cause}", cause = std::error::Error::source(.0).map_or_else(String::new, ToString::to_string))]
pub(super) struct Chain(MountError);

/// The probe's data, served from memory.
struct ProbeFile(Bytes);

impl DeviceFile for ProbeFile {
    fn number(&self) -> u64 {
        PROBE_NUMBER
    }

    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(self: Arc<Self>, offset: u64, len: u32, done: ReadDone) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(len as usize);
        if end <= self.0.len() {
            done(Ok(self.0.slice(start..end)));
        }
    }
}

/// Tries the way in a folder below `state_root`; says what was found to work.
pub(super) async fn probe(
    state_root: &Path,
    device: &Arc<Device>,
    thread: &MountThread,
) -> Result<String, ProbeError> {
    let bench = Bench::prepare(state_root).map_err(|source| ProbeError::Prepare {
        folder: state_root.to_path_buf(),
        source,
    })?;
    let content = Bytes::from(content());
    device.add(Arc::new(ProbeFile(content)));
    let on_demand = device.path(PROBE_NUMBER);
    let tried = thread.run(move || {
        let result = bench.try_out(&on_demand);
        // Mounts go before their folder, on this thread.
        drop(bench);
        result
    });
    let result = tokio::time::timeout(LIMIT, tried).await;
    device.remove(PROBE_NUMBER);
    result.map_err(|_elapsed| ProbeError::Hangs)???;
    Ok("an EROFS image is mounted from a file there, over fuse and over plain data".to_owned())
}

/// The probe's files and folders. Dropped on the mounting thread, it takes everything away again.
struct Bench {
    folder: PathBuf,
    /// Removed last.
    _guard: tempfile::TempDir,
}

impl Bench {
    fn prepare(state_root: &Path) -> std::io::Result<Bench> {
        let guard = tempfile::Builder::new()
            .prefix("probe-")
            .tempdir_in(state_root)?;
        let folder = guard.path().canonicalize()?;
        for name in ["upper", "lower", "merged"] {
            std::fs::create_dir(folder.join(name))?;
        }
        let write = |name: &str, bytes: &[u8]| {
            let mut file = File::create(folder.join(name))?;
            file.write_all(bytes)?;
            // Clean pages only are dropped; then the first look reads from the disk.
            file.sync_all()?;
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).map_err(std::io::Error::from)
        };
        write("data", &content())?;
        write("upper.meta", &upper_image().map_err(std::io::Error::other)?)?;
        write("lower.meta", &lower_image().map_err(std::io::Error::other)?)?;
        Ok(Bench {
            folder,
            _guard: guard,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn try_out(&self, on_demand: &Path) -> Result<(), ProbeError> {
        self.mount("lower", &self.path("data"), "mounting over plain data")?;
        self.round(
            on_demand,
            "mount over a fuse file",
            "overlay on the mount over a fuse file",
        )?;
        self.round(
            &self.path("data"),
            "mount over plain data",
            "overlay on the mount over plain data",
        )
    }

    /// One device: mount, look, overlay, look, and away again.
    fn round(
        &self,
        device: &Path,
        direct: &'static str,
        overlaid: &'static str,
    ) -> Result<(), ProbeError> {
        let (upper, lower) = (self.path("upper"), self.path("lower"));
        self.mount("upper", device, direct)?;
        check(&upper, direct, Some(OPAQUE), &["full", "opaque", "tail"])?;
        let mount = |source| ProbeError::Mount {
            step: overlaid,
            source: Chain(source),
        };
        // Fresh, so that nothing is cached from the look at it.
        detach(&upper).map_err(mount)?;
        self.mount("upper", device, direct)?;
        let merged = self.path("merged");
        overlay(&upper, &lower, &merged).map_err(mount)?;
        check(
            &merged,
            overlaid,
            None,
            &["full", "lower-only", "opaque", "tail"],
        )?;
        detach(&merged).map_err(mount)?;
        detach(&upper).map_err(mount)
    }

    fn mount(&self, name: &str, device: &Path, step: &'static str) -> Result<(), ProbeError> {
        let image = LayerImage {
            meta: self.path(&format!("{name}.meta")),
            device: device.to_path_buf(),
            supply: Supply::OnDemand,
        };
        erofs::mount_now(&image, &self.path(name))
            .map(|_id| ())
            .map_err(|source| ProbeError::Mount {
                step,
                source: Chain(source),
            })
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for name in ["merged", "upper", "lower"] {
            if let Err(error) = detach(&self.path(name)) {
                tracing::warn!(%error, "a mount of the probe stays");
            }
        }
    }
}

/// A read-only overlay, its layers passed one by one so that no character of a path is special.
fn overlay(upper: &Path, lower: &Path, at: &Path) -> Result<(), MountError> {
    let step = || refused("mounting an overlay at", at);
    let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(step())?;
    rustix::mount::fsconfig_set_string(&fs, "lowerdir+", upper).map_err(step())?;
    rustix::mount::fsconfig_set_string(&fs, "lowerdir+", lower).map_err(step())?;
    rustix::mount::fsconfig_create(&fs).map_err(step())?;
    let flags = (
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    );
    let mount = rustix::mount::fsmount(&fs, flags.0, flags.1).map_err(step())?;
    rustix::mount::move_mount(&mount, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(step())
}

/// Compares what is mounted at `root` with the image. The opaque marker is looked for where overlayfs
/// does not hide it.
fn check(
    root: &Path,
    step: &'static str,
    marker: Option<&str>,
    names: &[&str],
) -> Result<(), ProbeError> {
    let read = |what| move |source| ProbeError::Read { step, what, source };
    let agree = |what, yes: bool| {
        if yes {
            Ok(())
        } else {
            Err(ProbeError::Wrong { step, what })
        }
    };

    let listed = list(root).map_err(read("the root folder"))?;
    agree(
        "the root folder",
        listed == names.iter().map(OsString::from).collect(),
    )?;
    let opaque = root.join("opaque");
    let listed = list(&opaque).map_err(read("the opaque folder"))?;
    agree(
        "the opaque folder",
        listed == BTreeSet::from(["inside".into()]),
    )?;
    if let Some(name) = marker {
        let value = xattr(&opaque, name).map_err(read("the opaque marker"))?;
        agree("the opaque marker", value == b"y")?;
    }

    let content = content();
    // The tail first: nothing of its block is there yet.
    let tail = file_end(&root.join("tail"), 4990).map_err(read("a file with a tail"))?;
    agree(
        "a file with a tail",
        Some(&tail[..]) == content.get(4990..TAIL_SIZE),
    )?;
    let tail = std::fs::read(root.join("tail")).map_err(read("a file with a tail"))?;
    agree(
        "a file with a tail",
        Some(&tail[..]) == content.get(..TAIL_SIZE),
    )?;
    let full = std::fs::read(root.join("full")).map_err(read("a file of one block"))?;
    agree(
        "a file of one block",
        Some(&full[..]) == content.get(2 * BLOCK..),
    )?;

    let file = root.join("tail");
    let attributes = std::fs::symlink_metadata(&file).map_err(read("attributes"))?;
    let expected = (5, 70_000, 1_000_000_007, 123_456_789);
    let found = (
        attributes.uid(),
        attributes.gid(),
        attributes.mtime(),
        attributes.mtime_nsec(),
    );
    agree("attributes", found == expected)?;
    agree(
        "an ACL",
        xattr(&file, ACL).map_err(read("an ACL"))? == ACL_VALUE,
    )?;
    let capability = xattr(&file, CAPABILITY).map_err(read("a file capability"))?;
    agree("a file capability", capability == CAPABILITY_VALUE)
}

fn list(folder: &Path) -> std::io::Result<BTreeSet<OsString>> {
    std::fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect()
}

fn file_end(path: &Path, from: u64) -> std::io::Result<Vec<u8>> {
    let mut buffer = [0; 64];
    let len = File::open(path)?.read_at(&mut buffer, from)?;
    Ok(buffer.get(..len).unwrap_or_default().to_vec())
}

fn xattr(path: &Path, name: &str) -> std::io::Result<Vec<u8>> {
    let mut value = vec![0; 256];
    let len = rustix::fs::lgetxattr(path, name, &mut value[..])?;
    value.truncate(len);
    Ok(value)
}

/// Three blocks: `tail` with zeros behind it, `full`.
fn content() -> Vec<u8> {
    let byte = |at: usize| u8::try_from((at * 7 + at / 251) % 255 + 1).unwrap_or(1);
    let mut content: Vec<u8> = (0..TAIL_SIZE).map(byte).collect();
    content.resize(2 * BLOCK, 0);
    content.extend((0..FULL_SIZE).map(|at| byte(at + 13)));
    content
}

type ImageResult = Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>>;

fn folder() -> Attributes {
    Attributes {
        mode: 0o755,
        ..Attributes::default()
    }
}

fn upper_image() -> ImageResult {
    let mut image = Image::new(3, folder())?;
    let mtime = Time {
        secs: 1_000_000_007,
        nanos: 123_456_789,
    };
    let attributes = Attributes {
        mode: 0o664,
        uid: 5,
        gid: 70_000,
        mtime,
    };
    let file = |size: usize, data_block| Inode {
        kind: Kind::Regular {
            size: size as u64,
            data_block,
        },
        attributes,
    };
    let tail = image.inode(&file(TAIL_SIZE, 0))?;
    image.set_xattr(tail, ACL.as_bytes(), ACL_VALUE)?;
    image.set_xattr(tail, CAPABILITY.as_bytes(), CAPABILITY_VALUE)?;
    image.link(NodeId::ROOT, b"tail", tail)?;
    let full = image.inode(&file(FULL_SIZE, 2))?;
    image.link(NodeId::ROOT, b"full", full)?;
    let opaque = image.inode(&Inode {
        kind: Kind::Directory,
        attributes: folder(),
    })?;
    image.set_xattr(opaque, OPAQUE.as_bytes(), b"y")?;
    image.link(NodeId::ROOT, b"opaque", opaque)?;
    image.link(opaque, b"inside", full)?;
    written(&image)
}

/// What the opaque folder hides, and something that it does not.
fn lower_image() -> ImageResult {
    let mut image = Image::new(3, folder())?;
    let opaque = image.inode(&Inode {
        kind: Kind::Directory,
        attributes: folder(),
    })?;
    image.link(NodeId::ROOT, b"opaque", opaque)?;
    let hidden = image.inode(&Inode {
        kind: Kind::Fifo,
        attributes: folder(),
    })?;
    image.link(opaque, b"hidden", hidden)?;
    image.link(NodeId::ROOT, b"lower-only", hidden)?;
    written(&image)
}

fn written(image: &Image) -> ImageResult {
    let mut bytes = Vec::new();
    image.write(&mut bytes)?;
    Ok(bytes)
}
