//! A waiter of a piece: which sources it can use, and how long it waits.

use std::{collections::HashMap, time::Duration};

use soci_oci::Digest;
use soci_registry::fetch::FetchError;
use tokio::time::Instant;

use super::{
    DemandError, Options, Patience, Sink, Source, Watch,
    driver::{Probe, REFUSAL_LASTS, Slow},
    health::{Health, Scope, Standing},
};
use crate::sync::Arc;

pub(super) struct Waiter {
    pub(super) sources: Arc<[Source]>,
    pub(super) avoid: Option<Arc<str>>,
    pub(super) patience: Patience,
    /// How long the waiter has waited for failing sources, and since when it waits now.
    pub(super) waited: Duration,
    pub(super) waits: Option<Instant>,
    /// Until a request has brought bytes for a reader.
    pub(super) watch: Option<Watch>,
    pub(super) sink: Sink,
    pub(super) refused: Vec<(Arc<str>, FetchError, Instant)>,
}

impl Waiter {
    /// Records a refusal if the source is one of the waiter's own.
    pub(super) fn refused_by(&mut self, source: &Source, error: &FetchError, now: Instant) {
        if self.sources.iter().any(|own| own.name == source.name) {
            let name = Arc::clone(&source.name);
            self.refused.push((name, error.clone(), now));
        }
    }
}

/// What one waiter can do next.
pub(super) enum Hope {
    Ask(Source),
    Wait(Instant),
    /// Every source fails. Ask this one at this time.
    Trouble(Instant, Source),
    None(DemandError),
}

impl Waiter {
    /// The usable sources: those that refused are excluded, and the one that sent wrong bytes is
    /// last.
    fn candidates(&self) -> impl Iterator<Item = &Source> {
        let avoided = |source: &&Source| self.avoid.as_ref() == Some(&source.name);
        let preferred = self.sources.iter().filter(move |source| !avoided(source));
        let last = self.sources.iter().filter(move |source| avoided(source));
        let refused = |source: &&Source| self.refused.iter().any(|(name, ..)| *name == source.name);
        preferred.chain(last).filter(move |source| !refused(source))
    }

    /// The first healthy source. A source that responds quickly precedes a slow one.
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
                    // The newest waiter has the most recent source, for example with newer
                    // credentials.
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

    /// Waits until this time, but a reader waits no longer than the budget in total, regardless of
    /// the clocks of its sources.
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
