//! Who pulls an image: whether a client waits for one of its layers, and since when none does.
//!
//! containerd requests one layer after another, so a client without a request may be between two of
//! them. It has left when no request came for a while.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a client may take from an answer to its next request. containerd may unpack a layer
/// meanwhile.
const NEXT: Duration = Duration::from_secs(300);
/// The same after a cancelled request. Another client of the image may be between two requests.
const CANCELLED: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug)]
struct State {
    waiting: usize,
    /// When all clients have left, if no request comes.
    left: Instant,
}

/// The clients of one image.
#[derive(Debug)]
pub(super) struct Clients(watch::Sender<State>);

impl Default for Clients {
    fn default() -> Self {
        let left = Instant::now();
        Self(watch::Sender::new(State { waiting: 0, left }))
    }
}

/// A request for a layer, until dropped.
#[derive(Debug)]
pub(super) struct Client<'a> {
    clients: &'a Clients,
    gone: CancellationToken,
}

impl Drop for Client<'_> {
    fn drop(&mut self) {
        let patience = match self.gone.is_cancelled() {
            true => CANCELLED,
            false => NEXT,
        };
        self.clients.0.send_modify(|state| {
            state.waiting -= 1;
            state.left = Instant::now() + patience;
        });
    }
}

impl Clients {
    /// Notes a request. `gone` is cancelled if its client goes away.
    pub(super) fn enter(&self, gone: CancellationToken) -> Client<'_> {
        self.0.send_modify(|state| state.waiting += 1);
        Client {
            clients: self,
            gone,
        }
    }

    /// Whether a client waits for a layer.
    pub(super) fn are_waiting(&self) -> bool {
        self.0.borrow().waiting > 0
    }

    /// Waits until all clients have left.
    pub(super) async fn left(&self) {
        let mut states = self.0.subscribe();
        loop {
            let State { waiting, left } = *states.borrow_and_update();
            let changed = states.changed();
            if waiting > 0 {
                // The sender lives as long as `self`.
                drop(changed.await);
            } else if tokio::time::timeout_at(left, changed).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_between_two_requests_has_not_left_and_a_cancelled_one_soon_has() {
        let clients = Clients::default();
        let begin = Instant::now();
        clients.left().await;
        assert_eq!(begin.elapsed(), Duration::ZERO, "nobody has come");
        let here = CancellationToken::new();
        let first = clients.enter(here.clone());
        let second = clients.enter(here.clone());
        drop(first);
        let hour = Duration::from_secs(3600);
        let waited = tokio::time::timeout(hour, clients.left()).await;
        assert!(waited.is_err(), "one still waits");
        drop(second);
        let begin = Instant::now();
        clients.left().await;
        assert_eq!(begin.elapsed(), NEXT);
        let gone = CancellationToken::new();
        let cancelled = clients.enter(gone.clone());
        gone.cancel();
        drop(cancelled);
        let begin = Instant::now();
        clients.left().await;
        assert_eq!(begin.elapsed(), CANCELLED);
    }

    #[tokio::test(start_paused = true)]
    async fn another_request_in_time_keeps_the_image() {
        let clients = Clients::default();
        let gone = CancellationToken::new();
        gone.cancel();
        drop(clients.enter(gone));
        let others = async {
            tokio::time::sleep(CANCELLED / 2).await;
            drop(clients.enter(CancellationToken::new()));
        };
        let begin = Instant::now();
        tokio::join!(clients.left(), others);
        assert_eq!(begin.elapsed(), CANCELLED / 2 + NEXT);
    }
}
