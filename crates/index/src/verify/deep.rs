//! Compares a layer with its zTOC byte by byte. One pass hashes the layer and each span at its
//! position in the zTOC, and builds a new zTOC to compare with the existing one. The archive that
//! the builder decompresses is hashed for the comparison with the diff-IDs.

use std::io::{self, Read, Write as _};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use soci_oci::digest::{Sha256Writer, Verifier};
use soci_oci::{Descriptor, Digest};
use soci_store::Blob;
use soci_ztoc::{
    BuildError, BuildOptions, Builder, BuiltZtoc, Checkpoint, GzipError, SpanId, SpanMap, Ztoc,
    disagreement,
};

use super::Problem;
use super::unpacked::{ArchiveHash, Unpacked};

/// Maximum number of wrong spans, and of wrong entries, to report individually per layer.
const TOLD: usize = 5;

/// The problems that a pass found.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) bytes: u64,
    /// Whether the layer was read to its end.
    pub(super) is_read: bool,
    pub(super) layer: Vec<Problem>,
    pub(super) ztoc: Vec<Problem>,
    /// The digest of the unpacked layer, if it was computed.
    pub(super) diff_id: Option<Digest>,
}

/// A layer to read.
pub(super) struct Job {
    pub(super) layer: Descriptor,
    pub(super) blob: Blob,
    pub(super) ztoc: Option<Bytes>,
    /// Gives the algorithm for the digest of the unpacked layer, if that is needed.
    pub(super) diff_id: Option<Digest>,
    pub(super) progress: Arc<dyn Fn(u64) + Send + Sync>,
    /// Number of cores to use, and memory for data that is decompressed ahead.
    pub(super) threads: NonZeroUsize,
    pub(super) ahead: usize,
    /// Set when the outcome is no longer needed.
    pub(super) stop: Arc<AtomicBool>,
}

impl Job {
    /// Reads the layer. Blocks.
    pub(super) fn run(self) -> Outcome {
        let parsed = self
            .ztoc
            .as_deref()
            .and_then(|bytes| Ztoc::parse(bytes).ok());
        let mut outcome = Outcome::default();
        let (mut archive, unpacked) = self.hashes(parsed.is_some());
        let mut reader = Watched {
            inner: self.blob.reader,
            whole: Verifier::new(self.layer.digest),
            spans: parsed.as_ref().map(|ztoc| Spans::new(ztoc.spans())),
            progress: self.progress,
            stop: self.stop,
            failed: None,
            unpacked,
        };
        let built = parsed.as_ref().map(|ztoc| {
            let options = BuildOptions {
                span_size: ztoc.span_size(),
                threads: self.threads,
                ahead: self.ahead,
                // The reader already hashes the spans at their positions in this zTOC.
                hash_spans: false,
                ..BuildOptions::default()
            };
            Builder::new(options).build_with(&mut reader, ztoc.compression(), |bytes| {
                if let Some(archive) = &mut archive {
                    archive.update(bytes);
                }
            })
        });
        // A failed builder has not read everything.
        let rest = io::copy(&mut reader, &mut io::sink());
        outcome.bytes = reader.whole.length();
        let archive = archive.map(ArchiveHash::finish);
        let unpacked = match reader.unpacked.take() {
            Some(unpacked) => Some(unpacked.finish()),
            None => archive.zip(built.as_ref()).and_then(of_archive),
        };
        if let Some(error) = reader.failed.take().or(rest.err()) {
            outcome.layer.push(Problem::Unread(error));
            return outcome;
        }
        outcome.is_read = true;
        if outcome.bytes != self.layer.size {
            let problem = Problem::Size(self.layer.size, outcome.bytes);
            outcome.layer.push(problem);
        }
        if let Err(mismatch) = reader.whole.finish() {
            outcome.layer.push(Problem::Digest(*mismatch.actual));
        }
        outcome.ztoc = reader.spans.map(Spans::finish).unwrap_or_default();
        if let (Some(ztoc), Some(built)) = (&parsed, built) {
            compare(ztoc, built, &mut outcome);
        }
        match unpacked {
            // A damaged layer has been reported already.
            _ if !outcome.layer.is_empty() => {}
            Some(Err(error)) => outcome.layer.push(Problem::Unpack(error)),
            unpacked => outcome.diff_id = unpacked.and_then(Result::ok),
        }
        outcome
    }

