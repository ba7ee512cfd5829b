//! Reads an OCI image layout from an uncompressed tar.
//!
//! Opening an archive scans its headers once and builds an index of names and offsets. Nothing is
//! extracted; blobs are read from their offset in the archive. This is not a general tar reader: it
//! supports only what is needed to find regular files by name. The tar dialects that zTOCs depend
//! on are implemented in `soci-ztoc`. Links are resolved within the archive; names that point
//! outside of it do not exist.

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

pub(super) const BLOCK: usize = 512;
const BLOCK_BYTES: u64 = 512;
/// An archive with more members is not an image.
const MAX_MEMBERS: usize = 1 << 20;
/// Maximum size of a long name or extended header, in bytes. Same as Go's limit.
const MAX_META: u64 = 1 << 20;
/// A chain of more links is treated as a loop.
const MAX_LINKS: usize = 16;

const INVALID_HEADER: StoreError = StoreError::Archive("archive/tar: invalid tar header");
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
        let length = file.metadata().map_err(StoreError::io("stat", path))?.len();
        let mut scan = Scan {
            file: &file,
            path,
            length,
            at: 0,
            members: BTreeMap::new(),
        };
        scan.run()?;
        let members = Arc::new(scan.members);
        Ok(Self {
            path: path.to_owned(),
            file: Arc::new(file),
            members,
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

/// The state of the header scan.
struct Scan<'a> {
    file: &'a File,
    path: &'a Path,
    length: u64,
    at: u64,
    members: BTreeMap<String, Member>,
}

/// The values of extended headers that apply to the next member.
#[derive(Default)]
struct Extended {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Scan<'_> {
    fn run(&mut self) -> Result<(), StoreError> {
        let mut extended = Extended::default();
        while let Some(header) = self.header()? {
            let size = number(&header[124..136]).ok_or(INVALID_HEADER)?;
            match header[156] {
                b'x' => self.pax(size, &mut extended)?,
                b'L' => extended.name = Some(until_nul(&self.meta(size)?).to_owned()),
                b'K' => extended.link = Some(until_nul(&self.meta(size)?).to_owned()),
                b'g' => drop(self.meta(size)?),
                kind => self.member(kind, &header, size, std::mem::take(&mut extended))?,
            }
        }
        Ok(())
    }

    fn member(
        &mut self,
        kind: u8,
        header: &[u8; BLOCK],
        size: u64,
        extended: Extended,
    ) -> Result<(), StoreError> {
        let name = extended.name.unwrap_or_else(|| header_name(header));
        let link = extended
            .link
            .unwrap_or_else(|| until_nul(&header[157..257]).to_owned());
        let is_file = matches!(kind, 0 | b'0' | b'7') && !name.ends_with(b"/");
        let size = extended.size.unwrap_or(size);
        // Links, directories and devices have no data, regardless of their size field.
        let has_data = !matches!(kind, b'1'..=b'6');
        let extent = Extent {
            offset: self.at,
            size,
        };
        if has_data {
            self.skip(size)?;
        }
        let Some(name) = clean("", &name) else {
            return Ok(());
        };
        let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
        let target = match kind {
            b'1' => clean("", &link),
            b'2' if !link.starts_with(b"/") => clean(folder, &link),
            _ => None,
        };
        let outside = || Member::Outside(String::from_utf8_lossy(&link).into_owned());
        let member = match kind {
            _ if is_file => Some(Member::File(extent)),
            b'1' | b'2' => Some(target.map_or_else(outside, Member::Link)),
            _ => None,
        };
        match member {
            Some(member) if self.members.len() < MAX_MEMBERS => {
                self.members.insert(name, member);
                Ok(())
            }
            Some(_) => Err(StoreError::Archive("too many members for an image")),
            // The last member with a name wins, even if it is not a file.
            None => {
                self.members.remove(&name);
                Ok(())
            }
        }
    }

    /// Reads the next header. Returns `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, StoreError> {
        let Some(block) = self.block()? else {
            return Ok(None);
        };
        if block == [0; BLOCK] {
            return match self.block()? {
                Some(second) if second != [0; BLOCK] => Err(INVALID_HEADER),
                _ => Ok(None),
            };
        }
        let stated = number(&block[148..156]).ok_or(INVALID_HEADER)?;
        let sum = |as_number: fn(u8) -> i64| -> i64 {
            let blanks = 8 * i64::from(b' ');
            let outside = block[..148].iter().chain(&block[156..]);
            outside.map(|&byte| as_number(byte)).sum::<i64>() + blanks
        };
        let sums = [sum(i64::from), sum(|byte| i64::from(byte.cast_signed()))];
        if !sums.iter().any(|&sum| u64::try_from(sum) == Ok(stated)) {
            return Err(INVALID_HEADER);
        }
        Ok(Some(block))
    }

    /// Reads the next block. Returns `None` at the end of the file.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, StoreError> {
        if self.at >= self.length {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        self.read(&mut block)?;
        self.at += BLOCK_BYTES;
        Ok(Some(block))
    }

    fn read(&self, buffer: &mut [u8]) -> Result<(), StoreError> {
        self.file
            .read_exact_at(buffer, self.at)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => TRUNCATED,
                _ => StoreError::io("read", self.path)(error),
            })
    }

    /// Skips data and its padding. Like Go, accepts missing padding at the end of the file.
    fn skip(&mut self, size: u64) -> Result<(), StoreError> {
        let end = self
            .at
            .checked_add(size)
            .filter(|&end| end <= self.length)
            .ok_or(TRUNCATED)?;
        self.at = end.next_multiple_of(BLOCK_BYTES);
        Ok(())
    }

    fn meta(&mut self, size: u64) -> Result<Vec<u8>, StoreError> {
        if size > MAX_META {
            return Err(StoreError::Archive("archive/tar: header field too long"));
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or_default()];
        self.read(&mut bytes)?;
        self.skip(size)?;
        Ok(bytes)
    }

    fn pax(&mut self, size: u64, extended: &mut Extended) -> Result<(), StoreError> {
        let bytes = self.meta(size)?;
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (key, value, behind) = pax_record(rest).ok_or(INVALID_HEADER)?;
            match key {
                b"path" if !value.is_empty() => extended.name = Some(value.to_owned()),
                b"linkpath" if !value.is_empty() => extended.link = Some(value.to_owned()),
                b"size" if !value.is_empty() => {
                    let text = std::str::from_utf8(value).ok();
                    extended.size = Some(
                        text.and_then(|text| text.parse().ok())
                            .ok_or(INVALID_HEADER)?,
                    );
                }
                _ => {}
            }
            rest = behind;
        }
        Ok(())
    }
}

