//! One connection to the kernel: `/dev/fuse`, its mount, the INIT handshake and the loop's threads.
//!
//! A [`Connection`] is a descriptor, wherever it comes from, and the journal beside it.
//! [`Connection::open`] makes a new one, which must be mounted and shaken hands with once; one that
//! another process made and left goes through [`Connection::adopt`] straight to [`serve`]. Nothing
//! here knows what a file is: each request goes as bytes to a [`Handler`], which owes a reply, now or
//! later, from any thread.

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

/// Smallest value the kernel takes; nothing is ever written.
const MAX_WRITE: u32 = 4096;

/// Largest READ in bytes: 256 pages, the default limit of `fs.fuse.max_pages_limit`.
const MAX_READ: u32 = 1 << 20;

/// Asynchronous requests in flight. Every READ of EROFS is one, and each may wait for the network
/// as long as an outage lasts: the default of 12 would let 12 parked reads stop the whole node.
const MAX_BACKGROUND: u16 = 4096;

/// What this side wants of INIT. Without ASYNC_DIO a signal could interrupt a READ.
const WANTED: u64 = capability::ASYNC_READ
    | capability::ASYNC_DIO
    | capability::PARALLEL_DIROPS
    | capability::MAX_PAGES
    | capability::INIT_EXT
    | capability::HAS_RESEND;

/// File system type and source of the mount, as operators of lazy layers look for it.
pub(crate) const FS_TYPE: &str = "fuse.rawBridge";
const FS_SOURCE: &str = "soci";

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum SessionError {
    /// A step towards the connection was refused.
    #[error("{step}")]
    System {
        /// The step.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// The kernel's first request is no INIT, or none that can be read.
    #[error("first request of the kernel is not a valid INIT")]
    NoInit(#[source] Option<WireError>),
    /// Protocol or capability that this device cannot do without.
    #[error(
        "kernel speaks fuse {major}.{minor} with capabilities {capabilities:#x}, which lack {lack}"
    )]
    Unsuitable {
        /// Major version offered.
        major: u32,
        /// Minor version offered.
        minor: u32,
        /// Capabilities offered.
        capabilities: u64,
        /// What is missing.
        lack: &'static str,
    },
    /// The connection that another process left has ended.
    #[error("the fuse connection of the earlier process has ended")]
    Ended,
    /// Nobody can say which requests the earlier process had not answered.
    #[error("the journal of the earlier process is missing or not understood")]
    NoJournal,
    /// A thread of the loop could not be started.
    #[error("starting a thread of the fuse loop")]
    Thread(#[source] std::io::Error),
}

fn system(step: &'static str) -> impl FnOnce(Errno) -> SessionError {
    move |source| SessionError::System { step, source }
}

/// A `/dev/fuse` descriptor that belongs to one file system.
#[derive(Debug)]
pub(crate) struct Connection {
    fd: OwnedFd,
    /// Set once: by the handshake, or when it was adopted.
    journal: OnceLock<Arc<Journal>>,
    /// Readable from the moment on at which this process leaves the connection to another.
    leave: OwnedFd,
    left: AtomicBool,
}

/// What a read of the descriptor brought.
enum Received {
    Request(usize),
    Again,
    /// The connection has ended.
    Ended,
    /// This process has left it.
    Left,
}

/// Answers requests; called on the loop's threads, which it must not hold up.
pub(crate) trait Handler: Send + Sync + fmt::Debug + 'static {
    /// Takes one request as the kernel sent it. A reply is owed, now or later, unless the operation
    /// has none.
    fn handle(&self, connection: &Arc<Connection>, request: &[u8]);

    /// Every thread of the loop has seen the end of the connection, or one could not go on.
    fn ended(&self);
}

