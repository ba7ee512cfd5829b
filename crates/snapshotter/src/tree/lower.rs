//! Looks up a path in a lower layer, either in our image of it or in the directory that containerd
//! unpacked it into. Never uses one of our own mounts.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use soci_erofs::{Attributes, Nid, ReadError, Reader, Time};

use super::resolve::{Effort, Look, Nodes, Stop, find, root_path};

/// Maximum number of steps through links per lookup.
const MAX_STEPS: u64 = 1_000_000;
/// The kernel's limits for a list of names and for a value, in bytes.
const XATTR_MAX: usize = 64 << 10;

/// What an implied directory takes from a lower layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Owner, mode, and time.
    pub attributes: Attributes,
    /// Full names and values, without `trusted.*`, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What a lower layer has at a path. Links are followed within that layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lower {
    /// A directory. Its attributes are used and the search ends.
    Directory(Directory),
    /// Something else, such as a whiteout. The search ends without attributes.
    Other,
    /// Nothing. The search continues in the next layer.
    Absent,
}

impl Lower {
    /// Searches layers, nearest first, until one has something at the path.
    ///
    /// # Errors
    /// The error of the first layer that fails.
    pub fn nearest<'b>(
        layers: impl IntoIterator<Item = &'b Below<'b>>,
        path: &[u8],
    ) -> Result<Self, LowerError> {
        for layer in layers {
            match layer.look(path)? {
                Self::Absent => {}
                found => return Ok(found),
            }
        }
        Ok(Self::Absent)
    }
}

/// Why a lookup in a lower layer failed. Unpacking would fail as well, except on [`LowerError::Io`]
/// and [`LowerError::Image`].
#[derive(Debug, thiserror::Error)]
pub enum LowerError {
    /// A parent is not a directory.
    #[error("{:?} in a lower layer: a parent of it is not a directory", String::from_utf8_lossy(.0))]
    NotADirectory(Vec<u8>),
    /// Links form a cycle, are too many, or leave the layer.
    #[error("{:?} in a lower layer: its symbolic links form a cycle, are too many, or leave the layer", String::from_utf8_lossy(.0))]
    Links(Vec<u8>),
    /// Our image of the layer is damaged.
    #[error("cannot read the image of a lower layer")]
    Image(#[from] ReadError),
    /// The layer's directory cannot be read.
    #[error("cannot read the directory of a lower layer")]
    Io(#[from] io::Error),
}

/// A lower layer.
#[derive(Debug)]
pub enum Below<'a> {
    /// A layer with an EROFS image of ours.
    Image(Reader<'a>),
    /// A layer that containerd unpacked into a directory.
    Directory(OwnedFd),
}

impl Below<'_> {
    /// What the layer has at a path.
    ///
    /// # Errors
    /// See [`LowerError`].
    pub fn look(&self, path: &[u8]) -> Result<Lower, LowerError> {
        match self {
            Self::Image(reader) => lookup_in_image(reader, path),
            Self::Directory(root) => lookup_in_directory(root, path),
        }
    }
}

impl Nodes for Reader<'_> {
    type Node = Nid;
    type Error = ReadError;

    fn root(&self) -> Nid {
        Reader::root(self)
    }

    fn child(&self, dir: Nid, name: &[u8]) -> Result<Option<Nid>, ReadError> {
        self.lookup(dir, name)
    }

    fn look(&self, node: Nid) -> Result<Look, ReadError> {
        let stat = self.stat(node)?;
        Ok(if stat.is_dir() {
            Look::Directory
        } else if stat.is_symlink() {
            Look::Link(self.symlink_target(&stat)?.to_vec())
        } else {
            Look::Other
        })
    }
}

/// What the layer of an image has at a path. Links are followed within the image.
///
/// # Errors
/// A path on which unpacking would fail; a damaged image.
pub fn lookup_in_image(image: &Reader<'_>, path: &[u8]) -> Result<Lower, LowerError> {
    let effort = &mut Effort(MAX_STEPS);
    let found = root_path(image, &[b"/", path].concat(), effort)
        .and_then(|path| find(image, &path, effort));
    let found = found.map_err(|stop| match stop {
        Stop::NotADirectory => LowerError::NotADirectory(path.to_vec()),
        Stop::TooManyLinks | Stop::Outside | Stop::TooMuchWork => LowerError::Links(path.to_vec()),
        Stop::Tree(error) => LowerError::Image(error),
    })?;
    let Some(nid) = found else {
        return Ok(Lower::Absent);
    };
    let stat = image.stat(nid)?;
    if !stat.is_dir() {
        return Ok(Lower::Other);
    }
    let mut xattrs = Vec::new();
    for xattr in image.xattrs(&stat) {
        let (name, value) = xattr?;
        xattrs.push((name, value.to_vec()));
    }
    Ok(directory(stat.attributes, xattrs))
}

/// What an unpacked layer has at a path. Links are followed within its directory.
///
/// # Errors
/// A path on which unpacking would fail; a directory that cannot be read.
pub fn lookup_in_directory(root: impl AsFd, path: &[u8]) -> Result<Lower, LowerError> {
    let opened = rustix::fs::openat2(
        root.as_fd(),
        OsStr::from_bytes(path),
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    );
    let found = match opened {
        Ok(found) => found,
        Err(Errno::NOENT) => return Ok(Lower::Absent),
        Err(Errno::NOTDIR) => return Err(LowerError::NotADirectory(path.to_vec())),
        Err(Errno::LOOP) => return Err(LowerError::Links(path.to_vec())),
        Err(error) => return Err(io::Error::from(error).into()),
    };
    let stat = rustix::fs::statx(
        &found,
        "",
        rustix::fs::AtFlags::EMPTY_PATH,
        StatxFlags::BASIC_STATS,
    )
    .map_err(io::Error::from)?;
    if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::Directory {
        return Ok(Lower::Other);
    }
    // Extended attributes cannot be listed through an O_PATH descriptor.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(&found, ".", flags, Mode::empty()).map_err(io::Error::from)?;
    let attributes = Attributes {
        mode: stat.stx_mode & 0o7777,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        mtime: Time {
            secs: stat.stx_mtime.tv_sec,
            nanos: stat.stx_mtime.tv_nsec,
        },
    };
    Ok(directory(attributes, xattrs_of(&opened)?))
}

fn xattrs_of(file: &OwnedFd) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = vec![0; XATTR_MAX];
    let len = match rustix::fs::flistxattr(file, &mut names[..]) {
        Err(Errno::NOTSUP) => 0,
        other => other?,
    };
    let mut value = vec![0; XATTR_MAX];
    let mut xattrs = Vec::new();
    for name in names[..len]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
    {
        match rustix::fs::fgetxattr(file, name, &mut value[..]) {
            Ok(len) => xattrs.push((name.to_vec(), value[..len].to_vec())),
            Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(xattrs)
}

fn directory(attributes: Attributes, mut xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Lower {
    xattrs.retain(|(name, _)| !name.starts_with(b"trusted."));
    xattrs.sort();
    Lower::Directory(Directory { attributes, xattrs })
}
