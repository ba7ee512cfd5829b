//! A push scanner of tar streams, with the rules of Go's `archive/tar` reader.
//!
//! Those rules and no others: containerd unpacks with that reader, and the reference makes zTOCs with
//! it. Where readers disagree about an archive, files could otherwise appear in a lazy layer that
//! unpacking does not show.
//!
//! Bytes are fed as they come ([`TarScanner::feed`]); a [`TarSink`] is told what they are. Every byte up
//! to the end of the archive is reported once and in order, as [`TarSink::data`] (content of a regular
//! file) or as [`TarSink::head`] (anything else: headers, PAX records, long names, padding, the end
//! marker). An entry is reported between the last byte of its header and the first of its content.
//! What follows the end marker belongs to nobody and is not reported.

#![warn(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects
)]

use thiserror::Error;

use crate::toc::{BLOCK, Entry, FileKind, SparseVersion};

mod global;
mod header;
mod pax;
mod sparse;

use header::{BLOCK_SIZE, Block, Header};
use pax::Records;

/// Largest payload of a PAX or long-name header, and largest sparse map, in bytes; Go's limit.
const MAX_META: usize = 1 << 20;

/// An archive that is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TarError {
    /// A header block, PAX record or number that does not parse.
    #[error("error while reading tar header: archive/tar: invalid tar header (at byte {offset})")]
    InvalidHeader {
        /// Where its block begins in the uncompressed stream.
        offset: u64,
    },
    /// Records or names beyond 1 MiB.
    #[error(
        "error while reading tar header: archive/tar: header field too long (at byte {offset})"
    )]
    FieldTooLong {
        /// Where the header begins.
        offset: u64,
    },
    /// The stream ends inside a header or inside the content of a file.
    #[error("error while reading tar header: unexpected EOF (at byte {offset})")]
    UnexpectedEof {
        /// Where the stream ends.
        offset: u64,
    },
    /// A kind of entry that cannot be part of a layer.
    #[error("unsupported input tar entry '{}' ({})", [*flag].escape_ascii(), name.escape_ascii())]
    Unsupported {
        /// Its type flag.
        flag: u8,
        /// Its name.
        name: Vec<u8>,
    },
    /// A global PAX header that unpacking takes for more than a comment.
    #[error(
        "a global PAX header named '{}', which unpacking takes for an entry",
        name.escape_ascii()
    )]
    Global {
        /// Its name.
        name: Vec<u8>,
    },
    /// A sparse file, where the caller asked to refuse those.
    #[error("sparse file {}", name.escape_ascii())]
    Sparse {
        /// Its name.
        name: Vec<u8>,
    },
}

/// What is done with entries that the two users of the scanner treat differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// As the zTOC builder: a global PAX header is an unsupported entry; sparse files pass, with the
    /// size of their content.
    Ztoc,
    /// As unpacking: global PAX headers are ignored, and refused where their name has an effect; sparse
    /// files are refused, because their map lies in the data.
    Unpack,
}

/// Receives what the scanner finds. Methods cannot fail: a sink that writes keeps its first error and
/// its owner asks for it.
pub trait TarSink {
    /// Bytes that are not the content of a file, at their offset in the stream.
    fn head(&mut self, offset: u64, bytes: &[u8]) {
        let _ = (offset, bytes);
    }

    /// The next entry. Its content, if any, follows.
    fn entry(&mut self, entry: &Entry<'_>);

    /// Content of the entry reported last, at its offset in the stream.
    fn data(&mut self, offset: u64, bytes: &[u8]) {
        let _ = (offset, bytes);
    }
}

/// A scanned archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TarEnd {
    /// Bytes up to where a reader stops: behind the second zero block, or the end of the stream.
    pub archive_size: u64,
    /// Number of entries.
    pub entries: u64,
}

/// What the next byte is part of.
///
/// ```text
/// Header --zero block--> SecondZero --zero block--> Ended
/// Header --x, g, L, K--> Meta ------> Padding -> Header
/// Header --entry-------> Data ------> Padding -> Header
/// Header --sparse 1.0--> SparseMap -> Data
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A header block.
    Header,
    /// The block behind a zero block.
    SecondZero,
    /// Payload of a header that describes the next entry.
    Meta { flag: u8, left: u64 },
    /// Blocks of a sparse map in front of the content.
    SparseMap,
    /// Content.
    Data { left: u64 },
    /// Zeros (or anything) up to the next block.
    Padding,
    /// Behind the end marker.
    Ended,
}

