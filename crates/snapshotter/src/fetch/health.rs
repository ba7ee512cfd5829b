//! Tracks which sources fail, since when, and when to ask again. The only owner of this state.
//! Pure: the caller supplies the time.
//!
//! A failure is recorded for the object that failed ([`Scope`]): a host, a repository, or a blob at
//! a source. Each has one clock, which starts when its first failed request began to wait. All
//! readers of all layers share the clock, so repeated reads by the kernel do not restart it.
//!
//! | state | requests | waiting reads |
//! |--|--|--|
//! | healthy | always | - |
//! | failing, budget left | one at a time, after a growing pause | wait |
//! | failing, budget spent | rare one-byte probes | fail immediately |
//!
//! A failure of a narrower scope proves that the wider scopes respond. A scope that is not used for
//! [`FORGET`] is forgotten.

use std::{collections::HashMap, time::Duration};

use soci_oci::Digest;
use soci_registry::fetch::{Concern, FetchError};
use tokio::time::Instant;

use super::Source;
use crate::sync::Arc;

/// The first pause after a failure. The fetcher has already made its own quick retries.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause while reads wait. A reader loses at most this much time after the source
/// recovers.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// The first and the longest pause between probes.
const PROBE_PAUSE: Duration = Duration::from_secs(3);
const LONGEST_PROBE_PAUSE: Duration = Duration::from_secs(20);
/// Longer than any request can take. After this, another request may take the turn.
const TURN: Duration = Duration::from_secs(120);
/// The longest time for which a host's request to back off is honored.
const LONGEST_BUSY: Duration = Duration::from_secs(60);
/// A scope that has not been used for this long is forgotten. Its image is removed or idle.
const FORGET: Duration = Duration::from_secs(900);

/// An object that can fail independently.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// No connection to this host.
    Host(Arc<str>),
    /// This repository rejects the credentials.
    Repository(Arc<str>),
    /// This source does not deliver this blob.
    Blob(Arc<str>, Digest),
}

impl Scope {
    fn of(concern: Concern, source: &Source, blob: Digest) -> Scope {
        match concern {
            Concern::Host => Scope::Host(Arc::clone(&source.host)),
            Concern::Repository => Scope::Repository(Arc::clone(&source.name)),
            Concern::Blob => Scope::Blob(Arc::clone(&source.name), blob),
        }
    }

    fn all(source: &Source, blob: Digest) -> [Scope; 3] {
        [Concern::Host, Concern::Repository, Concern::Blob]
            .map(|concern| Scope::of(concern, source, blob))
    }
}

#[derive(Clone, Debug)]
struct Trouble {
    began: Instant,
    ask_at: Instant,
    pause: Duration,
    /// A request is in progress. Its turn ends with its outcome.
    asking: bool,
    wanted: Instant,
    last: FetchError,
}

impl Trouble {
    fn lasted(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }
}

/// The state of a source for one blob.
#[derive(Clone, Debug)]
pub(crate) enum Standing {
    /// Ask it.
    Well,
    /// Part of it fails, or its host asked clients to back off. Ask at this time. Reads wait.
    Failing(Instant),
    /// It has failed for longer than the budget. A probe is due at this time.
    Spent {
        /// The scope that fails.
        scope: Scope,
        /// How long the outage has lasted.
        lasted: Duration,
        probe_at: Instant,
        last: FetchError,
    },
}

/// The failures of all sources of the node.
#[derive(Debug)]
pub(crate) struct Health {
    budget: Duration,
    troubles: HashMap<Scope, Trouble>,
    /// Hosts that asked clients to back off, until when, and the response that asked for it.
    busy: HashMap<Arc<str>, (Instant, FetchError)>,
}

impl Health {
    pub(crate) fn new(budget: Duration) -> Health {
        Health {
            budget,
            troubles: HashMap::new(),
            busy: HashMap::new(),
        }
    }

    /// The state of this source for this blob.
    pub(crate) fn standing(&self, source: &Source, blob: Digest, now: Instant) -> Standing {
        let mut ask_at = self
            .busy
            .get(&source.host)
            .map(|(until, _)| *until)
            .filter(|until| *until > now);
        if self.troubles.is_empty() && ask_at.is_none() {
            return Standing::Well;
        }
        for scope in Scope::all(source, blob) {
            let Some(trouble) = self.troubles.get(&scope) else {
                continue;
            };
            let lasted = trouble.lasted(now);
            if lasted >= self.budget {
                return Standing::Spent {
                    scope,
                    lasted,
                    probe_at: trouble.ask_at,
                    last: trouble.last.clone(),
                };
            }
            // Wake waiting reads at the end of the budget even if no request is due before.
            let at = trouble.ask_at.min(trouble.began + self.budget);
            ask_at = Some(ask_at.map_or(at, |other| other.max(at)));
        }
        ask_at.map_or(Standing::Well, Standing::Failing)
    }

    /// Why this source is not asked now. `None` if it is healthy.
    pub(crate) fn reason(&self, source: &Source, blob: Digest) -> Option<FetchError> {
        let scopes = Scope::all(source, blob);
        let trouble = scopes.iter().find_map(|scope| self.troubles.get(scope));
        trouble
            .map(|trouble| trouble.last.clone())
            .or_else(|| self.busy.get(&source.host).map(|(_, error)| error.clone()))
    }

