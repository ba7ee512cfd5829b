//! Two checks of downloaded data: a span's digest before its bytes are decoded, and a file's tar
//! header before its content is returned.

use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::span::{SpanDigest, SpanId, SpanMap};
use crate::tar::{Policy, TarError, TarScanner, TarSink};
use crate::toc::{Entry, Toc};

/// Compressed bytes of a span whose digest matches the zTOC. Only such bytes can be decoded.
#[derive(Debug, Clone, Copy)]
pub struct VerifiedSpan<'a> {
    id: SpanId,
    bytes: &'a [u8],
}

/// Why bytes are not those of the span.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The length is wrong.
    #[error("span {span} has {expected} compressed bytes, not {found}")]
    Length {
        /// The span.
        span: u32,
        /// The expected length in bytes.
        expected: u64,
        /// The actual length in bytes.
        found: u64,
    },
    /// The digest is wrong.
    #[error("span digests do not match: span {span} is sha256:{}, not sha256:{}", hex(.expected), hex(.found))]
    Digest {
        /// The span.
        span: u32,
        /// The digest in the zTOC.
        expected: Box<SpanDigest>,
        /// The digest of the actual bytes.
        found: Box<SpanDigest>,
    },
}

impl<'a> VerifiedSpan<'a> {
    /// Hashes the compressed bytes of a span, [`SpanMap::compressed`], and compares the digest.
    ///
    /// # Errors
    /// [`VerifyError`] if length or digest differ.
    ///
    /// # Panics
    /// If the layer has no such span.
    pub fn verify(id: SpanId, bytes: &'a [u8], spans: &SpanMap) -> Result<Self, VerifyError> {
        Self::with_digest(id, bytes, Sha256::digest(bytes).into(), spans)
    }

    /// Like [`VerifiedSpan::verify`], for callers that hashed the bytes as they arrived.
    ///
    /// # Errors
    /// [`VerifyError`] if length or digest differ.
    ///
    /// # Panics
    /// If the layer has no such span.
    pub fn with_digest(
        id: SpanId,
        bytes: &'a [u8],
        found: SpanDigest,
        spans: &SpanMap,
    ) -> Result<Self, VerifyError> {
        agree(id, bytes.len() as u64, found, spans)?;
        Ok(Self { id, bytes })
    }

    /// The id of the span.
    #[must_use]
    pub fn id(&self) -> SpanId {
        self.id
    }

    /// Its compressed bytes.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

/// Compares length and digest of a span's compressed bytes with the zTOC.
pub(crate) fn agree(
    id: SpanId,
    length: u64,
    digest: SpanDigest,
    spans: &SpanMap,
) -> Result<(), VerifyError> {
    let range = spans.compressed(id);
    let expected = range.end - range.start;
    if length != expected {
        return Err(VerifyError::Length {
            span: id.0,
            expected,
            found: length,
        });
    }
    if digest != *spans.digest(id) {
        return Err(VerifyError::Digest {
            span: id.0,
            expected: Box::new(*spans.digest(id)),
            found: Box::new(digest),
        });
    }
    Ok(())
}

fn hex(digest: &SpanDigest) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How a tar header differs from its zTOC entry.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HeaderMismatch {
    /// The bytes are not a valid header.
    #[error("the tar has no readable header there")]
    Unreadable(#[source] Option<TarError>),
    /// The header does not end where the content begins according to the zTOC.
    #[error("the tar header takes {found} bytes, not {expected}")]
    Length {
        /// Length in the zTOC, in bytes.
        expected: u64,
        /// Length in the tar, in bytes.
        found: u64,
    },
    /// A field has a different value.
    #[error("tar header and zTOC disagree about the {0}")]
    Field(&'static str),
}

/// Compares a TOC entry with the bytes of its header, [`Entry::header`]. They must parse to exactly
/// one entry, without remaining bytes, and all fields must match.
///
/// # Errors
/// [`HeaderMismatch`] names the difference. The entry's content must then not be returned.
pub fn verify_header(entry: &Entry<'_>, header_bytes: &[u8]) -> Result<(), HeaderMismatch> {
    let mut sink = FirstEntry { toc: Toc::new() };
    let scanned = TarScanner::new(Policy::Ztoc).feed(header_bytes, &mut sink);
    // If content or another header follows the first entry, the lengths differ.
    let Some(found) = sink.toc.get(0) else {
        return Err(HeaderMismatch::Unreadable(scanned.err()));
    };
    let expected = header_bytes.len() as u64;
    if found.offset != expected {
        return Err(HeaderMismatch::Length {
            expected,
            found: found.offset,
        });
    }
    match disagreement(&found, entry) {
        Some(field) => Err(HeaderMismatch::Field(field)),
        None => Ok(()),
    }
}

/// The first field in which two descriptions of an entry differ, except for its position in the
/// archive.
#[must_use]
pub fn disagreement(found: &Entry<'_>, entry: &Entry<'_>) -> Option<&'static str> {
    let fields = [
        ("size", found.size == entry.size),
        (
            "modification time",
            found.mtime.as_written() == entry.mtime.as_written(),
        ),
        ("link name", found.link == entry.link),
        ("mode", found.mode == entry.mode),
        ("type", found.kind == entry.kind),
        ("uid", found.uid == entry.uid),
        ("gid", found.gid == entry.gid),
        (
            "device number",
            found.dev_major == entry.dev_major && found.dev_minor == entry.dev_minor,
        ),
        ("extended attributes", found.xattrs().eq(entry.xattrs())),
        ("name", found.name == entry.name),
    ];
    let wrong = fields.into_iter().find(|(_, agrees)| !agrees);
    wrong.map(|(field, _)| field)
}

struct FirstEntry {
    toc: Toc,
}

impl TarSink for FirstEntry {
    fn entry(&mut self, entry: &Entry<'_>) {
        if self.toc.is_empty() {
            self.toc.push(entry);
        }
    }
}
