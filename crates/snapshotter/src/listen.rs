//! The listening socket, from a path or from systemd, and notifications to systemd.
//!
//! An address is `unix:///path`, a bare path, or `fd://` for a socket from systemd. All descriptors
//! from systemd are taken at once: sockets count as listeners, and the others are kept by name.

#![allow(
    unsafe_code,
    reason = "systemd passes descriptors as plain numbers: `take_inherited`"
)]

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener as StdListener};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use rustix::fs::FileType;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tracing::{debug, info};

use crate::args::DEFAULT_ADDRESS;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A socket that this process creates at the path.
    Path(PathBuf),
    /// A socket that systemd created.
    Activated,
}

/// The address has an unknown scheme.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown protocol for address {0:?}")]
pub struct UnknownProtocol(String);

impl FromStr for Address {
    type Err = UnknownProtocol;

    fn from_str(address: &str) -> Result<Self, UnknownProtocol> {
        match address.split_once("://") {
            None => Ok(Self::Path(address.into())),
            Some(("unix", path)) => Ok(Self::Path(path.into())),
            Some(("fd", _)) => Ok(Self::Activated),
            Some(_) => Err(UnknownProtocol(address.to_owned())),
        }
    }
}

/// Descriptors that this process inherited.
#[derive(Debug, Default)]
pub struct Inherited {
    /// Sockets.
    pub listeners: Vec<OwnedFd>,
    /// Everything else, by name.
    pub others: BTreeMap<String, OwnedFd>,
}

/// Why there is no listening socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// systemd passed more than one socket.
    #[error("systemd passed {0} sockets, expected one")]
    TooManySockets(usize),
    /// The path is neither a socket nor a file.
    #[error("cannot create a socket at {}: it exists and is neither a socket nor a file", .0.display())]
    InTheWay(PathBuf),
    /// The socket cannot be created.
    #[error("cannot listen on {}", path.display())]
    Io {
        /// Its path.
        path: PathBuf,
        /// The error of the system call.
        #[source]
        source: io::Error,
    },
    /// The socket from systemd cannot be used.
    #[error("cannot listen on the socket from systemd")]
    Activated(#[source] io::Error),
}

/// A socket that accepts connections. If it was created here, dropping it removes its path.
#[derive(Debug)]
pub struct Listener {
    socket: StdListener,
    made: Option<Made>,
}

/// Path of a socket, and identity of the file at that path when the socket was created.
#[derive(Debug)]
struct Made {
    path: PathBuf,
    file: (u64, u64),
}

impl Made {
    fn at(path: &Path) -> io::Result<Self> {
        let found = fs::symlink_metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            file: (found.dev(), found.ino()),
        })
    }
}

impl Listener {
    /// Opens or creates the socket.
    pub fn open(address: &Address, inherited: &mut Inherited) -> Result<Self, ListenError> {
        match address {
            Address::Path(path) => Self::bind(path),
            Address::Activated => match inherited.listeners.len() {
                0 => {
                    info!("no sockets from systemd, listening on a path instead");
                    info!(
                        address = DEFAULT_ADDRESS,
                        "falling back to the default address"
                    );
                    Self::bind(Path::new(DEFAULT_ADDRESS))
                }
                1 => Self::adopt(inherited.listeners.remove(0)),
                count => {
                    inherited.listeners.clear();
                    Err(ListenError::TooManySockets(count))
                }
            },
        }
    }

    /// Adopts a socket that another process created; its path belongs to that process.
    pub fn adopt(socket: OwnedFd) -> Result<Self, ListenError> {
        let socket = StdListener::from(socket);
        socket
            .set_nonblocking(true)
            .map_err(ListenError::Activated)?;
        Ok(Self { socket, made: None })
    }

    fn bind(path: &Path) -> Result<Self, ListenError> {
        let io = |source| ListenError::Io {
            path: path.to_owned(),
            source,
        };
        if let Some(folder) = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
        {
            match DirBuilder::new().mode(0o700).create(folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(io(error));
                }
                _ => {}
            }
        }
        match fs::symlink_metadata(path).map(|found| found.file_type()) {
            Ok(found) if found.is_socket() || found.is_file() => {
                fs::remove_file(path).map_err(io)?;
            }
            Ok(_) => return Err(ListenError::InTheWay(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io(error)),
        }
        let socket = StdListener::bind(path).map_err(io)?;
        socket.set_nonblocking(true).map_err(io)?;
        let made = Made::at(path).map_err(io)?;
        Ok(Self {
            socket,
            made: Some(made),
        })
    }

    /// The absolute path to connect to.
    pub fn path(&self) -> Option<PathBuf> {
        let address = self.socket.local_addr().ok()?;
        std::path::absolute(address.as_pathname()?).ok()
    }

    /// Registers the socket with the tokio runtime. Must be called within it.
    pub fn for_runtime(&self) -> io::Result<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.socket.try_clone()?)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Do not remove the path if a later daemon has replaced the file.
        if let Some(made) = &self.made
            && Made::at(&made.path).is_ok_and(|found| found.file == made.file)
        {
            let _ = fs::remove_file(&made.path);
        }
    }
}

/// Takes the descriptors from systemd. Must be called once, before any other descriptor is opened.
pub fn take_inherited() -> io::Result<Inherited> {
    let mut inherited = Inherited::default();
    for (number, name) in sd_notify::listen_fds_with_names()? {
        // JUSTIFICATION: systemd's interface is a range of numbers, and there is no safe way to own
        // them.
        // SAFETY: systemd opened these numbers for this process (LISTEN_PID was compared), and this
        // is called once and first, so nothing else owns or closes them.
        let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&descriptor)?.st_mode);
        if kind == FileType::Socket {
            inherited.listeners.push(descriptor);
        } else {
            inherited.others.insert(name, descriptor);
        }
    }
    Ok(inherited)
}

