//! One connection to the kernel: `/dev/fuse`, its mount, the INIT handshake and the threads.
//!
//! A [`Connection`] is a descriptor and its journal. [`Connection::open`] makes a new one, which
//! must be mounted and needs one handshake. A connection of another process goes through
//! [`Connection::adopt`] directly to [`serve`]. This module does not know files: it passes each
//! request as bytes to a [`Handler`], which must reply, now or later, from any thread.

use std::fmt;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use thiserror::Error;

use super::journal::{Buffer, Journal, RECEIVE, Slot, Written};
use super::wire::{self, InitIn, InitOut, Operation, Unique, WireError, capability};

/// Smallest value the kernel accepts. Nothing is ever written.
const MAX_WRITE: u32 = 4096;

/// Largest READ in bytes: 256 pages, the default of `fs.fuse.max_pages_limit`.
const MAX_READ: u32 = 1 << 20;

/// Asynchronous requests in flight. Every READ of EROFS is one, and each may wait for the network
/// for the length of an outage. The default of 12 would let 12 parked reads block the whole node.
const MAX_BACKGROUND: u16 = 4096;

/// Requested capabilities. Without ASYNC_DIO, a signal could interrupt a READ.
const WANTED: u64 = capability::ASYNC_READ
    | capability::ASYNC_DIO
    | capability::PARALLEL_DIROPS
    | capability::MAX_PAGES
    | capability::INIT_EXT
    | capability::HAS_RESEND;

/// File system type of the mount. Monitoring of lazily loaded layers may look for it.
pub(crate) const FS_TYPE: &str = "fuse.rawBridge";
const FS_SOURCE: &str = "soci";

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum SessionError {
    /// A step failed.
    #[error("{step}")]
    System {
        /// The step that failed.
        step: &'static str,
        /// The error of the system call.
        #[source]
        source: Errno,
    },
    /// The kernel's first request is not a valid INIT.
    #[error("the first FUSE request of the kernel is not a valid INIT")]
    NoInit(#[source] Option<WireError>),
    /// The kernel lacks a required protocol version or capability.
    #[error(
        "the kernel offers FUSE {major}.{minor} with capabilities {capabilities:#x}, which lack {lack}"
    )]
    Unsuitable {
        /// Major version offered.
        major: u32,
        /// Minor version offered.
        minor: u32,
        /// Capabilities offered.
        capabilities: u64,
        /// The missing feature.
        lack: &'static str,
    },
    /// The connection of the earlier process has ended.
    #[error("the FUSE connection of the earlier process has ended")]
    Ended,
    /// The unanswered requests of the earlier process are unknown.
    #[error("the journal of the earlier process is missing or has an unknown layout")]
    NoJournal,
    /// A thread could not be started.
    #[error("cannot start a FUSE thread")]
    Thread(#[source] std::io::Error),
}

fn system(step: &'static str) -> impl FnOnce(Errno) -> SessionError {
    move |source| SessionError::System { step, source }
}

/// A `/dev/fuse` descriptor that belongs to one file system.
#[derive(Debug)]
pub(crate) struct Connection {
    fd: OwnedFd,
    /// Set once: by the handshake, or by [`Connection::adopt`].
    journal: OnceLock<Arc<Journal>>,
    /// An eventfd that becomes readable when this process leaves the connection to another one.
    leave: OwnedFd,
    left: AtomicBool,
}

/// The result of reading from the descriptor.
enum Received {
    Request(usize),
    Again,
    /// The connection has ended.
    Ended,
    /// This process has left it.
    Left,
}

/// Handles requests. Called on the threads of the loop, which it must not block.
pub(crate) trait Handler: Send + Sync + fmt::Debug + 'static {
    /// Handles one request as the kernel sent it. It must reply, now or later, unless the operation
    /// has no reply.
    fn handle(&self, connection: &Arc<Connection>, request: &[u8]);

    /// Called when a thread ends because the connection ended or reading failed.
    fn ended(&self);
}

