//! From manifests to SOCI indexes: a zTOC for every layer that gets one.
//!
//! The layers of all manifests are one list of jobs for a few plain threads, the largest first, so
//! that no core waits while there is work. A job streams its layer from the store through the zTOC
//! builder into an unlinked temporary file, and from there into the store: memory grows with the
//! number of a layer's entries, not with its size. A layer that several manifests share is read once.
//!
//! Results are told in the order of the manifests and their layers, whatever order they come in.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write as _};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use soci_oci::digest::Sha256Writer;
use soci_oci::media_type::{self, LayerCompression};
use soci_oci::store::{Content, ContentStore, StoreError};
use soci_oci::{Descriptor, Digest, Manifest};
use soci_ztoc::{BuiltZtoc, Compression};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::model::{
    DISABLE_XATTRS, LAYER_DIGEST, LAYER_MEDIA_TYPE, PREFETCH_MEDIA_TYPE, SPAN_SIZE, SociIndex,
    Version, ZTOC_MEDIA_TYPE,
};

/// Layers below this many bytes get no zTOC unless asked for; as the reference.
pub const DEFAULT_MIN_LAYER_SIZE: u64 = 10 << 20;

/// A whiteout that makes a folder opaque ends so; it stands for an extended attribute.
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";

/// What a build is asked for.
#[derive(Debug, Clone, Copy)]
pub struct BuildOptions {
    /// Uncompressed bytes between checkpoints.
    pub span_size: u64,
    /// Layers of fewer bytes (compressed) are skipped.
    pub min_layer_size: u64,
    /// State on layers without extended attributes that they have none.
    pub mark_xattrs: bool,
    /// Layers that are worked on at once.
    pub threads: NonZeroUsize,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self {
            span_size: soci_ztoc::DEFAULT_SPAN_SIZE,
            min_layer_size: DEFAULT_MIN_LAYER_SIZE,
            mark_xattrs: false,
            threads: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        }
    }
}

/// Something to tell about a layer. Displayed, all but [`Note::Warning`] are the reference's lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// Too small to be worth it.
    Small {
        /// The layer.
        layer: Descriptor,
        /// The limit in bytes.
        limit: u64,
    },
    /// No zTOC can be made of this compression.
    Unsupported {
        /// The layer.
        layer: Descriptor,
        /// Its compression.
        compression: LayerCompression,
    },
    /// There is a zTOC now.
    Built {
        /// The layer.
        layer: Digest,
        /// The zTOC.
        ztoc: Digest,
    },
    /// The zTOC that was made for the same layer before.
    Reused {
        /// The layer.
        layer: Digest,
        /// The zTOC.
        ztoc: Digest,
    },
    /// The zTOC is as the reference's, and will not serve.
    Warning {
        /// The layer.
        layer: Digest,
        /// What is wrong with it.
        warning: soci_ztoc::Warning,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let skipped = |f: &mut fmt::Formatter<'_>, layer: &Descriptor| {
            write!(
                f,
                "ztoc skipped - layer {} ({}) ",
                layer.digest, layer.media_type
            )
        };
        match self {
            Self::Small { layer, limit } => {
                skipped(f, layer)?;
                write!(f, "size {} is less than min-layer-size {limit}", layer.size)
            }
            Self::Unsupported { layer, compression } => {
                skipped(f, layer)?;
                f.write_str("is compressed in an unsupported format. ")?;
                write!(f, "expect: [tar, gzip, unknown] but got \"{compression}\"")
            }
            Self::Built { layer, ztoc } => write!(f, "layer {layer} -> ztoc {ztoc}"),
            Self::Reused { layer, ztoc } => {
                write!(f, "layer {layer} -> ztoc {ztoc} (already exists)")
            }
            Self::Warning { layer, warning } => write!(f, "layer {layer}: {warning}"),
        }
    }
}

/// Is told what happens.
pub trait Observer: Send + Sync {
    /// This many bytes of layers will be read.
    fn planned(&self, bytes: u64);
    /// This many bytes of layers were read since the last call.
    fn read(&self, bytes: u64);
    /// Something is to be told.
    fn note(&self, note: &Note);
}

