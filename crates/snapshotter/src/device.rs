//! The node's one FUSE mount: a directory with one file per layer, the layer's `data`.
//!
//! EROFS mounts of incomplete layers name such a file as their device, so the only request that
//! matters is READ: *these bytes of that layer, please*. It is not served here. It is **parked** as a
//! value (its identity, its length) in the `done` of [`DeviceFile::read`], and whoever has the bytes,
//! at once or an outage later, answers it from its own thread. No thread of the loop waits.
//!
//! Parts: [`wire`] turns bytes into requests and values into replies; [`session`] is the descriptor,
//! the INIT handshake and the loop's threads; this file decides what each request gets.
//!
//! What must stay true:
//!
//! * A READ is answered exactly once, in full or with an error: a dropped `done`, a panic and a
//!   wrong number of bytes are EIO. Kernels differ in what they make of a short answer, and some make
//!   zeros of it.
//! * A signal never ends a READ: INTERRUPT is read and forgotten.
//! * A node's number is the layer's number in the store and an open file has no state, so that
//!   another process which holds the descriptor and the store can go on in the middle.
//! * This is the only file that turns errors into errnos.
//! * Nothing in this process may touch a path below the mount, except the mounting thread: it would
//!   wait for itself.

mod session;
mod wire;

use std::collections::HashMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::layer::{DeviceFile, ReadError};
use session::{Connection, Handler};
use wire::{Attributes, NodeId, Operation, Request, Unique};

pub(crate) use session::FS_TYPE;
pub use session::SessionError;
pub use wire::WireError;

/// For how long the kernel may keep names and attributes, in seconds: nothing of them ever changes.
const VALID_SECS: u64 = 365 * 24 * 60 * 60;

/// The smallest number of a file: 1 is the root, 0 means "no node" to the kernel.
const FIRST_FILE: u64 = 2;

/// Type and permission bits. Only root opens these files, in the mounting thread.
const ROOT_MODE: u32 = 0o040_500;
const FILE_MODE: u32 = 0o100_400;

/// The node's FUSE mount. Ends with [`Device::stop`] or when dropped.
#[derive(Debug)]
pub struct Device {
    mountpoint: PathBuf,
    files: Arc<Files>,
    /// The loop's threads; none any more when the mount was taken away.
    threads: Mutex<Option<Vec<JoinHandle<()>>>>,
}

impl Device {
    /// Opens a new connection, mounts it at `mountpoint` (made if it is not there) and starts
    /// `threads` threads for it.
    ///
    /// A mount that an earlier process left at `mountpoint` has to be detached before.
    ///
    /// # Errors
    ///
    /// When the kernel has no FUSE, refuses the mount, or lacks what this device stands on.
    pub fn start(mountpoint: &Path, threads: usize) -> Result<Arc<Device>, SessionError> {
        // No stat: whatever is mounted there might never answer.
        match rustix::fs::mkdir(mountpoint, rustix::fs::Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(source) => {
                return Err(SessionError::System {
                    step: "making the fuse mount point",
                    source,
                });
            }
        }
        let connection = Connection::open()?;
        connection.mount(mountpoint)?;
        // From here on dropping the device unmounts it.
        let device = Arc::new(Device {
            mountpoint: mountpoint.to_path_buf(),
            files: Arc::new(Files::default()),
            threads: Mutex::new(Some(Vec::new())),
        });
        connection.handshake()?;
        device.serve(&Arc::new(connection), threads)?;
        Ok(device)
    }

    /// Starts the loop on a connection that is mounted and past its handshake.
    fn serve(&self, connection: &Arc<Connection>, threads: usize) -> Result<(), SessionError> {
        let handler: Arc<dyn Handler> = Arc::clone(&self.files) as _;
        let started = session::serve(connection, &handler, threads)?;
        self.files
            .running
            .fetch_add(started.len(), Ordering::SeqCst);
        *self.threads.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
        Ok(())
    }

    /// Makes `file` readable at [`Device::path`] of its number. A file that had this number before
    /// is replaced for all that have it open.
    ///
    /// Numbers below 2 belong to the kernel and are not taken.
    pub fn add(&self, file: Arc<dyn DeviceFile>) {
        let number = file.number();
        if number < FIRST_FILE {
            tracing::error!(number, "layer number is reserved, its file cannot be read");
            return;
        }
        let mut files = self
            .files
            .by_number
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        files.insert(number, file);
    }

    /// Takes a file away. Reads that are parked are still answered; later ones get EIO.
    pub fn remove(&self, number: u64) {
        let mut files = self
            .files
            .by_number
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        files.remove(&number);
    }

    /// Where the file of layer `number` is, for the `device=` of a mount.
    #[must_use]
    pub fn path(&self, number: u64) -> PathBuf {
        self.mountpoint.join(number.to_string())
    }

