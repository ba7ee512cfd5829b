//! Threads that inflate members of a layer ahead of its walk, in runs that the walk takes over in
//! order. If the walk does not reach the first member of a run exactly, the guess was wrong, and
//! it inflates that member itself. After each consecutive wrong guess it inflates more members
//! alone, so a layer with few members is as fast as without a crew.
//!
//! ```text
//! layer  ....|=member=|=member=|==member==|=|=member=|====member====|=member=|..
//! runs       ^ walk       ^ [   0         ] [   1        ]  [   2     ...
//! ```

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, Scope};

use crate::gzip::pieces::Pieces;
use crate::gzip::run::{Order, Run, RunDecoder, Short};
use crate::gzip::walk::Ratio;

/// Most threads: with more, the walk and the hashing are the bottleneck.
const MAX_THREADS: usize = 16;

/// Output of one run in bytes, if there is memory for eight runs. Large enough that the cost of
/// handing over a run is negligible.
const RUN_OUTPUT: usize = 2 << 20;

/// Initial number of compressed bytes after an order in which its last member may end.
const REACH: u64 = 512 << 10;

/// Compressed bytes of an order.
const MIN_ORDER: u64 = 4 << 10;
const MAX_ORDER: u64 = 256 << 10;

/// Most members that the walk inflates alone after a wrong guess.
const MAX_REST: u32 = 127;

/// An order that a thread is working on, or has finished.
#[derive(Debug)]
struct Due {
    from: u64,
    until: u64,
    run: Receiver<Run>,
}

/// The threads and their shared state. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Crew {
    orders: Sender<(Order, SyncSender<Run>)>,
    due: VecDeque<Due>,
    /// Where the next order begins.
    frontier: u64,
    /// Offset of the walk. Runs before it do not have to be finished.
    walked: Arc<AtomicU64>,
    buffers: Vec<Vec<u8>>,
    limits: Limits,
    /// Most output of a run, and most compressed bytes that its last member may take after its
    /// order. Both grow if members turn out to be larger.
    run_output: usize,
    reach: u64,
    /// Number of consecutive wrong guesses.
    wrong: u32,
    /// Number of members that the walk still inflates alone because of them.
    rest: u32,
}

/// Memory limits. With 32 MiB in total, members of up to 8 MiB, or 4 MiB compressed, can be
/// inflated ahead. A member of an eStargz layer has at most 4 MiB of content.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Outstanding orders.
    orders: usize,
    /// Output in bytes that waits to be taken over, of all runs and of one run.
    output: usize,
    run_output: usize,
    reach: u64,
}

impl Limits {
    fn new(threads: usize, memory: usize) -> Self {
        let eighth = memory / 8;
        let orders = usize::try_from(eighth as u64 / MAX_ORDER).unwrap_or(0);
        Self {
            orders: orders.clamp(1, threads + 2),
            output: eighth * 5,
            run_output: eighth * 2,
            reach: eighth as u64,
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.walked.store(u64::MAX, Ordering::Relaxed);
    }
}

impl Crew {
    /// Starts up to `threads` threads that use up to `memory` bytes. Returns `None` if no thread
    /// can be started.
    pub(super) fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        threads: usize,
        memory: usize,
    ) -> Option<Self> {
        let (orders, queue) = channel::<(Order, SyncSender<Run>)>();
        let queue = Arc::new(Mutex::new(queue));
        let walked = Arc::new(AtomicU64::new(0));
        let threads = threads.min(MAX_THREADS);
        let started = (0..threads).map_while(|number| {
            let (queue, walked) = (Arc::clone(&queue), Arc::clone(&walked));
            Builder::new()
                .name(format!("ztoc-run-{number}"))
                .spawn_scoped(scope, move || work(&queue, &walked))
                .ok()
        });
        let threads = started.count();
        let limits = Limits::new(threads, memory);
        (threads > 0).then(|| Self {
            orders,
            due: VecDeque::new(),
            frontier: 0,
            walked,
            buffers: Vec::new(),
            limits,
            run_output: RUN_OUTPUT.min(limits.output / 8),
            reach: REACH.min(limits.reach),
            wrong: 0,
            rest: 0,
        })
    }