impl Connection {
    /// Opens `/dev/fuse`.
    pub(crate) fn open() -> Result<Connection, SessionError> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::open("/dev/fuse", flags, Mode::empty());
        Self::new(fd.map_err(system("cannot open /dev/fuse"))?)
    }

    /// Takes over the connection of an earlier process.
    pub(super) fn adopt(fd: OwnedFd, journal: Journal) -> Result<Connection, SessionError> {
        let flags =
            rustix::fs::fcntl_getfl(&fd).map_err(system("cannot adopt the FUSE connection"))?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)
            .map_err(system("cannot adopt the FUSE connection"))?;
        let connection = Self::new(fd)?;
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut state = [PollFd::new(&connection.fd, PollFlags::IN)];
        rustix::event::poll(&mut state, Some(&now))
            .map_err(system("cannot adopt the FUSE connection"))?;
        let [state] = state;
        if state.revents().contains(PollFlags::ERR) {
            return Err(SessionError::Ended);
        }
        // Cannot be set already: the connection is new.
        let _ = connection.journal.set(Arc::new(journal));
        Ok(connection)
    }

    fn new(fd: OwnedFd) -> Result<Connection, SessionError> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Connection {
            fd,
            journal: OnceLock::new(),
            leave: rustix::event::eventfd(0, flags).map_err(system("cannot create an eventfd"))?,
            left: AtomicBool::new(false),
        })
    }

    /// Duplicates of the descriptors that another process needs to take over.
    pub(super) fn descriptors(&self) -> std::io::Result<(OwnedFd, Option<OwnedFd>)> {
        let journal = self.journal.get();
        let journal = journal.map(|journal| journal.memory().try_clone());
        Ok((self.fd.try_clone()?, journal.transpose()?))
    }

    /// Stops the threads and all answers of this process only.
    pub(super) fn leave(&self) {
        self.left.store(true, Ordering::SeqCst);
        // It cannot be full: nothing else is written to it.
        let _ = rustix::io::write(&self.leave, &1_u64.to_le_bytes());
    }

    pub(super) fn has_left(&self) -> bool {
        self.left.load(Ordering::SeqCst)
    }

    /// Asks the kernel to resend all requests that were read and not answered.
    pub(super) fn ask_again(&self) -> Result<(), SessionError> {
        rustix::io::retry_on_intr(|| rustix::io::write(&self.fd, &wire::resend()))
            .map(|_written| ())
            .map_err(system(
                "cannot ask the kernel to resend unanswered requests",
            ))
    }

    pub(super) fn journal(&self) -> Option<&Arc<Journal>> {
        self.journal.get()
    }

    /// Records a READ in the journal.
    pub(super) fn record(&self, read: Written) -> Option<Slot> {
        self.journal.get()?.record(read)
    }

    /// Removes an answered READ from the journal.
    pub(super) fn strike(&self, slot: Option<Slot>) {
        if let (Some(journal), Some(slot)) = (self.journal.get(), slot) {
            journal.strike(slot);
        }
    }

    /// Mounts the file system of this connection.
    ///
    /// The options contain the descriptor, so this cannot run on the mount thread, which does not
    /// have it. It does not have to: this mount waits for no other request.
    pub(crate) fn mount(&self, at: &Path) -> Result<(), SessionError> {
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,max_read={MAX_READ}\0",
            self.fd.as_raw_fd()
        );
        let options = std::ffi::CStr::from_bytes_until_nul(options.as_bytes()).unwrap_or_default();
        let flags =
            MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
        rustix::mount::mount(FS_SOURCE, at, FS_TYPE, flags, options)
            .map_err(system("cannot mount the FUSE file system"))
    }

    /// Answers INIT, the first request of a new mount, once per connection.
    ///
    /// Requests are recorded in the journal if the kernel cannot resend them, or always if
    /// `written`.
    pub(crate) fn handshake(&self, written: bool) -> Result<(), SessionError> {
        let mut buffer = vec![0; RECEIVE];
        let len = loop {
            match self
                .receive(&mut buffer)
                .map_err(system("cannot read the INIT request"))?
            {
                Received::Request(len) => break len,
                Received::Again => {}
                Received::Ended | Received::Left => return Err(SessionError::NoInit(None)),
            }
        };
        let request = wire::parse(buffer.get(..len).unwrap_or_default())
            .map_err(|error| SessionError::NoInit(Some(error)))?;
        let Operation::Init(offered) = request.operation else {
            return Err(SessionError::NoInit(None));
        };
        let taken = negotiate(&offered).inspect_err(|_| {
            self.reply_error(request.unique, Errno::PROTO);
        })?;
        let written = written || taken.capabilities & capability::HAS_RESEND == 0;
        let journal = Journal::create(written).map_err(system("cannot create the journal"))?;
        // Cannot be set already: a connection has only one handshake.
        let _ = self.journal.set(Arc::new(journal));
        self.send(request.unique, None, &wire::init_out(&offered, &taken))
            .map_err(system("cannot answer the INIT request"))
    }

    /// Waits for the next request.
    fn receive(&self, buffer: &mut [u8]) -> Result<Received, Errno> {
        match rustix::io::read(&self.fd, buffer) {
            Ok(0) => Ok(Received::Ended),
            Ok(len) => Ok(Received::Request(len)),
            // ENOENT: the request was withdrawn. EIO: it was too long for the buffer, and the
            // kernel has rejected it.
            Err(Errno::INTR | Errno::NOENT | Errno::IO) => Ok(Received::Again),
            Err(Errno::AGAIN) => self.wait(),
            // Unmounted, or aborted.
            Err(Errno::NODEV | Errno::CONNABORTED) => Ok(Received::Ended),
            Err(error) => Err(error),
        }
    }

    /// Waits until there is something to read or this process leaves the connection.
    fn wait(&self) -> Result<Received, Errno> {
        let mut both = [
            PollFd::new(&self.fd, PollFlags::IN),
            PollFd::new(&self.leave, PollFlags::IN),
        ];
        match rustix::event::poll(&mut both, None) {
            Ok(_) if self.has_left() => Ok(Received::Left),
            Ok(_) | Err(Errno::INTR) => Ok(Received::Again),
            Err(error) => Err(error),
        }
    }

    /// Answers a request with `body`.
    pub(crate) fn reply(&self, unique: Unique, body: &[u8]) {
        match self.send(unique, None, body) {
            Ok(()) => {}
            Err(error) if is_gone(error) => {}
            Err(error) => {
                tracing::error!(unique = unique.0, len = body.len(), %error, "the kernel rejected a FUSE reply");
                self.reply_error(unique, Errno::IO);
            }
        }
    }

    /// Answers a request with an error.
    pub(crate) fn reply_error(&self, unique: Unique, error: Errno) {
        match self.send(unique, Some(error), &[]) {
            Ok(()) => {}
            Err(refused) if is_gone(refused) => {}
            Err(refused) => {
                tracing::error!(unique = unique.0, %error, %refused, "the kernel rejected a FUSE error reply");
            }
        }
    }

    /// Writes one reply. The kernel accepts header and body only in a single write.
    fn send(&self, unique: Unique, error: Option<Errno>, body: &[u8]) -> Result<(), Errno> {
        if self.has_left() {
            // The process that takes over answers these requests.
            return Ok(());
        }
        let errno = error.map_or(0, Errno::raw_os_error);
        let header = wire::reply_header(unique, errno, body.len()).ok_or(Errno::TOOBIG)?;
        let parts = [IoSlice::new(&header), IoSlice::new(body)];
        let parts = if body.is_empty() {
            &parts[..1]
        } else {
            &parts[..]
        };
        rustix::io::retry_on_intr(|| rustix::io::writev(&self.fd, parts)).map(|_written| ())
    }
}

