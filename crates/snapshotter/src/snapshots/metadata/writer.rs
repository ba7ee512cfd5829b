//! The one thread that changes the records.
//!
//! Changes that arrive during a transaction form the next transaction, so forty concurrent requests
//! cost only a few syncs. A rejected change does not affect the others. When the storage fails, the
//! file is reopened and each change of the group is tried once more on its own.
//!
//! Changes that do not have to be durable ([`Change::must_last`]) are answered before they are on
//! disk. They are written within [`LINGER`] or with the next durable change. Until then they are
//! also kept in memory, because a reopened file does not contain them.

use std::panic::AssertUnwindSafe;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use redb::Durability;
use tokio::sync::oneshot;
use tracing::{error, warn};

use super::change::{Change, Tables};
use super::copies::Copies;
use super::database::{File, Open, Opening};
use super::{Attempt, MetadataError, Record};
use crate::sync::{Arc, Mutex};

/// Maximum number of changes in one transaction.
const MOST: usize = 64;
/// How long a change that does not have to be durable stays in memory only.
const LINGER: Duration = Duration::from_secs(1);
/// Longest pause between attempts to write to a failing disk.
const LONGEST: Duration = Duration::from_secs(60);

/// How long the end of the process waits for the thread.
const LAST: Duration = Duration::from_secs(10);

/// A request to the thread.
#[derive(Debug)]
enum Task {
    Change(Box<Job>),
    /// Make all answered changes durable.
    Sync(oneshot::Sender<Result<(), MetadataError>>),
    /// A read with this opening of the file failed.
    Reopen(Opening, oneshot::Sender<Result<(), MetadataError>>),
}

#[derive(Debug)]
struct Job {
    change: Change,
    tell: oneshot::Sender<Result<Record, MetadataError>>,
}

/// Handle to the thread. Dropping it waits a limited time until all requests are done and durable.
#[derive(Debug)]
pub(super) struct Writer {
    tasks: Option<mpsc::Sender<Task>>,
    /// Closed when the thread ends.
    over: Mutex<mpsc::Receiver<()>>,
}

impl Writer {
    pub(super) fn start(file: Arc<File>, copies: Copies) -> std::io::Result<Self> {
        let (tasks, asked) = mpsc::channel();
        let (end, over) = mpsc::channel();
        thread::Builder::new()
            .name("soci-records".to_owned())
            .spawn(move || {
                let state = State {
                    file,
                    copies,
                    unsynced: Vec::new(),
                    linger: LINGER,
                };
                state.serve(&asked);
                drop(end);
            })?;
        Ok(Self {
            tasks: Some(tasks),
            over: Mutex::new(over),
        })
    }

    /// Makes a change. It is made even if the caller stops waiting.
    pub(super) async fn change(&self, change: Change) -> Result<Record, MetadataError> {
        let (tell, told) = oneshot::channel();
        self.send(Task::Change(Box::new(Job { change, tell })));
        told.await.unwrap_or(Err(MetadataError::Lost))
    }

    /// On return, all changes that were answered before the call survive a power failure.
    pub(super) async fn sync(&self) -> Result<(), MetadataError> {
        let (tell, told) = oneshot::channel();
        self.send(Task::Sync(tell));
        told.await.unwrap_or(Err(MetadataError::Lost))
    }

    /// Reopens the file after a failed read. Blocks.
    pub(super) fn reopen(&self, failed: Opening) -> Result<(), MetadataError> {
        let (tell, told) = oneshot::channel();
        self.send(Task::Reopen(failed, tell));
        told.blocking_recv().unwrap_or(Err(MetadataError::Lost))
    }

    fn send(&self, task: Task) {
        // If the thread has ended, this drops the task with its answer channel.
        if let Some(tasks) = &self.tasks {
            drop(tasks.send(task));
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.tasks.take());
        // Do not wait indefinitely for a disk that does not respond.
        if self.over.lock().recv_timeout(LAST) == Err(mpsc::RecvTimeoutError::Timeout) {
            warn!("the disk does not respond, ending without the last snapshot changes");
        }
    }
}

/// A group that failed.
struct Failed {
    opening: Opening,
    error: MetadataError,
    /// The results of the changes that were made before the failure.
    made: Vec<Result<Record, MetadataError>>,
}

