//! Threads that inflate members of a layer ahead of its walk.
//!
//! ```text
//! layer      ....|=member=|=member=|==member==|=|=member=|====member====|=member=|..
//!                ^ walk       ^ from(0)       ^ from(1)       ^ from(2)
//! runs                        [   0         ] [   1        ]  [   2     ...
//! ```
//!
//! The compressed bytes in front of the walk are cut into orders, a run is made of each, and the walk
//! takes the runs over in their order. Where it has not come to a run's first member by itself the
//! guess was wrong: it goes on alone to the end of that member and looks again. Guesses that were wrong
//! one after the other make it wait longer each time, so a layer of few large members, or one with
//! compressed files in it, costs what it costs without a crew.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, Scope};

use crate::gzip::pieces::Pieces;
use crate::gzip::run::{Order, Run, RunDecoder, Short};
use crate::gzip::walk::Ratio;

/// Most threads: beyond these the walk and the hashing are the limit.
const MAX_THREADS: usize = 16;

/// Output of one run in bytes, if there is memory for eight of them: enough that handing it over costs
/// nothing beside it.
const RUN_OUTPUT: usize = 2 << 20;

/// Compressed bytes behind an order in which its last member may end, at first.
const REACH: u64 = 512 << 10;

/// Compressed bytes of an order.
const MIN_ORDER: u64 = 4 << 10;
const MAX_ORDER: u64 = 256 << 10;

/// Most members that the walk does alone after a wrong guess.
const MAX_REST: u32 = 127;

/// An order that was given out.
#[derive(Debug)]
struct Due {
    from: u64,
    until: u64,
    run: Receiver<Run>,
}

/// The threads and what they work on. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Crew {
    orders: Sender<(Order, SyncSender<Run>)>,
    due: VecDeque<Due>,
    /// Where the next order begins.
    frontier: u64,
    /// How far the walk is: runs behind it need not be finished.
    walked: Arc<AtomicU64>,
    buffers: Vec<Vec<u8>>,
    limits: Limits,
    /// Output that a run may have, and compressed bytes that its last member may take behind its order:
    /// more where members turn out to be larger.
    run_output: usize,
    reach: u64,
    /// Wrong guesses one after the other.
    wrong: u32,
    /// Members that the walk does alone for them.
    rest: u32,
}

/// What may wait in memory. With 32 MiB in all, members of 8 MiB can be inflated ahead, and such that
/// have 4 MiB compressed; a member of an eStargz layer has up to 4 MiB of content.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// Orders that are given out.
    orders: usize,
    /// Output that waits to be taken over, in bytes, of all runs and of one.
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
    /// Starts up to `threads` threads that use so many bytes of `memory`; none where none can be started.
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

    /// Bytes in front of the walk that the next order wants to have been read; none where enough orders
    /// are given out.
    pub(super) fn wants(&self, walk: u64, ratio: Ratio) -> Option<u64> {
        // One more run is being taken over.
        let most = (self.limits.output / self.run_output.max(1)).saturating_sub(1);
        let most = most.min(self.limits.orders);
        (self.rest == 0 && self.due.len() < most)
            .then(|| self.next_order(walk, ratio).1 + self.reach)
    }

    /// Whether the run that the walk needs next was ordered.
    pub(super) fn has_ordered(&self, walk: u64) -> bool {
        self.due.iter().any(|due| due.until > walk)
    }

    fn next_order(&self, walk: u64, ratio: Ratio) -> (u64, u64) {
        let from = self.frontier.max(walk);
        let len = ratio.compressed(self.run_output as u64 / 2);
        (from, from + len.clamp(MIN_ORDER, MAX_ORDER))
    }

    /// Gives out the next order, for a walk that is at the end of a member. Returns whether there are
    /// bytes for one.
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

    /// The run in which a member that begins at `walk` would be, waiting for it.
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

    /// A run was taken over, or was of no use.
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
                // Fewer and larger ones from now on.
                self.buffers.clear();
            }
            Some(Short::Output) | None => {}
        }
        self.buffers.push(run.into_output());
    }

    /// Whether the walk goes on alone at the end of this member.
    pub(super) fn rests(&mut self) -> bool {
        let rests = self.rest > 0;
        self.rest = self.rest.saturating_sub(1);
        rests
    }
}

/// What a thread of the crew does.
fn work(queue: &Mutex<Receiver<(Order, SyncSender<Run>)>>, walked: &AtomicU64) {
    let Some(mut decoder) = RunDecoder::new() else {
        return;
    };
    loop {
        // The lock is the queue's turn: who holds it waits for an order, the others for their turn.
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((order, sender)) = next else { return };
        // Nobody takes it where the walk went past it.
        sender.send(decoder.run(order, walked)).unwrap_or_default();
    }
}
