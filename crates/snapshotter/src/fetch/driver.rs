//! Decides the next actions: which requests to start, which source to ask, which waiters to fail.
//! [`drive`] carries them out.

use std::{collections::HashSet, time::Duration};

use soci_oci::Digest;
use tokio::{task::JoinSet, time::Instant};

use super::{
    Class, DemandError, Options, Patience, Shared, Source, State, Waiter, flight,
    meter::RECENTLY,
    queue::{FlightId, Piece, PieceId, Request},
    running::Aloft,
    waiter::Hope,
};
use crate::sync::{Arc, Weak, atomic::Ordering};

/// A demand with [`Patience::Forever`] asks a source that refused again after this time.
pub(super) const REFUSAL_LASTS: Duration = Duration::from_secs(60);
/// If a reader's request has delivered nothing for this long, the reader gets a healthy source on
/// another host, if it has one.
pub(super) const SLOW: Duration = Duration::from_secs(2);
/// Bytes that have not arrived for this long do not occupy the link.
const STALLED: Duration = Duration::from_millis(500);

/// A pending probe: it asks `source` for the byte at offset `at` of `blob` at time `due`.
pub(super) struct Probe {
    pub(super) source: Source,
    pub(super) blob: Digest,
    pub(super) at: u64,
    pub(super) due: Instant,
}

/// The actions of one round.
#[derive(Default)]
struct Round {
    start: Vec<(Request, Source)>,
    probe: Vec<(Source, Digest, u64)>,
    fail: Vec<(Waiter, DemandError)>,
    wake_at: Option<Instant>,
}

/// Owns the requests. Starts those that fit, waits for a demand, the end of a request, or a
/// deadline, and repeats.
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

/// What to do with the first piece of a request.
enum Verdict {
    Ask(Source),
    Wait(Instant),
    /// No waiter is left. All have been answered.
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
        if !state.meter.had_reader(RECENTLY, now) {
            state.queue.forget_reader();
        }
        let held_back = self.held_back.load(Ordering::Relaxed) > 0;
        let background = state.meter.request(held_back, now);
        let limit = |class| match class {
            Class::All => self.options.all_request_bytes.min(background),
            Class::Pull => self.options.pull_request_bytes,
            Class::Now | Class::Next => self.options.urgent_request_bytes,
        };
        loop {
            let (ahead, stalls) = state.may_ask(held_back, now);
            if let Some(at) = stalls {
                round.wake_at = sooner(round.wake_at, at);
            }
            let (running, health) = (&state.running, &state.health);
            // An estimate that avoids taking pieces that cannot start. `judge` decides.
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

/// Hosts that are slow to deliver a blob, judging from requests in flight. Another repository on
/// the same host is no faster.
#[derive(Default)]
pub(super) struct Slow {
    flights: Vec<FlightId>,
    hosts: HashSet<(Arc<str>, Digest)>,
}

impl Slow {
    pub(super) fn has(&self, source: &Source, blob: Digest) -> bool {
        !self.hosts.is_empty() && self.hosts.contains(&(Arc::clone(&source.host), blob))
    }
}

impl State {
    /// How many more bytes the background may request. Unlimited if no background request is in
    /// flight. Requests that deliver nothing do not count. Also returns when the next of them could
    /// become one that does not count.
    fn may_ask(&self, held_back: bool, now: Instant) -> (u64, Option<Instant>) {
        let (mut on_the_way, mut stalls) = (None, None);
        for (&id, aloft) in &self.flights {
            let silent = aloft.silent_for(now);
            let comes = aloft.paused || silent < STALLED;
            if comes && self.queue.flight_class(id) == Some(Class::All) {
                *on_the_way.get_or_insert(0) += aloft.rest();
                if !aloft.paused {
                    stalls = sooner(stalls, now + (STALLED - silent));
                }
            }
        }
        let ahead = on_the_way.map_or(u64::MAX, |rest: u64| {
            self.meter.ahead(held_back, now).saturating_sub(rest)
        });
        (ahead, stalls)
    }

    /// The requests that have delivered nothing for too long, and when the next reader's request
    /// could become one of them.
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

    /// Takes readers' pieces from requests that are slow to start if another source can deliver
    /// them.
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

    /// Fails the waiters of a piece that have no usable source, and selects a source for the
    /// others.
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
