//! The bounded thread pool for computation and file operations. All such work goes through it.
//!
//! The pool has five lanes. A lane is a FIFO queue with its own threads:
//!
//! | lane | threads at most | work |
//! |--|--|--|
//! | [`Lane::Compute`] | one per core | hash, decompress (also while bytes arrive), answer a waiting reader |
//! | [`Lane::ComputeBehind`] | one per core, lower priority | the same for spans that no reader waits for, and for whole layers |
//! | [`Lane::ComputeLast`] | one, lowest priority | proofs and scrubs; no container ever waits for them |
//! | [`Lane::Files`] | four | create, open, and sync files of a layer or snapshot while a request waits |
//! | [`Lane::FilesBehind`] | one | syncs of content, removals, upkeep; these can wait for the disk for seconds |
//!
//! Producers bound the queues by what they may have outstanding (parked kernel reads, spans that
//! hold permits of the fetch scheduler, one job per span that arrives, one sync per layer). A job
//! that panics loses only its own result. Dropping the pool runs all queued jobs and joins the
//! threads.

use std::{
    any::Any, collections::VecDeque, io, num::NonZeroUsize, panic::AssertUnwindSafe, thread,
    time::Duration,
};

use tokio::sync::oneshot;

use crate::sync::{Arc, Condvar, Mutex};

/// A thread that has been idle for this long releases its scratch memory.
const IDLE: Duration = Duration::from_secs(1);

/// Threads of [`Lane::Files`]. One slow sync must not delay other requests.
const FILES: usize = 4;

/// Selects the queue of a job, and thereby which operations the job may run. A job never waits for
/// another job, the network, or containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Computation that a reader waits for. It may read and write `data` and `heads`. It never
    /// syncs, deletes, creates a directory, or changes snapshot records.
    Compute,
    /// Computation that no reader waits for. It may do the same as [`Lane::Compute`].
    ComputeBehind,
    /// Computation for idle cores: comparing whole layers with their tars and their checksums. It
    /// may do the same as [`Lane::Compute`].
    ComputeLast,
    /// Operations on small files that a request waits for: create, open, read, sync. It does not
    /// delete directory trees, and it syncs content only if a request waits for it.
    Files,
    /// Slow file operations that no request waits for, or that may take long: syncs of content,
    /// removals. One job runs at a time.
    FilesBehind,
}

impl Lane {
    const ALL: [Lane; 5] = [
        Lane::Compute,
        Lane::ComputeBehind,
        Lane::ComputeLast,
        Lane::Files,
        Lane::FilesBehind,
    ];

    /// Index into arrays with one element per lane.
    const fn index(self) -> usize {
        self as usize
    }

    fn most_threads(self, cores: NonZeroUsize) -> usize {
        match self {
            Lane::Compute | Lane::ComputeBehind => cores.get(),
            Lane::Files => FILES,
            // Some jobs rely on running alone, such as a sync and a repair of the same layer.
            Lane::FilesBehind | Lane::ComputeLast => 1,
        }
    }

    /// Nice value of the lane's threads. Against one busy thread of a container, 5 gets about a
    /// quarter of a core and 19 about one sixtieth.
    const fn nice(self) -> i32 {
        match self {
            Lane::Compute | Lane::Files | Lane::FilesBehind => 0,
            Lane::ComputeBehind => 5,
            Lane::ComputeLast => 19,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Lane::Compute => "soci-now",
            Lane::ComputeBehind => "soci-back",
            Lane::ComputeLast => "soci-last",
            Lane::Files => "soci-files",
            Lane::FilesBehind => "soci-disk",
        }
    }
}

/// The job ended without a result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The job panicked. Contains the panic message.
    #[error("a job panicked: {0}")]
    Panicked(String),
    /// The pool was shut down before the job ran.
    #[error("the pool is shut down")]
    Closed,
}

type Job = Box<dyn FnOnce() + Send>;

/// The jobs and threads of one lane.
#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    /// Threads that wait for a job, including those that were woken and have not yet taken one.
    idle: usize,
}

#[derive(Default)]
struct Queues {
    lanes: [Queue; Lane::ALL.len()],
    closed: bool,
}

impl Queues {
    fn lane(&mut self, lane: Lane) -> &mut Queue {
        &mut self.lanes[lane.index()]
    }
}

struct Shared {
    queues: Mutex<Queues>,
    /// One condition per lane, so that `notify_one` never wakes a thread of another lane.
    waiting: [Condvar; Lane::ALL.len()],
    cores: NonZeroUsize,
    idle: fn(),
}

impl Shared {
    fn condition(&self, lane: Lane) -> &Condvar {
        &self.waiting[lane.index()]
    }
}

