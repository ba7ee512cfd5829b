//! zTOCs that exist already: taken over instead of built again, if they fit.
//!
//! Whoever may have some ([`KnownZtocs`]) is asked by the threads of the builder. A candidate is read, its
//! digest checked, and it must be a zTOC of this very layer: same size, same compression, same span size,
//! and one that can be served. What does not fit is built anew, which never makes a worse index, and is
//! told as a warning unless the candidate simply is not there any more.
//!
//! The layer itself is not read, so nothing shows a forged zTOC: one that lies about files, or leaves some out.
//! Only zTOCs that this machine made ([`RecordedZtocs`]) are safe to take; of others the user must say so.

use std::error::Error;
use std::fmt;
use std::io::Read as _;

use async_trait::async_trait;
use soci_oci::Descriptor;
use soci_oci::store::{Blob, StoreError};
use soci_ztoc::{Compression, DecodeError, DetachedZtoc, MAX_ZTOC_SIZE, Ztoc};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::builder::explain;

mod recorded;
mod repositories;

pub use recorded::RecordedZtocs;
pub use repositories::RepositoryZtocs;

/// Most candidates that are read for one layer: more than one is rare, and each costs a transfer.
const MAX_CANDIDATES: usize = 4;

/// Memory for candidates that are looked at, in KiB. One that is larger than that is looked at alone.
const BUDGET_KIB: u32 = 32 << 10;

/// Why nobody can say which zTOCs there are.
pub type KnownError = Box<dyn Error + Send + Sync>;

/// Who may have zTOCs of layers. Whether they fit is checked; whether they tell the truth about the layer is not.
#[async_trait]
pub trait KnownZtocs: Send + Sync + fmt::Debug {
    /// zTOCs that are said to be of this layer with this span size, the best first.
    async fn candidates(
        &self,
        layer: &Descriptor,
        span_size: u64,
    ) -> Result<Vec<Descriptor>, KnownError>;

    /// Opens one of them. Its reader may block; it is used by plain threads.
    async fn open(&self, ztoc: &Descriptor) -> Result<Blob, StoreError>;
}

/// What a zTOC must be for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) layer: &'a Descriptor,
    pub(crate) compression: Compression,
    pub(crate) span_size: u64,
}

/// Why a candidate is not taken over.
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

/// Memory for candidates.
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

    /// Waits for room for this many bytes, or for all room; `None` cannot happen, since nobody closes the budget.
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
    /// Its memory; to be held as long as the bytes.
    pub(crate) permit: Option<SemaphorePermit<'a>>,
}

impl Fit<'_> {
    pub(crate) fn ztoc(&self) -> Ztoc<'_> {
        self.shape.attach(&self.bytes)
    }
}

/// What became of the candidates.
#[derive(Default)]
pub(crate) struct Found<'a> {
    pub(crate) fit: Option<Fit<'a>>,
    /// Why those before it do not fit.
    pub(crate) rejected: Vec<String>,
}

/// The first candidate that fits. For plain threads: it blocks.
pub(crate) fn find<'a>(
    known: &dyn KnownZtocs,
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
    known: &dyn KnownZtocs,
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

/// Whether these bytes are what indexing the layer would give, as far as can be told without it.
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
