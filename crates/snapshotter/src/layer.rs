//! One layer: makes a range of its `data` available and reads it. Knows nothing about images, FUSE,
//! or mount points.
//!
//! Every read is answered exactly once, from any thread, and no thread waits for the network. No
//! bytes reach a reader or `data` before the digest of their span matches the zTOC, and no byte of
//! a file is returned before its tar header matches the zTOC's entry. If a header does not match,
//! every read of the file fails and the layer never becomes complete.
//!
//! [`Layer`] is made of parts. Each part knows only those below it:
//!
//! ```text
//! completion  downloads the rest, makes it durable, proves the tar
//! spans       tracks which read waits for which span; demands, verifies, and decompresses spans
//! passing     hashes the tar while its bytes are stored
//! data        files, places, marks, headers: reads and writes, without network access
//! trouble, named   recent failures; the images that name the layer, and its sources
//! starts      notes what was read first
//! tally       counts of downloads and waits, which outlive the open layer
//! ```
//!
//! [`Layers`] is the set of open layers on the node with their tasks. `stream` downloads a layer
//! whole.

use std::{fmt, io, ops::Range, path::PathBuf};

use bytes::Bytes;
use soci_oci::Digest;
use soci_ztoc::SpanId;
use tokio::{sync::watch, time::Instant};

use crate::{
    fetch::Source,
    metrics::Pause,
    places::Places,
    store::{LayerFiles, LayerKey, LayerNumber, sources::Sources},
    sync::Arc,
};

mod completion;
mod context;
mod data;
mod error;
mod expected;
mod layers;
mod named;
mod paced;
mod passing;
mod spans;
mod sparse;
mod starts;
mod state;
mod stream;
mod tally;
#[cfg(test)]
mod tests;
mod trouble;
mod writeback;

pub use completion::ProveError;
pub use context::Options;
pub use data::Entries;
pub use error::{ReadError, Subject};
pub use expected::Expected;
pub use layers::{Layers, Lazy, OpenError, Pace, Repairs, Scrubbed, UseOrder, Whole};
pub use paced::{Drops, Paced};
pub use spans::{ReadWait, Replayed, SpanWait, drop_scratch};
pub use starts::{Note, Notes, StartUse};
pub use state::LayerState;
pub use stream::{Program, Programs, StreamError, WholeOptions};
pub use tally::{Counts, Fetched};

use completion::Completion;
use context::Context;
use data::Data;
use named::Named;
use passing::Passing;
use spans::Spans;
use trouble::Trouble;

/// Receives the result of one read. Called once, on any thread, so it must not block.
pub type ReadDone = Box<dyn FnOnce(Result<Bytes, ReadError>) + Send>;

/// The `data` of a layer as the node's device sees it.
pub trait DeviceFile: Send + Sync {
    /// The number of the layer in the store: at least 2, and never reused.
    fn number(&self) -> u64;

    /// Size in bytes.
    fn size(&self) -> u64;

    /// Reads `len` bytes at `offset`, which must be inside the file. Calls `done` once, from any
    /// thread, with exactly these bytes or an error. Does not wait for the network.
    fn read(self: Arc<Self>, offset: u64, len: u32, done: ReadDone);
}

/// The progress of a layer.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Number of stored spans.
    pub spans_present: usize,
    /// Total number of spans.
    pub spans_total: usize,
    /// Compressed bytes downloaded for a waiting reader or for readahead.
    pub bytes_fetched_on_demand: u64,
    /// Compressed bytes downloaded in the background, or by downloading the layer whole.
    pub bytes_fetched_background: u64,
    /// Size of the compressed layer in bytes.
    pub bytes_total: u64,
    /// Spans that readahead requested and that were then read, and those that were not.
    pub guesses: (u64, u64),
    /// Every span is durable and every header matched.
    pub complete: bool,
    /// The most recent error.
    pub last_error: Option<String>,
}

