//! Tracks bytes that were written to the store and are not yet on disk, and paces background
//! writes.
//!
//! Every writer reports its writes ([`Writeback::wrote`]). A single task writes them to disk in
//! order, one part at a time ([`Writeback::next`], [`write_out`], [`Writeback::is_out`]).
//! Background data is written only when it gets a turn ([`Writeback::admit`]), and never more than
//! the disk accepts in a moment. The kernel thus has no reason to throttle writers, and a sync by
//! this daemon or a container waits for one part, not for everything that a fast link has
//! delivered. Data that a reader waits for needs no turn.
//!
//! It monitors only its own bytes: pressure and dirty pages of the machine are mostly caused by
//! others, and show too late.

use std::{
    collections::VecDeque, fmt, fs::File, io, ops::Range, os::fd::AsRawFd as _, time::Instant,
};

use tokio::sync::Notify;

use crate::sync::{Arc, Mutex};

mod pace;

use pace::Pace;

/// Written bytes that must go to disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part<T> {
    /// The owner of the bytes.
    pub of: T,
    /// Their range in the file.
    pub range: Range<u64>,
}

type Job<T> = Box<dyn FnOnce(Turn<T>) + Send>;

struct State<T> {
    /// Parts that are not yet on disk, oldest first.
    parts: VecDeque<Part<T>>,
    /// Total bytes written, and how many of them are on disk. Both only grow.
    written: u64,
    out: u64,
    /// Bytes about to be written by turns that were granted.
    coming: u64,
    waiting: VecDeque<(u64, Job<T>)>,
    /// Number of live [`Quiet`] guards.
    quiet: usize,
    pace: Pace,
}

/// See the module documentation. `T` identifies the owner of the bytes.
pub struct Writeback<T> {
    state: Mutex<State<T>>,
    /// A part is available.
    some: Notify,
    /// A part reached the disk, or a turn ended.
    less: Notify,
}

impl<T> fmt::Debug for Writeback<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Writeback")
            .field("dirty", &state.dirty())
            .field("coming", &state.coming)
            .field("waiting", &state.waiting.len())
            .field("pace", &state.pace)
            .finish_non_exhaustive()
    }
}

impl<T> Default for Writeback<T> {
    fn default() -> Writeback<T> {
        Writeback {
            state: Mutex::new(State {
                parts: VecDeque::new(),
                written: 0,
                out: 0,
                coming: 0,
                waiting: VecDeque::new(),
                quiet: 0,
                pace: Pace::default(),
            }),
            some: Notify::new(),
            less: Notify::new(),
        }
    }
}

/// The right to write some background bytes. Ends when dropped.
pub struct Turn<T> {
    of: Arc<Writeback<T>>,
    bytes: u64,
}

impl<T> fmt::Debug for Turn<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turn").field("bytes", &self.bytes).finish()
    }
}

impl<T> Drop for Turn<T> {
    fn drop(&mut self) {
        self.of.state.lock().coming -= self.bytes;
        self.of.go_on();
    }
}

/// No turns are granted while this lives.
pub struct Quiet<T>(Arc<Writeback<T>>);

impl<T> fmt::Debug for Quiet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Quiet")
    }
}

impl<T> Drop for Quiet<T> {
    fn drop(&mut self) {
        self.0.state.lock().quiet -= 1;
        self.0.go_on();
    }
}

impl<T> State<T> {
    fn has_room(&self) -> bool {
        self.quiet == 0 && self.dirty() + self.coming < self.pace.behind()
    }

    fn dirty(&self) -> u64 {
        self.written - self.out
    }
}

impl<T: Clone> Writeback<T> {
    /// Reports a write.
    pub fn wrote(&self, of: T, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        {
            let mut state = self.state.lock();
            state.written += range.end - range.start;
            state.parts.push_back(Part { of, range });
        }
        self.some.notify_one();
    }

    /// Waits for the next part and for the time at which the disk can accept it. The caller then
    /// calls [`Writeback::is_out`]. Only one task may call this.
    pub async fn next(&self) -> Part<T> {
        let next = self.state.lock().pace.next();
        if let Some(next) = next {
            tokio::time::sleep_until(next.into()).await;
        }
        loop {
            if let Some(part) = self.take() {
                return part;
            }
            self.some.notified().await;
        }
    }

    fn take(&self) -> Option<Part<T>> {
        let mut state = self.state.lock();
        let most = state.pace.part();
        let first = state.parts.front_mut()?;
        if first.range.end - first.range.start <= most {
            return state.parts.pop_front();
        }
        let part = Part {
            of: first.of.clone(),
            range: first.range.start..first.range.start + most,
        };
        first.range.start += most;
        Some(part)
    }

    /// Reports that a part is on disk, lost, or obsolete. If it was written, `took` is when the
    /// write began and ended.
    pub fn is_out(self: &Arc<Self>, bytes: u64, took: Option<(Instant, Instant)>) {
        {
            let mut state = self.state.lock();
            state.out += bytes;
            if let Some((begun, ended)) = took {
                state.pace.took(bytes, begun, ended);
            }
        }
        self.go_on();
    }
}

impl<T> Writeback<T> {
    /// Runs `job` when this many background bytes may be written, possibly at once. `job` must not
    /// block.
    pub fn admit(self: &Arc<Self>, bytes: u64, job: impl FnOnce(Turn<T>) + Send + 'static) {
        self.state.lock().waiting.push_back((bytes, Box::new(job)));
        self.go_on();
    }

    /// Grants turns while there is room.
    fn go_on(self: &Arc<Self>) {
        self.less.notify_waiters();
        loop {
            let (bytes, job) = {
                let mut state = self.state.lock();
                if !state.has_room() {
                    return;
                }
                let Some((bytes, job)) = state.waiting.pop_front() else {
                    return;
                };
                state.coming += bytes;
                (bytes, job)
            };
            let of = Arc::clone(self);
            job(Turn { of, bytes });
        }
    }

