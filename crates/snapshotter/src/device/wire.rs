//! The subset of the FUSE protocol that a read-only device of numbered files needs. It converts
//! bytes to values and values to bytes, without policy or I/O.
//!
//! Structures are in host byte order and are read field by field with bounds checks, so any bytes
//! are either a [`Request`] or a [`WireError`]. The layouts are those of the kernel's
//! `include/uapi/linux/fuse.h`, protocol 7.

#![expect(
    clippy::disallowed_methods,
    reason = "the protocol uses host byte order"
)]

use thiserror::Error;

/// Major version of the protocol. The kernel and the server must agree on it.
pub(crate) const MAJOR: u32 = 7;

/// The newest minor version whose structures are known here (Linux 6.18 uses 45).
const MINOR: u32 = 45;

/// First minor version whose INIT reply has the full 64 bytes (Linux 3.16).
const MINOR_FULL_INIT: u32 = 23;

/// Size of a request header in bytes.
const IN_HEADER: usize = 40;

/// Size of a reply header in bytes.
pub(crate) const OUT_HEADER: usize = 16;

/// Capability bits of INIT: low 32 bits in `flags`, the rest in `flags2`.
pub(crate) mod capability {
    /// Several reads of one file may be in flight (of pages; direct reads also need [`ASYNC_DIO`]).
    pub(crate) const ASYNC_READ: u64 = 1 << 0;
    /// Direct reads of asynchronous callers are sent as requests that belong to no task.
    pub(crate) const ASYNC_DIO: u64 = 1 << 15;
    /// LOOKUP and READDIR of one directory may run concurrently.
    pub(crate) const PARALLEL_DIROPS: u64 = 1 << 18;
    /// The `max_pages` field of the reply is valid.
    pub(crate) const MAX_PAGES: u64 = 1 << 22;
    /// The `flags2` field is valid.
    pub(crate) const INIT_EXT: u64 = 1 << 30;
    /// The server may ask the kernel to resend unanswered requests (Linux 6.9).
    pub(crate) const HAS_RESEND: u64 = 1 << 39;
}

/// `FOPEN_DIRECT_IO`: the kernel caches no pages of this file; EROFS above it does.
pub(crate) const OPEN_DIRECT_IO: u32 = 1 << 0;
/// `FOPEN_NOFLUSH`: the kernel sends no FLUSH when a descriptor is closed.
pub(crate) const OPEN_NO_FLUSH: u32 = 1 << 5;

/// Why bytes are not a request.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum WireError {
    /// The request ends before the structure does.
    #[error("the request has {len} bytes, but {what} needs {need}")]
    Short {
        /// Number of bytes present.
        len: usize,
        /// Number of bytes up to the end of the structure.
        need: usize,
        /// The structure.
        what: &'static str,
    },
    /// The length in the header differs from the number of bytes read.
    #[error("the request header says {said} bytes, but {len} were read")]
    Length {
        /// Length in the header.
        said: u32,
        /// Number of bytes present.
        len: usize,
    },
    /// A name without its terminating NUL.
    #[error("a name in the request is not terminated")]
    Name,
}

/// Identifies a request in flight. The reply must repeat it exactly, including the top bit that
/// marks a resent request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Unique(pub(crate) u64);

/// A node of the file system: 1 is the root, any other number is the file of that layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct NodeId(pub(crate) u64);

impl NodeId {
    /// The directory that holds the files.
    pub(crate) const ROOT: NodeId = NodeId(1);
}

/// One request of the kernel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request<'a> {
    /// Must be repeated in the reply.
    pub(crate) unique: Unique,
    /// The node that the request refers to.
    pub(crate) node: NodeId,
    /// The requested operation.
    pub(crate) operation: Operation<'a>,
}

