//! What is known about hosts, over all requests to them.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use crate::{
    breaker::{Breaker, Failure, Turn},
    limit::Limit,
};

/// What is known about a host and port.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(super) limit: Limit,
    /// A registry on this machine that requires HTTPS.
    wants_tls: AtomicBool,
    /// A host that has responded without TLS.
    speaks_plain: AtomicBool,
    /// Whether other hosts are asked first.
    breaker: Breaker,
}

impl Peer {
    pub(super) fn new(most_requests: usize) -> Peer {
        Peer {
            limit: Limit::new(most_requests),
            wants_tls: AtomicBool::new(false),
            speaks_plain: AtomicBool::new(false),
            breaker: Breaker::default(),
        }
    }

    pub(crate) fn wants_tls(&self) -> bool {
        self.wants_tls.load(Ordering::Relaxed)
    }

    pub(crate) fn set_wants_tls(&self) {
        self.wants_tls.store(true, Ordering::Relaxed);
    }

    pub(crate) fn speaks_plain(&self) -> bool {
        self.speaks_plain.load(Ordering::Relaxed)
    }

    pub(crate) fn set_speaks_plain(&self) {
        self.speaks_plain.store(true, Ordering::Relaxed);
    }

    /// The turn of the host, unless it has failed lately. See [`Breaker`].
    pub(crate) fn turn(&self) -> Option<Turn<'_>> {
        self.breaker.turn()
    }

    /// Records a failure of the host. Returns how long it is asked last, if that starts now.
    pub(crate) fn failed(&self, failure: Failure) -> Option<Duration> {
        self.breaker.failed(failure)
    }

    /// Records a good answer. Returns true if that ends an outage.
    pub(crate) fn answered(&self) -> bool {
        self.breaker.answered()
    }
}
