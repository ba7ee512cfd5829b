//! Notices a mirror whose request is given up by the caller before the mirror has answered.
//!
//! A reader has deadlines of its own. Without this, a mirror with a long timeout would stay first,
//! and use up the deadline of every reader.

use std::time::Instant;

use super::Endpoint;
use crate::{breaker::Failure, fetch::FetchError, url::RedactedUrl};

/// A request without an answer yet. Dropping it means that nobody waits any more. It counts as
/// silence after the general timeout, whatever the mirror's own is.
pub(super) struct Waiting<'a> {
    mirror: Option<&'a Endpoint>,
    since: Instant,
}

impl<'a> Waiting<'a> {
    /// Begins to wait. Only mirrors are watched.
    pub(super) fn for_answer(endpoint: &'a Endpoint) -> Waiting<'a> {
        Waiting {
            mirror: Some(endpoint).filter(|endpoint| endpoint.is_mirror),
            since: Instant::now(),
        }
    }

    /// The request has an outcome, which others judge.
    pub(super) fn over(mut self) {
        self.mirror = None;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let idle = self.since.elapsed();
        if let Some(mirror) = self.mirror
            && idle >= mirror.transport.patience()
        {
            let url = RedactedUrl::from(mirror.root());
            mirror.avoid(Failure::Silent, &FetchError::Silent { url, idle });
        }
    }
}
