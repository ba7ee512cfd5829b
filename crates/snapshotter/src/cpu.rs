//! The bounded pool for computing and for files, and the only way into it.
//!
//! Five lanes, each a queue of jobs in order with threads of its own, by what a job mostly waits for and who waits for it:
//!
//! | lane | threads at most | for |
//! |--|--|--|
//! | [`Lane::Compute`] | one a core | hash, inflate, answer: a reader waits |
//! | [`Lane::ComputeBehind`] | one a core, of lower priority | the same for spans that nobody waits for, and for whole layers |
//! | [`Lane::ComputeLast`] | one, of the lowest priority | what no container waits for, ever: proofs, scrubs |
//! | [`Lane::Files`] | four | files of a layer or snapshot are made, opened, synced: a request waits |
//! | [`Lane::FilesBehind`] | one | syncs of contents, removals, upkeep: they wait for the disk for seconds |
//!
//! Each lane always has one thread. The others start when a job finds none idle, and end when they have had nothing to do.
//!
//! What may run where stands at [`Lane`]. The records have a thread of their own (`snapshots::metadata`), and so have
//! the mounts (`mount::thread`).
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

/// Threads of [`Lane::Files`]: enough that one slow sync does not hold up the requests of others.
const FILES: usize = 4;

/// Which queue a job waits in, and so what it may do. No job waits for another job, for the network or for containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Computes, and a reader waits. It may read and write `data` and `heads`; it never syncs, deletes, makes a folder or
    /// touches the records.
    Compute,
    /// Computes, and nobody waits. May do what [`Lane::Compute`] may.
    ComputeBehind,
    /// Computes when a core is idle: whole layers are held against their tars and their sums. May do what
    /// [`Lane::Compute`] may.
    ComputeLast,
    /// A request waits for small files: made, opened, read, synced. It deletes no trees and syncs no contents that
    /// nobody waits for.
    Files,
    /// Nobody waits, or nobody who has not all the time: syncs of contents, removals. One job at a time.
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

    /// Its place in arrays.
    const fn index(self) -> usize {
        self as usize
    }

    fn most_threads(self, cores: NonZeroUsize) -> usize {
        match self {
            Lane::Compute | Lane::ComputeBehind => cores.get(),
            Lane::Files => FILES,
            // Some of its jobs count on being alone: a sync of a layer and a repair of it.
            Lane::FilesBehind | Lane::ComputeLast => 1,
        }
    }

    /// Priority of its threads. Against one busy thread of a container the background has about a quarter of a core, and
    /// what comes last a sixtieth.
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
    /// It panicked; the text is what it said.
    #[error("a job panicked: {0}")]
    Panicked(String),
    /// The pool was shut down first.
    #[error("the pool is shut down")]
    Closed,
}

type Job = Box<dyn FnOnce() + Send>;

/// One lane's jobs and threads.
#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    /// Threads that wait for a job, those included that were woken and have not taken theirs yet.
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
    /// One condition for each lane, so that `notify_one` never wakes a thread of another.
    waiting: [Condvar; Lane::ALL.len()],
    cores: NonZeroUsize,
    idle: fn(),
}

impl Shared {
    fn condition(&self, lane: Lane) -> &Condvar {
        &self.waiting[lane.index()]
    }
}

/// The pool. Shared by everything that computes.
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
    /// A pool whose lanes that compute have up to `cores` threads each.
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

    /// Starts a thread that is counted already.
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

    /// Queues a job that answers in its own way. It runs even if nobody waits for it any more; a panic in it is logged
    /// and dropped, so it must hold what answers for it (a value that reports on drop).
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
            tracing::debug!(lane = lane.name(), error = %error, "no further thread: the job waits for those there are");
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
        for lane in Lane::ALL {
            self.shared.condition(lane).notify_all();
        }
        let me = thread::current().id();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            // The last owner may be a job of the pool itself; that thread ends by itself.
            if thread.thread().id() != me && thread.join().is_err() {
                tracing::error!("a thread of the pool panicked outside of a job");
            }
        }
    }
}

/// What a thread does that has had nothing to do for [`IDLE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stays {
    /// It gives its scratch memory back and waits.
    Always,
    /// It ends.
    WhileBusy,
}

fn work(shared: &Shared, lane: Lane, stays: Stays) {
    let condition = shared.condition(lane);
    if lane.nice() > 0
        && let Err(error) = rustix::process::nice(lane.nice())
    {
        tracing::debug!(error = %error, "the background runs with full priority");
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
    fn a_now_job_does_not_wait_for_background_jobs() {
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
            tell.send(()).expect("the test waits")
        });
        told.recv_timeout(Duration::from_secs(10))
            .expect("only the background is stuck");
        drop(release);
    }

    #[test]
    fn files_that_somebody_waits_for_do_not_wait_for_removals_and_readers_for_neither() {
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
        // One sync that hangs leaves threads for others.
        stuck(Lane::Files, FILES - 1);
        for lane in [Lane::Files, Lane::Compute] {
            let (tell, told) = mpsc::channel();
            cpu.spawn(lane, move || tell.send(()).expect("the test waits"));
            told.recv_timeout(Duration::from_secs(10))
                .expect("only other work is stuck");
        }
        drop(release);
    }

    #[test]
    fn threads_come_with_jobs_and_end_without() {
        let cpu = pool(4);
        let threads = || cpu.shared.queues.lock().lane(Lane::Compute).threads;
        assert_eq!(threads(), 1);
        let (release, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let (tell, told) = mpsc::channel();
        for _ in 0..6 {
            let (gate, tell) = (Arc::clone(&gate), tell.clone());
            cpu.spawn(Lane::Compute, move || {
                tell.send(()).expect("the test waits");
                assert!(gate.lock().recv().is_err());
            });
        }
        assert_eq!(threads(), 4, "one a core");
        drop(release);
        assert_eq!(told.iter().take(6).count(), 6);
        let begin = Instant::now();
        while threads() > 1 {
            assert!(begin.elapsed() < Duration::from_secs(20));
            thread::sleep(Duration::from_millis(20));
        }
        cpu.spawn(Lane::Compute, move || {
            tell.send(()).expect("the test waits")
        });
        told.recv_timeout(Duration::from_secs(10))
            .expect("the last one stays");
    }

    #[test]
    fn what_is_queued_runs_before_the_pool_ends() {
        let cpu = pool(1);
        let (tell, told) = mpsc::channel();
        for lane in Lane::ALL {
            let tell = tell.clone();
            cpu.spawn(lane, move || {
                thread::sleep(Duration::from_millis(20));
                tell.send(lane).expect("the test waits");
            });
        }
        drop((cpu, tell));
        assert_eq!(told.iter().count(), Lane::ALL.len());
    }

    #[test]
    fn an_idle_thread_gives_its_scratch_back() {
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
