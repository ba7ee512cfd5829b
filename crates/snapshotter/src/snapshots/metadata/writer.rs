//! The one thread that changes the records.
//!
//! What waits while a transaction is on its way to the disk is the next transaction: forty requests at once cost a few
//! syncs. A change that is refused is refused alone. When the storage fails, the file is opened again and each change
//! of the group is tried once more by itself.
//!
//! Changes that need not last ([`Change::must_last`]) are answered before they are on disk, which they are within
//! [`LINGER`] or with the next one that must. Until then they are kept here too: a file that is opened again has them
//! not.

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

/// Most changes in one transaction.
const MOST: usize = 64;
/// How long a change that need not last stays in memory only.
const LINGER: Duration = Duration::from_secs(1);
/// Longest pause between attempts on a disk that does not take them.
const LONGEST: Duration = Duration::from_secs(60);

/// How long the end of the process waits for the thread.
const LAST: Duration = Duration::from_secs(10);

/// What the thread is asked for.
#[derive(Debug)]
enum Task {
    Change(Box<Job>),
    /// Everything that was answered is to last.
    Sync(oneshot::Sender<Result<(), MetadataError>>),
    /// A read failed with this opening of the file.
    Reopen(Opening, oneshot::Sender<Result<(), MetadataError>>),
}

#[derive(Debug)]
struct Job {
    change: Change,
    tell: oneshot::Sender<Result<Record, MetadataError>>,
}

/// The way to the thread. Dropping it waits until everything that was asked for is done and lasts, for some seconds.
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

    /// Makes a change. It is made even if nobody waits for the answer.
    pub(super) async fn change(&self, change: Change) -> Result<Record, MetadataError> {
        let (tell, told) = oneshot::channel();
        self.send(Task::Change(Box::new(Job { change, tell })));
        told.await.unwrap_or(Err(MetadataError::Lost))
    }

    /// Everything that was answered before survives a power failure on return.
    pub(super) async fn sync(&self) -> Result<(), MetadataError> {
        let (tell, told) = oneshot::channel();
        self.send(Task::Sync(tell));
        told.await.unwrap_or(Err(MetadataError::Lost))
    }

    /// Opens the file again after a read failed. Blocks.
    pub(super) fn reopen(&self, failed: Opening) -> Result<(), MetadataError> {
        let (tell, told) = oneshot::channel();
        self.send(Task::Reopen(failed, tell));
        told.blocking_recv().unwrap_or(Err(MetadataError::Lost))
    }

    fn send(&self, task: Task) {
        // A thread that is gone drops the task, and with it what answers.
        if let Some(tasks) = &self.tasks {
            drop(tasks.send(task));
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        drop(self.tasks.take());
        // A disk that does not answer is left behind.
        if self.over.lock().recv_timeout(LAST) == Err(mpsc::RecvTimeoutError::Timeout) {
            warn!("the disk does not take the last changes of snapshots; going without");
        }
    }
}

/// A group that was not done.
struct Failed {
    opening: Opening,
    error: MetadataError,
    /// What the changes had come to, as far as they were made.
    made: Vec<Result<Record, MetadataError>>,
}

struct State {
    file: Arc<File>,
    copies: Copies,
    /// Made and answered, and not on disk.
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
                // Who waited was told by the drop of what answers. redb panics on pages that are nonsense.
                error!("a change of the records panicked; opening them again");
                if let Err(error) = self.reopen(self.file.opening()) {
                    let error = &error as &dyn std::error::Error;
                    warn!(error, "the records cannot be opened now");
                }
            }
        }
    }

    /// Changes that follow each other are one transaction.
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
        // Errors come when somebody needs it.
        drop(self.file.keep_reserve());
    }

    /// The jobs that may be done with the space that there is; the others are answered.
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

    /// One transaction. The results are those of the changes, in their order.
    fn transact(&mut self, jobs: &[Job]) -> Result<Vec<Result<Record, MetadataError>>, Failed> {
        let (opening, tx) = self.file.begin_write();
        let mut made = Vec::with_capacity(jobs.len());
        let lasting = self.unsynced.len() >= MOST || jobs.iter().any(|job| job.change.must_last());
        let work = || {
            let mut tx = tx?;
            if !lasting {
                tx.set_durability(Durability::None)
                    .attempt("choose the durability")?;
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

    /// After a failure: each change by itself, with the file opened again.
    fn one_by_one(&mut self, jobs: Vec<Job>, failed: Failed) {
        let Failed {
            mut opening,
            error,
            made,
        } = failed;
        warn!(
            changes = jobs.len(),
            error = &error as &dyn std::error::Error,
            "the records of snapshots could not be written; trying again"
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

    /// Makes a change that may be there already: `first` is what it had come to.
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
                    // Found, perhaps in the page cache only.
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
                // Nobody waits any more: it is made all the same.
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

    /// A transaction that lasts makes those before it last.
    fn commit_nothing(&self) -> (Opening, Result<(), MetadataError>) {
        let (opening, tx) = self.file.begin_write();
        let done = tx.and_then(|tx| tx.commit().attempt("make changes last"));
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
                "changes of snapshots are not on disk yet"
            );
        }
    }

    /// Opens the file again, with what was answered and is not on disk.
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
        .attempt("choose the durability")?;
    let mut tables = Tables::open(&tx)?;
    for change in changes {
        match tables.apply(change) {
            Err(error) if error.is_storage() => return Err(error),
            // A transaction that failed late may be there all the same.
            _ => {}
        }
    }
    drop(tables);
    tx.commit().attempt("commit")
}
