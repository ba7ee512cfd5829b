//! Demands and their outcomes.

use std::{fmt, ops::Range, time::Duration};

use bytes::Bytes;
use soci_oci::Digest;
use soci_registry::fetch::{FetchError, Fetcher};
use tokio::time::Instant;

use super::share::Held;
use crate::sync::Arc;

/// The urgency of a demand. Smaller is more urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A reader waits.
    Now,
    /// Likely to be read soon.
    Next,
    /// The pull of an image waits for a whole layer.
    Pull,
    /// Background download of everything, in order.
    All,
}

/// A source for a blob: a repository of a registry.
#[derive(Clone)]
pub struct Source {
    /// Host and repository. Used in messages, and as the scope of authorization failures.
    pub name: Arc<str>,
    /// The host. Scope of connection failures.
    pub host: Arc<str>,
    /// Reads the blob from this source.
    pub fetcher: Arc<dyn Fetcher>,
}

impl Source {
    /// A repository of a registry.
    pub fn new(host: &str, repository: &str, fetcher: Arc<dyn Fetcher>) -> Source {
        Source {
            name: format!("{host}/{repository}").into(),
            host: host.into(),
            fetcher,
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// How long a demand waits for sources that do not respond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Until the read budget is spent. The demand fails if every source refuses it.
    Budget,
    /// Indefinitely. A source that refused is asked again after one minute.
    Forever,
}

/// Receives the bytes. Called once, on a thread of the network runtime, so it must not block.
pub type Sink = Box<dyn FnOnce(Result<Delivery, DemandError>) + Send>;

/// Receives the bytes of a range in order, while they arrive. Dropped when the request brings no
/// more of them, perhaps before the end. Called on a thread of the network runtime, so it must not
/// block.
pub type Feed = Box<dyn FnMut(Bytes) + Send>;

/// Starts a [`Feed`], unless it declines. Called at most once, so only the first request that
/// brings bytes is followed. It must not block either.
pub type Watch = Box<dyn FnOnce() -> Option<Feed> + Send>;

/// A demand for one range of a blob. The range is delivered whole.
pub struct Demand {
    /// The blob.
    pub blob: Digest,
    /// The byte range. Must not be empty.
    pub range: Range<u64>,
    /// The urgency.
    pub class: Class,
    /// The image that the request counts against. Some limits are per image.
    pub image: Arc<str>,
    /// Priority within a class: the smallest value first, then the oldest demand. From [`LOOSE`] on,
    /// what follows the last read comes first.
    ///
    /// [`LOOSE`]: super::LOOSE
    pub order: u64,
    /// The sources to ask, in this order.
    pub sources: Arc<[Source]>,
    /// A source that returned wrong bytes for this range. It is asked only if there is no other
    /// source.
    pub avoid: Option<Arc<str>>,
    /// How long to wait.
    pub patience: Patience,
    /// Follows the bytes while they arrive, if a reader waits for them when the first one arrives.
    pub watch: Option<Watch>,
    /// Receives the bytes.
    pub sink: Sink,
}

impl fmt::Debug for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Demand")
            .field("blob", &self.blob)
            .field("range", &self.range)
            .field("class", &self.class)
            .finish_non_exhaustive()
    }
}

/// The bytes of a demand. Dropping it returns their permits.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Exactly the bytes of the range, not yet verified.
    pub bytes: Bytes,
    /// The name of the source that sent the bytes.
    pub source: Arc<str>,
    /// The urgency of the piece at delivery. A reader may have joined.
    pub class: Class,
    /// When the request for the bytes was made.
    pub asked: Instant,
    /// True if neither a reader nor its memory depends on this delivery.
    pub may_wait: bool,
    /// Returns the permits when dropped.
    pub(super) _permit: Option<Arc<Held>>,
}

impl Delivery {
    /// Returns the permits early. For callers that bound their memory in another way.
    #[must_use]
    pub fn without_permit(self) -> Delivery {
        Delivery {
            _permit: None,
            ..self
        }
    }
}

/// Why a demand failed. Cheap to clone.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DemandError {
    /// The demand named no source.
    #[error("no source to fetch from")]
    NoSource,
    /// Every source refused. Contains the error of the last one.
    #[error("{source_name} refused")]
    Refused {
        /// The source.
        source_name: Arc<str>,
        /// Its reason.
        #[source]
        error: FetchError,
    },
    /// No source has responded for longer than the read budget.
    #[error("{source_name} has not answered for {} s", lasted.as_secs())]
    OutOfTime {
        /// The source.
        source_name: Arc<str>,
        /// How long the outage has lasted.
        lasted: Duration,
        /// The last failure.
        #[source]
        error: FetchError,
    },
    /// The scheduler is shut down.
    #[error("the fetch scheduler is shut down")]
    Closed,
}
