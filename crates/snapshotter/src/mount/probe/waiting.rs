//! Checks that reads continue while a READ waits, and that the waiting reader can be killed.
//!
//! Nothing waits longer than [`LONGEST`]: a timer releases a reader that cannot be killed and a
//! device that is blocked, and the probe reports that the mount mode does not work.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::image::BLOCK;
use super::{PROBE_NUMBER, ProbeError};
use crate::layer::{DeviceFile, ReadDone};
use reader::Reader;

/// Maximum time for which a READ is held.
const LONGEST: Duration = Duration::from_secs(10);
/// Time limit for the end of a killed reader: it takes 15 ms (measured), longer on a busy machine.
const DEATH: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(1);

/// The block of `full`, whose READs are held.
const HELD: usize = 2;

#[derive(Default)]
struct State {
    held_until: Option<Instant>,
    waiting: Vec<(usize, usize, ReadDone)>,
    closed: bool,
}

impl State {
    fn is_held(&self, now: Instant) -> bool {
        self.held_until.is_some_and(|until| until > now)
    }
}

/// The probe's data, served from memory.
pub(super) struct ProbeFile {
    content: Bytes,
    state: Mutex<State>,
    changed: Condvar,
}

impl ProbeFile {
    /// Must not be called on the mount thread: the thread that answers held READs needs the
    /// device's descriptor, and a thread inherits its creator's descriptor table.
    pub(super) fn serve(content: Vec<u8>) -> std::io::Result<Arc<ProbeFile>> {
        let file = Arc::new(ProbeFile {
            content: content.into(),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let served = Arc::clone(&file);
        std::thread::Builder::new()
            .name("probe".to_owned())
            .spawn(move || served.answer_held())?;
        Ok(file)
    }

    /// Ends the thread that answers held READs.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.release();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds READs of the held block from now on, for at most [`LONGEST`].
    fn hold(&self) {
        self.state().held_until = Some(Instant::now() + LONGEST);
    }

    /// Answers the held READs. Later READs are answered immediately.
    fn release(&self) {
        self.state().held_until = None;
        self.changed.notify_all();
    }

    fn is_waiting(&self) -> bool {
        !self.state().waiting.is_empty()
    }

    fn answer_held(&self) {
        let mut state = self.state();
        loop {
            let now = Instant::now();
            if !state.is_held(now) {
                for (start, end, done) in std::mem::take(&mut state.waiting) {
                    done(Ok(self.content.slice(start..end)));
                }
                if state.closed {
                    return;
                }
            }
            let left = state.held_until.map_or(LONGEST, |until| until - now);
            let waited = self.changed.wait_timeout(state, left.max(POLL));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl DeviceFile for ProbeFile {
    fn number(&self) -> u64 {
        PROBE_NUMBER
    }

    fn size(&self) -> u64 {
        self.content.len() as u64
    }

    fn read(self: Arc<Self>, offset: u64, len: u32, done: ReadDone) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = start.saturating_add(len as usize);
        if end > self.content.len() {
            return;
        }
        let mut state = self.state();
        if state.is_held(Instant::now()) && end > HELD * BLOCK {
            state.waiting.push((start, end, done));
            self.changed.notify_all();
            return;
        }
        drop(state);
        done(Ok(self.content.slice(start..end)));
    }
}

/// Reads `other` while a reader of `held` waits. Runs on the mount thread.
pub(super) fn look(
    held: &Path,
    other: &Path,
    file: &ProbeFile,
    step: &'static str,
) -> Result<(), ProbeError> {
    file.hold();
    let looked = match Reader::start(held) {
        Ok(reader) => {
            let looked = look_beside(&reader, other, file, step);
            file.release();
            // Its READ is answered, so it ends if it has not already.
            reader.end();
            looked
        }
        Err(source) => Err(ProbeError::Read {
            step,
            what: "a file",
            source,
        }),
    };
    file.release();
    // An unmount would wait for unanswered READs.
    within(LONGEST, || !file.is_waiting());
    looked
}

fn look_beside(
    reader: &Reader,
    other: &Path,
    file: &ProbeFile,
    step: &'static str,
) -> Result<(), ProbeError> {
    let agree = |what, yes: bool| yes.then_some(()).ok_or(ProbeError::Blocked { step, what });
    let waits = within(LONGEST, || file.is_waiting());
    agree("the READ did not reach the device", waits)?;
    let read = std::fs::read(other);
    read.map_err(|source| ProbeError::Read {
        step,
        what: "another file",
        source,
    })?;
    agree("a waiting READ blocks all others", file.is_waiting())?;
    reader.kill();
    let gone = within(DEATH, || reader.is_gone());
    agree(
        "a waiting reader cannot be killed",
        gone && file.is_waiting(),
    )
}

fn within(limit: Duration, mut happens: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !happens() {
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(POLL);
    }
    true
}

/// JUSTIFICATION: a reader that can be killed alone must be a process, and a distroless image
/// contains no program to start. SAFETY of the module: after fork, the child only makes system
/// calls on memory allocated before the fork, so it needs no lock that another thread may hold.
mod reader {
    #![allow(unsafe_code, reason = "fork has no safe wrapper")]

    use std::cell::Cell;
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;
    use std::time::Duration;

    use rustix::process::{Pid, Signal, WaitOptions};

    /// A process that reads one byte of a file and ends.
    pub(super) struct Reader {
        pid: Pid,
        gone: Cell<bool>,
    }

    impl Reader {
        pub(super) fn start(path: &Path) -> std::io::Result<Reader> {
            let path = CString::new(path.as_os_str().as_bytes())?;
            // SAFETY: see the module.
            let pid = unsafe { libc::fork() };
            if pid == 0 {
                read_and_end(&path);
            }
            let pid = Pid::from_raw(pid).filter(|_| pid > 0);
            let pid = pid.ok_or_else(std::io::Error::last_os_error)?;
            let gone = Cell::new(false);
            Ok(Reader { pid, gone })
        }

        pub(super) fn kill(&self) {
            // It may have ended already.
            let _ = rustix::process::kill_process(self.pid, Signal::KILL);
        }

        pub(super) fn is_gone(&self) -> bool {
            if !self.gone.get() {
                let waited = rustix::process::waitpid(Some(self.pid), WaitOptions::NOHANG);
                self.gone.set(!matches!(waited, Ok(None)));
            }
            self.gone.get()
        }

        /// Kills it and waits up to two seconds for its end.
        pub(super) fn end(&self) {
            self.kill();
            super::within(Duration::from_secs(2), || self.is_gone());
        }
    }

    fn read_and_end(path: &CString) -> ! {
        let mut byte = 0_u8;
        // SAFETY: the path ends with a NUL byte.
        let file = unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
        // SAFETY: one byte of valid memory. With a descriptor of -1 the call only fails.
        unsafe { libc::read(file, (&raw mut byte).cast(), 1) };
        // SAFETY: ends the process without running exit handlers of other threads.
        unsafe { libc::_exit(0) }
    }
}
