//! A push scanner of tar streams that follows the rules of Go's `archive/tar` reader.
//!
//! containerd unpacks with that reader and the reference builds zTOCs with it. With different
//! rules, a lazy layer could show files that unpacking does not create.
//!
//! The caller passes bytes in any portions ([`TarScanner::feed`]); a [`TarSink`] receives the
//! result. Every byte that is fed, up to the end of the archive, is reported once and in order: the
//! content of reported entries as [`TarSink::data`], everything else as [`TarSink::head`]. An entry
//! is reported after the last byte of its header and before its content. Bytes after the end marker
//! are not reported.

#![warn(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects
)]

use crate::toc::{BLOCK, Entry};

mod entry;
mod error;
mod global;
mod header;
mod pax;
mod sparse;

pub use error::TarError;
use header::{BLOCK_SIZE, Block, Header};
use pax::Records;

/// Largest payload of a PAX or long-name header, and largest sparse map, in bytes. This is Go's
/// limit.
const MAX_META: usize = 1 << 20;

/// How to handle entries that the users of the scanner treat differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Policy {
    /// For building zTOCs: a global PAX header is an unsupported entry. Sparse files are accepted,
    /// with the size of their content.
    Ztoc,
    /// For unpacking: global PAX headers are ignored, or rejected if their name has an effect.
    /// Sparse files are rejected, because their map is part of the data.
    Unpack,
    /// For finding files in an archive that is not a layer: global PAX headers and entries of
    /// unknown types are skipped, contiguous files are regular, and sparse files are rejected.
    Find,
}

/// Receives the results of the scanner. Methods cannot fail: a sink that writes keeps its first
/// error for its owner.
pub trait TarSink {
    /// Bytes that are not content of a reported entry, at their offset in the stream.
    fn head(&mut self, offset: u64, bytes: &[u8]) {
        let _ = (offset, bytes);
    }

    /// The next entry. Its content, if any, follows.
    fn entry(&mut self, entry: &Entry<'_>);

    /// Content of the last reported entry, at its offset in the stream.
    fn data(&mut self, offset: u64, bytes: &[u8]) {
        let _ = (offset, bytes);
    }
}

/// The result of scanning an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TarEnd {
    /// Bytes up to the position at which a reader stops: after the second zero block, or at the end
    /// of the stream.
    pub archive_size: u64,
    /// Number of entries.
    pub entries: u64,
}

/// The part of the archive that the next byte belongs to.
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
    /// The block after a zero block.
    SecondZero,
    /// Payload of a header that describes the next entry.
    Meta { flag: u8, left: u64 },
    /// Blocks of a sparse map before the content.
    SparseMap,
    /// Content of the last reported entry, or of one that is skipped.
    Data { left: u64, is_reported: bool },
    /// Padding up to the next block.
    Padding,
    /// After the end marker.
    Ended,
}

/// The scanner. It holds one block and the payload of one meta header in memory.
#[derive(Debug)]
pub struct TarScanner {
    policy: Policy,
    state: State,
    /// Offset of the next byte in the stream.
    pos: u64,
    block: Block,
    filled: usize,
    /// Bytes of padding after the current content or payload.
    padding: u64,
    /// Payload of a meta header that is being collected.
    payload: Vec<u8>,
    pending: Pending,
    /// Names that may exist at the root, for [`Policy::Unpack`].
    roots: global::Roots,
    /// Header whose sparse map is being collected, and its remaining stored bytes.
    sparse: Option<(Header, u64, sparse::MapInData)>,
    /// End of the previous entry, where the next header begins.
    header_start: u64,
    entries: u64,
    name: Vec<u8>,
    link: Vec<u8>,
    uname: Vec<u8>,
    gname: Vec<u8>,
    packed_pax: Vec<u8>,
}

/// Values of meta headers for the next entry.
#[derive(Debug, Default)]
struct Pending {
    pax: Records,
    long_name: Vec<u8>,
    long_link: Vec<u8>,
}

impl TarScanner {
    /// Creates a scanner at the start of an archive.
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

    /// Offset in the stream up to which bytes were consumed. Does not advance after the end of the
    /// archive.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.pos
    }

    /// Whether the end marker has been seen.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Bytes of content of the current entry that were not fed yet. The entry may be one that the
    /// policy does not report.
    #[must_use]
    pub fn content_left(&self) -> u64 {
        match self.state {
            State::Data { left, .. } => left,
            _ => 0,
        }
    }

    /// Continues after the content and its padding without their bytes, for a caller that can seek.
    /// The caller checks that the archive has the content.
    pub fn skip_content(&mut self) {
        if let State::Data { left, .. } = self.state {
            let end = self.pos.saturating_add(left);
            self.pos = end.saturating_add(self.padding);
            self.state = State::Header;
        }
    }

    /// Processes the next bytes of the stream.
    ///
    /// # Errors
    /// [`TarError`] if the archive is rejected; the scanner cannot be used afterwards.
    pub fn feed(&mut self, mut bytes: &[u8], sink: &mut impl TarSink) -> Result<(), TarError> {
        while !bytes.is_empty() {
            let wanted = match self.state {
                State::Ended => return Ok(()),
                State::Header | State::SecondZero | State::SparseMap => {
                    (BLOCK_SIZE.saturating_sub(self.filled)) as u64
                }
                State::Meta { left, .. } | State::Data { left, .. } => left,
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
    /// [`TarError::UnexpectedEof`] if the stream ends inside a header or inside content. The end
    /// marker may be missing: the stream may end at a header boundary, after one zero block, or in
    /// the padding of the last file.
    pub fn finish(self) -> Result<TarEnd, TarError> {
        let inside = match self.state {
            State::Header | State::SecondZero => self.filled != 0,
            State::Meta { left, .. } | State::Data { left, .. } => left != 0,
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

    /// Processes bytes that all belong to the current state.
    fn take(&mut self, bytes: &[u8], sink: &mut impl TarSink) -> Result<(), TarError> {
        let offset = self.pos;
        let len = bytes.len() as u64;
        self.pos = self.pos.saturating_add(len);
        match &mut self.state {
            State::Data { left, is_reported } => {
                *left = left.saturating_sub(len);
                let done = *left == 0;
                if *is_reported {
                    sink.data(offset, bytes);
                } else {
                    sink.head(offset, bytes);
                }
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

    /// Handles a complete header block.
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

    fn go_to_padding(&mut self) {
        self.state = if self.padding == 0 {
            State::Header
        } else {
            State::Padding
        };
    }

    /// Offset of the block that was just read.
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

/// Bytes of padding after `size` bytes.
fn padding_of(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK
}
