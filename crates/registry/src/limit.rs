//! Limits the concurrent requests to a host, and adapts the limit to what the host can handle.
//!
//! Additive increase, multiplicative decrease, as in TCP: every response adds a fraction of one
//! request; a 429, a 503 or a failed connection halves the limit. Requests that started before the
//! last decrease do not change the limit, because they fail for the same reason.
//!
//! A permit covers a request until its response headers arrive, never the body of a response or an
//! upload. Background reads are paused while a reader waits; a paused body with a permit could
//! block that reader. An upload can take long, and it may need a token from the same host.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::Notify;

/// Initial limit of a host: slightly more than browsers use for one HTTP/1.1 host.
const START: f64 = 8.0;

#[derive(Debug)]
pub(crate) struct Limit {
    state: Mutex<State>,
    freed: Notify,
    most: f64,
}

#[derive(Debug)]
struct State {
    limit: f64,
    in_use: usize,
    decreased: Option<Instant>,
}

/// One request in progress. Dropping the permit without a result does not change the limit.
#[derive(Debug)]
pub(crate) struct Permit<'a> {
    limit: &'a Limit,
    begun: Instant,
    counts: bool,
}

impl Limit {
    /// Creates a limit that never exceeds `most` requests.
    pub(crate) fn new(most: usize) -> Limit {
        let most = f64::from(u32::try_from(most.max(1)).unwrap_or(u32::MAX));
        let state = State {
            limit: START.min(most),
            in_use: 0,
            decreased: None,
        };
        Limit {
            state: Mutex::new(state),
            freed: Notify::new(),
            most,
        }
    }

    /// Waits for a permit, in order of arrival.
    pub(crate) async fn acquire(&self) -> Permit<'_> {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // Registered before the check, so that a permit released in between is not missed.
            freed.as_mut().enable();
            {
                let mut state = self.state();
                if (state.in_use as f64) < state.limit.floor() {
                    state.in_use += 1;
                    return Permit {
                        limit: self,
                        begun: Instant::now(),
                        counts: true,
                    };
                }
            }
            freed.await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    fn current(&self) -> f64 {
        self.state().limit
    }
}

impl Permit<'_> {
    /// Releases the permit early, while the request continues.
    pub(crate) fn lapse(&mut self) {
        if std::mem::take(&mut self.counts) {
            self.limit.state().in_use -= 1;
            self.limit.freed.notify_one();
        }
    }

    /// The host responded and can handle this load.
    pub(crate) fn good(self) {
        let mut state = self.limit.state();
        if self.is_news(&state) {
            // Adds about one request per full round.
            state.limit = (state.limit + 1.0 / state.limit).min(self.limit.most);
        }
        drop(state);
        self.limit.freed.notify_one();
    }

    /// The host is overloaded or unreachable.
    pub(crate) fn overloaded(self) {
        let mut state = self.limit.state();
        if self.is_news(&state) {
            state.limit = (state.limit / 2.0).max(1.0);
            state.decreased = Some(Instant::now());
        }
    }

    fn is_news(&self, state: &State) -> bool {
        state
            .decreased
            .is_none_or(|decreased| self.begun > decreased)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.lapse();
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future, pin::pin, task::Poll};

    use super::*;

    async fn is_blocked(future: impl Future) -> bool {
        let mut future = pin!(future);
        futures_util::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await
    }

    #[tokio::test]
    async fn requests_beyond_the_limit_wait_their_turn() {
        let limit = Limit::new(2);
        let one = limit.acquire().await;
        let _two = limit.acquire().await;
        assert!(is_blocked(limit.acquire()).await);
        drop(one);
        assert!(!is_blocked(limit.acquire()).await);
    }

    #[tokio::test]
    async fn overload_halves_once_and_answers_raise_it_again() {
        let limit = Limit::new(64);
        let permits = [
            limit.acquire().await,
            limit.acquire().await,
            limit.acquire().await,
        ];
        for permit in permits {
            permit.overloaded();
        }
        assert!(
            (limit.current() - 4.0).abs() < 0.01,
            "one overload, not three"
        );
        for _ in 0..40 {
            limit.acquire().await.good();
        }
        assert!(limit.current() > 8.0);
        for _ in 0..5000 {
            limit.acquire().await.good();
        }
        assert!(
            (limit.current() - 64.0).abs() < 0.01,
            "never beyond the most"
        );
    }

    #[tokio::test]
    async fn a_waiter_that_gives_up_passes_its_turn_on() {
        let limit = Limit::new(1);
        let held = limit.acquire().await;
        let mut second = Box::pin(limit.acquire());
        assert!(is_blocked(&mut second).await);
        let third = limit.acquire();
        let mut third = Box::pin(third);
        assert!(is_blocked(&mut third).await);
        drop(held);
        drop(second);
        assert!(!is_blocked(&mut third).await);
    }

    #[tokio::test]
    async fn a_request_that_hangs_gives_its_turn_back_once() {
        let limit = Limit::new(1);
        let mut hangs = limit.acquire().await;
        hangs.lapse();
        let next = limit.acquire().await;
        drop(hangs);
        assert!(is_blocked(limit.acquire()).await, "one turn, not two");
        drop(next);
    }

    #[tokio::test]
    async fn the_limit_never_falls_below_one() {
        let limit = Limit::new(1);
        limit.acquire().await.overloaded();
        limit.acquire().await.overloaded();
        assert!(!is_blocked(limit.acquire()).await);
    }
}
