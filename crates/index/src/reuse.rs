//! Reuses existing zTOCs instead of building new ones.
//!
//! Builder threads ask each source ([`ZtocSource`]) for candidates. A candidate is read and its
//! digest verified, and it must fit the layer: same size, compression and span size, and servable.
//! Otherwise the zTOC is built, and a warning is reported unless the candidate just no longer
//! exists.
//!
//! The layer itself is not read, so a zTOC that lists wrong files, or omits some, is not detected.
//! Only zTOCs that were built on this machine ([`RecordedZtocs`]) are safe to reuse. All other
//! sources require the user's consent.

use std::error::Error;
use std::fmt;
use std::io::Read as _;

use async_trait::async_trait;
use soci_oci::Descriptor;
use soci_store::{Blob, StoreError};
use soci_ztoc::{Compression, DecodeError, DetachedZtoc, MAX_ZTOC_SIZE, Ztoc};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::builder::explain;

mod recorded;
mod repositories;

pub use recorded::RecordedZtocs;
pub use repositories::RepositoryZtocs;

/// Maximum number of candidates to read for one layer. More than one is rare, and each costs a
/// download.
const MAX_CANDIDATES: usize = 4;

/// Memory for candidates under examination, in KiB. A larger candidate is examined alone.
const BUDGET_KIB: u32 = 32 << 10;

/// Why a source cannot list its zTOCs.
pub type KnownError = Box<dyn Error + Send + Sync>;

/// A source of existing zTOCs. The caller checks that they fit a layer, but not that their content
/// is true.
#[async_trait]
pub trait ZtocSource: Send + Sync + fmt::Debug {
    /// Returns zTOCs that claim to describe this layer with this span size, best first.
    async fn candidates(
        &self,
        layer: &Descriptor,
        span_size: u64,
    ) -> Result<Vec<Descriptor>, KnownError>;

    /// Opens a zTOC. The reader may block and is used on plain threads.
    async fn open(&self, ztoc: &Descriptor) -> Result<Blob, StoreError>;
}

/// The properties that a zTOC must have.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) layer: &'a Descriptor,
    pub(crate) compression: Compression,
    pub(crate) span_size: u64,
}

/// Why a candidate is not reused.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("its {0} bytes are more than a ztoc can have")]
    TooLarge(u64),
    #[error("read ztoc")]
    Read(#[source] std::io::Error),
    #[error("{0}")]
    Decode(#[from] DecodeError),
    #[error("it is of a layer of {actual} bytes, not {expected}")]
    LayerSize { actual: u64, expected: u64 },
    #[error("it is of a layer of another compression")]
    Compression,
    #[error("its span size is {actual}, not {expected}")]
    SpanSize { actual: u64, expected: u64 },
}

/// Limits the memory for candidates.
#[derive(Debug)]
pub(crate) struct Budget {
    room: Semaphore,
    kib: u32,
}

impl Budget {
    pub(crate) fn new() -> Self {
        Self::of(BUDGET_KIB)
    }

    pub(crate) fn of(kib: u32) -> Self {
        let room = Semaphore::new(kib as usize);
        Self { room, kib }
    }

    /// Waits until this many bytes, or the whole budget, are available. Never returns `None`,
    /// because the budget is never closed.
    pub(crate) async fn take(&self, bytes: u64) -> Option<SemaphorePermit<'_>> {
        let kib = u32::try_from(bytes / 1024 + 1).unwrap_or(self.kib);
        self.room.acquire_many(kib.min(self.kib)).await.ok()
    }
}

/// A zTOC that fits.
pub(crate) struct Fit<'a> {
    pub(crate) descriptor: Descriptor,
    pub(crate) bytes: Vec<u8>,
    shape: DetachedZtoc,
    /// Its share of the budget. Hold it as long as the bytes.
    pub(crate) permit: Option<SemaphorePermit<'a>>,
}

impl Fit<'_> {
    pub(crate) fn ztoc(&self) -> Ztoc<'_> {
        self.shape.attach(&self.bytes)
    }
}

/// The result of a search.
#[derive(Default)]
pub(crate) struct Found<'a> {
    pub(crate) fit: Option<Fit<'a>>,
    /// Why earlier candidates do not fit.
    pub(crate) rejected: Vec<String>,
}

/// Returns the first candidate that fits. Blocks, so call it on plain threads.
pub(crate) fn find<'a>(
    known: &dyn ZtocSource,
    wanted: &Wanted<'_>,
    budget: &'a Budget,
    runtime: &Handle,
) -> Found<'a> {
    let mut found = Found::default();
    let candidates = match runtime.block_on(known.candidates(wanted.layer, wanted.span_size)) {
        Ok(candidates) => candidates,
        Err(error) => {
            found.rejected.push(explain(error.as_ref()));
            return found;
        }
    };
    for ztoc in candidates.into_iter().take(MAX_CANDIDATES) {
        match look(known, wanted, &ztoc, budget, runtime) {
            Ok(fit) => {
                found.fit = Some(fit);
                return found;
            }
            Err(Unfit::Store(error)) if error.is_not_found() => {}
            Err(error) => {
                let text = format!("ztoc {}: {}", ztoc.digest, explain(&error));
                found.rejected.push(text);
            }
        }
    }
    found
}

fn look<'a>(
    known: &dyn ZtocSource,
    wanted: &Wanted<'_>,
    ztoc: &Descriptor,
    budget: &'a Budget,
    runtime: &Handle,
) -> Result<Fit<'a>, Unfit> {
    if ztoc.size > MAX_ZTOC_SIZE {
        return Err(Unfit::TooLarge(ztoc.size));
    }
    let permit = runtime.block_on(budget.take(ztoc.size));
    let blob = runtime.block_on(known.open(ztoc))?;
    let mut bytes = Vec::new();
    blob.verified(ztoc)?
        .take(ztoc.size + 1)
        .read_to_end(&mut bytes)
        .map_err(Unfit::Read)?;
    let shape = check(&bytes, wanted)?;
    Ok(Fit {
        descriptor: ztoc.clone(),
        bytes,
        shape,
        permit,
    })
}

/// Checks that these bytes are a zTOC that fits, as far as possible without reading the layer.
fn check(bytes: &[u8], wanted: &Wanted<'_>) -> Result<DetachedZtoc, Unfit> {
    let ztoc = Ztoc::parse(bytes)?;
    let (actual, expected) = (ztoc.spans().layer_size(), wanted.layer.size);
    if actual != expected {
        return Err(Unfit::LayerSize { actual, expected });
    }
    if ztoc.compression() != wanted.compression {
        return Err(Unfit::Compression);
    }
    let (actual, expected) = (ztoc.span_size(), wanted.span_size);
    if actual != expected {
        return Err(Unfit::SpanSize { actual, expected });
    }
    ztoc.check_servable()?;
    Ok(ztoc.detach())
}