/// The scanner. Memory: one block and the payload of one meta header.
#[derive(Debug)]
pub struct TarScanner {
    policy: Policy,
    state: State,
    /// Offset of the next byte in the stream.
    pos: u64,
    block: Block,
    filled: usize,
    /// Bytes of padding behind the content or payload at hand.
    padding: u64,
    /// Payload of a meta header while it is collected.
    payload: Vec<u8>,
    pending: Pending,
    /// What entries may have at the root, for [`Policy::Unpack`].
    roots: global::Roots,
    /// Header whose sparse map is being collected, and the stored bytes that are left.
    sparse: Option<(Header, u64, sparse::MapInData)>,
    /// End of the entry before, which is where the next header begins.
    header_start: u64,
    entries: u64,
    name: Vec<u8>,
    link: Vec<u8>,
    uname: Vec<u8>,
    gname: Vec<u8>,
    packed_pax: Vec<u8>,
}

/// What meta headers said about the entry to come.
#[derive(Debug, Default)]
struct Pending {
    pax: Records,
    long_name: Vec<u8>,
    long_link: Vec<u8>,
}

impl TarScanner {
    /// A scanner at the start of an archive.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self {
            policy,
            state: State::Header,
            pos: 0,
            block: [0; BLOCK_SIZE],
            filled: 0,
            padding: 0,
            payload: Vec::new(),
            pending: Pending::default(),
            roots: global::Roots::default(),
            sparse: None,
            header_start: 0,
            entries: 0,
            name: Vec::new(),
            link: Vec::new(),
            uname: Vec::new(),
            gname: Vec::new(),
            packed_pax: Vec::new(),
        }
    }

    /// Offset in the stream up to which bytes were taken; stands still behind the end of the archive.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.pos
    }

    /// Whether the end marker has been seen.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Takes the next bytes of the stream.
    ///
    /// # Errors
    /// [`TarError`] where the archive is refused; the scanner is of no use afterwards.
    pub fn feed(&mut self, mut bytes: &[u8], sink: &mut impl TarSink) -> Result<(), TarError> {
        while !bytes.is_empty() {
            let wanted = match self.state {
                State::Ended => return Ok(()),
                State::Header | State::SecondZero | State::SparseMap => {
                    (BLOCK_SIZE.saturating_sub(self.filled)) as u64
                }
                State::Meta { left, .. } | State::Data { left } => left,
                State::Padding => self.padding,
            };
            let take =
                usize::try_from(wanted).map_or(bytes.len(), |wanted| wanted.min(bytes.len()));
            let (now, rest) = bytes.split_at_checked(take).unwrap_or((bytes, &[]));
            bytes = rest;
            self.take(now, sink)?;
        }
        Ok(())
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// [`TarError::UnexpectedEof`] where it ends inside a header or inside content. An end at a header
    /// boundary, after one zero block, or in the padding of the last file is as good as the end marker.
    pub fn finish(self) -> Result<TarEnd, TarError> {
        let inside = match self.state {
            State::Header | State::SecondZero => self.filled != 0,
            State::Meta { left, .. } | State::Data { left } => left != 0,
            State::SparseMap => true,
            State::Padding | State::Ended => false,
        };
        if inside {
            return Err(TarError::UnexpectedEof { offset: self.pos });
        }
        Ok(TarEnd {
            archive_size: self.pos,
            entries: self.entries,
        })
    }

    /// Takes bytes that all belong to the state at hand.
    fn take(&mut self, bytes: &[u8], sink: &mut impl TarSink) -> Result<(), TarError> {
        let offset = self.pos;
        let len = bytes.len() as u64;
        self.pos = self.pos.saturating_add(len);
        match &mut self.state {
            State::Data { left } => {
                *left = left.saturating_sub(len);
                let done = *left == 0;
                sink.data(offset, bytes);
                if done {
                    self.go_to_padding();
                }
                return Ok(());
            }
            State::Padding => {
                self.padding = self.padding.saturating_sub(len);
                sink.head(offset, bytes);
                if self.padding == 0 {
                    self.state = State::Header;
                }
                return Ok(());
            }
            State::Meta { flag, left } => {
                *left = left.saturating_sub(len);
                let done = (*left == 0).then_some(*flag);
                sink.head(offset, bytes);
                self.payload.extend_from_slice(bytes);
                return done.map_or(Ok(()), |flag| self.end_meta(flag));
            }
            State::Header | State::SecondZero | State::SparseMap | State::Ended => {}
        }
        sink.head(offset, bytes);
        let end = self.filled.saturating_add(bytes.len());
        if let Some(room) = self.block.get_mut(self.filled..end) {
            room.copy_from_slice(bytes);
        }
        self.filled = end;
        if end == BLOCK_SIZE {
            self.filled = 0;
            return self.end_block(sink);
        }
        Ok(())
    }

    fn end_block(&mut self, sink: &mut impl TarSink) -> Result<(), TarError> {
        let is_zero = self.block.iter().all(|&b| b == 0);
        match self.state {
            State::SecondZero if is_zero => {
                self.state = State::Ended;
                Ok(())
            }
            State::SecondZero => Err(self.invalid()),
            State::SparseMap => self.end_map_block(sink),
            _ if is_zero => {
                self.state = State::SecondZero;
                Ok(())
            }
            _ => {
                let header = header::parse(&self.block).ok_or_else(|| self.invalid())?;
                self.begin(header, sink)
            }
        }
    }

    /// A header block was read whole.
    fn begin(&mut self, header: Header, sink: &mut impl TarSink) -> Result<(), TarError> {
        let payload = header.stored().ok_or_else(|| self.invalid())?;
        match header.flag {
            b'x' | b'g' | b'L' | b'K' => {
                if payload > MAX_META as u64 {
                    return Err(TarError::FieldTooLong {
                        offset: self.block_start(),
                    });
                }
                self.padding = padding_of(payload);
                self.payload.clear();
                self.state = State::Meta {
                    flag: header.flag,
                    left: payload,
                };
                if payload == 0 {
                    return self.end_meta(header.flag);
                }
                Ok(())
            }
            _ => self.begin_entry(header, sink),
        }
    }

    /// The payload of a meta header was read whole.
    fn end_meta(&mut self, flag: u8) -> Result<(), TarError> {
        match flag {
            b'L' => header::cut_at_nul(&self.payload).clone_into(&mut self.pending.long_name),
            b'K' => header::cut_at_nul(&self.payload).clone_into(&mut self.pending.long_link),
            _ => {
                let parsed = self.pending.pax.parse(&mut self.payload);
                parsed.ok_or_else(|| self.invalid())?;
                if flag == b'g' {
                    // It ends the search for an entry in Go's reader too: what was pending is dropped.
                    self.pending.clear();
                    self.check_global()?;
                }
            }
        }
        self.go_to_padding();
        Ok(())
    }

    /// The block at hand is a global header.
    fn check_global(&mut self) -> Result<(), TarError> {
        if self.policy == Policy::Ztoc {
            return Err(TarError::Unsupported {
                flag: b'g',
                name: Vec::new(),
            });
        }
        let header = header::parse(&self.block).ok_or_else(|| self.invalid())?;
        header::name(&self.block, header.format, &mut self.name);
        if self.roots.is_changed_by(&self.name) {
            let name = self.name.clone();
            return Err(TarError::Global { name });
        }
        Ok(())
    }

    /// An entry's own header was read: apply what is pending.
    fn begin_entry(&mut self, mut header: Header, sink: &mut impl TarSink) -> Result<(), TarError> {
        header::name(&self.block, header.format, &mut self.name);
        header::cut_at_nul(header::LINKNAME.of(&self.block)).clone_into(&mut self.link);
        let pax = &self.pending.pax;
        let uname = pax
            .text(b"uname")
            .unwrap_or_else(|| header.uname(&self.block));
        uname.clone_into(&mut self.uname);
        let gname = pax
            .text(b"gname")
            .unwrap_or_else(|| header.gname(&self.block));
        gname.clone_into(&mut self.gname);
        self.pending
            .pax
            .apply(&mut header, &mut self.name, &mut self.link)
            .ok_or_else(|| self.invalid())?;
        if !self.pending.long_name.is_empty() {
            self.name.clone_from(&self.pending.long_name);
        }
        if !self.pending.long_link.is_empty() {
            self.link.clone_from(&self.pending.long_link);
        }
        if header.flag == 0 {
            header.flag = if self.name.ends_with(b"/") {
                b'5'
            } else {
                b'0'
            };
        }
        let stored = header.stored().ok_or_else(|| self.invalid())?;
        self.padding = padding_of(stored);
        match SparseVersion::of(|key| self.pending.pax.get(key)) {
            _ if header.flag == b'S' => {} // refused below
            None => {}
            Some(_) if header.is_header_only() => return Err(self.invalid()),
            Some(version) => {
                if self.policy == Policy::Unpack {
                    return Err(TarError::Sparse {
                        name: self.name.clone(),
                    });
                }
                self.apply_sparse_names(&mut header)?;
                if version == SparseVersion::InData {
                    self.sparse = Some((header, stored, sparse::MapInData::default()));
                    self.state = State::SparseMap;
                    return Ok(());
                }
                let map = sparse::map_in_records(|key| self.pending.pax.get(key));
                self.check_map(map, header.size)?;
            }
        }
        self.emit(&header, stored, sink)
    }

    /// Name and logical size of a sparse file stand in records of their own.
    fn apply_sparse_names(&mut self, header: &mut Header) -> Result<(), TarError> {
        let record = |key: &str| {
            self.pending
                .pax
                .get(key.as_bytes())
                .filter(|v| !v.is_empty())
        };
        if let Some(name) = record("GNU.sparse.name") {
            name.clone_into(&mut self.name);
        }
        if let Some(size) = record("GNU.sparse.size").or_else(|| record("GNU.sparse.realsize")) {
            header.size = pax::parse_decimal(size).ok_or_else(|| self.invalid())?;
        }
        Ok(())
    }

    /// A block of a sparse map that precedes the content was read.
    fn end_map_block(&mut self, sink: &mut impl TarSink) -> Result<(), TarError> {
        let Some((header, stored, mut map)) = self.sparse.take() else {
            return Err(self.invalid());
        };
        let Some(left) = stored.checked_sub(BLOCK) else {
            return Err(TarError::UnexpectedEof { offset: self.pos });
        };
        let progress = map.push(&self.block);
        if map.len() > MAX_META {
            let offset = self.block_start();
            return Err(TarError::FieldTooLong { offset });
        }
        match progress {
            sparse::Progress::More => {
                self.sparse = Some((header, left, map));
                Ok(())
            }
            sparse::Progress::Invalid => Err(self.invalid()),
            sparse::Progress::Done(map) => {
                self.check_map(Some(map), header.size)?;
                self.emit(&header, left, sink)
            }
        }
    }

    fn check_map(&self, map: Option<Vec<sparse::Extent>>, size: i64) -> Result<(), TarError> {
        match map {
            Some(map) if sparse::is_valid(&map, size) => Ok(()),
            _ => Err(self.invalid()),
        }
    }

    /// Reports the entry; its content comes next.
    fn emit(
        &mut self,
        header: &Header,
        stored: u64,
        sink: &mut impl TarSink,
    ) -> Result<(), TarError> {
        let kind = match header.flag {
            b'0' => FileKind::Regular,
            b'1' => FileKind::Hardlink,
            b'2' => FileKind::Symlink,
            b'3' => FileKind::Char,
            b'4' => FileKind::Block,
            b'5' => FileKind::Directory,
            b'6' => FileKind::Fifo,
            flag => {
                return Err(TarError::Unsupported {
                    flag,
                    name: self.name.clone(),
                });
            }
        };
        self.pending.pax.pack(&mut self.packed_pax);
        let entry = Entry {
            name: &self.name,
            kind,
            header_start: self.header_start,
            offset: self.pos,
            size: header.size.cast_unsigned(),
            link: &self.link,
            mode: header.mode,
            uid: header.uid,
            gid: header.gid,
            uname: &self.uname,
            gname: &self.gname,
            mtime: header.mtime,
            dev_major: header.dev_major,
            dev_minor: header.dev_minor,
            pax: crate::toc::Pax::packed(&self.packed_pax),
        };
        if self.policy == Policy::Unpack {
            self.roots.note(&entry);
        }
        sink.entry(&entry);
        self.pending.clear();
        self.entries = self.entries.saturating_add(1);
        let end = self.pos.saturating_add(stored);
        self.header_start = end.saturating_add(self.padding);
        self.state = State::Data { left: stored };
        if stored == 0 {
            self.go_to_padding();
        }
        Ok(())
    }

    fn go_to_padding(&mut self) {
        self.state = if self.padding == 0 {
            State::Header
        } else {
            State::Padding
        };
    }

    /// Where the block just read begins.
    fn block_start(&self) -> u64 {
        self.pos.saturating_sub(BLOCK)
    }

    fn invalid(&self) -> TarError {
        TarError::InvalidHeader {
            offset: self.block_start(),
        }
    }
}

impl Pending {
    fn clear(&mut self) {
        self.pax.clear();
        self.long_name.clear();
        self.long_link.clear();
    }
}

/// Bytes from the end of `size` bytes to the next block.
fn padding_of(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK
}
