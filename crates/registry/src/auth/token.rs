//! Bearer tokens, shared by everything that needs the same one.
//!
//! A token exchange runs as a task of this module, independent of the requests that wait for it. A
//! canceled request therefore does not stop it, and all requests that need the same token wait for
//! the same exchange.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinSet};

use super::{
    super::{exchange::Exchange, retry::RetryPolicy},
    MANY_TOKENS, Scope,
};
use crate::{
    credentials::{Credential, Secret},
    fetch::FetchError,
};

/// A token is renewed when less than this is left of its lifetime, or a fifth of the lifetime if
/// that is shorter.
const RENEW_BEFORE: Duration = Duration::from_secs(30);

/// A bearer token and when to replace it.
pub(crate) struct Token {
    pub(crate) value: Secret,
    renew: Option<Instant>,
    end: Option<Instant>,
}

impl Token {
    /// A new token. Without a lifetime, it is valid until it is rejected.
    pub(crate) fn new(value: Secret, lifetime: Option<Duration>) -> Token {
        let now = Instant::now();
        let early = |life: Duration| life.saturating_sub(RENEW_BEFORE.min(life / 5));
        Token {
            value,
            renew: lifetime.and_then(|life| now.checked_add(early(life))),
            end: lifetime.and_then(|life| now.checked_add(life)),
        }
    }

    fn is_good(&self) -> bool {
        self.end.is_none_or(|end| Instant::now() < end)
    }

    fn is_due(&self) -> bool {
        self.renew.is_some_and(|renew| Instant::now() >= renew)
    }
}

type Outcome = Result<Arc<Token>, FetchError>;

/// A shared token, and the exchange in progress for its successor, if any.
pub(super) struct Cell {
    pub(super) exchange: Exchange,
    state: Mutex<CellState>,
}

#[derive(Default)]
struct CellState {
    token: Option<Arc<Token>>,
    running: Option<watch::Receiver<Option<Outcome>>>,
}

impl Cell {
    fn state(&self) -> MutexGuard<'_, CellState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops the token if it is this one.
    pub(super) fn forget(&self, refused: &str) {
        let mut state = self.state();
        state.token.take_if(|token| token.value.reveal() == refused);
    }
}

/// Realm, service, scope, fingerprint of the credential.
type CellKey = (String, String, Scope, Option<[u8; 32]>);

/// All tokens of a client.
pub(super) struct Tokens {
    retry: RetryPolicy,
    cells: Mutex<HashMap<CellKey, Arc<Cell>>>,
    /// Exchanges in progress. Dropping this value stops them.
    tasks: Mutex<JoinSet<()>>,
}

impl Tokens {
    pub(super) fn new(retry: RetryPolicy) -> Tokens {
        Tokens {
            retry,
            cells: Mutex::default(),
            tasks: Mutex::default(),
        }
    }

    /// The shared token of an exchange.
    pub(super) fn cell(&self, exchange: Exchange) -> Arc<Cell> {
        let credential = exchange.credential.as_ref().map(Credential::fingerprint);
        let key = (
            exchange.realm.to_string(),
            exchange.service.clone(),
            exchange.scope.clone(),
            credential,
        );
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        if cells.len() >= MANY_TOKENS {
            cells.retain(|_, cell| Arc::strong_count(cell) > 1);
        }
        let new = || {
            Arc::new(Cell {
                exchange,
                state: Mutex::default(),
            })
        };
        Arc::clone(cells.entry(key).or_insert_with(new))
    }

    /// Returns the current token, or waits for an exchange. Does not return the token `refused`.
    pub(super) async fn get(&self, cell: &Arc<Cell>, refused: Option<&str>) -> Outcome {
        let mut running = {
            let mut state = cell.state();
            let state = &mut *state;
            if let Some(token) = &state.token
                && (!token.is_good() || refused == Some(token.value.reveal()))
            {
                state.token = None;
            }
            if let Some(token) = &state.token {
                let token = Arc::clone(token);
                if token.is_due() {
                    // Still valid for this request; the successor is fetched in the background.
                    self.start(cell, state);
                }
                return Ok(token);
            }
            self.start(cell, state)
        };
        match running.wait_for(Option::is_some).await {
            Ok(outcome) => outcome
                .clone()
                .unwrap_or_else(|| Err(cell.exchange.abandoned())),
            Err(_) => Err(cell.exchange.abandoned()),
        }
    }

    /// Joins the exchange in progress, or starts one.
    fn start(&self, cell: &Arc<Cell>, state: &mut CellState) -> watch::Receiver<Option<Outcome>> {
        // A closed channel without an outcome means that the task died. Start another one.
        if let Some(running) = &state.running
            && running.has_changed().is_ok()
        {
            return running.clone();
        }
        let (done, running) = watch::channel(None);
        state.running = Some(running.clone());
        let (cell, retry) = (Arc::clone(cell), self.retry);
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            let outcome = cell.exchange.run(retry).await.map(Arc::new);
            let mut state = cell.state();
            state.running = None;
            if let Ok(token) = &outcome {
                state.token = Some(Arc::clone(token));
            }
            drop(state);
            done.send_replace(Some(outcome));
        });
        running
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_before_it_runs_out() {
        let token = |life| Token::new(Secret::new("t"), life);
        let forever = token(None);
        assert!(forever.is_good() && !forever.is_due());
        let long = token(Some(Duration::from_secs(300)));
        assert!(long.is_good() && !long.is_due());
        assert_eq!(
            long.end.zip(long.renew).map(|(end, renew)| end - renew),
            Some(RENEW_BEFORE)
        );
        let over = token(Some(Duration::ZERO));
        assert!(!over.is_good() && over.is_due());
    }
}
