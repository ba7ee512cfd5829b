//! What to do next: which requests fit, which source to ask, who has nothing to hope for. [`drive`] carries it out.

use std::{collections::HashMap, time::Duration};

use tokio::{task::JoinSet, time::Instant};

use super::{
    Class, DemandError, Patience, Shared, Source, State, Waiter, flight,
    outage::{Health, Outages},
    queue::{Piece, PieceId, Request},
};
use crate::sync::{Arc, Weak};

/// A source that refused is asked again for a patient demand after this long.
const REFUSAL_LASTS: Duration = Duration::from_secs(60);

/// What the driver found to do.
#[derive(Default)]
struct Round {
    start: Vec<(Request, Source)>,
    probe: Vec<Source>,
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
        for source in round.probe {
            flights.spawn(flight::probe(Arc::clone(&strong), source));
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
        state.outages.forget_unwanted(now);
        if state.unpark_at.is_some_and(|at| at <= now) {
            state.unpark_at = None;
            state.queue.unpark();
        }
        let limit = |class| match class {
            Class::All => self.options.all_request_bytes,
            Class::Now | Class::Next => self.options.urgent_request_bytes,
        };
        loop {
            let running = &state.running;
            let fits =
                |piece: &Piece<Waiter>| running.fit(&self.options, piece.class, &piece.image);
            let Some(request) = state.queue.take(fits, limit) else {
                break;
            };
            let Some(&(first, _)) = request.pieces.first() else {
                break;
            };
            match state.judge(first, now, &mut round) {
                Verdict::Ask(source) => {
                    state.running.start(request.class, &request.image);
                    state.received.insert(request.flight, None);
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
        round.wake_at = state.unpark_at;
        state.due_probes(now, &mut round);
        round
    }
}

impl State {
    /// Answers the waiters of a piece that have nothing to hope for, and finds a source for the others.
    fn judge(&mut self, id: PieceId, now: Instant, round: &mut Round) -> Verdict {
        let State {
            queue,
            outages,
            probes,
            ..
        } = self;
        let Some(piece) = queue.get_mut(id) else {
            return Verdict::Nobody;
        };
        let (mut ask, mut wait): (Option<Source>, Option<Instant>) = (None, None);
        let mut left = Vec::with_capacity(piece.waiters.len());
        for mut waiter in std::mem::take(&mut piece.waiters) {
            if waiter.patience == Patience::Forever {
                waiter
                    .refused
                    .retain(|(_, _, at)| now.saturating_duration_since(*at) < REFUSAL_LASTS);
            }
            match waiter.hope(outages, probes, now) {
                Hope::Ask(source) => ask = ask.or(Some(source)),
                Hope::Wait(until) => wait = sooner(wait, until),
                Hope::None(error) => {
                    round.fail.push((waiter, error));
                    continue;
                }
            }
            left.push(waiter);
        }
        piece.waiters = left;
        match (ask, wait) {
            (Some(source), _) if outages.take_turn(&source.name, now) => Verdict::Ask(source),
            (Some(_), _) => Verdict::Wait(now + Duration::from_millis(50)),
            (None, Some(until)) => Verdict::Wait(until.max(now + Duration::from_millis(1))),
            (None, None) => Verdict::Nobody,
        }
    }

    fn due_probes(&mut self, now: Instant, round: &mut Round) {
        let State {
            outages, probes, ..
        } = self;
        probes.retain(|name, _| outages.knows(name));
        for (source, at) in probes.values_mut() {
            if *at <= now && outages.take_turn(&source.name, now) {
                round.probe.push(source.clone());
                *at = now + Duration::from_secs(3);
            }
            round.wake_at = sooner(round.wake_at, *at);
        }
    }
}

/// What one waiter may hope for.
enum Hope {
    Ask(Source),
    Wait(Instant),
    None(DemandError),
}

impl Waiter {
    fn hope(
        &self,
        outages: &mut Outages,
        probes: &mut HashMap<Arc<str>, (Source, Instant)>,
        now: Instant,
    ) -> Hope {
        let mut wait: Option<Instant> = None;
        let mut spent = None;
        let avoided = |source: &&Source| self.avoid.as_ref() == Some(&source.name);
        let preferred = self.sources.iter().filter(|source| !avoided(source));
        for source in preferred.chain(self.sources.iter().filter(avoided)) {
            if self.refused.iter().any(|(name, _, _)| *name == source.name) {
                continue;
            }
            match outages.health(&source.name, now) {
                Health::Well => return Hope::Ask(source.clone()),
                Health::Failing(until) if until <= now => return Hope::Ask(source.clone()),
                Health::Failing(until) => wait = sooner(wait, until),
                Health::Spent {
                    lasted,
                    probe_at,
                    last,
                } => {
                    let probe = || (source.clone(), probe_at);
                    let (_, at) = probes.entry(Arc::clone(&source.name)).or_insert_with(probe);
                    let source_name = Arc::clone(&source.name);
                    spent = Some((
                        *at,
                        DemandError::OutOfTime {
                            source_name,
                            lasted,
                            error: last,
                        },
                    ));
                }
            }
        }
        match (wait, spent, self.refused.last()) {
            (Some(until), _, _) => Hope::Wait(until),
            (None, Some((at, _)), _) if self.patience == Patience::Forever => Hope::Wait(at),
            (None, Some((_, error)), _) => Hope::None(error),
            (None, None, Some((_, _, at))) if self.patience == Patience::Forever => {
                Hope::Wait(*at + REFUSAL_LASTS)
            }
            (None, None, Some((name, error, _))) => Hope::None(DemandError::Refused {
                source_name: Arc::clone(name),
                error: error.clone(),
            }),
            (None, None, None) => Hope::None(DemandError::NoSource),
        }
    }
}
