//! The threads that index layers: one list of jobs, the largest first, so that no core waits while there
//! is work.

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
use super::{BuildOptions, Means};
use crate::reuse::Budget;

/// How long threads that are to give up are waited for: long enough to store a zTOC, and no longer than
/// somebody who interrupted the work is patient.
const END: Duration = Duration::from_secs(2);

/// The results of the jobs, as they come in. Dropping it makes the threads give up; they get some time, so
/// that no blob stays half written.
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
        means: &Means,
        options: &BuildOptions,
    ) -> Result<Self, BuildError> {
        let planned = jobs.iter().map(|job| job.layer.size);
        means.observer.planned(planned.fold(0, u64::saturating_add));
        let mut order: Vec<usize> = (0..jobs.len()).collect();
        order.sort_by_key(|&job| std::cmp::Reverse(jobs[job].layer.size));
        // Room for every result: a thread never waits for the reader of results.
        let (sender, incoming) = mpsc::channel(jobs.len().max(1));
        let slots = jobs.iter().map(|_| None).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let at_once = options.at_once.unwrap_or(options.threads);
        let threads = at_once.get().min(jobs.len());
        let work = Arc::new(Work {
            jobs,
            order,
            next: AtomicUsize::new(0),
            means: means.clone(),
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

    /// The result of a job, waiting for it. An error that any job had meanwhile comes first.
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

    /// Stops what is not finished and collects what else went wrong.
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

/// What the threads share.
pub(super) struct Work {
    jobs: Vec<Job>,
    /// Numbers of jobs, the largest layer first.
    order: Vec<usize>,
    next: AtomicUsize,
    pub(super) means: Means,
    pub(super) options: BuildOptions,
    stop: Arc<AtomicBool>,
    /// Drives what is asynchronous for the threads.
    pub(super) runtime: Handle,
    /// Memory for zTOCs that are looked at whether they fit.
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

    /// How many cores a layer's own work should use: its part of all bytes, so that the largest layer,
    /// which is begun first, is not what everybody waits for in the end. Where fewer layers than cores are
    /// worked on at once, they use the cores that would have nothing to do.
    pub(super) fn share(&self, job: &Job) -> NonZeroUsize {
        let threads = self.options.threads;
        let even = self.options.at_once.map_or(1, |most| threads.get() / most);
        let share = self.part(job, threads.get(), u128::div_ceil).max(even);
        NonZeroUsize::new(share).map_or(NonZeroUsize::MIN, |share| share.min(threads))
    }

    /// Memory for what a layer's threads do ahead: its part too, so that all layers together take no
    /// more than one alone.
    pub(super) fn ahead(&self, job: &Job) -> usize {
        self.part(job, soci_ztoc::DEFAULT_AHEAD, |bytes, all| bytes / all)
    }

    /// What is a layer's of `whole` when it is divided by size.
    fn part(&self, job: &Job, whole: usize, divide: fn(u128, u128) -> u128) -> usize {
        let all = self.jobs.iter().map(|job| u128::from(job.layer.size));
        part(job.layer.size, all.sum(), whole, divide)
    }

    /// Whether nobody wants results any more.
    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// What is a layer's of `whole` when it is divided by size: `bytes` are the layer's, `all` those of all layers.
pub(crate) fn part(bytes: u64, all: u128, whole: usize, divide: fn(u128, u128) -> u128) -> usize {
    let bytes = u128::from(bytes) * whole as u128;
    usize::try_from(divide(bytes, all.max(1))).unwrap_or(whole)
}