    /// What hashes the archive: given by the builder if there is a zTOC, else from the layer.
    fn hashes(&self, has_ztoc: bool) -> (Option<ArchiveHash>, Option<Unpacked>) {
        match self.diff_id {
            None => (None, None),
            Some(expected) if has_ztoc => (Some(ArchiveHash::start(expected, self.threads)), None),
            Some(expected) => (None, Some(Unpacked::start(expected))),
        }
    }
}

/// The digest of the archive that a builder passed on; `None` if the builder failed, because the
/// archive is then incomplete.
fn of_archive(
    (digest, built): (Digest, &Result<BuiltZtoc, BuildError>),
) -> Option<Result<Digest, GzipError>> {
    let built = built.as_ref().ok()?;
    Some(match built.foreign_member() {
        Some(offset) => Err(GzipError::Data { offset }),
        None => Ok(digest),
    })
}

/// Adds the differences between the zTOC and the layer. If the layer itself is wrong, that has been
/// reported already, and the zTOC is not compared.
fn compare(ztoc: &Ztoc<'_>, built: Result<BuiltZtoc, BuildError>, outcome: &mut Outcome) {
    if !outcome.layer.is_empty() {
        return;
    }
    match built {
        Ok(built) => outcome.ztoc.extend(differences(ztoc, built)),
        Err(error) => outcome.layer.push(Problem::Layer(Box::new(error))),
    }
}

fn differences(ztoc: &Ztoc<'_>, mut built: BuiltZtoc) -> Vec<Problem> {
    let mut problems = match entries(ztoc, &mut built) {
        Ok(problems) => problems,
        Err(error) => return vec![Problem::Unread(error)],
    };
    let (own, other) = (ztoc.spans(), built.spans());
    let mut count = |what, own: u64, other: u64| {
        if own != other {
            problems.push(Problem::Count(what, own, other));
        }
        own == other
    };
    count(
        "bytes uncompressed",
        own.archive_size(),
        other.archive_size(),
    );
    if !count("spans", own.len() as u64, other.len() as u64) {
        return problems;
    }
    // The decompressor state at a checkpoint is only in the encoded bytes.
    let mut bytes = Vec::new();
    if built.encode(&mut bytes).is_ok()
        && let Ok(made) = Ztoc::parse(&bytes)
    {
        let wrong = own.ids().filter(|&id| !same_span(ztoc, &made, id));
        problems.extend(wrong.take(TOLD).map(|id| Problem::Checkpoint(id.0)));
    }
    problems
}

fn same_span(ztoc: &Ztoc<'_>, made: &Ztoc<'_>, id: SpanId) -> bool {
    let (own, other) = (ztoc.spans(), made.spans());
    // Old zTOCs do not contain the start of the first span.
    let begins = id.0 == 0 || own.compressed(id).start == other.compressed(id).start;
    begins
        && own.uncompressed(id).start == other.uncompressed(id).start
        && state(&ztoc.checkpoint(id)) == state(&made.checkpoint(id))
}

/// Returns the bits and the window. A window of zeros may be omitted.
fn state<'a>(checkpoint: &Checkpoint<'a>) -> Option<(u8, &'a [u8])> {
    match *checkpoint {
        Checkpoint::Plain => None,
        Checkpoint::Gzip { bits, window } => {
            let zeros = window.iter().all(|&byte| byte == 0);
            Some((bits, if zeros { &[] } else { window }))
        }
    }
}

