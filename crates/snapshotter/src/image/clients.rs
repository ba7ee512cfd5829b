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
/// The same after a cancelled request, which may be repeated at once.
const CANCELLED: Duration = Duration::from_secs(2);

/// Clients between two requests that are remembered. More would mean that they never come back.
const MOST_BETWEEN: usize = 64;

#[derive(Clone, Debug)]
struct State {
    waiting: usize,
    /// When a client that was cancelled has left.
    cancelled: Instant,
    /// Clients between two requests: the position of the layer that each got, and when it has left.
    between: Vec<(usize, Instant)>,
}

impl State {
    /// When all clients have left, if no request comes.
    fn left(&self) -> Instant {
        let between = self.between.iter().map(|(_, left)| *left);
        between.fold(self.cancelled, Instant::max)
    }

    /// A request for a layer: its client is the one that got the layer nearest below, if any did.
    /// Others stay between two requests.
    fn goes_on(&mut self, position: usize) {
        let now = Instant::now();
        self.between.retain(|(_, left)| *left > now);
        let below = self.between.iter().enumerate();
        let below = below.filter(|(_, (got, _))| *got < position);
        if let Some((nearest, _)) = below.max_by_key(|(_, (got, _))| *got) {
            self.between.swap_remove(nearest);
        }
    }
}

/// The clients of one image.
#[derive(Debug)]
pub(super) struct Clients(watch::Sender<State>);

impl Default for Clients {
    fn default() -> Self {
        Self(watch::Sender::new(State {
            waiting: 0,
            cancelled: Instant::now(),
            between: Vec::new(),
        }))
    }
}

/// A request for a layer, until dropped.
#[derive(Debug)]
pub(super) struct Client<'a> {
    clients: &'a Clients,
    position: usize,
    gone: CancellationToken,
}

impl Drop for Client<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        self.clients.0.send_modify(|state| {
            state.waiting -= 1;
            if self.gone.is_cancelled() {
                state.cancelled = now + CANCELLED;
                return;
            }
            if state.between.len() >= MOST_BETWEEN {
                state.between.remove(0);
            }
            state.between.push((self.position, now + NEXT));
        });
    }
}

impl Clients {
    /// Notes a request for the layer at a position of the image. `gone` is cancelled if its client
    /// goes away.
    pub(super) fn enter(&self, position: usize, gone: CancellationToken) -> Client<'_> {
        self.0.send_modify(|state| {
            state.waiting += 1;
            state.goes_on(position);
        });
        Client {
            clients: self,
            position,
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
            let (waiting, left) = {
                let state = states.borrow_and_update();
                (state.waiting, state.left())
            };
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
        let first = clients.enter(0, here.clone());
        let second = clients.enter(0, here.clone());
        drop(first);
        let hour = Duration::from_secs(3600);
        let waited = tokio::time::timeout(hour, clients.left()).await;
        assert!(waited.is_err(), "one still waits");
        drop(second);
        let begin = Instant::now();
        clients.left().await;
        assert_eq!(begin.elapsed(), NEXT);
        let gone = CancellationToken::new();
        let cancelled = clients.enter(1, gone.clone());
        gone.cancel();
        drop(cancelled);
        let begin = Instant::now();
        clients.left().await;
        assert_eq!(begin.elapsed(), CANCELLED);
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancelled_client_takes_no_time_from_another_one() {
        let clients = Clients::default();
        drop(clients.enter(0, CancellationToken::new()));
        drop(clients.enter(1, CancellationToken::new()));
        tokio::time::sleep(CANCELLED).await;
        // Another client begins, and gives up.
        drop(clients.enter(0, CancellationToken::new()));
        let gone = CancellationToken::new();
        let other = clients.enter(1, gone.clone());
        gone.cancel();
        drop(other);
        let begin = Instant::now();
        clients.left().await;
        assert_eq!(begin.elapsed(), NEXT - CANCELLED);
    }

    #[tokio::test(start_paused = true)]
    async fn clients_that_never_come_back_are_not_remembered_forever() {
        let clients = Clients::default();
        for _ in 0..1000 {
            drop(clients.enter(3, CancellationToken::new()));
        }
        assert_eq!(clients.0.borrow().between.len(), MOST_BETWEEN);
        clients.left().await;
        drop(clients.enter(3, CancellationToken::new()));
        assert_eq!(clients.0.borrow().between.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn another_request_in_time_keeps_the_image() {
        let clients = Clients::default();
        let gone = CancellationToken::new();
        gone.cancel();
        drop(clients.enter(0, gone));
        let others = async {
            tokio::time::sleep(CANCELLED / 2).await;
            drop(clients.enter(1, CancellationToken::new()));
        };
        let begin = Instant::now();
        tokio::join!(clients.left(), others);
        assert_eq!(begin.elapsed(), CANCELLED / 2 + NEXT);
    }
}