/// Why a layer gets no zTOC though it should.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// A member of the manifest's layers that is no layer.
    #[error("not a layer mediaType: {digest} is {media_type:?}")]
    NoLayer {
        /// The member.
        digest: Digest,
        /// Its type.
        media_type: String,
    },
    /// A layer of unknown kind.
    #[error("could not determine layer compression: {0}")]
    Type(#[from] media_type::UnknownLayerType),
    /// The store does not give the layer or take the zTOC.
    #[error("layer {layer}")]
    Store {
        /// The layer.
        layer: Digest,
        /// What the store says.
        source: Box<StoreError>,
    },
    /// Not a layer that can have a zTOC.
    #[error("layer {layer}")]
    Build {
        /// The layer.
        layer: Digest,
        /// What is wrong with it.
        source: soci_ztoc::BuildError,
    },
    /// The zTOC cannot be written.
    #[error("layer {layer}: write ztoc")]
    Encode {
        /// The layer.
        layer: Digest,
        /// Why.
        source: soci_ztoc::EncodeError,
    },
    /// The temporary file of a zTOC cannot be written.
    #[error("layer {layer}: write ztoc to a temporary file")]
    Temporary {
        /// The layer.
        layer: Digest,
        /// Why.
        source: io::Error,
    },
    /// Another layer failed first, or the caller went away.
    #[error("layer {0}: given up")]
    Stopped(Digest),
}

/// Why a manifest gets no index.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No layer qualified.
    #[error("no ztocs created, all layers either skipped or produced errors")]
    Empty,
    /// Some layers should have a zTOC and cannot.
    #[error("errors encountered while building soci layers; {}", joined(.0))]
    Layers(Vec<LayerError>),
    /// A thread panicked.
    #[error("a thread that builds ztocs ended without a result")]
    Lost,
    /// No thread could be started.
    #[error("start a thread")]
    Thread(#[source] io::Error),
}

fn joined(errors: &[LayerError]) -> String {
    errors
        .iter()
        .map(|error| explain(error))
        .collect::<Vec<_>>()
        .join("; ")
}

/// An error and its causes in one line; a cause that its error repeats is told once.
fn explain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        next = cause.source();
    }
    text
}

/// What becomes of one layer.
enum Plan {
    Ignore,
    Skip(Box<Note>),
    /// The job with this number makes its zTOC.
    Build(usize),
}

/// One layer to be read.
#[derive(Debug, Clone)]
struct Job {
    layer: Descriptor,
    compression: Compression,
}

/// What a job made.
#[derive(Debug, Clone)]
struct Made {
    digest: Digest,
    size: u64,
    no_xattrs: bool,
    warnings: Vec<soci_ztoc::Warning>,
}

/// Builds a version 2 index for each manifest. The result has one member for each; the first error
/// other than [`BuildError::Empty`] ends everything.
pub async fn build(
    store: &Arc<dyn ContentStore>,
    manifests: &[Manifest],
    options: BuildOptions,
    observer: &Arc<dyn Observer>,
) -> Result<Vec<Result<SociIndex, BuildError>>, BuildError> {
    let mut jobs = Jobs::default();
    let mut plans = Vec::new();
    for manifest in manifests {
        plans.push(jobs.plan(manifest, &options)?);
    }
    let mut results = Results::start(jobs.list, Arc::clone(store), options, observer)?;
    let mut indexes = Vec::new();
    let mut told = vec![false; results.slots.len()];
    for (manifest, plans) in manifests.iter().zip(plans) {
        let mut descriptors = Vec::new();
        for (layer, plan) in manifest.layers().iter().zip(plans) {
            match plan {
                Plan::Ignore => {}
                Plan::Skip(note) => observer.note(&note),
                Plan::Build(job) => {
                    let made = results.get(job).await?;
                    let reused = std::mem::replace(&mut told[job], true);
                    tell(observer.as_ref(), layer, &made, reused);
                    descriptors.push(descriptor(layer, &made, &options));
                }
            }
        }
        indexes.push(if descriptors.is_empty() {
            Err(BuildError::Empty)
        } else {
            Ok(SociIndex::new(Version::V2, descriptors, None))
        });
    }
    Ok(indexes)
}

fn tell(observer: &dyn Observer, layer: &Descriptor, made: &Made, reused: bool) {
    let (layer, ztoc) = (layer.digest, made.digest);
    if reused {
        return observer.note(&Note::Reused { layer, ztoc });
    }
    for warning in &made.warnings {
        observer.note(&Note::Warning {
            layer,
            warning: warning.clone(),
        });
    }
    observer.note(&Note::Built { layer, ztoc });
}

