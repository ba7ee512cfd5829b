//! Downloads a layer without a zTOC: one sequential pass from the registry to `data`, `heads`, and
//! the list of entries.
//!
//! ```text
//! steps of the blob, downloaded in parallel, processed in order
//!   ├─▶ SHA-256 = the layer's digest
//!   └─▶ decompress ─┬─▶ SHA-256 = diff-ID
//!                   └─▶ tar scanner ─▶ contents to data, the rest to heads, entries to the plan
//! ```
//!
//! Everything goes into a draft that is not visible. It becomes a layer when both digests match.
//! Entries that unpacking ignores or rejects are ignored or rejected here too.

use std::{collections::VecDeque, io, ops::Range};

use bytes::Bytes;
use soci_oci::{Digest, Verifier, digest::DigestMismatch};
use soci_ztoc::{GzipError, LayerInflate, Policy, TarError, TarScanner};
use tokio::sync::oneshot;

use super::{Context, Whole};
use crate::{
    cpu::{Lane, Lost},
    fetch::{Class, Delivery, Demand, DemandError, Patience, Source},
    metrics::{self, Purpose},
    places::{self, PlaceError},
    store::{Draft, LayerFiles, StoreError, sources::Sources},
    sync::Arc,
};

mod files;

use files::Files;

/// Bytes per step: enough for a connection to reach its full rate.
const STEP: u64 = 2 << 20;
/// Steps requested ahead. Together with [`STEP`], the memory of one pass.
const STEPS: usize = 6;
/// Concurrent passes. Bounds their memory. Further passes wait.
pub(super) const PASSES: usize = 3;

/// Why a layer could not be downloaded whole.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The download failed.
    #[error("cannot download layer {layer}")]
    Fetch {
        /// The layer.
        layer: Box<Digest>,
        /// The cause.
        #[source]
        source: Box<DemandError>,
    },
    /// The downloaded bytes have the wrong digest.
    #[error("layer {layer} has the wrong digest")]
    Layer {
        /// The layer.
        layer: Box<Digest>,
        /// The mismatch.
        #[source]
        source: Box<DigestMismatch>,
    },
    /// The tar does not match the diff-ID in the image configuration.
    #[error("the tar in layer {layer} does not match its diff-ID")]
    DiffId {
        /// The layer.
        layer: Box<Digest>,
        /// The mismatch.
        #[source]
        source: Box<DigestMismatch>,
    },
    /// The layer cannot be decompressed.
    #[error("cannot decompress layer {layer}")]
    Gzip {
        /// The layer.
        layer: Box<Digest>,
        /// The cause.
        #[source]
        source: GzipError,
    },
    /// The content is not a tar, or one that unpacking rejects too.
    #[error("cannot use the tar in layer {layer}")]
    Tar {
        /// The layer.
        layer: Box<Digest>,
        /// The cause.
        #[source]
        source: TarError,
    },
    /// The tar has too many entries, or its files cannot be placed in `data`.
    #[error("cannot place the files of layer {layer}")]
    Places {
        /// The layer.
        layer: Box<Digest>,
        /// The cause.
        #[source]
        source: PlaceError,
    },
    /// The files cannot be written.
    #[error("cannot store layer {layer}")]
    Write {
        /// The layer.
        layer: Box<Digest>,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The files cannot be created or finished.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The pool lost the job.
    #[error(transparent)]
    Lost(#[from] Lost),
}

impl StreamError {
    /// Whether other bytes than those of the layer may have arrived.
    fn is_about_bytes(&self) -> bool {
        matches!(
            self,
            StreamError::Layer { .. } | StreamError::Gzip { .. } | StreamError::Tar { .. }
        )
    }
}

/// Downloads a layer. Wrong bytes of a mirror are downloaded once more, from the registry itself.
pub(super) async fn pull_from_any(
    context: &Arc<Context>,
    whole: Whole,
) -> Result<LayerFiles, StreamError> {
    let error = match pull(context, whole.clone()).await {
        Err(error) if error.is_about_bytes() => error,
        pulled => return pulled,
    };
    let has_others = |source: &Source| source.fetcher.distrust();
    if whole.sources.iter().filter(|it| has_others(it)).count() == 0 {
        return Err(error);
    }
    tracing::warn!(
        error = &error as &dyn std::error::Error,
        "a mirror may have sent wrong bytes; downloading the layer again from the registry itself"
    );
    pull(context, whole).await
}

/// Downloads a layer. Dropping the future removes its files.
async fn pull(context: &Arc<Context>, whole: Whole) -> Result<LayerFiles, StreamError> {
    let turn = context.passes.acquire().await;
    let store = Arc::clone(&context.store);
    let draft = context
        .cpu
        .run(Lane::Files, move || store.draft())
        .await??;
    let layer = whole.layer.digest;
    let mut pass = Pass::new(&whole, draft)?;
    let mut steps = Steps::new(context, &whole);
    while let Some(bytes) = steps.next().await {
        let bytes = bytes.map_err(|source| StreamError::Fetch {
            layer: Box::new(layer),
            source: Box::new(source),
        })?;
        let work = move || pass.push(&bytes).map(|()| pass);
        pass = context.cpu.run(Lane::ComputeBehind, work).await??;
    }
    let (store, sources) = (
        Arc::clone(&context.store),
        Sources {
            layer: whole.layer,
            ztoc: None,
            diff_id: Some(whole.diff_id),
            origins: [whole.origin].into(),
        },
    );
    let finish = move || {
        let (draft, table) = pass.finish()?;
        Ok(store.finish_whole(draft, sources, &table)?)
    };
    let files = context.cpu.run(Lane::Files, finish).await?;
    drop(turn);
    files
}

/// The steps of the blob in order, some of them requested ahead.
struct Steps<'a> {
    context: &'a Context,
    blob: Digest,
    sources: Arc<[Source]>,
    image: Arc<str>,
    left: Range<u64>,
    asked: VecDeque<oneshot::Receiver<Result<Delivery, DemandError>>>,
}