    /// Records that a demand waits for this blob from this source.
    pub(crate) fn wanted(&mut self, source: &Source, blob: Digest, now: Instant) {
        if self.troubles.is_empty() {
            return;
        }
        for scope in Scope::all(source, blob) {
            if let Some(trouble) = self.troubles.get_mut(&scope) {
                trouble.wanted = now;
            }
        }
    }

    /// Whether a request may be made now. If so, each failing scope grants its single turn to this
    /// request.
    pub(crate) fn take_turn(&mut self, source: &Source, blob: Digest, now: Instant) -> bool {
        if self
            .busy
            .get(&source.host)
            .is_some_and(|(until, _)| *until > now)
        {
            return false;
        }
        if self.troubles.is_empty() {
            return true;
        }
        let budget = self.budget;
        let scopes = Scope::all(source, blob);
        let early = |scope| {
            let trouble: Option<&Trouble> = self.troubles.get(scope);
            trouble.is_some_and(|trouble| now < trouble.ask_at)
        };
        if scopes.iter().any(early) {
            return false;
        }
        for scope in &scopes {
            let Some(trouble) = self.troubles.get_mut(scope) else {
                continue;
            };
            let longest = if trouble.lasted(now) >= budget {
                LONGEST_PROBE_PAUSE
            } else {
                LONGEST_PAUSE
            };
            trouble.pause = (trouble.pause * 2).min(longest);
            trouble.ask_at = now + TURN;
            trouble.asking = true;
        }
        true
    }

    /// The request ended, with any outcome. Returns its turn.
    pub(crate) fn release(&mut self, source: &Source, blob: Digest, now: Instant) {
        if self.troubles.is_empty() {
            return;
        }
        for scope in Scope::all(source, blob) {
            if let Some(trouble) = self.troubles.get_mut(&scope)
                && std::mem::take(&mut trouble.asking)
            {
                trouble.ask_at = now + trouble.pause;
            }
        }
    }

    /// A request failed with a transient error. `since` is when the request last made progress.
    pub(crate) fn failed(
        &mut self,
        source: &Source,
        blob: Digest,
        since: Instant,
        now: Instant,
        error: FetchError,
    ) {
        self.answered_before(source, blob, error.concern());
        self.release(source, blob, now);
        if let Some(rest) = error.busy() {
            let until = now + rest.min(LONGEST_BUSY);
            tracing::info!(
                host = &*source.host,
                ?rest,
                "a registry asked clients to back off; requests to it are paused"
            );
            self.busy.insert(Arc::clone(&source.host), (until, error));
            return;
        }
        let budget = self.budget;
        let scope = Scope::of(error.concern(), source, blob);
        let trouble = self.troubles.entry(scope).or_insert_with_key(|scope| {
            tracing::warn!(
                source = &*source.name,
                ?scope,
                error = %error,
                "a registry does not respond; downloads from it are retried"
            );
            Trouble {
                began: since,
                ask_at: now + FIRST_PAUSE,
                pause: FIRST_PAUSE,
                asking: false,
                wanted: now,
                last: error.clone(),
            }
        });
        trouble.last = error;
        if trouble.lasted(now) >= budget && trouble.pause < PROBE_PAUSE {
            tracing::error!(
                source = &*source.name,
                error = %trouble.last,
                "a registry has not responded for longer than the read budget; reads of missing data fail until it responds"
            );
            trouble.pause = PROBE_PAUSE;
        }
        trouble.ask_at = now + trouble.pause;
    }

    /// An outcome that concerns only this scope: the wider scopes responded. Returns true if that
    /// ends an outage.
    pub(crate) fn answered_before(
        &mut self,
        source: &Source,
        blob: Digest,
        concern: Concern,
    ) -> bool {
        let wider = [Concern::Host, Concern::Repository];
        let mut ended = false;
        for wider in wider.into_iter().filter(|wider| *wider < concern) {
            ended |= self.end(&Scope::of(wider, source, blob));
        }
        ended
    }

    /// All requested bytes of the blob arrived. Returns true if that ends an outage.
    pub(crate) fn delivered(&mut self, source: &Source, blob: Digest) -> bool {
        let host_or_repository = self.answered_before(source, blob, Concern::Blob);
        self.end(&Scope::of(Concern::Blob, source, blob)) || host_or_repository
    }

    fn end(&mut self, scope: &Scope) -> bool {
        let ended = !self.troubles.is_empty() && self.troubles.remove(scope).is_some();
        if ended {
            tracing::info!(?scope, "a registry responds again");
        }
        ended
    }

    /// Forgets outages that have not been relevant for [`FORGET`], and pauses that are over.
    pub(crate) fn forget_unwanted(&mut self, now: Instant) {
        self.troubles
            .retain(|_, trouble| now.saturating_duration_since(trouble.wanted) < FORGET);
        self.busy.retain(|_, (until, _)| *until > now);
    }

    /// Whether this scope is still failing.
    pub(crate) fn knows(&self, scope: &Scope) -> bool {
        self.troubles.contains_key(scope)
    }
}

#[cfg(test)]
mod tests;
