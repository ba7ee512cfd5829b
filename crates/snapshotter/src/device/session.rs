//! One connection to the kernel: `/dev/fuse`, its mount, the INIT handshake and the loop's threads.
//!
//! A [`Connection`] is only a descriptor, wherever it comes from. [`Connection::open`] makes a new
//! one, which must be mounted and shaken hands with once; a descriptor that another process kept
//! would go straight to [`serve`]. Nothing here knows what a file is: each request goes as bytes to
//! a [`Handler`], which owes a reply, now or later, from any thread.

use std::fmt;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use thiserror::Error;

use super::wire::{self, InitIn, InitOut, Operation, Unique, WireError, capability};

/// Receive buffer of a loop thread in bytes. The kernel demands room for its largest request: 8 KiB
/// or a WRITE of [`MAX_WRITE`] with its headers. Longer ones (setxattr) it refuses by itself.
const RECEIVE: usize = 16 * 1024;

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
}

/// What a read of the descriptor brought.
enum Received {
    Request(usize),
    Again,
    Ended,
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
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let fd = rustix::fs::open("/dev/fuse", flags, Mode::empty());
        Ok(Connection {
            fd: fd.map_err(system("opening /dev/fuse"))?,
        })
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
    pub(crate) fn handshake(&self) -> Result<(), SessionError> {
        let mut buffer = vec![0; RECEIVE];
        let len = loop {
            match self.receive(&mut buffer).map_err(system("reading INIT"))? {
                Received::Request(len) => break len,
                Received::Again => {}
                Received::Ended => return Err(SessionError::NoInit(None)),
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
            Err(Errno::INTR | Errno::AGAIN | Errno::NOENT | Errno::IO) => Ok(Received::Again),
            // Unmounted, or aborted.
            Err(Errno::NODEV | Errno::CONNABORTED) => Ok(Received::Ended),
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
                .spawn(move || run(&connection, handler.as_ref()))
                .map_err(SessionError::Thread)
        })
        .collect()
}

/// One thread of the loop.
fn run(connection: &Arc<Connection>, handler: &dyn Handler) {
    let mut buffer = vec![0; RECEIVE];
    loop {
        match connection.receive(&mut buffer) {
            Ok(Received::Request(len)) => {
                handler.handle(connection, buffer.get(..len).unwrap_or_default());
            }
            Ok(Received::Again) => {}
            Ok(Received::Ended) => break,
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
