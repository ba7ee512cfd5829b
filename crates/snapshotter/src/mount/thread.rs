//! The one thread on which this process mounts, unmounts and looks below its own mounts.
//!
//! Mounting an incomplete layer opens a file of our own FUSE mount, so the mounting thread waits for
//! the FUSE loop of its own process. If the process is killed with SIGKILL in that moment, the loop's
//! threads are gone, and the kernel fails the waiting request only when the last `/dev/fuse`
//! descriptor is closed. Descriptors belong to a table that threads share and that lives as long as
//! its last thread: the mounting thread itself, which waits for the table to go. Nothing could ever
//! kill such a process.
//!
//! So this thread has its own table, with nothing in it but standard input, output and error: when
//! the other threads die, the descriptor closes, the request fails, and the thread dies too. That has
//! two consequences. A job may bring no descriptor with it, only paths; and it may wake no task,
//! because a runtime is woken through a descriptor, whose number means nothing here or something
//! else. So a second thread, of the ordinary kind, takes jobs from tasks and gives them their
//! results; between the two there are only locks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc as plain};

use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

/// Jobs that wait for the thread. When the queue is full [`MountThread::run`] waits: mounts come from
/// requests of containerd, which are few.
const QUEUE: usize = 256;

/// The first descriptor that is not standard input, output or error.
const FIRST_OWN: u32 = 3;

type Work = Box<dyn FnOnce() + Send>;

/// What to do, and whom to tell that it is done.
struct Job {
    work: Work,
    done: oneshot::Sender<()>,
}

/// The job could not be finished: it panicked, or the thread is gone.
#[derive(Debug, Error)]
#[error("mounting thread did not finish the job")]
pub struct Unfinished;

/// Hands jobs to the mounting thread, which does them one after the other.
#[derive(Debug, Clone)]
pub struct MountThread {
    jobs: mpsc::Sender<Job>,
}

impl MountThread {
    /// Starts the thread. It ends when every clone of the value is gone and its last job is done. It
    /// is not joined: it may be waiting for the loop of the thread that would join it.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started or cannot get a descriptor table of its own.
    pub fn start() -> std::io::Result<MountThread> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (work, works) = plain::sync_channel(0);
        let (step, steps) = plain::sync_channel(0);
        spawn("mount", move || mount_loop(&works, &step))?;
        // The first step is the thread's report that it has left the table.
        steps.recv().map_err(std::io::Error::other)??;
        spawn("mount-jobs", move || relay_loop(queue, &work, &steps))?;
        Ok(MountThread { jobs })
    }

    /// Runs `job` on the thread. A job that has been handed over runs to its end even if nobody waits
    /// for it any more.
    ///
    /// # Errors
    ///
    /// When the job panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Unfinished> {
        let result = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&result);
        let work: Work = Box::new(move || {
            let value = job();
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        });
        let (done, finished) = oneshot::channel();
        self.jobs
            .send(Job { work, done })
            .await
            .map_err(|_| Unfinished)?;
        finished.await.map_err(|_| Unfinished)?;
        result
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
            .ok_or(Unfinished)
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    // Not kept: both threads end with the senders, see `start`.
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map(drop)
}

/// The mounting thread: one report at the start, then one after each job.
fn mount_loop(works: &plain::Receiver<Work>, step: &plain::SyncSender<std::io::Result<()>>) {
    let alone = leave_descriptors();
    let go_on = alone.is_ok();
    if step.send(alone).is_err() || !go_on {
        return;
    }
    while let Ok(work) = works.recv() {
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            tracing::error!("a job of the mounting thread panicked");
        }
        if step.send(Ok(())).is_err() {
            return;
        }
    }
}

/// The thread between tasks and the mounting thread.
fn relay_loop(
    mut queue: mpsc::Receiver<Job>,
    work: &plain::SyncSender<Work>,
    steps: &plain::Receiver<std::io::Result<()>>,
) {
    while let Some(job) = queue.blocking_recv() {
        if work.send(job.work).is_err() || steps.recv().is_err() {
            return;
        }
        // Nobody waiting any more is no reason to undo what was done.
        let _ = job.done.send(());
    }
}

/// Gives the calling thread a descriptor table of its own with descriptors 0 to 2 in it.
///
/// The caller must own no descriptor, here or later, that was opened before.
pub(crate) fn leave_descriptors() -> std::io::Result<()> {
    table::unshare_from(FIRST_OWN)
}

/// JUSTIFICATION: leaving a shared descriptor table has no safe wrapper, because it takes descriptors
/// away from values that own them. SAFETY of the module: the only caller is a thread's first act,
/// when nothing on that thread owns a descriptor, and other threads keep theirs.
mod table {
    #![allow(
        unsafe_code,
        reason = "close_range with CLOSE_RANGE_UNSHARE has no safe form"
    )]

    /// One system call for both steps: with `CLOSE_RANGE_UNSHARE` the kernel copies only what stays.
    pub(super) fn unshare_from(first: u32) -> std::io::Result<()> {
        // SAFETY: three integers, no memory. The closed descriptors exist only in the copy that this
        // thread gets; no value on this thread owns one of them.
        let result = unsafe {
            libc::syscall(
                libc::SYS_close_range,
                first,
                libc::c_uint::MAX,
                libc::CLOSE_RANGE_UNSHARE,
            )
        };
        if result == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[tokio::test]
    async fn the_thread_sees_no_descriptor_of_the_process() {
        let file = tempfile::tempfile().unwrap();
        let fd = file.as_raw_fd();
        let thread = MountThread::start().unwrap();
        let listed = thread
            .run(|| std::fs::read_dir("/proc/thread-self/fd").unwrap().count())
            .await
            .unwrap();
        // 0, 1 and 2 as far as they are open, and the listing itself.
        assert!(listed <= 4, "{listed} descriptors");
        assert!(std::fs::metadata(format!("/proc/self/fd/{fd}")).is_ok());
    }

    #[tokio::test]
    async fn a_panicking_job_fails_alone() {
        let thread = MountThread::start().unwrap();
        assert!(
            thread
                .run(|| panic!("a job panics in this test"))
                .await
                .is_err()
        );
        assert_eq!(thread.run(|| 7).await.unwrap(), 7);
    }
}