/// Whether the request no longer waits: its task was killed, or the file system was unmounted.
fn is_gone(error: Errno) -> bool {
    matches!(
        error,
        Errno::NOENT | Errno::NODEV | Errno::PERM | Errno::CONNABORTED
    )
}

/// Computes the INIT reply from what the kernel offers.
fn negotiate(offered: &InitIn) -> Result<InitOut, SessionError> {
    let lack = |lack| SessionError::Unsuitable {
        major: offered.major,
        minor: offered.minor,
        capabilities: offered.capabilities,
        lack,
    };
    if offered.major != wire::MAJOR {
        return Err(lack("protocol 7"));
    }
    if offered.capabilities & capability::ASYNC_DIO == 0 {
        return Err(lack("asynchronous direct reads"));
    }
    Ok(InitOut {
        max_readahead: offered.max_readahead,
        capabilities: offered.capabilities & WANTED,
        max_background: MAX_BACKGROUND,
        congestion_threshold: MAX_BACKGROUND,
        max_write: MAX_WRITE,
        max_pages: u16::try_from(MAX_READ / 4096).unwrap_or(u16::MAX),
    })
}

/// Starts `threads` threads that pass requests to `handler` until the connection ends.
pub(crate) fn serve(
    connection: &Arc<Connection>,
    handler: &Arc<dyn Handler>,
    threads: usize,
) -> Result<Vec<JoinHandle<()>>, SessionError> {
    (0..threads.max(1))
        .map(|index| {
            let (connection, handler) = (Arc::clone(connection), Arc::clone(handler));
            std::thread::Builder::new()
                .name(format!("fuse-{index}"))
                .spawn(move || run(&connection, handler.as_ref(), index))
                .map_err(SessionError::Thread)
        })
        .collect()
}

