//! What was written to the store and is not on the disk yet, and how the background waits for it.
//!
//! Who writes says so ([`Writeback::wrote`]); one task brings it to the disk, a part at a time and in order
//! ([`Writeback::next`], [`write_out`], [`Writeback::is_out`]). What nobody waits for is written only when it is its turn
//! ([`Writeback::admit`]): never more than the disk takes in a moment. So the kernel has no reason to slow down writers, and
//! a sync, ours or a container's, waits for one part and not for all that a fast line has brought. Readers ask for no turn.
//!
//! Its own bytes are what it watches: pressure and dirty pages of the machine are mostly others', and come too late.

use std::{
    collections::VecDeque, fmt, fs::File, io, ops::Range, os::fd::AsRawFd as _, time::Instant,
};

use tokio::sync::Notify;

use crate::sync::{Arc, Mutex};

mod pace;

use pace::Pace;

/// Bytes that were written, to be brought to the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part<T> {
    /// Whose they are.
    pub of: T,
    /// Where in the file.
    pub range: Range<u64>,
}

type Job<T> = Box<dyn FnOnce(Turn<T>) + Send>;

struct State<T> {
    /// Not on the disk yet, oldest first.
    parts: VecDeque<Part<T>>,
    /// Bytes that were written ever, and those of them that are on the disk: in order.
    written: u64,
    out: u64,
    /// Bytes that are about to be written: turns that were given.
    coming: u64,
    waiting: VecDeque<(u64, Job<T>)>,
    /// Who wants nothing to be written behind for a moment.
    quiet: usize,
    pace: Pace,
}

/// See the module. `T` is whose bytes they are.
pub struct Writeback<T> {
    state: Mutex<State<T>>,
    /// There is a part.
    some: Notify,
    /// A part is on the disk, or a turn is over.
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

/// The right to write some bytes that nobody waits for; over when it is dropped.
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

/// While it lives nobody gets a turn.
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
    /// Bytes were written.
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

    /// The next part to bring to the disk, when the disk can be given one; to be followed by [`Writeback::is_out`]. For one
    /// task.
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

    /// A part is on the disk, or lost, or nobody's any more; if it is there, when that was begun and ended.
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
    /// Runs `job` when so many bytes may be written that nobody waits for; at once if that is now. It must not block.
    pub fn admit(self: &Arc<Self>, bytes: u64, job: impl FnOnce(Turn<T>) + Send + 'static) {
        self.state.lock().waiting.push_back((bytes, Box::new(job)));
        self.go_on();
    }

    /// Gives the turns that there are.
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

    /// Gives no turns while the guard lives.
    pub fn hush(self: &Arc<Self>) -> Quiet<T> {
        self.state.lock().quiet += 1;
        Quiet(Arc::clone(self))
    }

    /// Waits until the turns that were given are over; under a [`Quiet`] that is all of them.
    pub async fn no_turns(&self) {
        self.wait_until(|state| state.coming == 0).await;
    }

    /// Waits until what was written before is on the disk.
    pub async fn settled(&self) {
        let written = self.state.lock().written;
        self.wait_until(|state| state.out >= written).await;
    }

    async fn wait_until(&self, done: impl Fn(&State<T>) -> bool) {
        loop {
            let less = self.less.notified();
            let mut less = std::pin::pin!(less);
            // From here on no change is missed.
            less.as_mut().enable();
            if done(&self.state.lock()) {
                return;
            }
            less.await;
        }
    }

    /// Bytes that are written and not on the disk.
    pub fn dirty(&self) -> u64 {
        self.state.lock().dirty()
    }
}

/// Brings a range of a file to the disk and waits for that. It makes nothing durable: neither the file's size and places nor
/// what the disk itself keeps. Blocks on the disk.
///
/// # Errors
/// The system's: bytes that were written are lost, and a later sync of the same file does not say so again.
pub fn write_out(file: &File, range: Range<u64>) -> io::Result<()> {
    let (Ok(start), Ok(length)) = (
        libc::off64_t::try_from(range.start),
        libc::off64_t::try_from(range.end - range.start),
    ) else {
        return Ok(());
    };
    // Not as a sync does it: such writes give way where the disk's queue knows of that.
    let flags = libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    loop {
        // JUSTIFICATION: neither std nor rustix has this call.
        #[allow(unsafe_code, reason = "sync_file_range has no safe form")]
        // SAFETY: the descriptor is borrowed from an open file for the time of the call; no memory is passed.
        let done = unsafe { libc::sync_file_range(file.as_raw_fd(), start, length, flags) };
        if done == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            // A file, or a kernel, that has no such thing: the kernel writes when it likes.
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

    /// Asks for a turn of so many bytes, which comes by the channel.
    fn ask(of: &Arc<Writeback<u32>>, bytes: u64) -> std::sync::mpsc::Receiver<Turn<u32>> {
        let (tell, told) = std::sync::mpsc::channel();
        of.admit(bytes, move |turn| tell.send(turn).expect("the test waits"));
        told
    }

    #[test]
    fn the_background_writes_as_much_as_the_disk_takes_soon() {
        let writeback = new();
        let room = writeback.state.lock().pace.behind();
        let turns: Vec<_> = (0..4).map(|_| ask(&writeback, room / 2 + 1)).collect();
        let first = turns[0].try_recv().expect("at once");
        let second = turns[1].try_recv().expect("there is room for some of it");
        assert!(turns[2].try_recv().is_err());
        writeback.wrote(7, 0..room);
        drop((first, second));
        assert!(turns[2].try_recv().is_err(), "nothing is on the disk yet");
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
    async fn who_wants_quiet_waits_for_turns_and_holds_up_others() {
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
    fn files_are_written_out_and_what_is_none_is_left_alone() {
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