/// An open layer of the store. Shared by all images and mounts that use it.
pub struct Layer {
    data: Arc<Data>,
    named: Arc<Named>,
    trouble: Arc<Trouble>,
    spans: Arc<Spans>,
    completion: Arc<Completion>,
}

impl fmt::Debug for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Layer")
            .field("number", &self.number())
            .field("key", &self.key())
            .finish_non_exhaustive()
    }
}

impl Layer {
    fn new(context: &Arc<Context>, mut files: LayerFiles) -> Arc<Layer> {
        let starts = context.starts_of(&mut files);
        let trouble = Arc::new(Trouble::new(context.options.pause));
        let named = Arc::new(Named::new(files.sources.clone()));
        let data = Arc::new(Data::new(context, files, Arc::clone(&trouble)));
        let passing = Arc::new(Passing::new(Arc::clone(&data)));
        let spans = Arc::new(Spans::new(
            Arc::clone(context),
            Arc::clone(&data),
            Arc::clone(&named),
            Arc::clone(&trouble),
            Arc::clone(&passing),
            starts,
        ));
        let completion = Arc::new(Completion::new(
            Arc::clone(context),
            Arc::clone(&data),
            Arc::clone(&trouble),
            passing,
            Arc::clone(&spans),
        ));
        Arc::new(Layer {
            data,
            named,
            trouble,
            spans,
            completion,
        })
    }

    /// The layer's permanent number in the store.
    pub fn number(&self) -> LayerNumber {
        self.data.files.number
    }

    /// The identity of the layer.
    pub fn key(&self) -> LayerKey {
        self.data.files.key
    }

    /// Digest of the compressed layer.
    pub fn digest(&self) -> &Digest {
        self.data.digest()
    }

    /// Size of `data` in bytes, a multiple of 4 KiB.
    pub fn data_size(&self) -> u64 {
        self.places().data_size()
    }

    /// The file that the mounts of a complete layer use directly.
    pub fn data_path(&self) -> PathBuf {
        self.data.files.data_path()
    }

    /// The offsets of file contents in `data`: `places().data_of(entry index)`.
    pub fn places(&self) -> &Places {
        &self.data.files.places
    }

    /// The EROFS image for a patch (letters and digits; empty: unpatched), if it exists and is
    /// intact. Blocks on the disk.
    ///
    /// # Errors
    /// The system's.
    pub fn meta(&self, patch: &str) -> io::Result<Option<PathBuf>> {
        self.data.files.meta(patch)
    }

    /// Writes the EROFS image for a patch. It is rebuilt if a power failure damages it. Blocks on
    /// the disk.
    ///
    /// # Errors
    /// The system's and the writer's.
    pub fn write_meta(
        &self,
        patch: &str,
        content: impl FnOnce(&mut dyn io::Write) -> io::Result<()>,
    ) -> io::Result<PathBuf> {
        self.data.files.write_meta(patch, content)
    }

    /// The entries of the tar: from the zTOC or, for a layer that was downloaded whole, from a scan
    /// of its headers. Blocks on the disk.
    ///
    /// # Errors
    /// The system's; headers that no longer parse.
    pub fn entries(&self) -> io::Result<Entries> {
        self.data.entries()
    }

    /// The range of the tar that a span contains. `None` if the layer has no such span.
    pub fn tar_of(&self, span: u32) -> Option<Range<u64>> {
        let spans = self.data.ztoc()?.spans();
        (span < self.data.span_count()).then(|| spans.uncompressed(SpanId(span)))
    }

    /// Releases the memory of the zTOC's mapping. Its entries are not needed for now.
    pub fn release_entries(&self) {
        if let Some(ztoc) = self.data.ztoc() {
            ztoc.release();
        }
    }

    /// Downloads the spans of these ranges before the rest, in this order. Does nothing if the layer
    /// is complete or has no zTOC.
    pub fn prefetch(&self, ranges: impl IntoIterator<Item = Range<u64>>) {
        if !self.is_complete() {
            self.spans.set_first(ranges);
        }
    }

