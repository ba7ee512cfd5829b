//! The descriptor store of the simulated systemd: messages at the notification socket.

use std::fs;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// One stored descriptor, for a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    pub name: String,
    /// Its target in `/proc/self/fd`.
    pub what: String,
}

/// Receives messages until dropped.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    entries: Mutex<Vec<Entry>>,
    ready: AtomicU64,
    stopped: AtomicBool,
}

#[derive(Debug)]
struct Entry {
    name: String,
    descriptor: OwnedFd,
    /// Discarded when it hangs up, as systemd does unless `FDPOLL=0` was sent with it.
    polled: bool,
}

/// Copies get higher numbers than those that a child gets.
const ABOVE: i32 = 200;

/// Duplicates a descriptor so that it can be passed to a child.
pub(super) fn copy(of: impl AsFd) -> Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(of, ABOVE)?)
}

impl Store {
    pub(super) fn start(path: &Path) -> Result<Self> {
        let socket = UnixDatagram::bind(path).context("the notification socket")?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let state = Arc::new(State::default());
        let taking = Arc::clone(&state);
        let thread = std::thread::Builder::new()
            .name("played-systemd".into())
            .spawn(move || {
                while !taking.stopped.load(Ordering::SeqCst) {
                    taking.take(&socket);
                }
            })?;
        Ok(Self {
            path: path.to_path_buf(),
            state,
            thread: Some(thread),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// How often a unit has reported that it is ready.
    pub(super) fn ready(&self) -> u64 {
        self.state.ready.load(Ordering::SeqCst)
    }

    pub(super) fn kept(&self) -> Vec<Kept> {
        let entries = self.state.entries();
        let shown = entries.iter().map(|entry| {
            let link = format!("/proc/self/fd/{}", entry.descriptor.as_raw_fd());
            let what = fs::read_link(link).unwrap_or_default();
            Kept {
                name: entry.name.clone(),
                what: what.display().to_string(),
            }
        });
        shown.collect()
    }

    /// Duplicates of all descriptors for the next start, after discarding those that have hung up.
    pub(super) fn hand_out(&self) -> Result<Vec<(String, OwnedFd)>> {
        let mut entries = self.state.entries();
        entries.retain(|entry| !(entry.polled && hung_up(&entry.descriptor)));
        let named = |entry: &Entry| Ok((entry.name.clone(), copy(&entry.descriptor)?));
        entries.iter().map(named).collect()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
        self.state.entries().clear();
    }
}

impl State {
    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Receives one message, if there is one.
    fn take(&self, socket: &UnixDatagram) {
        let mut bytes = [0_u8; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        );
        let Ok(received) = received else { return };
        let mut descriptors = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        let text = String::from_utf8_lossy(&bytes[..received.bytes]).into_owned();
        self.heed(&text, descriptors);
    }

    fn heed(&self, text: &str, descriptors: Vec<OwnedFd>) {
        let says = |line: &str| text.lines().any(|found| found == line);
        let name = text
            .lines()
            .find_map(|line| line.strip_prefix("FDNAME="))
            .unwrap_or("stored");
        if says("READY=1") {
            self.ready.fetch_add(1, Ordering::SeqCst);
        }
        let mut entries = self.entries();
        if says("FDSTOREREMOVE=1") {
            entries.retain(|entry| entry.name != name);
        }
        if says("FDSTORE=1") {
            for descriptor in descriptors {
                if !entries
                    .iter()
                    .any(|kept| same(&kept.descriptor, &descriptor))
                {
                    entries.push(Entry {
                        name: name.to_owned(),
                        descriptor,
                        polled: !says("FDPOLL=0"),
                    });
                }
            }
        }
    }
}

/// Whether both are the same open file; all descriptors of `/dev/fuse` have the same inode.
fn same(one: &OwnedFd, other: &OwnedFd) -> bool {
    const KCMP_FILE: libc::c_int = 0;
    let own = libc::pid_t::try_from(std::process::id()).unwrap_or_default();
    let (one, other) = (one.as_raw_fd(), other.as_raw_fd());
    // JUSTIFICATION: systemd compares them the same way, and there is no safe wrapper.
    // SAFETY: the call takes only numbers, and both descriptors are open here.
    unsafe { libc::syscall(libc::SYS_kcmp, own, own, KCMP_FILE, one, other) == 0 }
}

fn hung_up(descriptor: &OwnedFd) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(
        descriptor.as_fd(),
        PollFlags::empty(),
    )];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut polled, Some(&at_once)).is_ok()
        && polled[0]
            .revents()
            .intersects(PollFlags::ERR | PollFlags::HUP)
}
