//! The bounded pool for inflating, hashing and file work, and the only way into it.
//!
//! Three lanes, each a queue of jobs in order:
//!
//! | lane | served by | for |
//! |--|--|--|
//! | [`Lane::Now`] | a thread for each core | a reader waits, or the mount of a layer |
//! | [`Lane::Background`] | a thread for each core, of lower priority | completion, whole layers |
//! | [`Lane::Disk`] | one thread | syncs and removals: work that waits for the disk for seconds |
//!
//! Readers never wait behind spans of the background that are being inflated: their threads are their own, and the
//! kernel gives the cores to them, and to the containers, first.
//!
//! The queues have no length of their own: each is as long as what its producers may have outstanding (parked reads of
//! the kernel; spans whose bytes hold permits of the fetch scheduler; one sync for each layer). A job that panics
//! loses its own result and nothing else. Dropping the pool runs what is queued and joins the threads.

use std::{
    any::Any, collections::VecDeque, io, num::NonZeroUsize, panic::AssertUnwindSafe, thread,
    time::Duration,
};

use tokio::sync::oneshot;

use crate::sync::{Arc, Condvar, Mutex};

/// An idle thread gives its scratch memory back after this long.
const IDLE: Duration = Duration::from_secs(1);

/// Priority of the background's threads: about a quarter of a core against one busy thread of a container.
const NICE: i32 = 5;

/// Which queue a job waits in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// A reader waits for it, or the mount of a layer.
    Now,
    /// Nobody waits for it.
    Background,
    /// It mostly waits for the disk.
    Disk,
}

/// The job ended without a result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// It panicked; the text is what it said.
    #[error("a job panicked: {0}")]
    Panicked(String),
    /// The pool was shut down first.
    #[error("the pool is shut down")]
    Closed,
}

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queues {
    now: VecDeque<Job>,
    background: VecDeque<Job>,
    disk: VecDeque<Job>,
    closed: bool,
}

#[derive(Clone, Copy)]
enum Role {
    Now,
    Background,
    Disk,
}

impl Queues {
    fn next(&mut self, role: Role) -> Option<Job> {
        match role {
            Role::Now => self.now.pop_front(),
            Role::Background => self.background.pop_front(),
            Role::Disk => self.disk.pop_front(),
        }
    }
}

struct Shared {
    queues: Mutex<Queues>,
    /// One condition for each lane, so that `notify_one` never wakes a thread of another.
    now: Condvar,
    background: Condvar,
    disk: Condvar,
    idle: fn(),
}

/// The pool. Shared by everything that computes.
pub struct Cpu {
    shared: Arc<Shared>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cpu")
            .field("threads", &self.threads.len())
            .finish_non_exhaustive()
    }
}

impl Cpu {
    /// Starts `cores` threads for each of `Now` and `Background`, and one for the disk.
    ///
    /// # Errors
    /// The system's, if it gives no thread.
    pub fn new(cores: NonZeroUsize) -> io::Result<Arc<Cpu>> {
        Cpu::with_idle(cores, || ())
    }

    /// As [`Cpu::new`]; `idle` runs on every thread that has had nothing to do for a second, to drop what it keeps.
    ///
    /// # Errors
    /// As [`Cpu::new`].
    pub fn with_idle(cores: NonZeroUsize, idle: fn()) -> io::Result<Arc<Cpu>> {
        let mut cpu = Cpu {
            shared: Arc::new(Shared {
                queues: Mutex::new(Queues::default()),
                now: Condvar::new(),
                background: Condvar::new(),
                disk: Condvar::new(),
                idle,
            }),
            threads: Vec::with_capacity(2 * cores.get() + 1),
        };
        for core in 0..cores.get() {
            cpu.start(format!("soci-now-{core}"), Role::Now)?;
            cpu.start(format!("soci-back-{core}"), Role::Background)?;
        }
        cpu.start("soci-disk".to_owned(), Role::Disk)?;
        Ok(Arc::new(cpu))
    }

