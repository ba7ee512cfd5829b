//! What does not answer, since when, and when to ask again. The one owner of that; pure: the caller brings the time.
//!
//! A failure is kept with what failed ([`Scope`]): a host, a repository, a blob at a source. Each has one clock for its
//! trouble, which starts when the first request of it began to wait, and every reader of every layer looks at the same one, so
//! the kernel's repeated reads do not start it again:
//!
//! | state | asked | waiting reads |
//! |--|--|--|
//! | well | always | - |
//! | failing, budget left | one request at a time, after a growing pause | wait |
//! | failing, budget spent | by a probe of one byte, seldom | fail at once |
//!
//! A failure of a narrower scope is an answer of the wider ones. What nobody asks about for [`FORGET`] is forgotten.

use std::{collections::HashMap, time::Duration};

use soci_oci::{
    Digest,
    fetch::{Concern, FetchError},
};
use tokio::time::Instant;

use super::Source;
use crate::sync::Arc;

/// The first pause after a failure; the fetcher below has made its own quick attempts already.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest pause while reads wait: what a reader loses at most after the source is back.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// The first and the longest pause between probes.
const PROBE_PAUSE: Duration = Duration::from_secs(3);
const LONGEST_PROBE_PAUSE: Duration = Duration::from_secs(20);
/// Longer than any request is without an outcome: its turn is lost then.
const TURN: Duration = Duration::from_secs(120);
/// The longest time that a host is left alone because it asked for it.
const LONGEST_BUSY: Duration = Duration::from_secs(60);
/// Nobody has asked for so long: the image is gone or idle.
const FORGET: Duration = Duration::from_secs(900);

/// What can fail alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    /// No connection to this host.
    Host(Arc<str>),
    /// No way into this repository of a host, with the credential we have.
    Repository(Arc<str>),
    /// This blob does not come from there.
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
    /// A request asks now; its turn ends with its outcome.
    asking: bool,
    wanted: Instant,
    last: FetchError,
}

impl Trouble {
    fn lasted(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }
}

/// What a source is good for now, for one blob.
#[derive(Clone, Debug)]
pub(crate) enum Standing {
    /// Ask it.
    Well,
    /// Something of it fails, or its host wants rest; ask at this time, and reads wait.
    Failing(Instant),
    /// It has failed for longer than the budget; a probe is due at this time.
    Spent {
        /// What has.
        scope: Scope,
        /// How long the trouble has lasted.
        lasted: Duration,
        probe_at: Instant,
        last: FetchError,
    },
}

/// The trouble of all sources of the node.
#[derive(Debug)]
pub(crate) struct Health {
    budget: Duration,
    troubles: HashMap<Scope, Trouble>,
    /// Hosts that want rest, until when, and how they said it.
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

    /// Somebody wants this blob of this source: how is it?
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
            // Reads that wait must hear of the end of the budget even if no request is due before.
            let at = trouble.ask_at.min(trouble.began + self.budget);
            ask_at = Some(ask_at.map_or(at, |other| other.max(at)));
        }
        ask_at.map_or(Standing::Well, Standing::Failing)
    }

    /// Why this source is not asked now; none if it is well.
    pub(crate) fn reason(&self, source: &Source, blob: Digest) -> Option<FetchError> {
        let scopes = Scope::all(source, blob);
        let trouble = scopes.iter().find_map(|scope| self.troubles.get(scope));
        trouble
            .map(|trouble| trouble.last.clone())
            .or_else(|| self.busy.get(&source.host).map(|(_, error)| error.clone()))
    }

    /// Somebody waits for it.
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

    /// Whether a request may be made now. What is failing gives its one turn to it.
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

    /// A request that asked is over, however.
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

    /// A request failed in a way that may pass. `since` is when that request last made progress.
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
                "a registry asks to be left alone"
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
                "a source of layers does not answer"
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
                "a source of layers has not answered for longer than the read budget; missing bytes fail now"
            );
            trouble.pause = PROBE_PAUSE;
        }
        trouble.ask_at = now + trouble.pause;
    }

    /// Something came of it that concerns only this: what is wider has answered. True if that ends a trouble.
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

    /// All that was wanted of the blob came. True if that ends a trouble.
    pub(crate) fn delivered(&mut self, source: &Source, blob: Digest) -> bool {
        let host_or_repository = self.answered_before(source, blob, Concern::Blob);
        self.end(&Scope::of(Concern::Blob, source, blob)) || host_or_repository
    }

    fn end(&mut self, scope: &Scope) -> bool {
        let ended = !self.troubles.is_empty() && self.troubles.remove(scope).is_some();
        if ended {
            tracing::info!(?scope, "a source of layers answers again");
        }
        ended
    }

    /// Forgets trouble that nobody has asked about for long, and rest that is over.
    pub(crate) fn forget_unwanted(&mut self, now: Instant) {
        self.troubles
            .retain(|_, trouble| now.saturating_duration_since(trouble.wanted) < FORGET);
        self.busy.retain(|_, (until, _)| *until > now);
    }

    /// Whether this is still in trouble.
    pub(crate) fn knows(&self, scope: &Scope) -> bool {
        self.troubles.contains_key(scope)
    }
}

#[cfg(test)]
mod tests;