/// A requested operation.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Operation<'a> {
    /// The first request of a connection.
    Init(InitIn),
    /// Looks up a name in the root.
    Lookup(&'a [u8]),
    /// Returns attributes.
    GetAttr,
    /// Opens a file.
    Open,
    /// Reads bytes of a file.
    Read {
        /// First byte.
        offset: u64,
        /// Number of bytes to read.
        size: u32,
    },
    /// The last descriptor of an open file was closed.
    Release,
    /// Opens the root directory.
    OpenDir,
    /// Lists entries of the root after `offset`.
    ReadDir {
        /// Offset of the last entry that the reader has, or 0.
        offset: u64,
        /// Maximum size of the reply in bytes.
        size: u32,
    },
    /// The last descriptor of an open directory was closed.
    ReleaseDir,
    /// Returns statistics of the file system.
    StatFs,
    /// The kernel forgets a node; has no reply.
    Forget,
    /// The kernel forgets several nodes; has no reply.
    BatchForget,
    /// The task of a request received a signal; has no reply.
    Interrupt,
    /// The file system is unmounted.
    Destroy,
    /// An operation that this device does not support.
    Other(u32),
}

/// The kernel's INIT request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InitIn {
    /// Major version of the protocol.
    pub(crate) major: u32,
    /// Minor version of the protocol.
    pub(crate) minor: u32,
    /// Readahead in bytes.
    pub(crate) max_readahead: u32,
    /// See [`capability`].
    pub(crate) capabilities: u64,
}

/// This side's INIT reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InitOut {
    /// Readahead in bytes.
    pub(crate) max_readahead: u32,
    /// The accepted subset of the offered capabilities.
    pub(crate) capabilities: u64,
    /// Maximum number of asynchronous requests in flight.
    pub(crate) max_background: u16,
    /// Number of asynchronous requests in flight at which the device counts as congested.
    pub(crate) congestion_threshold: u16,
    /// Largest WRITE in bytes. The kernel also requires a receive buffer of this size.
    pub(crate) max_write: u32,
    /// Largest request in pages.
    pub(crate) max_pages: u16,
}

/// Attributes of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// The node.
    pub(crate) node: NodeId,
    /// Size in bytes.
    pub(crate) size: u64,
    /// Type and permission bits.
    pub(crate) mode: u32,
    /// Number of hard links.
    pub(crate) links: u32,
}

/// Bounds-checked reader of a request's bytes.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    what: &'static str,
}

impl<'a> Cursor<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let Some(field) = rest.first_chunk::<N>() else {
            return Err(WireError::Short {
                len: self.bytes.len(),
                need: self.at.saturating_add(N),
                what: self.what,
            });
        };
        self.at += N;
        Ok(*field)
    }

    fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_ne_bytes)
    }

    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }
}

/// The identity of a request whose body cannot be parsed, so that an error can be returned for it.
#[must_use]
pub(crate) fn unique_of(bytes: &[u8]) -> Option<Unique> {
    let field = bytes.get(8..16)?.first_chunk()?;
    Some(Unique(u64::from_ne_bytes(*field)))
}

/// Parses the bytes of one `read` of the descriptor.
///
/// # Errors
///
/// When the bytes end early or do not match the length in the header.
pub(crate) fn parse(bytes: &[u8]) -> Result<Request<'_>, WireError> {
    let mut header = Cursor {
        bytes,
        at: 0,
        what: "the header",
    };
    let said = header.u32()?;
    let opcode = header.u32()?;
    let unique = Unique(header.u64()?);
    let node = NodeId(header.u64()?);
    let _uid_gid_pid_and_extensions: [u8; IN_HEADER - 24] = header.array()?;
    if usize::try_from(said) != Ok(bytes.len()) {
        return Err(WireError::Length {
            said,
            len: bytes.len(),
        });
    }
    let operation = operation(
        opcode,
        Cursor {
            bytes,
            at: IN_HEADER,
            what: "its body",
        },
    )?;
    Ok(Request {
        unique,
        node,
        operation,
    })
}

