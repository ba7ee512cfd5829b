//! Builds zTOCs for the layers of manifests. The results ([`LayerOutcome`]) are reported in
//! manifest and layer order. Memory depends on the number of entries, not on the size of layers.
//!
//! `plan` decides what to do with each layer from its descriptor. The layers of all manifests form
//! one list of `jobs` for a few plain threads, largest first; a shared layer is read once. A job
//! (`layer`) reuses a suitable zTOC, or builds one in an unlinked temporary file and stores it.
//!
//! Layers that zTOCs cannot describe are left out, as are non-distributable layers that the store
//! does not have. If a manifest has no zTOCs at all, they are the reason why it has no index.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;

use soci_oci::{Descriptor, Digest, Manifest};
use soci_store::{Content, ContentStore};

use crate::artifacts::Artifacts;
use crate::model::ZTOC_MEDIA_TYPE;
use crate::model::{DISABLE_XATTRS, LAYER_DIGEST, LAYER_MEDIA_TYPE, SPAN_SIZE, SociIndex, Version};
use crate::prefetch::recorded::{self, Found};
use crate::prefetch::{self, Hit, PrefetchArtifact, SpanRange};
use crate::records;
use crate::reuse::ZtocSource;
use crate::starts::StartRecord;

mod error;
mod jobs;
mod layer;
mod outcome;
mod plan;

pub(crate) use error::explain;
pub use error::{BuildError, LayerError};
pub(crate) use layer::OPAQUE_MARKER;
pub use outcome::{LayerOutcome, Note, Observer, Outcome, Skip, Stage};

use jobs::Results;
pub(crate) use jobs::part;
use layer::{Facts, Made, MadeZtoc};
pub(crate) use plan::is_encrypted;
use plan::{Jobs, Plan};

/// Layers smaller than this many bytes get no zTOC by default. Same as the reference.
pub const DEFAULT_MIN_LAYER_SIZE: u64 = 10 << 20;

/// Options of a build.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// Uncompressed bytes between checkpoints.
    pub span_size: u64,
    /// Layers with fewer compressed bytes are skipped.
    pub min_layer_size: u64,
    /// Whether to mark layers without extended attributes in the index.
    pub mark_xattrs: bool,
    /// Number of cores to use.
    pub threads: NonZeroUsize,
    /// Number of layers to process concurrently, regardless of cores. Set it for layers that are
    /// read over a network, where one connection is seldom enough and many get in each other's way.
    /// `None` means as many as cores.
    pub at_once: Option<NonZeroUsize>,
    /// Names of files in the archives that nodes should fetch first. See [`prefetch::clean`].
    pub prefetch: Arc<[String]>,
    /// A recorded start of another build of the image. Nodes fetch what it read first.
    pub record: Option<Arc<StartRecord>>,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self {
            span_size: soci_ztoc::DEFAULT_SPAN_SIZE,
            min_layer_size: DEFAULT_MIN_LAYER_SIZE,
            mark_xattrs: false,
            threads: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            at_once: None,
            prefetch: Arc::new([]),
            record: None,
        }
    }
}

/// The stores and services that a build uses.
#[derive(Clone)]
pub struct BuildContext {
    /// Contains the image.
    pub source: Arc<dyn ContentStore>,
    /// Receives new blobs.
    pub store: Arc<dyn ContentStore>,
    /// Sources of existing zTOCs, in order of preference. If empty, all zTOCs are built.
    pub known: Vec<Arc<dyn ZtocSource>>,
    /// Where to record new blobs, if anywhere.
    pub records: Option<Artifacts>,
    /// Receives progress and results.
    pub observer: Arc<dyn Observer>,
}

impl fmt::Debug for BuildContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BuildContext")
            .field("source", &self.source)
            .field("store", &self.store)
            .field("known", &self.known)
            .field("records", &self.records)
            .finish_non_exhaustive()
    }
}

/// The results for the layers of one manifest.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The outcome of each layer, in order.
    pub layers: Vec<LayerOutcome>,
    /// The prefetch artifacts, in the order of their layers.
    pub prefetch: Vec<PrefetchArtifact>,
}