/// The receive buffer of a thread.
enum Receive {
    Own(Vec<u8>),
    Shared(Buffer),
}

impl Receive {
    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Receive::Own(bytes) => bytes,
            Receive::Shared(buffer) => buffer.bytes(),
        }
    }

    /// Called when the received request is answered or recorded elsewhere.
    fn clear(&mut self) {
        if let Receive::Shared(buffer) = self {
            buffer.clear();
        }
    }
}

/// Body of a thread.
fn run(connection: &Arc<Connection>, handler: &dyn Handler, index: usize) {
    let shared = connection
        .journal()
        .and_then(|journal| journal.buffer(index));
    let mut buffer = shared.map_or_else(|| Receive::Own(vec![0; RECEIVE]), Receive::Shared);
    loop {
        if connection.has_left() {
            break;
        }
        match connection.receive(buffer.bytes()) {
            Ok(Received::Request(len)) => {
                handler.handle(connection, buffer.bytes().get(..len).unwrap_or_default());
                if connection.has_left() {
                    // It may not have been answered: leave it for the next process.
                    break;
                }
                buffer.clear();
            }
            Ok(Received::Again) => {}
            Ok(Received::Ended | Received::Left) => break,
            Err(error) => {
                tracing::error!(%error, "cannot read FUSE requests");
                break;
            }
        }
    }
    handler.ended();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(major: u32, capabilities: u64) -> InitIn {
        InitIn {
            major,
            minor: 45,
            max_readahead: 131_072,
            capabilities,
        }
    }

    #[test]
    fn takes_only_offered_and_wanted_capabilities() {
        let taken = negotiate(&offer(7, u64::MAX)).unwrap();
        assert_eq!(taken.capabilities, WANTED);
        assert_eq!((taken.max_pages, taken.max_background), (256, 4096));
        assert_eq!(taken.congestion_threshold, 4096);
        let old = negotiate(&offer(7, capability::ASYNC_DIO | 1 << 13)).unwrap();
        assert_eq!(old.capabilities, capability::ASYNC_DIO);
    }

    #[test]
    fn refuses_kernels_it_cannot_serve_safely() {
        assert!(matches!(
            negotiate(&offer(7, WANTED & !capability::ASYNC_DIO)),
            Err(SessionError::Unsuitable {
                lack: "asynchronous direct reads",
                ..
            })
        ));
        assert!(matches!(
            negotiate(&offer(8, WANTED)),
            Err(SessionError::Unsuitable {
                lack: "protocol 7",
                ..
            })
        ));
    }
}
