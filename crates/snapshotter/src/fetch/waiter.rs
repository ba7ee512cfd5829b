//! Who waits for a piece: which sources it may hope for, and for how long.

use std::{collections::HashMap, time::Duration};

use soci_oci::{Digest, fetch::FetchError};
use tokio::time::Instant;

use super::{
    DemandError, Options, Patience, Sink, Source,
    driver::{Probe, REFUSAL_LASTS, Slow},
    health::{Health, Scope, Standing},
};
use crate::sync::Arc;

pub(super) struct Waiter {
    pub(super) sources: Arc<[Source]>,
    pub(super) avoid: Option<Arc<str>>,
    pub(super) patience: Patience,
    /// How long it has waited for sources in trouble, and since when it waits again.
    pub(super) waited: Duration,
    pub(super) waits: Option<Instant>,
    pub(super) sink: Sink,
    pub(super) refused: Vec<(Arc<str>, FetchError, Instant)>,
}

impl Waiter {
    /// One of its sources, if it is one of its, will not give the bytes.
    pub(super) fn refused_by(&mut self, source: &Source, error: &FetchError, now: Instant) {
        if self.sources.iter().any(|own| own.name == source.name) {
            let name = Arc::clone(&source.name);
            self.refused.push((name, error.clone(), now));
        }
    }
}

/// What one waiter may hope for.
pub(super) enum Hope {
    Ask(Source),
    Wait(Instant),
    /// To ask this source, of those in trouble, then.
    Trouble(Instant, Source),
    None(DemandError),
}

impl Waiter {
    /// Its sources, those that gave wrong bytes last, without those that refused.
    fn candidates(&self) -> impl Iterator<Item = &Source> {
        let avoided = |source: &&Source| self.avoid.as_ref() == Some(&source.name);
        let preferred = self.sources.iter().filter(move |source| !avoided(source));
        let last = self.sources.iter().filter(move |source| avoided(source));
        let refused = |source: &&Source| self.refused.iter().any(|(name, ..)| *name == source.name);
        preferred.chain(last).filter(move |source| !refused(source))
    }

    /// The first that is well, one that is quick to begin before one that is not.
    pub(super) fn well(
        &self,
        health: &Health,
        blob: Digest,
        slow: &Slow,
        now: Instant,
    ) -> Option<&Source> {
        let mut late = None;
        for source in self.candidates() {
            if matches!(health.standing(source, blob, now), Standing::Well) {
                if !slow.has(source, blob) {
                    return Some(source);
                }
                late = late.or(Some(source));
            }
        }
        late
    }

    pub(super) fn hope(
        &self,
        health: &mut Health,
        probes: &mut HashMap<Scope, Probe>,
        (blob, at): (Digest, u64),
        slow: &Slow,
        now: Instant,
    ) -> Hope {
        if let Some(source) = self.well(health, blob, slow, now) {
            return Hope::Ask(source.clone());
        }
        let mut wait: Option<(Instant, &Source)> = None;
        let mut spent = None;
        for source in self.candidates() {
            health.wanted(source, blob, now);
            match health.standing(source, blob, now) {
                Standing::Well => return Hope::Ask(source.clone()),
                Standing::Failing(until) if until <= now => return Hope::Ask(source.clone()),
                Standing::Failing(until) => {
                    if wait.is_none_or(|(known, _)| until < known) {
                        wait = Some((until, source));
                    }
                }
                Standing::Spent {
                    scope,
                    lasted,
                    probe_at,
                    last,
                } => {
                    let probe = probes.entry(scope).or_insert_with(|| Probe {
                        source: source.clone(),
                        blob,
                        at,
                        due: probe_at,
                    });
                    // The newest who asks knows best, a newer credential for one.
                    probe.source = source.clone();
                    (probe.blob, probe.at) = (blob, at);
                    let source_name = Arc::clone(&source.name);
                    let error = DemandError::OutOfTime {
                        source_name,
                        lasted,
                        error: last,
                    };
                    spent = Some((probe.due, error));
                }
            }
        }
        if let Some((until, source)) = wait {
            return Hope::Trouble(until, source.clone());
        }
        match (spent, self.refused.last()) {
            (Some((due, _)), _) if self.patience == Patience::Forever => Hope::Wait(due),
            (Some((_, error)), _) => Hope::None(error),
            (None, Some((_, _, at))) if self.patience == Patience::Forever => {
                Hope::Wait(*at + REFUSAL_LASTS)
            }
            (None, Some((name, error, _))) => Hope::None(DemandError::Refused {
                source_name: Arc::clone(name),
                error: error.clone(),
            }),
            (None, None) => Hope::None(DemandError::NoSource),
        }
    }

    /// Until then, but a reader not longer than the budget in all, whatever the clocks of its sources say.
    pub(super) fn wait_for(
        &mut self,
        until: Instant,
        source: &Source,
        health: &Health,
        blob: Digest,
        options: &Options,
        now: Instant,
    ) -> Result<Instant, DemandError> {
        self.waits = Some(now);
        if self.patience == Patience::Forever {
            return Ok(until);
        }
        let left = options.read_budget.saturating_sub(self.waited);
        match health.reason(source, blob) {
            Some(error) if left.is_zero() => Err(DemandError::OutOfTime {
                source_name: Arc::clone(&source.name),
                lasted: self.waited,
                error,
            }),
            _ => Ok(until.min(now + left)),
        }
    }
}
