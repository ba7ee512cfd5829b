//! A layer: ensure a range of its `data`, read it. It knows neither files of an image nor FUSE nor mount points.
//!
//! A read is answered once, from any thread; it waits for the network as a value. Nothing reaches a reader or `data` whose
//! span's digest did not match the zTOC, and no byte of a file before its tar header agreed with the zTOC's entry; a file
//! that disagrees is an error for every read, and its layer is never complete.
//!
//! [`Layer`] is put together of parts. Each knows those below it, and none above:
//!
//! ```text
//! completion  fetches the rest, makes it durable, proves the tar
//! spans       who waits for which span, demands, verify and inflate
//! passing     the tar's hash as its bytes go to the store
//! data        files, places, marks, headers: reads and writes, without the network
//! trouble, named   what went wrong lately; who names the layer and has its bytes
//! ```
//!
//! [`Layers`] are the open ones of the node, and the tasks and rounds that belong to them; `stream` pulls one whole.

use std::{fmt, io, ops::Range, path::PathBuf};

use bytes::Bytes;
use soci_oci::Digest;
use tokio::sync::watch;

use crate::{
    fetch::Source,
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
mod passing;
mod spans;
mod sparse;
mod stream;
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
pub use spans::{ReadWait, SpanWait, drop_scratch};
pub use stream::StreamError;

use completion::Completion;
use context::Context;
use data::Data;
use named::Named;
use passing::Passing;
use spans::Spans;
use trouble::Trouble;

/// Takes the outcome of one read. Called once, on any thread; it must not block.
pub type ReadDone = Box<dyn FnOnce(Result<Bytes, ReadError>) + Send>;

/// A layer's `data` as the node's device sees it.
pub trait DeviceFile: Send + Sync {
    /// The layer's number in the store: at least 2, never used for another layer.
    fn number(&self) -> u64;

    /// Bytes of the file.
    fn size(&self) -> u64;

    /// Brings `len` bytes from `offset` on, all inside the file, and calls `done` once, from any thread, with exactly
    /// these bytes or an error. Does not wait for the network.
    fn read(self: Arc<Self>, offset: u64, len: u32, done: ReadDone);
}

/// How far a layer is.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Spans in the store.
    pub spans_present: usize,
    /// Spans of the layer.
    pub spans_total: usize,
    /// Compressed bytes fetched because a reader waited or soon would.
    pub bytes_fetched_on_demand: u64,
    /// Compressed bytes fetched by completion, or by pulling the layer whole.
    pub bytes_fetched_background: u64,
    /// Compressed bytes of the layer.
    pub bytes_total: u64,
    /// Spans that were guessed ahead of readers and then read; and those that were not.
    pub guesses: (u64, u64),
    /// Every span is durable and every header agreed.
    pub complete: bool,
    /// The last thing that went wrong.
    pub last_error: Option<String>,
}

/// One layer of the store, open. Shared by all images and mounts that have it.
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
    fn new(context: &Arc<Context>, files: LayerFiles) -> Arc<Layer> {
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

    /// Its stable number in the store.
    pub fn number(&self) -> LayerNumber {
        self.data.files.number
    }

    /// What it is known by.
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

    /// The file that a complete layer's mounts use directly.
    pub fn data_path(&self) -> PathBuf {
        self.data.files.data_path()
    }

    /// Where every file's content is in `data`: `places().data_of(entry ordinal)`.
    pub fn places(&self) -> &Places {
        &self.data.files.places
    }

    /// The EROFS image for a patch (letters and digits; empty: unpatched), if it is there and whole. Blocks on the disk.
    ///
    /// # Errors
    /// The system's.
    pub fn meta(&self, patch: &str) -> io::Result<Option<PathBuf>> {
        self.data.files.meta(patch)
    }

    /// Writes the EROFS image for a patch; one that a power loss tears is made again. Blocks on the disk.
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

    /// The entries of its tar: the zTOC's, or for a layer pulled whole what a scan of its headers finds. Blocks on the disk.
    ///
    /// # Errors
    /// The system's; headers that do not parse any more.
    pub fn entries(&self) -> io::Result<Entries> {
        self.data.entries()
    }

    /// The entries are not needed for now: the zTOC's pages no longer count as memory of this process.
    pub fn release_entries(&self) {
        if let Some(ztoc) = self.data.ztoc() {
            ztoc.release();
        }
    }

    /// Bytes of `data`. `done` is called exactly once: before this returns, on this thread, if everything is in memory and
    /// checked; else later, on the pool. Waits neither for the network nor for the disk. Head and tail of `data` are always
    /// there.
    pub fn read(self: &Arc<Self>, range: Range<u64>, done: ReadDone) {
        let reading = self.data.reading();
        // What is there stays until the answer was made.
        let done: ReadDone = Box::new(move |answer| {
            drop(reading);
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

    /// Every span is in `data` for good and every header agreed: mounts may use `data` directly.
    pub fn is_complete(&self) -> bool {
        self.completion.is_complete()
    }

    /// Becomes true when the layer is complete. The receiver outlives nothing: it may be dropped at any time.
    pub fn completion(&self) -> watch::Receiver<bool> {
        self.completion.watch()
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let (on_demand, background) = self.spans.bytes_fetched();
        Progress {
            spans_present: self.data.files.present.count(),
            spans_total: self.data.files.present.len(),
            bytes_fetched_on_demand: on_demand,
            bytes_fetched_background: background,
            bytes_total: self.data.files.sources.layer.size,
            guesses: self.spans.guesses(),
            complete: self.is_complete(),
            last_error: self.trouble.last_error(),
        }
    }

    /// What the store knows about it.
    pub fn record(&self) -> Sources {
        self.named.record()
    }

    /// One more place to fetch from, before the others; what was known of the same repository is replaced. What waits for a
    /// source goes on.
    pub fn add_source(&self, source: Source) {
        self.named.add_source(source);
        self.trouble.start_over();
        self.spans.look_again();
    }

    /// The layer is removed: what waits is answered, nothing more is asked for.
    fn close(&self) {
        self.spans.close();
    }

    /// Whether no read waits, no job runs and nothing completes it: parts are held by those.
    fn is_idle(&self) -> bool {
        // The spans are its own and the completion's.
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
