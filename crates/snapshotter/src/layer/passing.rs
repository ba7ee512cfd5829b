//! Hashes the tar of a layer while its bytes are stored, and compares it with the zTOC's entries.
//!
//! Spans that arrive in order are hashed at once, while no reader waits. Skipped spans are later
//! read from the store. The part of the stream after the archive counts for its digest and is not
//! stored: it is kept from the last span when that is decoded, or downloaded again when the layer
//! is verified.

use std::{
    io, mem,
    ops::{ControlFlow, Range},
};

use sha2::{Digest as _, Sha256};
use soci_oci::Digest;
use soci_ztoc::{
    Decoder, Entry, Policy, SpanId, TarScanner, TarSink, VerifiedSpan, VerifyError, Ztoc,
    disagreement,
};

use super::data::Data;
use crate::{
    store::{ZtocFile, proofs::Proof},
    sync::{Arc, Mutex},
};

/// Bytes of the tar that one job reads.
pub(super) const STEP: u64 = 16 << 20;
/// Maximum bytes after the archive that are kept until the layer is complete.
pub(super) const KEPT: usize = 64 << 10;

/// The hashing state of a layer.
pub(super) struct Passing {
    data: Arc<Data>,
    /// Taken out while hashing, so that no lock is held. Another thread that finds nothing here
    /// skips its span.
    tar: Mutex<Option<Box<Tar>>>,
    /// The part of the stream after the archive, if known.
    behind: Mutex<Option<Vec<u8>>>,
}

impl Passing {
    pub(super) fn new(data: Arc<Data>) -> Passing {
        let passes = !data.files.present.is_complete();
        Passing {
            data,
            tar: Mutex::new(passes.then(Tar::new)),
            behind: Mutex::default(),
        }
    }

    /// A span was stored in the background: hashes it if it is the next one, and then reads on
    /// through stored spans.
    pub(super) fn pass_on(&self, ztoc: &ZtocFile, place: &Range<u64>, bytes: &[u8]) {
        let Some(mut tar) = self.tar.lock().take() else {
            return;
        };
        if tar.at == place.start {
            tar.push(ztoc, bytes);
        }
        if let Err(error) = tar.read_on(&self.data, ztoc, STEP) {
            tracing::debug!(layer = %self.data.digest(), error = %error, "cannot read the store while hashing; trying again when the layer is complete");
        }
        // Many layers can be in this state.
        tar.buffer = Vec::new();
        *self.tar.lock() = Some(tar);
    }

    /// Keeps the part of a stream after the archive until the layer is complete. `None` if it is
    /// too large.
    pub(super) fn keep_behind(&self, bytes: Option<Vec<u8>>) {
        *self.behind.lock() = bytes;
    }

    /// Takes the tar. Starts from the beginning if nothing was hashed yet or another thread has it.
    pub(super) fn take(&self) -> Box<Tar> {
        self.tar.lock().take().unwrap_or_else(Tar::new)
    }

    /// Takes the kept part of the stream after the archive.
    pub(super) fn take_behind(&self) -> Option<Vec<u8>> {
        self.behind.lock().take()
    }
}

/// The tar of a layer, as far as it has been hashed.
pub(super) struct Tar {
    hash: Sha256,
    scanner: TarScanner,
    /// The next entry of the zTOC.
    entry: usize,
    /// The first difference between the tar and the zTOC.
    fault: Option<Arc<str>>,
    at: u64,
    /// For spans that are read from the store. Kept, because a new one costs as much as the hash.
    buffer: Vec<u8>,
}

impl Tar {
    fn new() -> Box<Tar> {
        Box::new(Tar {
            hash: Sha256::new(),
            scanner: TarScanner::new(Policy::Ztoc),
            entry: 0,
            fault: None,
            at: 0,
            buffer: Vec::new(),
        })
    }

    pub(super) fn push(&mut self, ztoc: &ZtocFile, bytes: &[u8]) {
        self.hash.update(bytes);
        self.at += bytes.len() as u64;
        if self.fault.is_some() {
            return;
        }
        let mut against = Against {
            ztoc: ztoc.view(),
            entry: &mut self.entry,
            fault: &mut self.fault,
        };
        if let Err(error) = self.scanner.feed(bytes, &mut against) {
            self.fault = Some(error.to_string().into());
        }
    }