impl Connection {
    /// Opens `/dev/fuse`.
    pub(crate) fn open() -> Result<Connection, SessionError> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::open("/dev/fuse", flags, Mode::empty());
        Self::new(fd.map_err(system("opening /dev/fuse"))?)
    }

    /// Goes on with what an earlier process left.
    pub(super) fn adopt(fd: OwnedFd, journal: Journal) -> Result<Connection, SessionError> {
        let flags = rustix::fs::fcntl_getfl(&fd).map_err(system("adopting a fuse connection"))?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)
            .map_err(system("adopting a fuse connection"))?;
        let connection = Self::new(fd)?;
        let now = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let mut state = [PollFd::new(&connection.fd, PollFlags::IN)];
        rustix::event::poll(&mut state, Some(&now))
            .map_err(system("adopting a fuse connection"))?;
        let [state] = state;
        if state.revents().contains(PollFlags::ERR) {
            return Err(SessionError::Ended);
        }
        // Nobody else can have set it.
        let _ = connection.journal.set(Arc::new(journal));
        Ok(connection)
    }

    fn new(fd: OwnedFd) -> Result<Connection, SessionError> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Connection {
            fd,
            journal: OnceLock::new(),
            leave: rustix::event::eventfd(0, flags).map_err(system("making an event"))?,
            left: AtomicBool::new(false),
        })
    }

    /// Copies of the descriptors that another process needs to go on.
    pub(super) fn descriptors(&self) -> std::io::Result<(OwnedFd, Option<OwnedFd>)> {
        let journal = self.journal.get();
        let journal = journal.map(|journal| journal.memory().try_clone());
        Ok((self.fd.try_clone()?, journal.transpose()?))
    }

    /// Ends the loop and all answers of this process, and nothing else.
    pub(super) fn leave(&self) {
        self.left.store(true, Ordering::SeqCst);
        // It cannot be full: nothing else is written to it.
        let _ = rustix::io::write(&self.leave, &1_u64.to_le_bytes());
    }

    pub(super) fn has_left(&self) -> bool {
        self.left.load(Ordering::SeqCst)
    }

    /// Asks the kernel for all requests again that were read and not answered.
    pub(super) fn ask_again(&self) -> Result<(), SessionError> {
        rustix::io::retry_on_intr(|| rustix::io::write(&self.fd, &wire::resend()))
            .map(|_written| ())
            .map_err(system("asking the kernel for unanswered requests"))
    }

    pub(super) fn journal(&self) -> Option<&Arc<Journal>> {
        self.journal.get()
    }

    /// Writes down that a READ is owed an answer.
    pub(super) fn record(&self, read: Written) -> Option<Slot> {
        self.journal.get()?.record(read)
    }

    /// Strikes a READ that is answered.
    pub(super) fn strike(&self, slot: Option<Slot>) {
        if let (Some(journal), Some(slot)) = (self.journal.get(), slot) {
            journal.strike(slot);
        }
    }

    /// Mounts the file system of this connection.
    ///
    /// The descriptor is named in the options, so this cannot run on the mounting thread, whose
    /// table does not have it. It needs not to: this mount waits for nobody.
    pub(crate) fn mount(&self, at: &Path) -> Result<(), SessionError> {
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,max_read={MAX_READ}\0",
            self.fd.as_raw_fd()
        );
        let options = std::ffi::CStr::from_bytes_until_nul(options.as_bytes()).unwrap_or_default();
        let flags =
            MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
        rustix::mount::mount(FS_SOURCE, at, FS_TYPE, flags, options)
            .map_err(system("mounting the fuse file system"))
    }

    /// Answers INIT, the first request of a new mount. Once in the life of a connection.
    ///
    /// Requests are written down where the kernel cannot send them again, or always if `written`.
    pub(crate) fn handshake(&self, written: bool) -> Result<(), SessionError> {
        let mut buffer = vec![0; RECEIVE];
        let len = loop {
            match self.receive(&mut buffer).map_err(system("reading INIT"))? {
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
        let journal = Journal::create(written).map_err(system("making the journal"))?;
        // Nobody else can have set it: a connection shakes hands once.
        let _ = self.journal.set(Arc::new(journal));
        self.send(request.unique, None, &wire::init_out(&offered, &taken))
            .map_err(system("answering INIT"))
    }

    /// Waits for the next request.
    fn receive(&self, buffer: &mut [u8]) -> Result<Received, Errno> {
        match rustix::io::read(&self.fd, buffer) {
            Ok(0) => Ok(Received::Ended),
            Ok(len) => Ok(Received::Request(len)),
            // ENOENT: withdrawn while it was handed over. EIO: too long for the buffer, the kernel
            // has refused it.
            Err(Errno::INTR | Errno::NOENT | Errno::IO) => Ok(Received::Again),
            Err(Errno::AGAIN) => self.wait(),
            // Unmounted, or aborted.
            Err(Errno::NODEV | Errno::CONNABORTED) => Ok(Received::Ended),
            Err(error) => Err(error),
        }
    }

    /// Sleeps until there is something to read, or the connection was left.
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
                tracing::error!(unique = unique.0, len = body.len(), %error, "fuse reply refused");
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
                tracing::error!(unique = unique.0, %error, %refused, "fuse error reply refused");
            }
        }
    }

    /// Writes one reply: the kernel takes header and body in one write or not at all.
    fn send(&self, unique: Unique, error: Option<Errno>, body: &[u8]) -> Result<(), Errno> {
        if self.has_left() {
            // What this process owed, another one answers.
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

/// The request is no longer waited for: its task was killed, or the file system is gone.
fn is_gone(error: Errno) -> bool {
    matches!(
        error,
        Errno::NOENT | Errno::NODEV | Errno::PERM | Errno::CONNABORTED
    )
}

/// From what the kernel offers to what this side takes; pure.
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

/// Starts `threads` threads that hand requests to `handler` until the connection ends.
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

/// Where a thread of the loop receives.
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

    /// What was received is answered, or written down elsewhere.
    fn clear(&mut self) {
        if let Receive::Shared(buffer) = self {
            buffer.clear();
        }
    }
}

/// One thread of the loop.
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
                    // Perhaps it was not answered any more: it stays for the next process.
                    break;
                }
                buffer.clear();
            }
            Ok(Received::Again) => {}
            Ok(Received::Ended | Received::Left) => break,
            Err(error) => {
                tracing::error!(%error, "fuse loop thread cannot read requests");
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
    fn takes_only_what_is_offered_and_wanted() {
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
