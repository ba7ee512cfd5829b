//! What is wanted, and what comes of it.

use std::{fmt, ops::Range, time::Duration};

use bytes::Bytes;
use soci_oci::{
    Digest,
    fetch::{FetchError, Fetcher},
};
use tokio::time::Instant;

use super::share::Held;
use crate::sync::Arc;

/// How urgent a demand is. Smaller is more urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A reader waits.
    Now,
    /// Likely soon.
    Next,
    /// Everything, in order.
    All,
}

/// One place a blob can be had from: a repository of a registry.
#[derive(Clone)]
pub struct Source {
    /// Host and repository: what messages say, and what is in trouble when we are not let in.
    pub name: Arc<str>,
    /// What fails together when nobody can connect.
    pub host: Arc<str>,
    /// Reads the blob there.
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

/// How long a demand waits for sources that do not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// As long as the read budget lasts; a refusal by every source fails it.
    Budget,
    /// For ever; a source that refused is asked again after a minute.
    Forever,
}

/// Where the bytes go. Called once, on a thread of the network runtime: it must not block.
pub type Sink = Box<dyn FnOnce(Result<Delivery, DemandError>) + Send>;

/// A wish for one range of a blob, delivered whole.
pub struct Demand {
    /// The blob.
    pub blob: Digest,
    /// Which bytes; not empty.
    pub range: Range<u64>,
    /// How urgent.
    pub class: Class,
    /// Who is charged: limits are per image.
    pub image: Arc<str>,
    /// Among demands of one class the smallest goes first, then the oldest.
    pub order: u64,
    /// Where to ask, in this order.
    pub sources: Arc<[Source]>,
    /// A source that gave wrong bytes for this range: asked only if there is no other.
    pub avoid: Option<Arc<str>>,
    /// How long to wait.
    pub patience: Patience,
    /// Where the bytes go.
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

/// The bytes of a demand. Dropping it gives their permits back.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Exactly the range's bytes; unverified.
    pub bytes: Bytes,
    /// The name of the source they came from.
    pub source: Arc<str>,
    /// How urgent the piece was at the end: a reader may have joined.
    pub class: Class,
    /// When the request was made that brought them.
    pub asked: Instant,
    /// It holds up nobody: no reader waits for it, nor for its memory.
    pub may_wait: bool,
    /// Held for its drop.
    pub(super) _permit: Option<Arc<Held>>,
}

impl Delivery {
    /// For who bounds its memory in another way.
    #[must_use]
    pub fn without_permit(self) -> Delivery {
        Delivery {
            _permit: None,
            ..self
        }
    }
}

/// Why a demand was not met. Cheap to clone.
#[derive(Clone, Debug, thiserror::Error)]
pub enum DemandError {
    /// The demand brought no source.
    #[error("no source to fetch from")]
    NoSource,
    /// Every source refused; this is the last one's reason.
    #[error("{source_name} refused")]
    Refused {
        /// The source.
        source_name: Arc<str>,
        /// Its reason.
        #[source]
        error: FetchError,
    },
    /// No source has answered for longer than the read budget.
    #[error("{source_name} has not answered for {} s", lasted.as_secs())]
    OutOfTime {
        /// The source.
        source_name: Arc<str>,
        /// How long its outage has lasted.
        lasted: Duration,
        /// Its last failure.
        #[source]
        error: FetchError,
    },
    /// The scheduler is shut down.
    #[error("fetching is shut down")]
    Closed,
}