    /// Reads on from the store while spans are present, at most about `most` bytes. Returns true at
    /// the end of the archive.
    pub(super) fn read_on(&mut self, data: &Data, ztoc: &ZtocFile, most: u64) -> io::Result<bool> {
        let spans = ztoc.spans();
        let end = self.at.saturating_add(most);
        while self.at < spans.archive_size() {
            let Some(span) = spans.at(self.at) else { break };
            let _reading = data.reading();
            if self.at >= end || !data.files.present.has(span.0) {
                return Ok(false);
            }
            let tar = spans.uncompressed(span);
            let len = usize::try_from(tar.end - tar.start).unwrap_or(usize::MAX);
            let mut buffer = mem::take(&mut self.buffer);
            if buffer.len() < len {
                buffer.resize(len, 0);
            }
            let bytes = buffer.get_mut(..len).unwrap_or_default();
            data.read_tar(tar, &[], bytes)?;
            let sum = data.files.sums.get(span.0)?;
            if sum.is_some_and(|sum| sum != data.files.sums.of(bytes)) {
                let what = format!("span {} does not match its checksum", span.0);
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            self.push(ztoc, bytes);
            self.buffer = buffer;
        }
        Ok(true)
    }

    /// Hashes the part of a span's stream after the archive. If the stream does not decode there,
    /// the layer is faulty.
    pub(super) fn push_behind(
        &mut self,
        ztoc: &ZtocFile,
        span: SpanId,
        bytes: &[u8],
    ) -> Result<(), VerifyError> {
        let spans = ztoc.spans();
        let verified = VerifiedSpan::verify(span, bytes, spans)?;
        let archive = spans.uncompressed(span);
        let mut skip = usize::try_from(archive.end - archive.start).unwrap_or(usize::MAX);
        let view = ztoc.view();
        let decoded =
            Decoder::new().decode_to_end(&verified, &view.checkpoint(span), spans, |piece| {
                let behind = piece.get(skip.min(piece.len())..).unwrap_or_default();
                skip = skip.saturating_sub(piece.len());
                self.push(ztoc, behind);
                ControlFlow::Continue(())
            });
        if let Err(error) = decoded {
            self.fault.get_or_insert_with(|| error.to_string().into());
        }
        Ok(())
    }

    /// The stream has ended: returns the result.
    pub(super) fn finish(self, ztoc: &ZtocFile) -> Proof {
        let stated = ztoc.view().entry_count();
        let fault = self.fault.or_else(|| match self.scanner.finish() {
            Err(error) => Some(error.to_string().into()),
            Ok(_) if self.entry < stated => {
                let (found, stated) = (self.entry, stated);
                Some(format!("the tar has {found} entries, the zTOC {stated}").into())
            }
            Ok(_) => None,
        });
        match fault {
            Some(why) => Proof::False(why),
            None => Proof::Tar(Digest::from_sha256(self.hash.finalize().into())),
        }
    }
}

/// Compares the entries of a tar with those of its zTOC.
struct Against<'a> {
    ztoc: Ztoc<'a>,
    entry: &'a mut usize,
    fault: &'a mut Option<Arc<str>>,
}

impl TarSink for Against<'_> {
    fn entry(&mut self, found: &Entry<'_>) {
        if self.fault.is_some() {
            return;
        }
        let name = || String::from_utf8_lossy(found.name).into_owned();
        *self.fault = match self.ztoc.entry(*self.entry) {
            None => Some(format!("the zTOC omits the entry {:?}", name()).into()),
            Some(stated) if stated.header() != found.header() || stated.offset != found.offset => {
                Some(
                    format!(
                        "the zTOC has a different position for the entry {:?}",
                        name()
                    )
                    .into(),
                )
            }
            Some(stated) => disagreement(found, &stated).map(|field| {
                format!("tar and zTOC disagree about the {field} of {:?}", name()).into()
            }),
        };
        *self.entry += 1;
    }
}
