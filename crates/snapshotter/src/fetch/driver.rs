//! What to do next: which requests fit, which source to ask, who has nothing to hope for. [`drive`] carries it out.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use soci_oci::Digest;
use tokio::{task::JoinSet, time::Instant};

use super::{
    Class, DemandError, Options, Patience, Shared, Source, State, Waiter,
    flight::{self, Aloft},
    health::{Health, Scope, Standing},
    queue::{FlightId, Piece, PieceId, Request},
};
use crate::sync::{Arc, Weak, atomic::Ordering};

/// A source that refused is asked again for a patient demand after this long.
const REFUSAL_LASTS: Duration = Duration::from_secs(60);
/// A reader whose request has brought nothing for so long is given a source at another host that is well, if it has one.
const SLOW: Duration = Duration::from_secs(2);

/// A probe that is due: what for, whom to ask for the byte at this place of which blob, and when.
pub(super) struct Probe {
    source: Source,
    blob: Digest,
    at: u64,
    due: Instant,
}

/// What the driver found to do.
#[derive(Default)]
struct Round {
    start: Vec<(Request, Source)>,
    probe: Vec<(Source, Digest, u64)>,
    fail: Vec<(Waiter, DemandError)>,
    wake_at: Option<Instant>,
}

/// Owns the requests: starts what fits, waits for a wish, an end or a time, and looks again.
pub(super) async fn drive(shared: Weak<Shared>) {
    let mut flights = JoinSet::new();
    loop {
        let Some(strong) = shared.upgrade() else {
            return;
        };
        let round = strong.round(Instant::now());
        for (waiter, error) in round.fail {
            (waiter.sink)(Err(error));
        }
        for (request, source) in round.start {
            flights.spawn(flight::fly(Arc::clone(&strong), request, source));
        }
        for (source, blob, at) in round.probe {
            flights.spawn(flight::probe(Arc::clone(&strong), source, blob, at));
        }
        let tick = Duration::from_secs(60);
        let until = round.wake_at.unwrap_or_else(|| Instant::now() + tick);
        tokio::select! {
            () = strong.wake.notified() => {}
            Some(ended) = flights.join_next(), if !flights.is_empty() => {
                if let Err(error) = ended {
                    tracing::error!(error = %error, "a request panicked");
                }
            }
            () = tokio::time::sleep_until(until) => {}
        }
    }
}

fn sooner(first: Option<Instant>, second: Instant) -> Option<Instant> {
    Some(first.map_or(second, |first| first.min(second)))
}

/// What can be done about the first piece of a request.
enum Verdict {
    Ask(Source),
    Wait(Instant),
    /// Nobody waits any more: all waiters were answered.
    Nobody,
}

impl Shared {
    fn round(&self, now: Instant) -> Round {
        let mut round = Round::default();
        let mut state = self.state.lock();
        let state = &mut *state;
        state.health.forget_unwanted(now);
        if state.unpark_at.is_some_and(|at| at <= now) {
            state.unpark_at = None;
            state.queue.unpark();
        }
        let (slow, look) = state.slow(now);
        round.wake_at = look;
        state.free_from_slow(&slow, now);
        let held_back = self.held_back.load(Ordering::Relaxed) > 0;
        let background = state.meter.request(held_back, now);
        let limit = |class| match class {
            Class::All => self.options.all_request_bytes.min(background),
            Class::Now | Class::Next => self.options.urgent_request_bytes,
        };
        loop {
            let ahead = state.may_ask(held_back, now);
            let (running, health) = (&state.running, &state.health);
            // A guess, so that not everything is taken that cannot start; what is judged below counts.
            let fits = |piece: &Piece<Waiter>| {
                let waiter = piece.waiters.first();
                let source = waiter.and_then(|w| w.well(health, piece.key.blob, &slow, now));
                running.fit(&self.options, piece, source, ahead)
            };
            let Some(request) = state.queue.take(fits, limit) else {
                break;
            };
            let Some(&(first, _)) = request.pieces.first() else {
                break;
            };
            match state.judge(first, &request, &self.options, &slow, now, &mut round) {
                Verdict::Ask(source) => {
                    let class = request.class;
                    state.running.start(class, &request.image, &source.host);
                    let aloft = Aloft::new(&request, &source, now);
                    state.flights.insert(request.flight, aloft);
                    if class == Class::Now {
                        round.wake_at = sooner(round.wake_at, now + SLOW);
                    }
                    round.start.push((request, source));
                }
                Verdict::Wait(until) => {
                    state.queue.give_back(request.flight);
                    state.queue.park(first);
                    state.unpark_at = sooner(state.unpark_at, until);
                }
                Verdict::Nobody => {
                    state.queue.remove(first);
                    state.queue.give_back(request.flight);
                }
            }
        }
        if let Some(at) = state.unpark_at {
            round.wake_at = sooner(round.wake_at, at);
        }
        state.due_probes(now, &mut round);
        round
    }
}

/// Hosts that are slow to bring a blob, as far as requests in the air tell. Another repository there is no quicker.
#[derive(Default)]
struct Slow {
    flights: Vec<FlightId>,
    hosts: HashSet<(Arc<str>, Digest)>,
}

impl Slow {
    fn has(&self, source: &Source, blob: Digest) -> bool {
        !self.hosts.is_empty() && self.hosts.contains(&(Arc::clone(&source.host), blob))
    }
}

