//! The mount thread: all mounts, unmounts and accesses below our own mounts run here.
//!
//! Mounting an incomplete layer opens a file of our own FUSE mount, so it waits for the FUSE
//! threads of this process. The kernel fails that request only when the last `/dev/fuse` descriptor
//! is closed. If the mount thread shared the process's descriptor table, it would keep the
//! descriptor open while it waits, and SIGKILL could not end the process. Its own table contains
//! only standard input, output and error, so a job may carry paths but no descriptors. It also may
//! not wake a task, because a runtime is woken through a descriptor. A second, ordinary thread
//! therefore takes jobs from tasks and returns the results. The two threads share only locks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc as plain};

use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

/// Maximum number of queued jobs. If the queue is full, [`MountThread::run`] waits. Mounts come
/// from containerd requests, which are few.
const QUEUE: usize = 256;

/// Maximum number of threads of [`each`].
const AT_ONCE: usize = 16;

/// The first descriptor after standard input, output and error.
const FIRST_OWN: u32 = 3;

type Work = Box<dyn FnOnce() + Send>;

/// A job and the channel that reports its completion.
struct Job {
    work: Work,
    done: oneshot::Sender<()>,
}

/// The job did not finish: it panicked, or the thread has ended.
#[derive(Debug, Error)]
#[error("the mount thread did not finish the job")]
pub struct Unfinished;

/// Runs jobs on the mount thread, one at a time.
#[derive(Debug, Clone)]
pub struct MountThread {
    jobs: mpsc::Sender<Job>,
}

impl MountThread {
    /// Starts the thread. It ends when every clone of this value is dropped and its last job is
    /// done. It is not joined, because it may wait for the FUSE thread that would join it.
    ///
    /// # Errors
    ///
    /// When the thread cannot be started or cannot get a descriptor table of its own.
    pub fn start() -> std::io::Result<MountThread> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (work, works) = plain::sync_channel(0);
        let (step, steps) = plain::sync_channel(0);
        spawn("mount", move || mount_loop(&works, &step))?;
        // The first report says that the thread has its own descriptor table.
        steps.recv().map_err(std::io::Error::other)??;
        spawn("mount-jobs", move || relay_loop(queue, &work, &steps))?;
        Ok(MountThread { jobs })
    }

    /// Runs `job` on the thread. A job that has been queued runs to completion even if the future
    /// is dropped.
    ///
    /// # Errors
    ///
    /// When the job panics.
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
    // Not joined: both threads end when the senders are dropped, see `start`.
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map(drop)
}

/// The mount thread: reports once at the start, then after each job.
fn mount_loop(works: &plain::Receiver<Work>, step: &plain::SyncSender<std::io::Result<()>>) {
    let alone = leave_descriptors();
    let go_on = alone.is_ok();
    if step.send(alone).is_err() || !go_on {
        return;
    }
    while let Ok(work) = works.recv() {
        if catch_unwind(AssertUnwindSafe(work)).is_err() {
            tracing::error!("a job panicked on the mount thread");
        }
        if step.send(Ok(())).is_err() {
            return;
        }
    }
}

/// The thread between the tasks and the mount thread.
fn relay_loop(
    mut queue: mpsc::Receiver<Job>,
    work: &plain::SyncSender<Work>,
    steps: &plain::Receiver<std::io::Result<()>>,
) {
    while let Some(job) = queue.blocking_recv() {
        if work.send(job.work).is_err() || steps.recv().is_err() {
            return;
        }
        // The caller may have stopped waiting. The job's effect stays.
        let _ = job.done.send(());
    }
}

/// Runs `job` for every item, up to [`AT_ONCE`] at a time, and returns the results in order. The
/// threads share the caller's descriptor table, so a job of the mount thread may use this for calls
/// that wait in the kernel.
pub(super) fn each<T: Sync, R: Send>(items: &[T], job: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let job = &job;
    if let [item] = items {
        return vec![job(item)];
    }
    let mut results = Vec::with_capacity(items.len());
    for some in items.chunks(AT_ONCE) {
        std::thread::scope(|scope| {
            let threads: Vec<_> = some
                .iter()
                .map(|item| {
                    let thread = std::thread::Builder::new();
                    // Without another thread, the item is processed on this one.
                    (item, thread.spawn_scoped(scope, move || job(item)).ok())
                })
                .collect();
            for (item, thread) in threads {
                results.push(match thread.map(std::thread::ScopedJoinHandle::join) {
                    Some(Ok(result)) => result,
                    Some(Err(panic)) => std::panic::resume_unwind(panic),
                    None => job(item),
                });
            }
        });
    }
    results
}

/// Gives the calling thread its own descriptor table with descriptors 0 to 2.
///
/// The caller must not use, now or later, any other descriptor that was opened before this call.
pub(crate) fn leave_descriptors() -> std::io::Result<()> {
    table::unshare_from(FIRST_OWN)
}

/// JUSTIFICATION: unsharing the descriptor table has no safe wrapper, because it invalidates
/// descriptors that values own. SAFETY of the module: the only caller does it first on a new
/// thread, where no value owns a descriptor, and other threads keep theirs.
mod table {
    #![allow(
        unsafe_code,
        reason = "close_range with CLOSE_RANGE_UNSHARE has no safe wrapper"
    )]

    /// One system call does both steps: with `CLOSE_RANGE_UNSHARE` the kernel copies only what
    /// stays.
    pub(super) fn unshare_from(first: u32) -> std::io::Result<()> {
        // SAFETY: three integers, no memory. The closed descriptors exist only in the copy that
        // this thread gets, and no value on this thread owns one of them.
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
        // 0, 1 and 2, if they are open, and the directory being listed.
        assert!(listed <= 4, "{listed} descriptors");
        assert!(std::fs::metadata(format!("/proc/self/fd/{fd}")).is_ok());
    }

    #[tokio::test]
    async fn threads_of_a_job_see_no_descriptor_of_the_process() {
        let file = tempfile::tempfile().unwrap();
        let fd = file.as_raw_fd();
        let thread = MountThread::start().unwrap();
        let seen = thread
            .run(move || {
                each(&[0; 2 * AT_ONCE + 1], |_| {
                    std::fs::read_link(format!("/proc/thread-self/fd/{fd}")).is_ok()
                })
            })
            .await
            .unwrap();
        assert_eq!(seen, [false; 2 * AT_ONCE + 1]);
    }

    #[test]
    fn items_are_processed_at_the_same_time_and_in_order() {
        let all = std::sync::Barrier::new(AT_ONCE);
        let items: Vec<usize> = (0..AT_ONCE).collect();
        let results = each(&items, |item| {
            all.wait();
            item * 2
        });
        assert_eq!(
            results,
            (0..AT_ONCE).map(|item| item * 2).collect::<Vec<_>>()
        );
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