impl Parts {
    /// Creates the index, or returns `None` if no layer has a zTOC. In version 1, the subject is
    /// the image's manifest.
    #[must_use]
    pub fn index(&self, version: Version, subject: Option<Descriptor>) -> Option<SociIndex> {
        let ztocs = self.layers.iter().filter_map(LayerOutcome::ztoc);
        let blobs: Vec<Descriptor> = ztocs
            .chain(self.prefetch.iter().map(|artifact| &artifact.descriptor))
            .cloned()
            .collect();
        (!blobs.is_empty()).then(|| SociIndex::new(version, blobs, subject))
    }

    /// Whether any layer has a zTOC.
    pub(crate) fn has_ztocs(&self) -> bool {
        self.layers.iter().any(|layer| layer.ztoc().is_some())
    }

    /// The error to return if none of these manifests has an index.
    pub fn nothing<'a>(all: impl IntoIterator<Item = &'a Self>) -> BuildError {
        let refused = |outcome: &LayerOutcome| match &outcome.outcome {
            Outcome::Skipped(Skip::Entry(error)) => Some(LayerError::Build {
                layer: outcome.layer.digest,
                source: soci_ztoc::BuildError::Tar(error.clone()),
            }),
            _ => None,
        };
        let layers = all.into_iter().flat_map(|parts| &parts.layers);
        let refused: Vec<LayerError> = layers.filter_map(refused).collect();
        if refused.is_empty() {
            BuildError::Empty
        } else {
            BuildError::Refused(refused)
        }
    }
}

/// Builds and stores the zTOCs and prefetch artifacts for the layers of each manifest. Returns one
/// result per manifest. The first error ends the build.
pub async fn build(
    context: &BuildContext,
    manifests: &[Manifest],
    options: &BuildOptions,
) -> Result<Vec<Parts>, BuildError> {
    let mut jobs = Jobs::default();
    let mut plans = Vec::new();
    for manifest in manifests {
        plans.push(jobs.plan(manifest, options)?);
    }
    let reported = vec![false; jobs.list.len()];
    let mut assembly = Assembly {
        context,
        options,
        results: Results::start(jobs.list, context, options)?,
        reported,
    };
    let mut all = Vec::new();
    for (manifest, plans) in manifests.iter().zip(plans) {
        all.push(assembly.manifest(manifest, plans).await?);
    }
    Ok(all)
}

/// What to prefetch of each layer with a zTOC, lowest first.
#[derive(Default)]
struct Wanted {
    named: Vec<(Digest, Vec<Hit>)>,
    recorded: Vec<(Digest, Vec<Found>)>,
}

impl Wanted {
    fn add(&mut self, layer: Digest, facts: &Facts) {
        self.named.push((layer, facts.wanted.clone()));
        self.recorded.push((layer, facts.recorded.clone()));
    }
}

/// Collects results and reports them in order.
struct Assembly<'a> {
    context: &'a BuildContext,
    options: &'a BuildOptions,
    results: Results,
    /// Whether the zTOC of each job has been reported.
    reported: Vec<bool>,
}