/// Parses the body of a request; opcodes are those of `enum fuse_opcode`.
fn operation(opcode: u32, body: Cursor<'_>) -> Result<Operation<'_>, WireError> {
    Ok(match opcode {
        1 => Operation::Lookup(name(body.rest())?),
        2 => Operation::Forget,
        3 => Operation::GetAttr,
        14 => Operation::Open,
        15 => {
            let (offset, size) = read(body, "a READ")?;
            Operation::Read { offset, size }
        }
        17 => Operation::StatFs,
        18 => Operation::Release,
        26 => Operation::Init(init(body)?),
        27 => Operation::OpenDir,
        28 => {
            let (offset, size) = read(body, "a READDIR")?;
            Operation::ReadDir { offset, size }
        }
        29 => Operation::ReleaseDir,
        36 => Operation::Interrupt,
        38 => Operation::Destroy,
        42 => Operation::BatchForget,
        other => Operation::Other(other),
    })
}

fn name(bytes: &[u8]) -> Result<&[u8], WireError> {
    let end = bytes
        .iter()
        .position(|&byte| byte == 0)
        .ok_or(WireError::Name)?;
    bytes.get(..end).ok_or(WireError::Name)
}

/// `struct fuse_read_in`. A device without open state ignores the fields after the size.
fn read(mut body: Cursor<'_>, what: &'static str) -> Result<(u64, u32), WireError> {
    body.what = what;
    let _file_handle = body.u64()?;
    Ok((body.u64()?, body.u32()?))
}

/// `struct fuse_init_in`. Before protocol 7.36 it ends after `flags`.
fn init(mut body: Cursor<'_>) -> Result<InitIn, WireError> {
    body.what = "an INIT";
    let (major, minor) = (body.u32()?, body.u32()?);
    let (max_readahead, flags) = (body.u32()?, u64::from(body.u32()?));
    let flags2 = match flags & capability::INIT_EXT {
        0 => 0,
        _ => u64::from(body.u32()?),
    };
    Ok(InitIn {
        major,
        minor,
        max_readahead,
        capabilities: flags2 << 32 | flags,
    })
}

/// The header of a reply. `error` is a positive errno or 0, `body` the number of bytes after the
/// header.
///
/// Returns `None` if the body is too long for the length field.
#[must_use]
pub(crate) fn reply_header(unique: Unique, error: i32, body: usize) -> Option<[u8; OUT_HEADER]> {
    let len = u32::try_from(body.checked_add(OUT_HEADER)?).ok()?;
    let mut header = [0; OUT_HEADER];
    header[..4].copy_from_slice(&len.to_ne_bytes());
    header[4..8].copy_from_slice(&error.saturating_neg().to_ne_bytes());
    header[8..].copy_from_slice(&unique.0.to_ne_bytes());
    Some(header)
}

/// The notification that asks the kernel to resend all unanswered requests (`FUSE_NOTIFY_RESEND`).
/// It has no identity, and its code is in the error field.
#[must_use]
pub(crate) fn resend() -> [u8; OUT_HEADER] {
    const NOTIFY_RESEND: i32 = 7;
    reply_header(Unique(0), -NOTIFY_RESEND, 0).unwrap_or_default()
}

/// Appends fields in host byte order.
#[derive(Debug, Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn zeros(mut self, count: usize) -> Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }

    /// `struct fuse_attr`, 88 bytes.
    fn attributes(self, of: &Attributes) -> Self {
        self.u64(of.node.0)
            .u64(of.size)
            .u64(of.size.div_ceil(512))
            .zeros(3 * 8 + 3 * 4)
            .u32(of.mode)
            .u32(of.links)
            .zeros(3 * 4)
            .u32(BLOCK_SIZE)
            .u32(0)
    }
}

/// `st_blksize` of the files: one page, like the blocks of a layer.
const BLOCK_SIZE: u32 = 4096;

/// `struct fuse_init_out`, for the minor version that both sides know.
#[must_use]
pub(crate) fn init_out(offered: &InitIn, taken: &InitOut) -> Vec<u8> {
    let low = u32::try_from(taken.capabilities & u64::from(u32::MAX)).unwrap_or_default();
    let high = u32::try_from(taken.capabilities >> 32).unwrap_or_default();
    let minor = offered.minor.min(MINOR);
    let full = Fields::default()
        .u32(MAJOR)
        .u32(minor)
        .u32(taken.max_readahead)
        .u32(low)
        .u16(taken.max_background)
        .u16(taken.congestion_threshold)
        .u32(taken.max_write)
        .u32(1) // time granularity in nanoseconds
        .u16(taken.max_pages)
        .u16(0) // map alignment
        .u32(high)
        .zeros(7 * 4)
        .0;
    if minor < MINOR_FULL_INIT {
        full.get(..24).unwrap_or_default().to_vec()
    } else {
        full
    }
}