/// Splits off one record `<length> <key>=<value>\n`.
fn pax_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = bytes.iter().position(|&byte| byte == b' ')?;
    let length: usize = std::str::from_utf8(&bytes[..blank]).ok()?.parse().ok()?;
    if length <= blank + 1 {
        return None;
    }
    let (record, rest) = bytes.split_at_checked(length)?;
    let body = record[blank + 1..].strip_suffix(b"\n")?;
    let equals = body.iter().position(|&byte| byte == b'=')?;
    Some((&body[..equals], &body[equals + 1..], rest))
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

fn header_name(header: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(&header[..100]);
    let prefix = if &header[257..263] == b"ustar\0" {
        until_nul(&header[345..500])
    } else {
        b""
    };
    if prefix.is_empty() {
        name.to_owned()
    } else {
        [prefix, b"/", name].concat()
    }
}

/// Parses an unsigned header field: octal, or base 256 if the top bit is set.
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let bytes = field.iter().enumerate();
        let value = |value: Option<u64>, (at, &byte): (usize, &u8)| {
            let byte = if at == 0 { byte & 0x3f } else { byte };
            value?.checked_mul(256)?.checked_add(u64::from(byte))
        };
        return if negative {
            None
        } else {
            bytes.fold(Some(0), value)
        };
    }
    let is_padding = |byte: &u8| matches!(byte, b' ' | 0);
    let digits: Vec<u8> = field
        .iter()
        .copied()
        .skip_while(|byte| is_padding(byte))
        .take_while(|byte| !is_padding(byte))
        .collect();
    digits.iter().try_fold(0_u64, |value, &digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
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