    /// Reads bytes of `data`. `done` is called exactly once: on this thread before this returns if
    /// everything is in memory and verified, otherwise later on the pool. Waits neither for the
    /// network nor for the disk. The head and tail of `data` are always available.
    pub fn read(self: &Arc<Self>, range: Range<u64>, done: ReadDone) {
        let reading = self.data.reading();
        let (counted, began) = (Arc::clone(&self.data), Instant::now());
        // The bytes must not be evicted before the answer is complete.
        let done: ReadDone = Box::new(move |answer| {
            drop(reading);
            if let Ok(bytes) = &answer {
                counted.count(|series| series.read(began.elapsed(), bytes.len()));
            }
            done(answer);
        });
        let Range { start, end } = range;
        if start > end || end > self.data_size() {
            return done(Err(ReadError::Outside {
                subject: self.data.subject(None),
                start,
                end,
            }));
        }
        if self.data.ztoc().is_none() || self.is_complete() {
            self.data.answer(range, done);
        } else {
            self.spans.read(range, done);
        }
    }

    /// Whether every span is durable in `data` and every header matched, so that mounts may use
    /// `data` directly.
    pub fn is_complete(&self) -> bool {
        self.completion.is_complete()
    }

    /// Whether it was downloaded whole and verified, whatever of it is stored now.
    pub(crate) fn was_whole(&self) -> bool {
        self.data.files.sources.diff_id.is_some()
    }

    /// Becomes true when the layer is complete. The receiver may be dropped at any time.
    pub fn completion(&self) -> watch::Receiver<bool> {
        self.completion.watch()
    }

    /// The progress of the layer.
    pub fn progress(&self) -> Progress {
        let Counts {
            on_demand,
            background,
            ..
        } = self.spans.tally().counts();
        Progress {
            spans_present: self.data.files.present.count(),
            spans_total: self.data.files.present.len(),
            bytes_fetched_on_demand: on_demand.bytes,
            bytes_fetched_background: background.bytes,
            bytes_total: self.data.files.sources.layer.size,
            guesses: self.spans.guesses(),
            complete: self.is_complete(),
            last_error: self.trouble.last_error(),
        }
    }

    /// The state of the layer.
    fn state(&self) -> LayerState {
        let counts = self.spans.tally().counts();
        let last_error = self.trouble.last_error();
        LayerState {
            complete: self.is_complete(),
            spans: self.data.files.present.len(),
            spans_present: self.data.files.present.count(),
            bytes: self.data.files.sources.layer.size,
            last_error: last_error.or_else(|| counts.last_error.clone()),
            counts,
        }
    }

    /// Why the background downloads nothing of the layer now, although it is incomplete.
    pub(crate) fn paused(&self) -> Option<Pause> {
        let downloads = !self.is_complete() && !self.completion.rests();
        self.trouble.paused().filter(|_| downloads)
    }

    /// The content of the file `sources`.
    pub fn record(&self) -> Sources {
        self.named.record()
    }

    /// Adds a source, before the existing ones, and replaces an older source of the same
    /// repository. Everything that waits for a source continues.
    pub fn add_source(&self, source: Source) {
        self.named.add_source(source);
        self.trouble.start_over();
        self.spans.look_again();
    }

    /// The layer is being removed: fails waiting reads and requests nothing more.
    fn close(&self) {
        self.spans.close();
    }

    /// Whether no read waits, no job runs, and completion is not running. Each of these holds a
    /// part.
    fn is_idle(&self) -> bool {
        // The two references are this layer's and the completion's.
        Arc::strong_count(&self.completion) == 1 && Arc::strong_count(&self.spans) == 2
    }
}

impl DeviceFile for Layer {
    fn number(&self) -> u64 {
        self.data.files.number.0
    }

    fn size(&self) -> u64 {
        self.data_size()
    }

    fn read(self: Arc<Self>, offset: u64, len: u32, done: ReadDone) {
        let end = offset.saturating_add(u64::from(len));
        Layer::read(&self, offset..end, done);
    }
}
