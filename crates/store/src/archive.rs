//! Reads an OCI image layout from an uncompressed tar.
//!
//! Opening an archive scans its headers once ([`TarScanner`]) and builds an index of names and
//! offsets. Nothing is extracted; content is skipped, and blobs are read from their offset in the
//! archive. Links are resolved within the archive; names that point outside of it do not exist.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{Blob, Content, ContentStore, Labels, Put, StoreError};
use soci_oci::descriptor::Descriptor;
use soci_oci::digest::Digest;
use soci_ztoc::{Entry, FileKind, Policy, TarError, TarScanner, TarSink};

pub(super) const BLOCK: usize = 512;
/// An archive with more members is not an image.
const MAX_MEMBERS: usize = 1 << 20;
/// Maximum total size of the names of all members and of their link targets, in bytes. The names of
/// that many blobs fit.
const MAX_NAMES: usize = 256 << 20;
/// A chain of more links is treated as a loop.
const MAX_LINKS: usize = 16;

pub(super) const TRUNCATED: StoreError = StoreError::Archive("unexpected EOF");

/// The location of a member's data in the archive, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    offset: u64,
    size: u64,
}

#[derive(Debug, Clone)]
enum Member {
    File(Extent),
    /// A link to another name in the archive.
    Link(String),
    /// A link that leads out of the archive.
    Outside(String),
}

/// An archive opened for reading.
#[derive(Debug, Clone)]
pub struct Archive {
    path: PathBuf,
    file: Arc<File>,
    members: Arc<BTreeMap<String, Member>>,
}

impl Archive {
    /// Opens an archive and reads its headers.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let file = File::open(path).map_err(StoreError::io("open", path))?;
        Self::of(file, path)
    }

    /// Reads the headers of an open archive. The path is used in messages only.
    pub fn of(file: File, path: &Path) -> Result<Self, StoreError> {
        let members = scan(&file, path)?;
        Ok(Self {
            path: path.to_owned(),
            file: Arc::new(file),
            members: Arc::new(members),
        })
    }

    /// The names of all regular files in sorted order, relative and without `.` and `..`.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.members
            .keys()
            .map(String::as_str)
            .filter(|name| self.extent(name).is_some())
    }

    /// Opens a member. Returns `None` if it is not a file of this archive.
    #[must_use]
    pub fn member(&self, name: &str) -> Option<Blob> {
        let Extent { offset, size } = self.extent(name)?;
        let file = Arc::clone(&self.file);
        Some(Blob {
            size,
            reader: Box::new(Section {
                file,
                offset,
                end: offset + size,
            }),
        })
    }

    /// Reads a member of at most `limit` bytes.
    pub fn read_member(&self, name: &str, limit: u64) -> Result<Option<Bytes>, StoreError> {
        let Some(mut blob) = self.member(name) else {
            return Ok(None);
        };
        let path = self.path.join(name);
        if blob.size > limit {
            let cause = io::Error::from(io::ErrorKind::FileTooLarge);
            return Err(StoreError::Io {
                action: "read",
                path,
                cause,
            });
        }
        let mut bytes = Vec::new();
        blob.reader
            .read_to_end(&mut bytes)
            .map_err(StoreError::io("read", &path))?;
        Ok(Some(bytes.into()))
    }

    fn extent(&self, name: &str) -> Option<Extent> {
        let mut name = name;
        for _ in 0..MAX_LINKS {
            match self.members.get(name)? {
                Member::File(extent) => return Some(*extent),
                Member::Link(target) => name = target,
                Member::Outside(_) => return None,
            }
        }
        None
    }

    /// Finds a blob. Fails if it is a link to what the archive does not have.
    fn blob(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        let name = blob_name(digest);
        match (self.member(&name), self.members.get(&name)) {
            (None, Some(Member::Link(target) | Member::Outside(target))) => {
                Err(StoreError::DeadLink {
                    path: self.path.join(name),
                    target: target.clone(),
                })
            }
            (blob, _) => Ok(blob),
        }
    }
}

pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