    fn start(&mut self, name: String, role: Role) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new()
            .name(name)
            .spawn(move || work(&shared, role))?;
        self.threads.push(thread);
        Ok(())
    }

    /// Queues a job that answers in its own way. It runs even if nobody waits for it any more; a panic in it is logged
    /// and dropped, so it must hold what answers for it (a value that reports on drop).
    pub fn spawn(&self, lane: Lane, job: impl FnOnce() + Send + 'static) {
        let mut queues = self.shared.queues.lock();
        match lane {
            Lane::Now => {
                queues.now.push_back(Box::new(job));
                drop(queues);
                self.shared.now.notify_one();
            }
            Lane::Background => {
                queues.background.push_back(Box::new(job));
                drop(queues);
                self.shared.background.notify_one();
            }
            Lane::Disk => {
                queues.disk.push_back(Box::new(job));
                drop(queues);
                self.shared.disk.notify_one();
            }
        }
    }

    /// Runs a job and waits for its result. Dropping the future does not stop a job that has been queued: it runs to
    /// its end and the result is dropped.
    ///
    /// # Errors
    /// [`Lost`] if the job panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Lost> {
        let (tell, told) = oneshot::channel();
        self.spawn(lane, move || {
            let result = std::panic::catch_unwind(AssertUnwindSafe(job))
                .map_err(|panic| Lost::Panicked(panic_text(&*panic)));
            // Nobody waits any more: the result has no other reader.
            drop(tell.send(result));
        });
        told.await.unwrap_or(Err(Lost::Closed))
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        self.shared.queues.lock().closed = true;
        self.shared.now.notify_all();
        self.shared.background.notify_all();
        self.shared.disk.notify_all();
        let me = thread::current().id();
        for thread in self.threads.drain(..) {
            // The last owner may be a job of the pool itself; that thread ends by itself.
            if thread.thread().id() != me && thread.join().is_err() {
                tracing::error!("a thread of the pool panicked outside of a job");
            }
        }
    }
}

fn work(shared: &Shared, role: Role) {
    let condition = match role {
        Role::Now => &shared.now,
        Role::Background => &shared.background,
        Role::Disk => &shared.disk,
    };
    if matches!(role, Role::Background)
        && let Err(error) = rustix::process::nice(NICE)
    {
        tracing::debug!(error = %error, "the background runs with full priority");
    }
    let mut rested = true;
    let mut queues = shared.queues.lock();
    loop {
        if let Some(job) = queues.next(role) {
            drop(queues);
            rested = false;
            if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(job)) {
                tracing::error!(panic = panic_text(&*panic), "a job panicked");
            }
            queues = shared.queues.lock();
        } else if queues.closed {
            return;
        } else if rested {
            queues = condition.wait(queues);
        } else {
            let (guard, timed_out) = condition.wait_for(queues, IDLE);
            queues = guard;
            if timed_out && !queues.closed {
                drop(queues);
                (shared.idle)();
                rested = true;
                queues = shared.queues.lock();
            }
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without text".to_owned())
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Instant};

    use super::*;

    fn pool(cores: usize) -> Arc<Cpu> {
        Cpu::new(NonZeroUsize::new(cores).expect("at least one core")).expect("threads")
    }

    #[tokio::test]
    async fn a_panic_is_the_error_of_its_own_job() {
        let cpu = pool(1);
        let lost = cpu
            .run(Lane::Background, || panic!("no such {}", "luck"))
            .await;
        assert_eq!(
            lost,
            Err::<(), _>(Lost::Panicked("no such luck".to_owned()))
        );
        assert_eq!(cpu.run(Lane::Background, || 7).await, Ok(7));
        cpu.spawn(Lane::Now, || panic!("unheard"));
        assert_eq!(cpu.run(Lane::Now, || 8).await, Ok(8));
    }

    #[test]
    fn a_now_job_does_not_wait_for_background_jobs() {
        let cpu = pool(2);
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        for _ in 0..8 {
            let gate = Arc::clone(&gate);
            cpu.spawn(Lane::Background, move || {
                assert!(gate.lock().recv().is_err())
            });
        }
        let (tell, told) = mpsc::channel();
        cpu.spawn(Lane::Now, move || tell.send(()).expect("the test waits"));
        told.recv_timeout(Duration::from_secs(10))
            .expect("only the background is stuck");
        drop(release);
    }

    #[test]
    fn what_is_queued_runs_before_the_pool_ends() {
        let cpu = pool(1);
        let (tell, told) = mpsc::channel();
        for lane in [Lane::Background, Lane::Disk, Lane::Now] {
            let tell = tell.clone();
            cpu.spawn(lane, move || {
                thread::sleep(Duration::from_millis(20));
                tell.send(lane).expect("the test waits");
            });
        }
        drop((cpu, tell));
        assert_eq!(told.iter().count(), 3);
    }

    #[test]
    fn an_idle_thread_gives_its_scratch_back() {
        static RESTS: atomic::AtomicUsize = atomic::AtomicUsize::new(0);
        use crate::sync::atomic;
        let cpu = Cpu::with_idle(NonZeroUsize::MIN, || {
            RESTS.fetch_add(1, atomic::Ordering::Relaxed);
        })
        .expect("threads");
        cpu.spawn(Lane::Disk, || ());
        let begin = Instant::now();
        while RESTS.load(atomic::Ordering::Relaxed) == 0 {
            assert!(begin.elapsed() < Duration::from_secs(20));
            thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(RESTS.load(atomic::Ordering::Relaxed), 1);
    }
}