/// The pool. All computing modules share one instance.
pub struct Cpu {
    shared: Arc<Shared>,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
}

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cpu")
            .field("cores", &self.shared.cores)
            .finish_non_exhaustive()
    }
}

impl Cpu {
    /// Creates a pool. Each compute lane except [`Lane::ComputeLast`] has up to `cores` threads.
    ///
    /// # Errors
    /// The system's error if a thread cannot be started.
    pub fn new(cores: NonZeroUsize) -> io::Result<Arc<Cpu>> {
        Cpu::with_idle(cores, || ())
    }

    /// Like [`Cpu::new`]. `idle` runs on each thread that has been idle for one second, to release
    /// the thread's caches.
    ///
    /// # Errors
    /// See [`Cpu::new`].
    pub fn with_idle(cores: NonZeroUsize, idle: fn()) -> io::Result<Arc<Cpu>> {
        let cpu = Cpu {
            shared: Arc::new(Shared {
                queues: Mutex::new(Queues::default()),
                waiting: Default::default(),
                cores,
                idle,
            }),
            threads: Mutex::default(),
        };
        for lane in Lane::ALL {
            cpu.shared.queues.lock().lane(lane).threads += 1;
            cpu.start(lane, Stays::Always)?;
        }
        Ok(Arc::new(cpu))
    }

    /// Starts a thread. The caller has already counted it.
    fn start(&self, lane: Lane, stays: Stays) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let mut threads = self.threads.lock();
        threads.retain(|thread| !thread.is_finished());
        let thread = thread::Builder::new()
            .name(lane.name().to_owned())
            .spawn(move || work(&shared, lane, stays))?;
        threads.push(thread);
        Ok(())
    }

    /// Queues a job that reports its own result. The job runs even if nothing waits for it any
    /// longer. A panic is logged and discarded, so the job must own a value that reports failure
    /// when it is dropped.
    pub fn spawn(&self, lane: Lane, job: impl FnOnce() + Send + 'static) {
        let starts = {
            let mut queues = self.shared.queues.lock();
            let queue = queues.lane(lane);
            queue.jobs.push_back(Box::new(job));
            let starts = queue.jobs.len() > queue.idle
                && queue.threads < lane.most_threads(self.shared.cores);
            queue.threads += usize::from(starts);
            starts
        };
        self.shared.condition(lane).notify_one();
        if starts && let Err(error) = self.start(lane, Stays::WhileBusy) {
            self.shared.queues.lock().lane(lane).threads -= 1;
            tracing::debug!(lane = lane.name(), error = %error, "cannot start another thread; the job waits for a running one");
        }
    }

    /// Runs a job and waits for its result. Dropping the future does not cancel the job: it runs to
    /// completion and its result is discarded.
    ///
    /// # Errors
    /// [`Lost`] if the job panicked or the pool was shut down.
    pub async fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Lost> {
        let (tell, told) = oneshot::channel();
        self.spawn(lane, move || {
            let result = std::panic::catch_unwind(AssertUnwindSafe(job))
                .map_err(|panic| Lost::Panicked(panic_text(&*panic)));
            // A failed send means that the caller dropped the future.
            drop(tell.send(result));
        });
        told.await.unwrap_or(Err(Lost::Closed))
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        self.shared.queues.lock().closed = true;
        for lane in Lane::ALL {
            self.shared.condition(lane).notify_all();
        }
        let me = thread::current().id();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            // The last owner can be a job in this pool. Its own thread ends by itself.
            if thread.thread().id() != me && thread.join().is_err() {
                tracing::error!("a pool thread panicked outside a job");
            }
        }
    }
}

/// What a thread does after it has been idle for [`IDLE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stays {
    /// It releases its scratch memory and continues to wait.
    Always,
    /// It ends.
    WhileBusy,
}

