//! The threads that index layers. They take jobs from one list, largest layer first, so that no
//! core is idle while there is work.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::mpsc::{self, error::TryRecvError};

use super::error::{BuildError, LayerError};
use super::layer::{self, Made};
use super::plan::Job;
use super::{BuildContext, BuildOptions};
use crate::reuse::Budget;

/// How long to wait for threads to stop: long enough to store a zTOC, but short enough for a user
/// who interrupted the command.
const END: Duration = Duration::from_secs(2);

/// The results of the jobs as they arrive. Dropping it stops the threads and waits for a short
/// time, so that no partial blobs are left.
pub(super) struct Results {
    slots: Vec<Option<Made>>,
    incoming: mpsc::Receiver<(usize, Result<Made, LayerError>)>,
    stop: Arc<AtomicBool>,
}

impl Drop for Results {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let deadline = Instant::now() + END;
        while Instant::now() < deadline {
            match self.incoming.try_recv() {
                Ok(_) => {}
                Err(TryRecvError::Empty) => thread::sleep(Duration::from_millis(5)),
                Err(TryRecvError::Disconnected) => return,
            }
        }
    }
}

impl Results {
    pub(super) fn start(
        jobs: Vec<Job>,
        context: &BuildContext,
        options: &BuildOptions,
    ) -> Result<Self, BuildError> {
        let planned = jobs.iter().map(|job| job.layer.size);
        context
            .observer
            .planned(planned.fold(0, u64::saturating_add));
        let mut order: Vec<usize> = (0..jobs.len()).collect();
        order.sort_by_key(|&job| std::cmp::Reverse(jobs[job].layer.size));
        // The channel has room for all results, so threads never wait for the receiver.
        let (sender, incoming) = mpsc::channel(jobs.len().max(1));
        let slots = jobs.iter().map(|_| None).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let at_once = options.at_once.unwrap_or(options.threads);
        let threads = at_once.get().min(jobs.len());
        let work = Arc::new(Work {
            jobs,
            order,
            next: AtomicUsize::new(0),
            context: context.clone(),
            options: options.clone(),
            stop: Arc::clone(&stop),
            runtime: Handle::current(),
            budget: Budget::new(),
        });
        let results = Self {
            slots,
            incoming,
            stop,
        };
        for number in 0..threads {
            let (work, sender) = (Arc::clone(&work), sender.clone());
            thread::Builder::new()
                .name(format!("ztoc-{number}"))
                .spawn(move || work.run(&sender))
                .map_err(BuildError::Thread)?;
        }
        Ok(results)
    }

    /// Waits for the result of a job. Returns the error of any other job that fails in the
    /// meantime.
    pub(super) async fn get(&mut self, job: usize) -> Result<Made, BuildError> {
        loop {
            if let Some(made) = &self.slots[job] {
                return Ok(made.clone());
            }
            match self.incoming.recv().await {
                Some((number, Ok(made))) => self.slots[number] = Some(made),
                Some((_, Err(first))) => return Err(self.errors(first).await),
                None => return Err(BuildError::Lost),
            }
        }
    }

    /// Stops unfinished jobs and collects further errors.
    async fn errors(&mut self, first: LayerError) -> BuildError {
        self.stop.store(true, Ordering::Relaxed);
        let mut errors = vec![first];
        while let Some((_, result)) = self.incoming.recv().await {
            errors.extend(result.err());
        }
        errors.retain(|error| !matches!(error, LayerError::Stopped(_)));
        BuildError::Layers(errors)
    }
}

/// The state that the threads share.
pub(super) struct Work {
    jobs: Vec<Job>,
    /// Indexes of the jobs, largest layer first.
    order: Vec<usize>,
    next: AtomicUsize,
    pub(super) context: BuildContext,
    pub(super) options: BuildOptions,
    stop: Arc<AtomicBool>,
    /// Runs asynchronous calls for the threads.
    pub(super) runtime: Handle,
    /// Memory for zTOCs that are checked for reuse.
    pub(super) budget: Budget,
}

impl Work {
    fn run(&self, results: &mpsc::Sender<(usize, Result<Made, LayerError>)>) {
        while !self.stopped() {
            let at = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(&number) = self.order.get(at) else {
                break;
            };
            let result = layer::index(self, &self.jobs[number]);
            if result.is_err() {
                self.stop.store(true, Ordering::Relaxed);
            }
            if results.blocking_send((number, result)).is_err() {
                break;
            }
        }
    }

    /// Number of cores for one layer: its share of all bytes, so that the largest layer, which
    /// starts first, does not finish long after the others. If fewer layers than cores run
    /// concurrently, they also use the idle cores.
    pub(super) fn share(&self, job: &Job) -> NonZeroUsize {
        let threads = self.options.threads;
        let even = self.options.at_once.map_or(1, |most| threads.get() / most);
        let share = self.part(job, threads.get(), u128::div_ceil).max(even);
        NonZeroUsize::new(share).map_or(NonZeroUsize::MIN, |share| share.min(threads))
    }

    /// Read-ahead memory for one layer: its share of all bytes, so that all layers together use no
    /// more than a single one.
    pub(super) fn ahead(&self, job: &Job) -> usize {
        self.part(job, soci_ztoc::DEFAULT_AHEAD, |bytes, all| bytes / all)
    }

    /// A layer's share of `whole`, in proportion to its size.
    fn part(&self, job: &Job, whole: usize, divide: fn(u128, u128) -> u128) -> usize {
        let all = self.jobs.iter().map(|job| u128::from(job.layer.size));
        part(job.layer.size, all.sum(), whole, divide)
    }

    /// Whether the results are no longer needed.
    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// A layer's share of `whole`, in proportion to its size. `bytes` is the size of the layer and
/// `all` that of all layers.
pub(crate) fn part(bytes: u64, all: u128, whole: usize, divide: fn(u128, u128) -> u128) -> usize {
    let bytes = u128::from(bytes) * whole as u128;
    usize::try_from(divide(bytes, all.max(1))).unwrap_or(whole)
}