    /// Where the device is mounted.
    #[must_use]
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// READs that wait for their bytes now.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.files.parked.load(Ordering::Relaxed)
    }

    /// Whether the connection is served. Not any more when somebody unmounted or aborted it.
    #[must_use]
    pub fn is_served(&self) -> bool {
        self.files.running.load(Ordering::SeqCst) > 0
    }

    /// Ends the connection: everything that waits for it gets an error, the mount goes, the threads
    /// end. EROFS mounts on it should be gone before.
    pub fn stop(&self) {
        // Held to the end: a second caller comes back when the device is stopped.
        let mut held = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(threads) = held.take() else { return };
        // FORCE aborts the connection, which also wakes the threads; DETACH then takes the mount
        // away even if an EROFS mount still has one of its files open.
        let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
        if let Err(error) = rustix::mount::unmount(&self.mountpoint, flags) {
            tracing::warn!(path = %self.mountpoint.display(), %error, "fuse mount cannot be unmounted");
            if self.is_served() {
                // The threads sleep in the kernel and only the end of the process ends them.
                return;
            }
        }
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the fuse loop panicked");
            }
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the loop's threads see: the files, and how many READs are parked.
#[derive(Default)]
struct Files {
    by_number: RwLock<HashMap<u64, Arc<dyn DeviceFile>>>,
    parked: Arc<AtomicUsize>,
    /// Threads of the loop that have not ended.
    running: AtomicUsize,
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files")
            .field("parked", &self.parked)
            .field("running", &self.running)
            .finish_non_exhaustive()
    }
}

/// The reply to a request that is answered on the spot.
enum Reply {
    Body(Vec<u8>),
    Error(Errno),
    /// The operation has no reply, or it is parked.
    None,
}

impl Handler for Files {
    fn handle(&self, connection: &Arc<Connection>, bytes: &[u8]) {
        let request = match wire::parse(bytes) {
            Ok(request) => request,
            Err(error) => {
                tracing::error!(%error, len = bytes.len(), "fuse request cannot be read");
                if let Some(unique) = wire::unique_of(bytes) {
                    connection.reply_error(unique, Errno::IO);
                }
                return;
            }
        };
        let unique = request.unique;
        // A panic is this request's EIO, not the end of every mount. A READ was answered by then:
        // unwinding dropped it.
        let reply = catch_unwind(AssertUnwindSafe(|| self.answer(connection, &request)))
            .unwrap_or_else(|_| {
                tracing::error!(unique = unique.0, "fuse request panicked");
                Reply::Error(Errno::IO)
            });
        match reply {
            Reply::Body(body) => connection.reply(unique, &body),
            Reply::Error(error) => connection.reply_error(unique, error),
            Reply::None => {}
        }
    }