impl<'a> Steps<'a> {
    fn new(context: &'a Context, whole: &Whole) -> Steps<'a> {
        Steps {
            context,
            blob: whole.layer.digest,
            sources: whole.sources.clone().into(),
            image: Arc::from(whole.origin.reference.as_str()),
            left: 0..whole.layer.size,
            asked: VecDeque::new(),
        }
    }

    async fn next(&mut self) -> Option<Result<Bytes, DemandError>> {
        while self.asked.len() < STEPS && !self.left.is_empty() {
            self.ask();
        }
        let step = self.asked.pop_front()?;
        // Return the permit at once: what waits here is bounded by STEPS, and must not delay the
        // step that all later ones wait for.
        Some(
            step.await
                .unwrap_or(Err(DemandError::Closed))
                .map(|delivery| delivery.bytes),
        )
    }

    fn ask(&mut self) {
        let end = self.left.end.min(self.left.start + STEP);
        let range = self.left.start..end;
        self.left.start = end;
        let (tell, told) = oneshot::channel();
        self.asked.push_back(told);
        self.context.fetch.demand(Demand {
            blob: self.blob,
            range,
            class: Class::Pull,
            image: Arc::clone(&self.image),
            order: 0,
            sources: Arc::clone(&self.sources),
            avoid: None,
            patience: Patience::Budget,
            watch: None,
            sink: Box::new(move |outcome| {
                if let Ok(delivery) = &outcome {
                    let bytes = delivery.bytes.len() as u64;
                    metrics::global().fetched.add(Purpose::Whole, bytes);
                }
                // A failed send means that the pass was dropped.
                drop(tell.send(outcome.map(Delivery::without_permit)));
            }),
        });
    }
}

/// The state of the pass. Moves to the pool and back for each step.
struct Pass {
    layer: Digest,
    compressed: Verifier,
    tar: Verifier,
    inflate: LayerInflate,
    scanner: TarScanner,
    files: Files,
}

impl Pass {
    fn new(whole: &Whole, draft: Draft) -> Result<Pass, StreamError> {
        let layer = whole.layer.digest;
        let gzip = |source| StreamError::Gzip {
            layer: Box::new(layer),
            source,
        };
        Ok(Pass {
            layer,
            compressed: Verifier::new(layer),
            tar: Verifier::new(whole.diff_id),
            inflate: LayerInflate::new(whole.compression).map_err(gzip)?,
            scanner: TarScanner::new(Policy::Unpack),
            files: Files::new(draft),
        })
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        let Pass {
            layer,
            compressed,
            tar,
            inflate,
            scanner,
            files,
        } = self;
        compressed.update(bytes);
        let mut refused = None;
        let inflated = inflate.push(bytes, |out| {
            tar.update(out);
            if refused.is_none() {
                refused = scanner.feed(out, files).err();
            }
        });
        inflated.map_err(|source| StreamError::Gzip {
            layer: Box::new(*layer),
            source,
        })?;
        if let Some(source) = refused {
            return Err(StreamError::Tar {
                layer: Box::new(*layer),
                source,
            });
        }
        if files.planned.len() > places::MOST_ENTRIES {
            return Err(StreamError::Places {
                layer: Box::new(*layer),
                source: PlaceError::TooMany,
            });
        }
        match files.error.take() {
            Some(source) => Err(StreamError::Write {
                layer: Box::new(*layer),
                source,
            }),
            None => Ok(()),
        }
    }

    /// Verifies both digests. Only then is a draft returned.
    fn finish(self) -> Result<(Draft, Vec<u8>), StreamError> {
        let Pass {
            layer,
            compressed,
            tar,
            inflate,
            scanner,
            mut files,
        } = self;
        compressed.finish().map_err(|source| StreamError::Layer {
            layer: Box::new(layer),
            source: Box::new(source),
        })?;
        inflate.finish().map_err(|source| StreamError::Gzip {
            layer: Box::new(layer),
            source,
        })?;
        tar.finish().map_err(|source| StreamError::DiffId {
            layer: Box::new(layer),
            source: Box::new(source),
        })?;
        let end = scanner.finish().map_err(|source| StreamError::Tar {
            layer: Box::new(layer),
            source,
        })?;
        let table = places::plan(files.planned.drain(..), end.archive_size).map_err(|source| {
            StreamError::Places {
                layer: Box::new(layer),
                source,
            }
        })?;
        let draft = files.finish().map_err(|source| StreamError::Write {
            layer: Box::new(layer),
            source,
        })?;
        Ok((draft, table))
    }
}
