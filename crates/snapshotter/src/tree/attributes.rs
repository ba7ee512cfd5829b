//! What the kernel does to a node while unpacking creates it and sets its owner and attributes.
//!
//! Each function is one system call of the unpacker with its side effects: chown drops a
//! capability, an access list sets the mode, chmod rewrites the list, and a new node inherits from
//! its directory.

use soci_erofs::{Attributes, Image, Inode, Kind, NodeId, Time};

use super::acl::{Acl, AclError};
use super::{Refusal, Rules};

const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";
const CAPABILITY: &[u8] = b"security.capability";
/// An id that chown leaves unchanged.
const UNCHANGED: u32 = u32::MAX;
const SETGID: u16 = 0o2000;
/// The longest attribute name that the kernel accepts, in bytes.
const MAX_XATTR_NAME: usize = 255;
/// 2262-04-11T23:47:16.854775807Z: the last nanosecond that fits into 64 bits.
const LAST_TIME: Time = Time {
    secs: 9_223_372_036,
    nanos: 854_775_807,
};

/// The time that unpacking sets. Times out of its range become 1970.
pub(super) fn bounded(time: soci_ztoc::Time) -> Time {
    let time = Time {
        secs: time.secs,
        nanos: time.nanos,
    };
    let epoch = Time::default();
    if time < epoch || time > LAST_TIME {
        epoch
    } else {
        time
    }
}

/// Creates a node owned by root in a directory, like `mkdir`, `open`, and `mknod`.
pub(super) fn create(
    image: &mut Image,
    dir: NodeId,
    name: &[u8],
    kind: Kind<'_>,
    mode: u16,
) -> Result<NodeId, Refusal> {
    let above = image.attributes(dir);
    let is_link = matches!(kind, Kind::Symlink(_));
    let inherits_group = above.mode & SETGID != 0;
    let gid = if inherits_group { above.gid } else { 0 };
    let setgid = if inherits_group && kind == Kind::Directory {
        SETGID
    } else {
        0
    };
    let mode = if is_link { 0o777 } else { mode | setgid };
    let attributes = Attributes {
        mode,
        uid: 0,
        gid,
        mtime: Time::default(),
    };
    let node = image.inode(&Inode { kind, attributes })?;
    image.link(dir, name, node)?;
    if !is_link {
        inherit(image, dir, node)?;
    }
    Ok(node)
}

/// Applies the default list of a directory to a new node.
fn inherit(image: &mut Image, dir: NodeId, node: NodeId) -> Result<(), Refusal> {
    if !image.has_xattrs(dir) {
        return Ok(());
    }
    let Some(value) = image.xattr(dir, DEFAULT).map(<[u8]>::to_vec) else {
        return Ok(());
    };
    let Ok(Some(default)) = Acl::parse(&value) else {
        return Ok(());
    };
    let attributes = image.attributes(node);
    let access = default.inherited(attributes.mode);
    let (mode, says_no_more) = access.mode(attributes.mode);
    image.set_attributes(node, Attributes { mode, ..attributes })?;
    if !says_no_more {
        image.set_xattr(node, ACCESS, &access.to_value())?;
    }
    if image.is_dir(node) {
        image.set_xattr(node, DEFAULT, &value)?;
    }
    Ok(())
}

pub(super) fn chown(image: &mut Image, node: NodeId, uid: u32, gid: u32) -> Result<(), Refusal> {
    let mut attributes = image.attributes(node);
    if uid != UNCHANGED {
        attributes.uid = uid;
    }
    if gid != UNCHANGED {
        attributes.gid = gid;
    }
    image.set_attributes(node, attributes)?;
    if !image.is_dir(node) {
        image.remove_xattr(node, CAPABILITY);
    }
    Ok(())
}