    fn ended(&self) {
        self.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Files {
    fn get(&self, node: NodeId) -> Option<Arc<dyn DeviceFile>> {
        let files = self
            .by_number
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        files.get(&node.0).cloned()
    }

    /// What each request gets.
    fn answer(&self, connection: &Arc<Connection>, request: &Request<'_>) -> Reply {
        match request.operation {
            Operation::Lookup(name) => self.lookup(request.node, name),
            Operation::GetAttr => match self.attributes(request.node) {
                Some(attributes) => Reply::Body(wire::attr_out(&attributes, VALID_SECS)),
                None => Reply::Error(Errno::STALE),
            },
            Operation::Open => match self.get(request.node) {
                Some(_) => Reply::Body(wire::open_out(wire::OPEN_DIRECT_IO | wire::OPEN_NO_FLUSH)),
                None => Reply::Error(Errno::STALE),
            },
            Operation::Read { offset, size } => self.read(connection, request, offset, size),
            Operation::StatFs => {
                let files = self
                    .by_number
                    .read()
                    .unwrap_or_else(PoisonError::into_inner)
                    .len();
                Reply::Body(wire::statfs_out(u64::try_from(files).unwrap_or(u64::MAX)))
            }
            Operation::Release | Operation::Destroy => Reply::Body(Vec::new()),
            Operation::Forget | Operation::BatchForget | Operation::Interrupt => Reply::None,
            // INIT comes once, in the handshake, and never again.
            Operation::Init(_) => Reply::Error(Errno::PROTO),
            Operation::Other(_) => Reply::Error(Errno::NOSYS),
        }
    }

    fn lookup(&self, parent: NodeId, name: &[u8]) -> Reply {
        let found = file_number(name)
            .filter(|_| parent == NodeId::ROOT)
            .and_then(|number| self.attributes(NodeId(number)));
        match found {
            Some(attributes) => Reply::Body(wire::entry_out(&attributes, VALID_SECS)),
            None => Reply::Error(Errno::NOENT),
        }
    }

    fn attributes(&self, node: NodeId) -> Option<Attributes> {
        if node == NodeId::ROOT {
            return Some(Attributes {
                node,
                size: 0,
                mode: ROOT_MODE,
                links: 2,
            });
        }
        let size = self.get(node)?.size();
        Some(Attributes {
            node,
            size,
            mode: FILE_MODE,
            links: 1,
        })
    }

    /// Parks a READ on its file.
    fn read(
        &self,
        connection: &Arc<Connection>,
        request: &Request<'_>,
        offset: u64,
        size: u32,
    ) -> Reply {
        let Some(file) = self.get(request.node) else {
            tracing::warn!(
                layer = request.node.0,
                offset,
                size,
                "read of a layer that is gone"
            );
            return Reply::Error(Errno::IO);
        };
        let there = file.size().saturating_sub(offset);
        let len = u32::try_from(there).unwrap_or(u32::MAX).min(size);
        if len == 0 {
            return Reply::Body(Vec::new());
        }
        let parked = Parked::new(self, connection, request, offset, len);
        file.read(offset, len, Box::new(move |result| parked.answer(result)));
        Reply::None
    }
}

/// The number that a name in the root stands for: decimal, as [`Device::path`] writes it.
fn file_number(name: &[u8]) -> Option<u64> {
    let number: u64 = std::str::from_utf8(name).ok()?.parse().ok()?;
    (number >= FIRST_FILE && number.to_string().as_bytes() == name).then_some(number)
}

/// A READ that waits for its bytes. Dropped without an answer it is EIO.
struct Parked {
    connection: Arc<Connection>,
    unique: Unique,
    layer: u64,
    offset: u64,
    len: u32,
    count: Arc<AtomicUsize>,
    answered: bool,
}

impl Parked {
    fn new(
        files: &Files,
        connection: &Arc<Connection>,
        request: &Request<'_>,
        offset: u64,
        len: u32,
    ) -> Parked {
        files.parked.fetch_add(1, Ordering::Relaxed);
        Parked {
            connection: Arc::clone(connection),
            unique: request.unique,
            layer: request.node.0,
            offset,
            len,
            count: Arc::clone(&files.parked),
            answered: false,
        }
    }

    fn answer(mut self, result: Result<Bytes, ReadError>) {
        self.answered = true;
        match result {
            Ok(bytes) if u32::try_from(bytes.len()) == Ok(self.len) => {
                self.connection.reply(self.unique, &bytes);
            }
            Ok(bytes) => {
                let Parked {
                    layer, offset, len, ..
                } = self;
                let got = bytes.len();
                tracing::error!(
                    layer,
                    offset,
                    len,
                    got,
                    "layer answered with a wrong length"
                );
                self.connection.reply_error(self.unique, Errno::IO);
            }
            Err(error) => {
                let Parked {
                    layer, offset, len, ..
                } = self;
                let cause: &dyn std::error::Error = &error;
                tracing::warn!(
                    layer,
                    offset,
                    len,
                    error = cause,
                    "read of layer data failed"
                );
                self.connection.reply_error(self.unique, errno(&error));
            }
        }
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        if !self.answered {
            let Parked {
                layer, offset, len, ..
            } = *self;
            tracing::error!(layer, offset, len, "read of layer data was dropped");
            self.connection.reply_error(self.unique, Errno::IO);
        }
    }
}

/// What a reader of the file gets for each error: the one place where errors become errnos.
///
/// EROFS makes EIO of everything, and a device has no better word for any of it.
fn errno(error: &ReadError) -> Errno {
    match error {
        ReadError::Corrupt { .. }
        | ReadError::Undecodable { .. }
        | ReadError::Header { .. }
        | ReadError::Fetch { .. }
        | ReadError::Store { .. }
        | ReadError::Outside { .. }
        | ReadError::Removed { .. } => Errno::IO,
    }
}

/// The kernel's own deadline for a FUSE request, if it has one: a READ parked for longer aborts the
/// whole connection. Whoever lets reads wait must stay well below it.
#[must_use]
pub fn request_timeout() -> Option<Duration> {
    let read = |name| std::fs::read_to_string(Path::new("/proc/sys/fs/fuse").join(name)).ok();
    effective_timeout(
        read("default_request_timeout").as_deref(),
        read("max_request_timeout").as_deref(),
    )
}

/// The smaller of the two settings, in seconds; 0, absent or unreadable means none.
fn effective_timeout(default: Option<&str>, max: Option<&str>) -> Option<Duration> {
    let seconds = |text: Option<&str>| text?.trim().parse().ok().filter(|&secs: &u64| secs > 0);
    let smaller = [seconds(default), seconds(max)].into_iter().flatten().min();
    smaller.map(Duration::from_secs)
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