/// Raises the soft limit on open files to the hard limit. The systemd units do not set it.
pub fn raise_open_files() -> io::Result<()> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    Ok(setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )?)
}

/// Tells systemd that the daemon is ready.
pub fn notify_ready() {
    notify(&NotifyState::Ready, "SdNotifyReady");
}

/// Tells systemd that the daemon is stopping.
pub fn notify_stopping() {
    notify(&NotifyState::Stopping, "SdNotifyStopping");
}

/// Tells systemd that the daemon answers.
pub fn notify_alive() {
    notify(&NotifyState::Watchdog, "SdNotifyWatchdog");
}

/// How often systemd expects to hear from this process at least, if it does.
#[must_use]
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().filter(|limit| has_systemd() && !limit.is_zero())
}

/// Whether systemd started this process and accepts notifications.
#[must_use]
pub fn has_systemd() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

/// Stores a descriptor in systemd under a name, for the next start.
pub fn store(name: &str, descriptor: BorrowedFd<'_>) {
    // Without FDPOLL=0, systemd waits for the end of the descriptor, and every FUSE request wakes
    // process 1. The next start notices by itself that a connection has ended.
    tell(
        &format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}\n"),
        &[descriptor],
    );
}

/// Makes systemd close the descriptors it stores under a name.
pub fn unstore(name: &str) {
    tell(&format!("FDSTOREREMOVE=1\nFDNAME={name}\n"), &[]);
}

fn tell(text: &str, descriptors: &[BorrowedFd<'_>]) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let told = UnixDatagram::unbound().and_then(|ours| {
        match socket.as_encoded_bytes().strip_prefix(b"@") {
            Some(name) => ours.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
            None => ours.connect(&socket)?,
        }
        send(&ours, text.as_bytes(), descriptors)
    });
    if let Err(error) = told {
        let error: &dyn std::error::Error = &error;
        debug!(error, text, "cannot notify systemd");
    }
}

/// Maximum number of descriptors in one message.
pub(crate) const MOST_DESCRIPTORS: usize = 8;

/// Sends bytes and descriptors over a connected socket.
pub(crate) fn send(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    let parts = [IoSlice::new(bytes)];
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(&socket, &parts, &mut control, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

fn notify(state: &NotifyState<'_>, line: &'static str) {
    if std::env::var_os("NOTIFY_SOCKET").is_none() {
        return;
    }
    let done = sd_notify::notify(std::slice::from_ref(state));
    let notified = done.is_ok().to_string();
    let error = done
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    debug!(notified, error, "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(address: &Address) -> Result<Listener, ListenError> {
        Listener::open(address, &mut Inherited::default())
    }

    #[test]
    fn addresses_are_paths_or_the_socket_of_systemd() {
        assert_eq!("/a/b".parse(), Ok(Address::Path("/a/b".into())));
        assert_eq!("unix:///a/b".parse(), Ok(Address::Path("/a/b".into())));
        assert_eq!("fd://".parse(), Ok(Address::Activated));
        let error = "tcp://1.2.3.4:5".parse::<Address>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown protocol for address \"tcp://1.2.3.4:5\""
        );
    }

    #[test]
    fn an_existing_socket_or_file_is_replaced_but_a_directory_is_not() {
        let root = tempfile::tempdir().unwrap();
        let address = Address::Path(root.path().join("made/s.sock"));
        let Address::Path(path) = &address else {
            unreachable!()
        };
        let first = open(&address).unwrap();
        assert!(fs::symlink_metadata(path).unwrap().file_type().is_socket());
        // As after a kill of the daemon.
        let second = open(&address).unwrap();
        drop(first);
        assert!(path.exists(), "the path belongs to the second listener now");
        drop(second);
        assert!(!path.exists());
        fs::write(path, b"").unwrap();
        drop(open(&address).unwrap());
        fs::create_dir(path).unwrap();
        fs::write(path.join("precious"), b"").unwrap();
        let error = open(&address).unwrap_err();
        assert!(matches!(error, ListenError::InTheWay(_)), "{error}");
        assert!(path.join("precious").exists());
    }

    #[test]
    fn directories_are_created_one_level_deep() {
        let root = tempfile::tempdir().unwrap();
        let error = open(&Address::Path(root.path().join("a/b/s.sock"))).unwrap_err();
        assert!(matches!(error, ListenError::Io { .. }), "{error}");
    }

    #[test]
    fn one_socket_from_systemd_is_used_and_two_are_rejected() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("s.sock");
        let socket = || OwnedFd::from(StdListener::bind(root.path().join(nanos())).unwrap());
        let mut one = Inherited {
            listeners: vec![StdListener::bind(&path).unwrap().into()],
            ..Inherited::default()
        };
        drop(Listener::open(&Address::Activated, &mut one).unwrap());
        assert!(path.exists(), "a socket from systemd is not unlinked");
        let mut two = Inherited {
            listeners: vec![socket(), socket()],
            ..Inherited::default()
        };
        let error = Listener::open(&Address::Activated, &mut two).unwrap_err();
        assert!(matches!(error, ListenError::TooManySockets(2)), "{error}");
        assert!(two.listeners.is_empty());
    }

    fn nanos() -> String {
        format!("{:?}", std::time::Instant::now())
    }

    #[test]
    fn the_soft_limit_on_open_files_is_raised_to_the_hard_limit() {
        raise_open_files().unwrap();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