    /// Offset up to which bytes must have been read for the next order; `None` if enough orders are
    /// outstanding.
    pub(super) fn wants(&self, walk: u64, ratio: Ratio) -> Option<u64> {
        // One more run is being taken over.
        let most = (self.limits.output / self.run_output.max(1)).saturating_sub(1);
        let most = most.min(self.limits.orders);
        (self.rest == 0 && self.due.len() < most)
            .then(|| self.next_order(walk, ratio).1 + self.reach)
    }

    /// Whether the run that the walk needs next has been ordered.
    pub(super) fn has_ordered(&self, walk: u64) -> bool {
        self.due.iter().any(|due| due.until > walk)
    }

    fn next_order(&self, walk: u64, ratio: Ratio) -> (u64, u64) {
        let from = self.frontier.max(walk);
        let len = ratio.compressed(self.run_output as u64 / 2);
        (from, from + len.clamp(MIN_ORDER, MAX_ORDER))
    }

    /// Issues the next order, for a walk at the end of a member. Returns false if there are no
    /// bytes for an order.
    pub(super) fn order(&mut self, ahead: &Pieces, walk: u64, ratio: Ratio) -> bool {
        let (from, until) = self.next_order(walk, ratio);
        let until = until.min(ahead.end());
        if from >= until {
            return false;
        }
        let order = Order {
            input: ahead.part(from, until + self.reach),
            from,
            until,
            output: self.buffers.pop().unwrap_or_default(),
            max_output: self.run_output,
        };
        let (sender, run) = sync_channel(1);
        self.frontier = until;
        self.due.push_back(Due { from, until, run });
        self.orders.send((order, sender)).is_ok()
    }

    /// Waits for the run that would contain a member that begins at `walk`.
    pub(super) fn take(&mut self, walk: u64) -> Option<Run> {
        self.walked.store(walk, Ordering::Relaxed);
        while self.due.front()?.until <= walk {
            self.due.pop_front();
        }
        if self.due.front()?.from > walk {
            return None;
        }
        self.due.pop_front()?.run.recv().ok()
    }

    /// Adapts the limits after a run was taken over or turned out to be useless.
    pub(super) fn learn(&mut self, run: Run, was_right: bool) {
        if was_right {
            self.wrong = 0;
        } else {
            self.wrong += 1;
            self.rest = (1 << self.wrong.min(16)) - 1;
            self.rest = self.rest.min(MAX_REST);
        }
        match run.short {
            Some(Short::Input) => self.reach = (self.reach * 2).min(self.limits.reach),
            Some(Short::Output) if self.run_output < self.limits.run_output => {
                self.run_output = (self.run_output * 2).min(self.limits.run_output);
                // From now on there are fewer and larger buffers.
                self.buffers.clear();
            }
            Some(Short::Output) | None => {}
        }
        self.buffers.push(run.into_output());
    }

    /// Whether the walk inflates the next member alone.
    pub(super) fn rests(&mut self) -> bool {
        let rests = self.rest > 0;
        self.rest = self.rest.saturating_sub(1);
        rests
    }
}

/// The main loop of a crew thread.
fn work(queue: &Mutex<Receiver<(Order, SyncSender<Run>)>>, walked: &AtomicU64) {
    let Some(mut decoder) = RunDecoder::new() else {
        return;
    };
    loop {
        // The lock serializes access to the queue: its holder waits for an order, the others for
        // the lock.
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((order, sender)) = next else { return };
        // Fails if the walk has passed this run and dropped its receiver.
        sender.send(decoder.run(order, walked)).unwrap_or_default();
    }
}