impl State {
    /// How many bytes the background may still ask for: one request in any case, and not counting what does not come.
    fn may_ask(&self, held_back: bool, now: Instant) -> u64 {
        let mut on_the_way = None;
        for (&id, aloft) in &self.flights {
            let since = aloft.last.map_or(aloft.begun, |last| last.max(aloft.begun));
            let comes = aloft.paused || now.saturating_duration_since(since) < SLOW;
            if comes && self.queue.flight_class(id) == Some(Class::All) {
                *on_the_way.get_or_insert(0) += aloft.rest();
            }
        }
        on_the_way.map_or(u64::MAX, |rest: u64| {
            self.meter.ahead(held_back, now).saturating_sub(rest)
        })
    }

    /// The requests that have brought nothing for too long, and when the next one of a reader may be.
    fn slow(&self, now: Instant) -> (Slow, Option<Instant>) {
        let (mut slow, mut look) = (Slow::default(), None);
        for (&id, aloft) in self
            .flights
            .iter()
            .filter(|(_, aloft)| aloft.last.is_none() && !aloft.paused)
        {
            if now >= aloft.begun + SLOW {
                slow.flights.push(id);
                slow.hosts.insert((Arc::clone(&aloft.host), aloft.blob));
            } else if self.queue.flight_class(id) == Some(Class::Now) {
                look = sooner(look, aloft.begun + SLOW);
            }
        }
        (slow, look)
    }

    /// Readers do not wait for a source that is slow to begin if another may have the bytes.
    fn free_from_slow(&mut self, slow: &Slow, now: Instant) {
        for &flight in &slow.flights {
            for id in self.queue.carried(flight) {
                let Some(piece) = self.queue.get_mut(id) else {
                    continue;
                };
                let blob = piece.key.blob;
                let has_other = |waiter: &Waiter| {
                    let source = waiter.well(&self.health, blob, slow, now);
                    source.is_some_and(|source| !slow.has(source, blob))
                };
                if piece.class == Class::Now && piece.waiters.iter().any(has_other) {
                    self.queue.free(flight, id);
                }
            }
        }
    }

    /// Answers the waiters of a piece that have nothing to hope for, and finds a source for the others.
    fn judge(
        &mut self,
        id: PieceId,
        request: &Request,
        options: &Options,
        slow: &Slow,
        now: Instant,
        round: &mut Round,
    ) -> Verdict {
        let State {
            queue,
            health,
            probes,
            running,
            ..
        } = self;
        let Some(piece) = queue.get_mut(id) else {
            return Verdict::Nobody;
        };
        let (blob, at) = (piece.key.blob, piece.key.start);
        let (mut ask, mut wait): (Option<Source>, Option<Instant>) = (None, None);
        let mut left = Vec::with_capacity(piece.waiters.len());
        for mut waiter in std::mem::take(&mut piece.waiters) {
            if waiter.patience == Patience::Forever {
                waiter
                    .refused
                    .retain(|(_, _, at)| now.saturating_duration_since(*at) < REFUSAL_LASTS);
            }
            if let Some(since) = waiter.waits.take() {
                waiter.waited += now.saturating_duration_since(since);
            }
            match waiter.hope(health, probes, (blob, at), slow, now) {
                Hope::Ask(source) => {
                    let better = ask.as_ref().is_some_and(|known| slow.has(known, blob));
                    if ask.is_none() || better && !slow.has(&source, blob) {
                        ask = Some(source);
                    }
                }
                Hope::Wait(until) => wait = sooner(wait, until),
                Hope::Trouble(until, source) => {
                    match waiter.wait_for(until, &source, health, blob, options, now) {
                        Ok(until) => wait = sooner(wait, until),
                        Err(error) => {
                            round.fail.push((waiter, error));
                            continue;
                        }
                    }
                }
                Hope::None(error) => {
                    round.fail.push((waiter, error));
                    continue;
                }
            }
            left.push(waiter);
        }
        piece.waiters = left;
        let soon = now + Duration::from_millis(50);
        match (ask, wait) {
            (Some(source), _) if !running.has_room(request.class, &source.host) => {
                Verdict::Wait(soon)
            }
            (Some(source), _) if health.take_turn(&source, blob, now) => Verdict::Ask(source),
            (Some(_), _) => Verdict::Wait(soon),
            (None, Some(until)) => Verdict::Wait(until.max(now + Duration::from_millis(1))),
            (None, None) => Verdict::Nobody,
        }
    }

    fn due_probes(&mut self, now: Instant, round: &mut Round) {
        let State { health, probes, .. } = self;
        probes.retain(|scope, _| health.knows(scope));
        for probe in probes.values_mut() {
            if probe.due <= now && health.take_turn(&probe.source, probe.blob, now) {
                round
                    .probe
                    .push((probe.source.clone(), probe.blob, probe.at));
            }
            if probe.due <= now {
                probe.due = now + Duration::from_secs(3);
            }
            round.wake_at = sooner(round.wake_at, probe.due);
        }
    }
}

/// What one waiter may hope for.
enum Hope {
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
    fn well(&self, health: &Health, blob: Digest, slow: &Slow, now: Instant) -> Option<&Source> {
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

    fn hope(
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
    fn wait_for(
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