    /// Grants no turns while the guard lives.
    pub fn hush(self: &Arc<Self>) -> Quiet<T> {
        self.state.lock().quiet += 1;
        Quiet(Arc::clone(self))
    }

    /// Waits until all granted turns have ended. Under a [`Quiet`] guard no new ones start.
    pub async fn no_turns(&self) {
        self.wait_until(|state| state.coming == 0).await;
    }

    /// Waits until everything written before this call is on disk.
    pub async fn settled(&self) {
        let written = self.state.lock().written;
        self.wait_until(|state| state.out >= written).await;
    }

    async fn wait_until(&self, done: impl Fn(&State<T>) -> bool) {
        loop {
            let less = self.less.notified();
            let mut less = std::pin::pin!(less);
            // Register before checking, so that no change is missed.
            less.as_mut().enable();
            if done(&self.state.lock()) {
                return;
            }
            less.await;
        }
    }

    /// Bytes that are written and not yet on disk.
    pub fn dirty(&self) -> u64 {
        self.state.lock().dirty()
    }
}

/// Writes a range of a file to disk and waits for it. Does not make it durable: neither the file's
/// metadata nor the disk's cache is flushed. Blocks on the disk.
///
/// # Errors
/// The system's. The written bytes are then lost, and a later sync of the same file does not report
/// it again.
pub fn write_out(file: &File, range: Range<u64>) -> io::Result<()> {
    let (Ok(start), Ok(length)) = (
        libc::off64_t::try_from(range.start),
        libc::off64_t::try_from(range.end - range.start),
    ) else {
        return Ok(());
    };
    // Without WAIT_BEFORE, unlike a sync: where the disk's queue supports it, these writes have
    // lower priority.
    let flags = libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    loop {
        // JUSTIFICATION: neither std nor rustix has this call.
        #[allow(unsafe_code, reason = "sync_file_range has no safe form")]
        // SAFETY: the descriptor is borrowed from an open file for the duration of the call. No
        // memory is passed.
        let done = unsafe { libc::sync_file_range(file.as_raw_fd(), start, length, flags) };
        if done == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            // A file or kernel without support: the kernel writes at its own time.
            Some(libc::ENOSYS | libc::EINVAL | libc::ESPIPE) => return Ok(()),
            _ => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, time::Duration};

    use super::*;

    const MIB: u64 = 1 << 20;

    fn new() -> Arc<Writeback<u32>> {
        Arc::new(Writeback::default())
    }

    /// Requests a turn of this many bytes. The turn is sent to the channel.
    fn ask(of: &Arc<Writeback<u32>>, bytes: u64) -> std::sync::mpsc::Receiver<Turn<u32>> {
        let (tell, told) = std::sync::mpsc::channel();
        of.admit(bytes, move |turn| {
            tell.send(turn).expect("the test receives")
        });
        told
    }

    #[test]
    fn background_writes_are_limited_to_what_the_disk_accepts_soon() {
        let writeback = new();
        let room = writeback.state.lock().pace.behind();
        let turns: Vec<_> = (0..4).map(|_| ask(&writeback, room / 2 + 1)).collect();
        let first = turns[0].try_recv().expect("at once");
        let second = turns[1].try_recv().expect("the limit is not yet reached");
        assert!(turns[2].try_recv().is_err());
        writeback.wrote(7, 0..room);
        drop((first, second));
        assert!(turns[2].try_recv().is_err(), "nothing is on disk yet");
        let mut out = 0;
        while out < room {
            assert!(turns[2].try_recv().is_err());
            let part = writeback.take().expect("in parts");
            assert_eq!((part.of, part.range.start), (7, out));
            let bytes = part.range.end - part.range.start;
            assert!(bytes <= room / 4);
            writeback.is_out(bytes, None);
            out += bytes;
            if writeback.dirty() < room {
                break;
            }
        }
        let third = turns[2].try_recv().expect("room again");
        assert!(turns[3].try_recv().is_err());
        drop(third);
        turns[3].try_recv().expect("in order");
    }

    #[tokio::test]
    async fn a_quiet_guard_waits_for_turns_and_delays_new_ones() {
        let writeback = new();
        let turn = ask(&writeback, MIB).try_recv().expect("at once");
        writeback.wrote(1, 0..3);
        let quiet = writeback.hush();
        let mut over = Box::pin(writeback.no_turns());
        let soon = Duration::from_millis(20);
        assert!(tokio::time::timeout(soon, &mut over).await.is_err());
        let next = ask(&writeback, MIB);
        drop(turn);
        over.await;
        assert!(next.try_recv().is_err());
        let mut settled = Box::pin(writeback.settled());
        assert!(tokio::time::timeout(soon, &mut settled).await.is_err());
        let part = writeback.next().await;
        writeback.is_out(part.range.end - part.range.start, None);
        settled.await;
        assert!(next.try_recv().is_err());
        drop(quiet);
        next.try_recv().expect("at once");
        writeback.wrote(1, 5..5);
        writeback.settled().await;
    }

    #[test]
    fn write_out_writes_files_and_ignores_pipes() {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&[1; 10_000]).expect("written");
        write_out(&file, 100..9000).expect("written out");
        write_out(&file, 0..1 << 40).expect("as far as it goes");
        let (_read, write) = std::io::pipe().expect("a pipe");
        let write = File::from(std::os::fd::OwnedFd::from(write));
        let begin = Instant::now();
        write_out(&write, 0..1).expect("nothing to do");
        assert!(begin.elapsed() < Duration::from_secs(10));
    }
}