struct State {
    file: Arc<File>,
    copies: Copies,
    /// Changes that were answered but are not on disk.
    unsynced: Vec<Change>,
    linger: Duration,
}

impl State {
    fn serve(mut self, asked: &mpsc::Receiver<Task>) {
        loop {
            let first = if self.unsynced.is_empty() {
                asked.recv().ok()
            } else {
                match asked.recv_timeout(self.linger) {
                    Ok(task) => Some(task),
                    Err(mpsc::RecvTimeoutError::Timeout) => {
                        self.sync_or_warn();
                        continue;
                    }
                    Err(mpsc::RecvTimeoutError::Disconnected) => None,
                }
            };
            let Some(first) = first else {
                self.sync_or_warn();
                return;
            };
            let tasks: Vec<_> = std::iter::once(first)
                .chain(asked.try_iter().take(MOST - 1))
                .collect();
            let work = AssertUnwindSafe(|| self.work(tasks));
            if std::panic::catch_unwind(work).is_err() {
                // Dropping the answer channels informed the callers. redb panics on corrupt pages.
                error!("a change of the snapshot records panicked, reopening them");
                if let Err(error) = self.reopen(self.file.opening()) {
                    let error = &error as &dyn std::error::Error;
                    warn!(error, "cannot reopen the snapshot records");
                }
            }
        }
    }

    /// Consecutive changes form one transaction.
    fn work(&mut self, tasks: Vec<Task>) {
        let mut group = Vec::new();
        for task in tasks {
            match task {
                Task::Change(job) => group.push(*job),
                Task::Sync(tell) => {
                    self.group(std::mem::take(&mut group));
                    drop(tell.send(self.sync()));
                }
                Task::Reopen(failed, tell) => {
                    self.group(std::mem::take(&mut group));
                    drop(tell.send(self.reopen(failed)));
                }
            }
        }
        self.group(group);
    }

    fn group(&mut self, jobs: Vec<Job>) {
        let jobs = self.with_space(jobs);
        if jobs.is_empty() {
            return;
        }
        match self.transact(&jobs) {
            Ok(made) => {
                for (job, made) in jobs.into_iter().zip(made) {
                    self.answer(job, made);
                }
            }
            Err(failed) => self.one_by_one(jobs, failed),
        }
        // An error is reported when a change needs the reserve.
        drop(self.file.keep_reserve());
    }

    /// Returns the jobs that the available space allows. The others are answered with an error.
    fn with_space(&self, jobs: Vec<Job>) -> Vec<Job> {
        if !jobs.iter().any(|job| job.change.adds()) || self.file.keep_reserve().is_ok() {
            return jobs;
        }
        let (adding, jobs) = jobs
            .into_iter()
            .partition::<Vec<_>, _>(|job| job.change.adds());
        for job in adding {
            let refused = self.file.keep_reserve().err();
            drop(job.tell.send(Err(refused.unwrap_or(MetadataError::Lost))));
        }
        jobs
    }

    /// Runs one transaction and returns the results of the changes, in order.
    fn transact(&mut self, jobs: &[Job]) -> Result<Vec<Result<Record, MetadataError>>, Failed> {
        let (opening, tx) = self.file.begin_write();
        let mut made = Vec::with_capacity(jobs.len());
        let lasting = self.unsynced.len() >= MOST || jobs.iter().any(|job| job.change.must_last());
        let work = || {
            let mut tx = tx?;
            if !lasting {
                tx.set_durability(Durability::None)
                    .attempt("set the durability")?;
            }
            let mut tables = Tables::open(&tx)?;
            for job in jobs {
                let done = tables.apply(&job.change);
                match done {
                    Err(error) if error.is_storage() => return Err(error),
                    done => made.push(done),
                }
            }
            drop(tables);
            if made.iter().any(Result::is_ok) {
                tx.commit().attempt("commit")
            } else {
                tx.abort().attempt("abort")
            }
        };
        if let Err(error) = work() {
            return Err(Failed {
                opening,
                error,
                made,
            });
        }
        if lasting {
            self.unsynced.clear();
        } else {
            let done = jobs.iter().zip(&made).filter(|(_, made)| made.is_ok());
            self.unsynced
                .extend(done.map(|(job, _)| job.change.clone()));
        }
        Ok(made)
    }