/// `struct fuse_entry_out`: name and attributes stay valid for `valid_secs`.
#[must_use]
pub(crate) fn entry_out(attributes: &Attributes, valid_secs: u64) -> Vec<u8> {
    Fields::default()
        .u64(attributes.node.0)
        .u64(0) // generation: layer numbers are never reused
        .u64(valid_secs)
        .u64(valid_secs)
        .zeros(2 * 4)
        .attributes(attributes)
        .0
}

/// `struct fuse_attr_out`: the attributes stay valid for `valid_secs`.
#[must_use]
pub(crate) fn attr_out(attributes: &Attributes, valid_secs: u64) -> Vec<u8> {
    Fields::default()
        .u64(valid_secs)
        .zeros(2 * 4)
        .attributes(attributes)
        .0
}

/// `struct fuse_open_out` without a file handle, because an open file has no state.
#[must_use]
pub(crate) fn open_out(flags: u32) -> Vec<u8> {
    Fields::default().u64(0).u32(flags).u32(0).0
}

/// The body of a READDIR reply: a `struct fuse_dirent` per entry, limited to the requested size.
#[derive(Debug)]
pub(crate) struct Listing {
    fields: Fields,
    room: usize,
}

impl Listing {
    /// An empty listing with room for `size` bytes.
    #[must_use]
    pub(crate) fn new(size: u32) -> Self {
        Self {
            fields: Fields::default(),
            room: usize::try_from(size).unwrap_or(usize::MAX),
        }
    }

    /// Appends an entry. `offset` is where a listing continues after it. Returns whether it fit.
    #[must_use]
    pub(crate) fn push(&mut self, node: NodeId, offset: u64, mode: u32, name: &[u8]) -> bool {
        let len = (24 + name.len()).next_multiple_of(8);
        let Ok(name_len) = u32::try_from(name.len()) else {
            return false;
        };
        if self.fields.0.len() + len > self.room {
            return false;
        }
        let mut fields = std::mem::take(&mut self.fields)
            .u64(node.0)
            .u64(offset)
            .u32(name_len)
            .u32(mode >> 12);
        fields.0.extend_from_slice(name);
        self.fields = fields.zeros(len - 24 - name.len());
        true
    }

    /// The body of the reply; empty at the end of the directory.
    #[must_use]
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.fields.0
    }
}