impl Assembly<'_> {
    async fn manifest(
        &mut self,
        manifest: &Manifest,
        plans: Vec<Plan>,
    ) -> Result<Parts, BuildError> {
        let mut layers = Vec::new();
        let mut wanted = Wanted::default();
        for (layer, plan) in manifest.layers().iter().zip(plans) {
            let outcome = match plan {
                Plan::Ignore => LayerOutcome::new(layer, Outcome::Ignored),
                Plan::Skip(skip) => LayerOutcome::new(layer, Outcome::Skipped(skip)),
                Plan::Build(job) => {
                    let made = self.results.get(job).await?;
                    if let Ok(ztoc) = &made.result {
                        wanted.add(layer.digest, &ztoc.facts);
                    }
                    self.outcome(layer, job, &made)
                }
            };
            if outcome.outcome != Outcome::Ignored {
                self.context
                    .observer
                    .note(&Note::Layer(Box::new(outcome.clone())));
            }
            layers.push(outcome);
        }
        let prefetch = self.prefetch(manifest, &wanted).await?;
        Ok(Parts { layers, prefetch })
    }

    fn outcome(&mut self, layer: &Descriptor, job: usize, made: &Made) -> LayerOutcome {
        let is_repeated = std::mem::replace(&mut self.reported[job], true);
        if !is_repeated {
            self.warn(layer, made);
        }
        let outcome = match &made.result {
            Err(skip) => Outcome::Skipped(skip.clone()),
            Ok(ztoc) => {
                let descriptor = descriptor(layer, ztoc, self.options);
                if is_repeated || ztoc.is_reused {
                    Outcome::Reused(descriptor)
                } else {
                    Outcome::Built(descriptor)
                }
            }
        };
        LayerOutcome {
            layer: layer.clone(),
            outcome,
            time: if is_repeated {
                Default::default()
            } else {
                made.time
            },
        }
    }

    fn warn(&self, layer: &Descriptor, made: &Made) {
        let layer = layer.digest;
        for reason in &made.rejected {
            let reason = reason.clone();
            let note = Note::NotReused { layer, reason };
            self.context.observer.note(&note);
        }
        for warning in &made.warnings {
            let warning = warning.clone();
            self.context
                .observer
                .note(&Note::Warning { layer, warning });
        }
    }

    /// The ranges of each layer that the record wants.
    fn recorded(
        &self,
        manifest: &Manifest,
        found: &[(Digest, Vec<Found>)],
    ) -> HashMap<Digest, Vec<SpanRange>> {
        let Some(record) = &self.options.record else {
            return HashMap::new();
        };
        let layers = manifest.layers().iter().map(|layer| layer.digest);
        let layers: Vec<Digest> = layers.collect();
        let wanted = recorded::select(record, &layers, found);
        let (files, lost) = (wanted.files, wanted.lost);
        if lost > 0 {
            self.context
                .observer
                .note(&Note::NotInLayers { files, lost });
        }
        wanted.ranges
    }

    /// Creates artifacts for the files to prefetch, from the layers that contain them.
    async fn prefetch(
        &self,
        manifest: &Manifest,
        wanted: &Wanted,
    ) -> Result<Vec<PrefetchArtifact>, BuildError> {
        let recorded = self.recorded(manifest, &wanted.recorded);
        let (artifacts, not_found) =
            prefetch::assign(&self.options.prefetch, &wanted.named, recorded);
        for path in not_found {
            let path = path.to_owned();
            self.context.observer.note(&Note::NotFound { path });
        }
        for artifact in &artifacts {
            let layer = artifact.layer;
            let content = Content::Bytes(artifact.bytes.clone());
            let put = self.context.store.put(&artifact.descriptor, content).await;
            put.map_err(|source| BuildError::Prefetch {
                layer,
                source: Box::new(source),
            })?;
            self.context.observer.note(&Note::Prefetch {
                layer,
                artifact: artifact.descriptor.digest,
            });
        }
        let entries = artifacts.iter().map(records::prefetch).collect();
        records::write(self.context.records.as_ref(), entries).await?;
        Ok(artifacts)
    }
}

fn descriptor(layer: &Descriptor, ztoc: &MadeZtoc, options: &BuildOptions) -> Descriptor {
    let mut descriptor = Descriptor::new(ZTOC_MEDIA_TYPE, ztoc.digest, ztoc.size);
    let mut annotate =
        |key: &str, value: String| descriptor.annotations.insert(key.to_owned(), value);
    annotate(LAYER_DIGEST, layer.digest.to_string());
    annotate(LAYER_MEDIA_TYPE, layer.media_type.clone());
    annotate(SPAN_SIZE, options.span_size.to_string());
    if options.mark_xattrs && ztoc.facts.no_xattrs {
        annotate(DISABLE_XATTRS, "true".to_owned());
    }
    descriptor
}