#[async_trait]
impl ContentStore for Archive {
    async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        Ok(self.blob(digest)?.map(|blob| blob.size))
    }

    async fn open(&self, digest: &Digest) -> Result<Blob, StoreError> {
        self.blob(digest)?.ok_or(StoreError::NotFound(*digest))
    }

    async fn put(&self, _: &Descriptor, _: Content) -> Result<Put, StoreError> {
        Err(StoreError::ReadOnly(self.path.clone()))
    }

    async fn label(&self, _: &Digest, _: &Labels) -> Result<(), StoreError> {
        Ok(())
    }
}

/// A range of a file. It uses positioned reads, so several readers can share one archive.
struct Section {
    file: Arc<File>,
    offset: u64,
    end: u64,
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.end - self.offset).unwrap_or(usize::MAX);
        let room = room.min(buffer.len());
        if room == 0 {
            return Ok(0);
        }
        let read = self.file.read_at(&mut buffer[..room], self.offset)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += read as u64;
        Ok(read)
    }
}

/// Reads the headers of an archive and skips the content.
fn scan(file: &File, path: &Path) -> Result<BTreeMap<String, Member>, StoreError> {
    let length = file.metadata().map_err(StoreError::io("stat", path))?.len();
    let mut scanner = TarScanner::new(Policy::Find);
    let mut found = Found::default();
    let mut block = [0; BLOCK];
    while !scanner.has_ended() {
        let left = scanner.content_left();
        if left > length.saturating_sub(scanner.position()) {
            return Err(TRUNCATED);
        }
        scanner.skip_content();
        let read = match file.read_at(&mut block, scanner.position()) {
            Ok(0) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read.map_err(StoreError::io("read", path))?,
        };
        scanner.feed(&block[..read], &mut found).map_err(invalid)?;
        if found.is_too_large {
            return Err(StoreError::Archive("too many members for an image"));
        }
    }
    scanner.finish().map_err(invalid)?;
    Ok(found.members)
}

/// The message of the reference, which has no offset.
fn invalid(error: TarError) -> StoreError {
    match error {
        TarError::UnexpectedEof { .. } => TRUNCATED,
        TarError::FieldTooLong { .. } => StoreError::Archive("archive/tar: header field too long"),
        TarError::Sparse { .. } => StoreError::Archive("a sparse file in the archive of an image"),
        _ => StoreError::Archive("archive/tar: invalid tar header"),
    }
}

/// The members found so far.
#[derive(Default)]
struct Found {
    members: BTreeMap<String, Member>,
    /// Bytes of names and link targets, including those of replaced members.
    names: usize,
    is_too_large: bool,
}

impl TarSink for Found {
    fn entry(&mut self, entry: &Entry<'_>) {
        let Some(name) = clean("", entry.name) else {
            return;
        };
        // The last member with a name wins, even if it is not a file.
        let Some(member) = member(&name, entry) else {
            self.members.remove(&name);
            return;
        };
        self.names += name.len() + entry.link.len();
        if self.members.len() >= MAX_MEMBERS || self.names > MAX_NAMES {
            self.is_too_large = true;
            return;
        }
        self.members.insert(name, member);
    }
}

/// Returns `None` for directories and devices.
fn member(name: &str, entry: &Entry<'_>) -> Option<Member> {
    let target = match entry.kind {
        FileKind::Regular if !entry.name.ends_with(b"/") => {
            return Some(Member::File(Extent {
                offset: entry.offset,
                size: entry.size,
            }));
        }
        FileKind::Hardlink => clean("", entry.link),
        FileKind::Symlink if entry.link.starts_with(b"/") => None,
        FileKind::Symlink => {
            let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
            clean(folder, entry.link)
        }
        _ => return None,
    };
    let outside = || Member::Outside(String::from_utf8_lossy(entry.link).into_owned());
    Some(target.map_or_else(outside, Member::Link))
}

/// Resolves a name relative to a directory of the archive. Returns `None` if the result is outside
/// of the archive, empty, or not UTF-8 (all names in a layout are UTF-8).
fn clean(folder: &str, name: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(name).ok()?;
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            _ => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

#[cfg(test)]
mod tests;