fn descriptor(layer: &Descriptor, made: &Made, options: &BuildOptions) -> Descriptor {
    let mut descriptor = Descriptor::new(ZTOC_MEDIA_TYPE, made.digest, made.size);
    let mut annotate =
        |key: &str, value: String| descriptor.annotations.insert(key.to_owned(), value);
    annotate(LAYER_DIGEST, layer.digest.to_string());
    annotate(LAYER_MEDIA_TYPE, layer.media_type.clone());
    annotate(SPAN_SIZE, options.span_size.to_string());
    if options.mark_xattrs && made.no_xattrs {
        annotate(DISABLE_XATTRS, "true".to_owned());
    }
    descriptor
}

/// The distinct layers of all manifests.
#[derive(Default)]
struct Jobs {
    list: Vec<Job>,
    by_layer: HashMap<(Digest, bool), usize>,
}

impl Jobs {
    fn plan(
        &mut self,
        manifest: &Manifest,
        options: &BuildOptions,
    ) -> Result<Vec<Plan>, BuildError> {
        let (mut plans, mut errors) = (Vec::new(), Vec::new());
        for layer in manifest.layers() {
            match self.plan_layer(layer, options) {
                Ok(plan) => plans.push(plan),
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() {
            Ok(plans)
        } else {
            Err(BuildError::Layers(errors))
        }
    }

    fn plan_layer(
        &mut self,
        layer: &Descriptor,
        options: &BuildOptions,
    ) -> Result<Plan, LayerError> {
        let media_type = &layer.media_type;
        if media_type == PREFETCH_MEDIA_TYPE {
            return Ok(Plan::Ignore);
        }
        if !media_type::is_layer(media_type) {
            let media_type = media_type.clone();
            return Err(LayerError::NoLayer {
                digest: layer.digest,
                media_type,
            });
        }
        if layer.size < options.min_layer_size {
            let limit = options.min_layer_size;
            let layer = layer.clone();
            return Ok(Plan::Skip(Box::new(Note::Small { layer, limit })));
        }
        let compression = match media_type::layer_compression(media_type)? {
            LayerCompression::Gzip => Compression::Gzip,
            LayerCompression::Uncompressed | LayerCompression::Unknown => Compression::Plain,
            compression @ (LayerCompression::Zstd | LayerCompression::Unresolved) => {
                let layer = layer.clone();
                return Ok(Plan::Skip(Box::new(Note::Unsupported {
                    layer,
                    compression,
                })));
            }
        };
        let is_gzip = compression == Compression::Gzip;
        let number = *self
            .by_layer
            .entry((layer.digest, is_gzip))
            .or_insert_with(|| {
                self.list.push(Job {
                    layer: layer.clone(),
                    compression,
                });
                self.list.len() - 1
            });
        Ok(Plan::Build(number))
    }
}

/// The results of the jobs, as they come in. Dropping it makes the threads give up.
struct Results {
    slots: Vec<Option<Made>>,
    incoming: mpsc::Receiver<(usize, Result<Made, LayerError>)>,
    stop: Arc<AtomicBool>,
}

impl Drop for Results {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Results {
    fn start(
        jobs: Vec<Job>,
        store: Arc<dyn ContentStore>,
        options: BuildOptions,
        observer: &Arc<dyn Observer>,
    ) -> Result<Self, BuildError> {
        observer.planned(jobs.iter().map(|job| job.layer.size).sum());
        let mut order: Vec<usize> = (0..jobs.len()).collect();
        order.sort_by_key(|&job| std::cmp::Reverse(jobs[job].layer.size));
        // Room for every result: a thread never waits for the reader of results.
        let (sender, incoming) = mpsc::channel(jobs.len().max(1));
        let slots = vec![None; jobs.len()];
        let stop = Arc::new(AtomicBool::new(false));
        let threads = options.threads.get().min(jobs.len());
        let work = Arc::new(Work {
            jobs,
            order,
            next: AtomicUsize::new(0),
            store,
            options,
            observer: Arc::clone(observer),
            stop: Arc::clone(&stop),
            runtime: Handle::current(),
        });
        let results = Self {
            slots,
            incoming,
            stop,
        };
        for number in 0..threads {
            let (work, sender) = (Arc::clone(&work), sender.clone());
            thread::Builder::new()
                .name(format!("ztoc-{number}"))
                .spawn(move || work.run(&sender))
                .map_err(BuildError::Thread)?;
        }
        Ok(results)
    }

    /// The result of a job, waiting for it. An error that any job had meanwhile comes first.
    async fn get(&mut self, job: usize) -> Result<Made, BuildError> {
        loop {
            if let Some(made) = &self.slots[job] {
                return Ok(made.clone());
            }
            match self.incoming.recv().await {
                Some((number, Ok(made))) => self.slots[number] = Some(made),
                Some((_, Err(first))) => return Err(self.errors(first).await),
                None => return Err(BuildError::Lost),
            }
        }
    }

    /// Stops what is not finished and collects what else went wrong.
    async fn errors(&mut self, first: LayerError) -> BuildError {
        self.stop.store(true, Ordering::Relaxed);
        let mut errors = vec![first];
        while let Some((_, result)) = self.incoming.recv().await {
            errors.extend(result.err());
        }
        errors.retain(|error| !matches!(error, LayerError::Stopped(_)));
        BuildError::Layers(errors)
    }
}

/// What the threads share.
struct Work {
    jobs: Vec<Job>,
    /// Numbers of jobs, the largest layer first.
    order: Vec<usize>,
    next: AtomicUsize,
    store: Arc<dyn ContentStore>,
    options: BuildOptions,
    observer: Arc<dyn Observer>,
    stop: Arc<AtomicBool>,
    runtime: Handle,
}

impl Work {
    fn run(&self, results: &mpsc::Sender<(usize, Result<Made, LayerError>)>) {
        while !self.stopped() {
            let at = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(&number) = self.order.get(at) else {
                break;
            };
            let result = self.job(&self.jobs[number]);
            let failed = result.is_err();
            if failed {
                self.stop.store(true, Ordering::Relaxed);
            }
            if results.blocking_send((number, result)).is_err() {
                break;
            }
        }
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn job(&self, job: &Job) -> Result<Made, LayerError> {
        let layer = job.layer.digest;
        let store = |source| LayerError::Store {
            layer,
            source: Box::new(source),
        };
        let blob = self
            .runtime
            .block_on(self.store.open(&layer))
            .map_err(store)?;
        let reader = Watched {
            inner: blob.verified(&job.layer).map_err(store)?,
            work: self,
        };
        let options = soci_ztoc::BuildOptions {
            span_size: self.options.span_size,
            ..soci_ztoc::BuildOptions::default()
        };
        let built = soci_ztoc::Builder::new(options).build(reader, job.compression);
        if self.stopped() {
            return Err(LayerError::Stopped(layer));
        }
        let mut built = built.map_err(|source| LayerError::Build { layer, source })?;
        let (file, digest, size) = write(&mut built, layer)?;
        let ztoc = Descriptor::new(ZTOC_MEDIA_TYPE, digest, size);
        let put = self.store.put(&ztoc, Content::File(file));
        self.runtime.block_on(put).map_err(store)?;
        let no_xattrs = self.options.mark_xattrs && has_no_xattrs(&built);
        Ok(Made {
            digest,
            size,
            no_xattrs,
            warnings: built.warnings().to_vec(),
        })
    }
}

fn write(built: &mut BuiltZtoc, layer: Digest) -> Result<(File, Digest, u64), LayerError> {
    let temporary = |source| LayerError::Temporary { layer, source };
    let file = tempfile::tempfile().map_err(temporary)?;
    let mut out = Sha256Writer::new(BufWriter::with_capacity(256 << 10, file));
    built
        .encode(&mut out)
        .map_err(|source| LayerError::Encode { layer, source })?;
    out.flush().map_err(temporary)?;
    let (out, digest, size) = out.finish();
    let file = out
        .into_inner()
        .map_err(|error| temporary(error.into_error()))?;
    Ok((file, digest, size))
}

fn has_no_xattrs(built: &BuiltZtoc) -> bool {
    built
        .toc()
        .entries()
        .all(|entry| entry.xattrs().next().is_none() && !entry.name.ends_with(OPAQUE_MARKER))
}

/// Counts what is read, and ends with an error when nobody wants it any more.
struct Watched<'a, R> {
    inner: R,
    work: &'a Work,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.work.stopped() {
            return Err(io::Error::other("given up"));
        }
        let read = self.inner.read(buffer)?;
        self.work.observer.read(read as u64);
        Ok(read)
    }
}
