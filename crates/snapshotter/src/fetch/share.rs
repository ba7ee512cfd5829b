//! Divides requests and memory among hosts, so that a host that hangs leaves enough for the others.
//!
//! A host may use half of what the other hosts leave. It may always use one request or piece,
//! regardless of its size, so no host waits for another. A limit is therefore exceeded by at most
//! one item per host.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fmt,
};

use tokio::sync::oneshot;

use crate::sync::{Arc, Mutex};

/// Counts by host against one limit.
#[derive(Debug, Default)]
pub(crate) struct Share {
    limit: usize,
    used: usize,
    by_host: HashMap<Arc<str>, usize>,
}

impl Share {
    pub(crate) fn new(limit: usize) -> Share {
        Share {
            limit,
            ..Share::default()
        }
    }

    /// The count of all hosts.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    pub(crate) fn fits(&self, host: &str, count: usize) -> bool {
        let own = self.by_host.get(host).copied().unwrap_or(0);
        let left = self.limit.saturating_sub(self.used - own);
        own == 0 || own + count <= left.div_ceil(2)
    }

    pub(crate) fn start(&mut self, host: &Arc<str>, count: usize) {
        self.used += count;
        *self.by_host.entry(Arc::clone(host)).or_default() += count;
    }

    pub(crate) fn end(&mut self, host: &Arc<str>, count: usize) {
        self.used -= count;
        if let Some(own) = self.by_host.get_mut(host) {
            *own -= count;
            if *own == 0 {
                self.by_host.remove(host);
            }
        }
    }
}

/// The memory of one class, in permits. Waiters are served in order per host. A host does not wait
/// for another host.
pub(crate) struct Memory(Mutex<Waiting>);

struct Waiting {
    share: Share,
    queue: VecDeque<Ticket>,
}

struct Ticket {
    host: Arc<str>,
    count: usize,
    tell: oneshot::Sender<Held>,
}

/// Permits of a host. Returned when dropped.
pub(crate) struct Held {
    memory: Arc<Memory>,
    host: Arc<str>,
    count: usize,
}

impl Held {
    /// Whether the permits belong to this memory.
    pub(crate) fn is_of(&self, memory: &Arc<Memory>) -> bool {
        Arc::ptr_eq(&self.memory, memory)
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("count", &self.count).finish()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.memory.0.lock().share.end(&self.host, self.count);
        self.memory.serve();
    }
}

impl Memory {
    pub(crate) fn new(permits: usize) -> Arc<Memory> {
        Arc::new(Memory(Mutex::new(Waiting {
            share: Share::new(permits),
            queue: VecDeque::new(),
        })))
    }

    /// Waits for permits. Dropping the future cancels the wait. `None` only if the memory is gone.
    pub(crate) async fn take(self: &Arc<Memory>, host: &Arc<str>, count: usize) -> Option<Held> {
        let (tell, told) = oneshot::channel();
        self.0.lock().queue.push_back(Ticket {
            host: Arc::clone(host),
            count,
            tell,
        });
        self.serve();
        told.await.ok()
    }

    fn serve(self: &Arc<Memory>) {
        let mut given_up = Vec::new();
        {
            let mut waiting = self.0.lock();
            let waiting = &mut *waiting;
            let mut full: HashSet<Arc<str>> = HashSet::new();
            let mut left = VecDeque::with_capacity(waiting.queue.len());
            for ticket in waiting.queue.drain(..) {
                if ticket.tell.is_closed() {
                    continue;
                }
                if full.contains(&ticket.host) || !waiting.share.fits(&ticket.host, ticket.count) {
                    full.insert(Arc::clone(&ticket.host));
                    left.push_back(ticket);
                    continue;
                }
                waiting.share.start(&ticket.host, ticket.count);
                let held = Held {
                    memory: Arc::clone(self),
                    host: ticket.host,
                    count: ticket.count,
                };
                if let Err(held) = ticket.tell.send(held) {
                    // Dropped outside the lock, because the drop takes the lock.
                    given_up.push(held);
                }
            }
            waiting.queue = left;
        }
        drop(given_up);
    }
}

#[cfg(test)]
mod tests {
    use std::{pin::pin, task::Poll};

    use super::*;

    fn host(name: &str) -> Arc<str> {
        Arc::from(name)
    }

    #[test]
    fn a_host_may_use_half_of_the_rest_and_always_one() {
        let mut share = Share::new(16);
        let hosts: Vec<_> = ["a", "b", "c", "d", "e", "f", "g"].map(host).to_vec();
        let mut got = Vec::new();
        for host in &hosts {
            let mut own = 0;
            while share.fits(host, 1) {
                share.start(host, 1);
                own += 1;
            }
            got.push(own);
        }
        assert_eq!(got, [8, 4, 2, 1, 1, 1, 1]);
        for (host, own) in hosts.iter().zip(got) {
            share.end(host, own);
        }
        assert_eq!((share.used, share.by_host.len()), (0, 0));
        share.start(&hosts[0], 100);
        assert!(share.fits("b", 3), "one piece of any size");
    }

    async fn is_pending(future: impl Future<Output = Option<Held>>) -> bool {
        let mut future = pin!(future);
        std::future::poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx).is_pending())).await
    }

    #[tokio::test]
    async fn waiters_are_served_in_order_and_independently_per_host() {
        let memory = Memory::new(10);
        let (a, b) = (host("a"), host("b"));
        let held = memory.take(&a, 5).await.expect("half");
        let mut first = Box::pin(memory.take(&a, 3));
        assert!(is_pending(&mut first).await);
        let mut second = Box::pin(memory.take(&a, 1));
        assert!(is_pending(&mut second).await);
        let of_b = memory.take(&b, 3).await.expect("b has its own share");
        assert!(
            is_pending(memory.take(&b, 1)).await,
            "half of what host a leaves"
        );
        drop(held);
        let first = first.await.expect("in order");
        assert!(!is_pending(&mut second).await, "both fit now");
        drop((first, of_b));
        drop(second);
        let waiting = memory.0.lock();
        assert_eq!((waiting.share.used, waiting.queue.len()), (0, 0));
    }
}