    /// After a failure, makes each change on its own with the reopened file.
    fn one_by_one(&mut self, jobs: Vec<Job>, failed: Failed) {
        let Failed {
            mut opening,
            error,
            made,
        } = failed;
        warn!(
            changes = jobs.len(),
            error = &error as &dyn std::error::Error,
            "cannot write the snapshot records, trying again"
        );
        let mut made = made.into_iter();
        for job in jobs {
            let first = made.next().and_then(Result::ok);
            let done = match self.reopen(opening) {
                Ok(()) => self.again(&job, first),
                Err(error) => Err((opening, error)),
            };
            let done = done.map_err(|(failed, error)| {
                opening = failed;
                self.file.explained(error)
            });
            self.answer(job, done);
        }
    }

    /// Repeats a change that may already be stored. `first` is its earlier result.
    fn again(
        &mut self,
        job: &Job,
        first: Option<Record>,
    ) -> Result<Record, (Opening, MetadataError)> {
        if let Some(record) = first {
            let (opening, tx) = self.file.begin_write();
            let there = tx.and_then(|tx| Tables::open(&tx)?.has(&job.change, &record));
            match there {
                Ok(true) => {
                    // Stored, but perhaps only in the page cache.
                    let (opening, lasts) = self.commit_nothing();
                    return lasts.map(|()| record).map_err(|error| (opening, error));
                }
                Ok(false) => {}
                Err(error) => return Err((opening, error)),
            }
        }
        let mut made = self
            .transact(std::slice::from_ref(job))
            .map_err(|failed| (failed.opening, failed.error))?;
        let opening = self.file.opening();
        made.pop()
            .unwrap_or(Err(MetadataError::Lost))
            .map_err(|error| (opening, error))
    }

    fn answer(&self, job: Job, made: Result<Record, MetadataError>) {
        let Job { change, tell } = job;
        match made {
            Ok(record) => {
                // The caller may have stopped waiting. The change stays.
                drop(tell.send(Ok(record.clone())));
                match change {
                    Change::Remove { .. } => self.copies.remove(record.id),
                    _ => self.copies.put(change.name(), &record),
                }
            }
            Err(MetadataError::Storage { source, .. }) => {
                let action = change.action();
                drop(tell.send(Err(MetadataError::Storage { action, source })));
            }
            Err(error) => drop(tell.send(Err(error))),
        }
    }

    fn sync(&mut self) -> Result<(), MetadataError> {
        if self.unsynced.is_empty() {
            return Ok(());
        }
        let (opening, done) = self.commit_nothing();
        let done = match done {
            Ok(()) => Ok(()),
            Err(_) => self.reopen(opening).and_then(|()| self.commit_nothing().1),
        };
        done.map_err(|error| self.file.explained(error))?;
        self.unsynced.clear();
        Ok(())
    }

    /// Commits a durable transaction, which makes the previous ones durable.
    fn commit_nothing(&self) -> (Opening, Result<(), MetadataError>) {
        let (opening, tx) = self.file.begin_write();
        let done = tx.and_then(|tx| tx.commit().attempt("make changes durable"));
        (opening, done)
    }

    fn sync_or_warn(&mut self) {
        let done = self.sync();
        self.linger = match done {
            Ok(()) => LINGER,
            Err(_) => (self.linger * 2).min(LONGEST),
        };
        if let Err(error) = done {
            warn!(
                changes = self.unsynced.len(),
                error = &error as &dyn std::error::Error,
                "snapshot changes are not on disk yet, trying again"
            );
        }
    }

    /// Reopens the file and repeats the answered changes that are not on disk.
    fn reopen(&self, failed: Opening) -> Result<(), MetadataError> {
        self.file
            .reopen(failed, |open| replay(open, &self.unsynced))
    }
}

fn replay(open: &Open, changes: &[Change]) -> Result<(), MetadataError> {
    if changes.is_empty() {
        return Ok(());
    }
    let mut tx = open.begin_write()?;
    tx.set_durability(Durability::None)
        .attempt("set the durability")?;
    let mut tables = Tables::open(&tx)?;
    for change in changes {
        match tables.apply(change) {
            Err(error) if error.is_storage() => return Err(error),
            // A transaction that reported a failure may still be stored.
            _ => {}
        }
    }
    drop(tables);
    tx.commit().attempt("commit")
}
