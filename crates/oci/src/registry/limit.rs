//! How many requests a host gets at once: more while it bears them, fewer when it says that it does not.
//!
//! Additive increase, multiplicative decrease, as TCP does it: every answer adds a fraction of one request, a 429, a
//! 503 or a failed connection halves the limit. Requests that were already under way at the last decrease do not
//! count, either way: they fail for the same reason, not for a new one.
//!
//! A permit covers a request until the head of its answer has come, never a body, neither the answer's nor an upload's.
//! Bodies are held up on purpose (background reads pause for reads on demand), and a paused body that kept a permit would
//! block the very read it was paused for. An upload lasts as long as the line takes, and a token that it needs comes from
//! the same host. The number of open bodies is the business of who opens them.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::sync::Notify;

/// Where a new host starts: what browsers open to one HTTP/1.1 host, and a little.
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

/// One request under way. Dropping it without a verdict says nothing about the host.
#[derive(Debug)]
pub(crate) struct Permit<'a> {
    limit: &'a Limit,
    begun: Instant,
    counts: bool,
}

impl Limit {
    /// At most `most` requests at once, however well it goes.
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

    /// Waits for its turn, first come first served.
    pub(crate) async fn acquire(&self) -> Permit<'_> {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // Registered before looking, or a permit freed in between would be missed.
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
    /// The request goes on and does not count any more.
    pub(crate) fn lapse(&mut self) {
        if std::mem::take(&mut self.counts) {
            self.limit.state().in_use -= 1;
            self.limit.freed.notify_one();
        }
    }

    /// The host answered and bears this much.
    pub(crate) fn good(self) {
        let mut state = self.limit.state();
        if self.is_news(&state) {
            // About one more request per full round of them.
            state.limit = (state.limit + 1.0 / state.limit).min(self.limit.most);
        }
        drop(state);
        self.limit.freed.notify_one();
    }

    /// The host is overloaded or cannot be reached.
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
