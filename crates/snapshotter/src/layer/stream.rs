//! A layer without a zTOC: one ordered pass from the registry to `data`, `heads` and the list of entries.
//!
//! ```text
//! steps of the blob, fetched side by side, taken in order
//!   ├─▶ SHA-256 = the layer's digest
//!   └─▶ inflate ─┬─▶ SHA-256 = diff-ID
//!                └─▶ tar scanner ─▶ contents to data, the rest to heads, entries to the plan
//! ```
//!
//! Everything goes into a draft that nobody sees; it becomes a layer when both digests are right. Entries that
//! unpacking ignores or refuses are ignored or refused here too.

use std::{collections::VecDeque, io, ops::Range};

use bytes::Bytes;
use soci_oci::{Digest, Verifier, digest::DigestMismatch};
use soci_ztoc::{GzipError, LayerInflate, Policy, TarError, TarScanner};
use tokio::sync::oneshot;

use super::{Context, Whole};
use crate::{
    cpu::{Lane, Lost},
    fetch::{Class, Delivery, Demand, DemandError, Patience, Source},
    places::{self, PlaceError},
    store::{Draft, LayerFiles, StoreError, sources::Sources},
    sync::Arc,
};

mod files;

use files::Files;

/// Bytes of one step: enough for a connection to reach its speed.
const STEP: u64 = 2 << 20;
/// Steps asked for ahead of the one that is read; with [`STEP`] the memory of one pass.
const STEPS: usize = 6;
/// Passes at once: bounds their memory. Others wait.
pub(super) const PASSES: usize = 3;

/// Why a layer could not be pulled whole.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Its bytes did not come.
    #[error("layer {layer} cannot be fetched")]
    Fetch {
        /// The layer.
        layer: Box<Digest>,
        /// Why.
        #[source]
        source: Box<DemandError>,
    },
    /// What came is not the layer.
    #[error("layer {layer}")]
    Layer {
        /// The layer.
        layer: Box<Digest>,
        /// What came instead.
        #[source]
        source: Box<DigestMismatch>,
    },
    /// What was inside is not the tar that the image's configuration names.
    #[error("tar in layer {layer}")]
    DiffId {
        /// The layer.
        layer: Box<Digest>,
        /// What came instead.
        #[source]
        source: Box<DigestMismatch>,
    },
    /// It does not inflate.
    #[error("layer {layer}")]
    Gzip {
        /// The layer.
        layer: Box<Digest>,
        /// Where and why.
        #[source]
        source: GzipError,
    },
    /// It is no tar, or one that unpacking refuses too.
    #[error("tar in layer {layer}")]
    Tar {
        /// The layer.
        layer: Box<Digest>,
        /// Where and why.
        #[source]
        source: TarError,
    },
    /// It has more entries than are kept in memory, or its files have no places.
    #[error("tar in layer {layer}")]
    Places {
        /// The layer.
        layer: Box<Digest>,
        /// Why.
        #[source]
        source: PlaceError,
    },
    /// Its files cannot be written.
    #[error("store layer {layer}")]
    Write {
        /// The layer.
        layer: Box<Digest>,
        /// The system's account.
        #[source]
        source: io::Error,
    },
    /// Its files cannot be made or finished.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The pool lost the job.
    #[error(transparent)]
    Lost(#[from] Lost),
}

/// Pulls a layer. Dropping the future removes what there is of it.
pub(super) async fn pull(context: &Arc<Context>, whole: Whole) -> Result<LayerFiles, StreamError> {
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

/// The blob in order, some steps ahead.
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
        // The permit goes at once: what waits here for its turn is bounded by STEPS, and must not hold up the step
        // that everything waits for.
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
            class: Class::All,
            image: Arc::clone(&self.image),
            // Somebody waits for the whole layer: before completion, which is ordered by layer number.
            order: 0,
            sources: Arc::clone(&self.sources),
            avoid: None,
            patience: Patience::Budget,
            sink: Box::new(move |outcome| {
                // Nobody listens: the pass was given up.
                drop(tell.send(outcome.map(Delivery::without_permit)));
            }),
        });
    }
}

/// The state of the pass; moves to the pool and back with each step.
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

    /// Both digests are checked here; only then is there a draft to be kept.
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