/// `struct fuse_statfs_out`: a file system without free space, with `files` files.
#[must_use]
pub(crate) fn statfs_out(files: u64) -> Vec<u8> {
    Fields::default()
        .zeros(3 * 8)
        .u64(files)
        .u64(0)
        .u32(BLOCK_SIZE)
        .u32(255)
        .u32(BLOCK_SIZE)
        .zeros(7 * 4)
        .0
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::cast_possible_truncation,
        reason = "lengths of test requests are small"
    )]

    use super::*;
    use proptest::prelude::*;

    fn request(opcode: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((IN_HEADER + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(opcode.to_ne_bytes());
        bytes.extend(77_u64.to_ne_bytes());
        bytes.extend(5_u64.to_ne_bytes());
        bytes.extend([0; 16]);
        bytes.extend(body);
        bytes
    }

    #[test]
    fn read_carries_offset_and_size() {
        let body = Fields::default()
            .u64(0)
            .u64(1 << 40)
            .u32(1 << 20)
            .zeros(20)
            .0;
        let bytes = request(15, &body);
        let expected = Request {
            unique: Unique(77),
            node: NodeId(5),
            operation: Operation::Read {
                offset: 1 << 40,
                size: 1 << 20,
            },
        };
        assert_eq!(parse(&bytes), Ok(expected));
        assert_eq!(unique_of(&bytes), Some(Unique(77)));
    }

    #[test]
    fn lookup_takes_the_name_up_to_its_nul() {
        assert_eq!(
            parse(&request(1, b"17\0")).unwrap().operation,
            Operation::Lookup(b"17")
        );
        assert_eq!(parse(&request(1, b"17")), Err(WireError::Name));
    }

    #[test]
    fn init_reads_the_second_word_of_flags_only_if_it_is_announced() {
        let plain = Fields::default().u32(7).u32(31).u32(131_072).u32(1).0;
        let Operation::Init(old) = parse(&request(26, &plain)).unwrap().operation else {
            panic!("not INIT")
        };
        assert_eq!(
            old,
            InitIn {
                major: 7,
                minor: 31,
                max_readahead: 131_072,
                capabilities: 1
            }
        );
        let extended = Fields::default()
            .u32(7)
            .u32(45)
            .u32(0)
            .u32(1 << 30)
            .u32(1 << 7)
            .0;
        let Operation::Init(new) = parse(&request(26, &extended)).unwrap().operation else {
            panic!("not INIT")
        };
        assert_eq!(
            new.capabilities,
            capability::INIT_EXT | capability::HAS_RESEND
        );
    }

    #[test]
    fn short_and_lying_requests_are_refused() {
        let read = request(15, &[0; 12]);
        assert_eq!(
            parse(&read),
            Err(WireError::Short {
                len: 52,
                need: 56,
                what: "a READ"
            })
        );
        let mut lying = request(17, &[]);
        lying[0] = 41;
        assert_eq!(parse(&lying), Err(WireError::Length { said: 41, len: 40 }));
        assert_eq!(unique_of(&lying[..15]), None);
    }

    #[test]
    fn replies_have_the_sizes_of_the_kernels_structures() {
        let file = Attributes {
            node: NodeId(2),
            size: 8192,
            mode: 0o100_400,
            links: 1,
        };
        assert_eq!(entry_out(&file, 1).len(), 128);
        assert_eq!(attr_out(&file, 1).len(), 104);
        assert_eq!(open_out(OPEN_DIRECT_IO).len(), 16);
        assert_eq!(statfs_out(0).len(), 80);
        let mut offered = InitIn {
            major: 7,
            minor: 45,
            max_readahead: 0,
            capabilities: 0,
        };
        let taken = InitOut {
            max_readahead: 0,
            capabilities: capability::INIT_EXT | capability::HAS_RESEND,
            max_background: 1,
            congestion_threshold: 1,
            max_write: 4096,
            max_pages: 256,
        };
        assert_eq!(init_out(&offered, &taken).len(), 64);
        offered.minor = 22;
        assert_eq!(init_out(&offered, &taken).len(), 24);
    }

    #[test]
    fn a_listing_is_cut_to_its_room() {
        let mut listing = Listing::new(64);
        assert!(listing.push(NodeId(9), 10, 0o100_400, b"9"));
        assert!(listing.push(NodeId(12), 13, 0o100_400, b"12345678"));
        assert!(!listing.push(NodeId(13), 14, 0o100_400, b"13"));
        let bytes = listing.into_bytes();
        assert_eq!(bytes.len(), 64);
        assert_eq!(bytes[8..16], 10_u64.to_ne_bytes());
        assert_eq!(bytes[20..32], *b"\x08\0\0\09\0\0\0\0\0\0\0");
    }

    #[test]
    fn an_error_is_negative_in_the_reply() {
        let header = reply_header(Unique(u64::MAX), 5, 0).unwrap();
        assert_eq!(
            header[..8],
            [16_u32.to_ne_bytes(), (-5_i32).to_ne_bytes()].concat()
        );
        assert_eq!(header[8..], [0xff; 8]);
        assert_eq!(reply_header(Unique(1), 0, usize::MAX), None);
    }

    proptest! {
        #[test]
        fn prop_any_bytes_are_parsed_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
            let _ = unique_of(&bytes);
        }

        #[test]
        fn prop_any_body_of_any_operation_is_parsed_or_refused(
            opcode in 0_u32..60,
            body in prop::collection::vec(any::<u8>(), 0..120),
        ) {
            let bytes = request(opcode, &body);
            if let Ok(parsed) = parse(&bytes) {
                prop_assert_eq!(parsed.unique, Unique(77));
                prop_assert_eq!(parsed.node, NodeId(5));
            }
        }
    }
}