fn work(shared: &Shared, lane: Lane, stays: Stays) {
    let condition = shared.condition(lane);
    if lane.nice() > 0
        && let Err(error) = rustix::process::nice(lane.nice())
    {
        tracing::debug!(error = %error, "cannot lower the thread priority; background work runs at normal priority");
    }
    let mut rested = stays == Stays::Always;
    let mut queues = shared.queues.lock();
    loop {
        if let Some(job) = queues.lane(lane).jobs.pop_front() {
            drop(queues);
            rested = false;
            if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(job)) {
                tracing::error!(panic = panic_text(&*panic), "a job panicked");
            }
            queues = shared.queues.lock();
            continue;
        }
        if queues.closed {
            return;
        }
        queues.lane(lane).idle += 1;
        let waited = if rested {
            (condition.wait(queues), false)
        } else {
            condition.wait_for(queues, IDLE)
        };
        queues = waited.0;
        queues.lane(lane).idle -= 1;
        if !waited.1 || queues.closed || !queues.lane(lane).jobs.is_empty() {
            continue;
        }
        if stays == Stays::WhileBusy {
            queues.lane(lane).threads -= 1;
            return;
        }
        drop(queues);
        (shared.idle)();
        rested = true;
        queues = shared.queues.lock();
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
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
            .run(Lane::ComputeBehind, || panic!("no such {}", "luck"))
            .await;
        assert_eq!(
            lost,
            Err::<(), _>(Lost::Panicked("no such luck".to_owned()))
        );
        assert_eq!(cpu.run(Lane::ComputeBehind, || 7).await, Ok(7));
        cpu.spawn(Lane::Compute, || panic!("unheard"));
        assert_eq!(cpu.run(Lane::Compute, || 8).await, Ok(8));
    }

    #[test]
    fn an_urgent_job_does_not_wait_for_background_jobs() {
        let cpu = pool(2);
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        for _ in 0..8 {
            let gate = Arc::clone(&gate);
            cpu.spawn(Lane::ComputeBehind, move || {
                assert!(gate.lock().recv().is_err())
            });
        }
        let (tell, told) = mpsc::channel();
        cpu.spawn(Lane::Compute, move || {
            tell.send(()).expect("the test receives")
        });
        told.recv_timeout(Duration::from_secs(10))
            .expect("only background jobs are blocked");
        drop(release);
    }

    #[test]
    fn blocked_file_jobs_delay_neither_urgent_file_jobs_nor_readers() {
        let cpu = pool(1);
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let stuck = |lane, count| {
            for _ in 0..count {
                let gate = Arc::clone(&gate);
                cpu.spawn(lane, move || assert!(gate.lock().recv().is_err()));
            }
        };
        stuck(Lane::FilesBehind, 8);
        // One hung sync must leave threads for other requests.
        stuck(Lane::Files, FILES - 1);
        for lane in [Lane::Files, Lane::Compute] {
            let (tell, told) = mpsc::channel();
            cpu.spawn(lane, move || tell.send(()).expect("the test receives"));
            told.recv_timeout(Duration::from_secs(10))
                .expect("only other lanes are blocked");
        }
        drop(release);
    }

    #[test]
    fn threads_start_with_jobs_and_end_when_idle() {
        let cpu = pool(4);
        let threads = || cpu.shared.queues.lock().lane(Lane::Compute).threads;
        assert_eq!(threads(), 1);
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let (tell, told) = mpsc::channel();
        for _ in 0..6 {
            let (gate, tell) = (Arc::clone(&gate), tell.clone());
            cpu.spawn(Lane::Compute, move || {
                tell.send(()).expect("the test receives");
                assert!(gate.lock().recv().is_err());
            });
        }
        assert_eq!(threads(), 4, "one per core");
        drop(release);
        assert_eq!(told.iter().take(6).count(), 6);
        let begin = Instant::now();
        while threads() > 1 {
            assert!(begin.elapsed() < Duration::from_secs(20));
            thread::sleep(Duration::from_millis(20));
        }
        cpu.spawn(Lane::Compute, move || {
            tell.send(()).expect("the test receives")
        });
        told.recv_timeout(Duration::from_secs(10))
            .expect("the last thread stays");
    }

    #[test]
    fn queued_jobs_run_before_the_pool_ends() {
        let cpu = pool(1);
        let (tell, told) = mpsc::channel();
        for lane in Lane::ALL {
            let tell = tell.clone();
            cpu.spawn(lane, move || {
                thread::sleep(Duration::from_millis(20));
                tell.send(lane).expect("the test receives");
            });
        }
        drop((cpu, tell));
        assert_eq!(told.iter().count(), Lane::ALL.len());
    }

    #[test]
    fn an_idle_thread_releases_its_scratch_memory() {
        static RESTS: atomic::AtomicUsize = atomic::AtomicUsize::new(0);
        use crate::sync::atomic;
        let cpu = Cpu::with_idle(NonZeroUsize::MIN, || {
            RESTS.fetch_add(1, atomic::Ordering::Relaxed);
        })
        .expect("threads");
        cpu.spawn(Lane::FilesBehind, || ());
        let begin = Instant::now();
        while RESTS.load(atomic::Ordering::Relaxed) == 0 {
            assert!(begin.elapsed() < Duration::from_secs(20));
            thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(RESTS.load(atomic::Ordering::Relaxed), 1);
    }
}
