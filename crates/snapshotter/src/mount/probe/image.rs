//! The probe's image: its content, and the check that a mount shows that content.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use soci_erofs::{Attributes, Image, Inode, Kind, NodeId, Time};

use super::ProbeError;

pub(super) const BLOCK: usize = 4096;

/// One file ends with 904 bytes in its second block; the other one fills its block.
const TAIL_SIZE: usize = 5000;
const FULL_SIZE: usize = BLOCK;

/// User and group of the files.
pub(super) const OWNER: (u32, u32) = (5, 70_000);

const ACL: &str = "system.posix_acl_access";
const CAPABILITY: &str = "security.capability";
pub(super) const OPAQUE: &str = "trusted.overlay.opaque";

/// rw- for owner, user 1, group and mask, r-- for others, in the layout of `posix_acl_xattr.h`.
const ACL_VALUE: &[u8] = b"\x02\0\0\0\
    \x01\0\x06\0\xff\xff\xff\xff\x02\0\x06\0\x01\0\0\0\x04\0\x06\0\xff\xff\xff\xff\
    \x10\0\x06\0\xff\xff\xff\xff\x20\0\x04\0\xff\xff\xff\xff";

/// CAP_NET_BIND_SERVICE, permitted and effective, revision 2.
const CAPABILITY_VALUE: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// Compares the mount at `root` with the image. `marker` is the opaque xattr to check, where
/// overlayfs does not hide it.
pub(super) fn check(
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
    // Read the tail first, before anything of its block is cached.
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
    let expected = (OWNER.0, OWNER.1, 1_000_000_007, 123_456_789);
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

/// Three blocks: `tail`, padded with zeros, and `full`.
pub(super) fn content() -> Vec<u8> {
    let byte = |at: usize| u8::try_from((at * 7 + at / 251) % 255 + 1).unwrap_or(1);
    let mut content: Vec<u8> = (0..TAIL_SIZE).map(byte).collect();
    content.resize(2 * BLOCK, 0);
    content.extend((0..FULL_SIZE).map(|at| byte(at + 13)));
    content
}

pub(super) type ImageResult = Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>>;

fn folder() -> Attributes {
    Attributes {
        mode: 0o755,
        ..Attributes::default()
    }
}

pub(super) fn upper_image() -> ImageResult {
    let mut image = Image::new(3, folder())?;
    let mtime = Time {
        secs: 1_000_000_007,
        nanos: 123_456_789,
    };
    let attributes = Attributes {
        mode: 0o664,
        uid: OWNER.0,
        gid: OWNER.1,
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

/// An image with a file that the opaque directory hides and one that it does not.
pub(super) fn lower_image() -> ImageResult {
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