fn entries(ztoc: &Ztoc<'_>, built: &mut BuiltZtoc) -> io::Result<Vec<Problem>> {
    let (own, other) = (ztoc.entry_count(), built.entry_count());
    let mut problems = Vec::new();
    let mut more = 0;
    let mut entries = ztoc.entries().enumerate();
    built.each_entry(|found| {
        let Some((number, entry)) = entries.next() else {
            return;
        };
        let place = (entry.offset != found.offset).then_some("place of its content");
        let Some(field) = disagreement(found, &entry).or(place) else {
            return;
        };
        if problems.len() < TOLD {
            let name = String::from_utf8_lossy(entry.name).into_owned();
            problems.push(Problem::Entry(number, name, field));
        } else {
            more += 1;
        }
    })?;
    if more > 0 {
        problems.push(Problem::MoreEntries(more));
    }
    if own != other {
        problems.push(Problem::Count("entries", own as u64, other as u64));
    }
    Ok(problems)
}

/// Forwards a layer's bytes and hashes them.
struct Watched {
    inner: Box<dyn Read + Send>,
    whole: Verifier,
    spans: Option<Spans>,
    progress: Arc<dyn Fn(u64) + Send + Sync>,
    stop: Arc<AtomicBool>,
    /// The first error of the store. Reading ends there.
    failed: Option<io::Error>,
    unpacked: Option<Unpacked>,
}

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) || self.failed.is_some() {
            return Err(io::Error::other("given up"));
        }
        let read = match self.inner.read(buffer) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                let kind = error.kind();
                self.failed = Some(error);
                return Err(kind.into());
            }
            read => read?,
        };
        let bytes = &buffer[..read];
        self.whole.update(bytes);
        if let Some(spans) = &mut self.spans {
            spans.update(bytes);
        }
        if let Some(unpacked) = &mut self.unpacked {
            unpacked.update(bytes);
        }
        (self.progress)(read as u64);
        Ok(read)
    }
}

/// Hashes spans at their positions in a zTOC. Adjacent spans may share a byte.
struct Spans {
    map: SpanMap,
    /// The span that contains the next bytes.
    next: u32,
    hash: Sha256Writer<io::Sink>,
    /// Number of bytes of the layer so far.
    at: u64,
    last: u8,
    problems: Vec<Problem>,
    more: usize,
}

impl Spans {
    fn new(map: SpanMap) -> Self {
        Self {
            map,
            next: 0,
            hash: Sha256Writer::new(io::sink()),
            at: 0,
            last: 0,
            problems: Vec::new(),
            more: 0,
        }
    }

    fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && (self.next as usize) < self.map.len() {
            let range = self.map.compressed(SpanId(self.next));
            let until = if self.at < range.start {
                range.start
            } else {
                range.end
            };
            let take =
                usize::try_from(until - self.at).map_or(bytes.len(), |it| it.min(bytes.len()));
            let (part, rest) = bytes.split_at(take);
            if self.at >= range.start {
                self.hash(part);
            }
            self.at += take as u64;
            self.last = part.last().copied().unwrap_or(self.last);
            bytes = rest;
            if self.at == range.end {
                self.end_of_span();
            }
        }
    }

    fn hash(&mut self, bytes: &[u8]) {
        // Writing to the hash cannot fail.
        self.hash.write_all(bytes).unwrap_or_default();
    }

    fn end_of_span(&mut self) {
        let hash = std::mem::replace(&mut self.hash, Sha256Writer::new(io::sink()));
        let (_, found, _) = hash.finish();
        let expected = Digest::from_sha256(*self.map.digest(SpanId(self.next)));
        if found == expected {
        } else if self.problems.len() < TOLD {
            self.problems
                .push(Problem::Span(self.next, found, expected));
        } else {
            self.more += 1;
        }
        self.next += 1;
        if (self.next as usize) < self.map.len()
            && self.map.compressed(SpanId(self.next)).start < self.at
        {
            self.hash(&[self.last]);
        }
    }

    fn finish(mut self) -> Vec<Problem> {
        if self.more > 0 {
            self.problems.push(Problem::MoreSpans(self.more));
        }
        if (self.next as usize) < self.map.len() {
            self.problems.push(Problem::ShortLayer(self.next));
        }
        self.problems
    }
}