/// Sets the mode. Has no effect on symbolic links.
pub(super) fn chmod(image: &mut Image, node: NodeId, mode: u16) -> Result<(), Refusal> {
    if matches!(image.kind(node), Kind::Symlink(_)) {
        return Ok(());
    }
    let attributes = image.attributes(node);
    image.set_attributes(node, Attributes { mode, ..attributes })?;
    if !image.has_xattrs(node) {
        return Ok(());
    }
    let access = image.xattr(node, ACCESS).map(Acl::parse);
    if let Some(Ok(Some(mut access))) = access {
        access.chmod(mode);
        image.set_xattr(node, ACCESS, &access.to_value())?;
    }
    Ok(())
}

pub(super) fn set_time(image: &mut Image, node: NodeId, mtime: Time) -> Result<(), Refusal> {
    let attributes = image.attributes(node);
    Ok(image.set_attributes(
        node,
        Attributes {
            mtime,
            ..attributes
        },
    )?)
}

/// Sets an attribute from the archive, or drops it where the kernel says "not supported".
pub(super) fn set_xattr(
    image: &mut Image,
    node: NodeId,
    name: &[u8],
    value: &[u8],
    rules: Rules,
) -> Result<(), Refusal> {
    let refused = || Refusal::Xattr(name.to_vec());
    if name.is_empty() || name.len() > MAX_XATTR_NAME || name.contains(&0) {
        return Err(refused());
    }
    match name {
        ACCESS | DEFAULT => return set_acl(image, node, name, value),
        CAPABILITY => {
            let value = capability(value).ok_or_else(refused)?;
            return Ok(image.set_xattr(node, name, &value)?);
        }
        b"security." => return Err(refused()),
        _ if name.starts_with(b"security.") => {}
        _ if name.starts_with(b"user.") => {
            let taken = matches!(image.kind(node), Kind::Regular { .. } | Kind::Directory);
            let steers = rules.user_namespace && name.starts_with(b"user.overlay.");
            if !taken || steers {
                return Ok(());
            }
            if name == b"user." {
                return Err(refused());
            }
        }
        // `trusted.*` is never taken from an archive. Other namespaces are unknown.
        _ => return Ok(()),
    }
    Ok(image.set_xattr(node, name, value)?)
}

fn set_acl(image: &mut Image, node: NodeId, name: &[u8], value: &[u8]) -> Result<(), Refusal> {
    let refused = || Refusal::Xattr(name.to_vec());
    let acl = match Acl::parse(value) {
        Ok(acl) => acl,
        Err(AclError::Version) => return Ok(()),
        Err(AclError::Malformed) => return Err(refused()),
    };
    if matches!(image.kind(node), Kind::Symlink(_)) {
        return Ok(());
    }
    let Some(acl) = acl else {
        image.remove_xattr(node, name);
        return Ok(());
    };
    if !acl.is_valid() || (name == DEFAULT && !image.is_dir(node)) {
        return Err(refused());
    }
    if name == ACCESS {
        let attributes = image.attributes(node);
        let (mode, says_no_more) = acl.mode(attributes.mode);
        image.set_attributes(node, Attributes { mode, ..attributes })?;
        if says_no_more {
            image.remove_xattr(node, name);
            return Ok(());
        }
    }
    Ok(image.set_xattr(node, name, &acl.to_value())?)
}

/// The value as the kernel returns it, or `None` if the kernel rejects it. Valid are version 2 with
/// 20 bytes, and version 3 with 24 bytes, which ends with a user id. For root, the kernel returns
/// version 3 as version 2.
fn capability(value: &[u8]) -> Option<Vec<u8>> {
    let (words, []) = value.as_chunks::<4>() else {
        return None;
    };
    let magic = u32::from_le_bytes(*words.first()?);
    let effective = magic & 1;
    // The lowest bit is the "effective" flag.
    match (words, magic & !1) {
        ([_, _, _, _, _], 0x0200_0000) => Some(value.to_vec()),
        ([_, body @ .., user], 0x0300_0000) if body.len() == 4 => match u32::from_le_bytes(*user) {
            0 => Some(
                [
                    &(0x0200_0000 | effective).to_le_bytes(),
                    body.as_flattened(),
                ]
                .concat(),
            ),
            UNCHANGED => None,
            _ => Some(value.to_vec()),
        },
        _ => None,
    }
}
