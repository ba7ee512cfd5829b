//! The node's one FUSE mount: a directory with one file per layer, the layer's `data`.
//!
//! EROFS mounts of incomplete layers name such a file as their device, so the only request that
//! matters is READ: *these bytes of that layer, please*. It is not served here. It is **parked** as a
//! value (its identity, its length) in the `done` of [`DeviceFile::read`], and whoever has the bytes,
//! at once or an outage later, answers it from its own thread. No thread of the loop waits.
//!
//! Parts: [`wire`] turns bytes into requests and values into replies; [`session`] is the descriptor,
//! the INIT handshake and the loop's threads; [`files`] decides what each request gets; [`reads`] knows
//! which READs are unanswered. This file is the mount's life.
//!
//! What must stay true:
//!
//! * A READ is answered exactly once, in full or with an error: a dropped `done`, a panic and a
//!   wrong number of bytes are EIO. Kernels differ in what they make of a short answer, and some make
//!   zeros of it.
//! * A signal never ends a READ: INTERRUPT is read and forgotten.
//! * A node's number is the layer's number in the store and an open file has no state, so that
//!   another process which holds the descriptor and the store can go on in the middle.
//! * No READ of a layer is unanswered when its loop changes hands or its mount goes: [`Device::drain`].
//! * Nothing in this process may touch a path below the mount, except the mounting thread: it would
//!   wait for itself.

mod files;
mod journal;
mod reads;
mod session;
mod wire;

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::layer::DeviceFile;
use files::{FIRST_FILE, Files};
use journal::Journal;
use session::{Connection, Handler};

pub use reads::Refused;
pub(crate) use session::FS_TYPE;
pub use session::SessionError;
pub use wire::WireError;

/// Variable that makes the device write requests down also where the kernel can send them again.
const WRITTEN_ALWAYS: &str = "SOCI_DEVICE_JOURNAL";

/// FORCE aborts the connection, which also wakes the threads; DETACH then takes the mount away even if
/// an EROFS mount still has one of its files open.
const TAKE_AWAY: UnmountFlags = UnmountFlags::FORCE
    .union(UnmountFlags::DETACH)
    .union(UnmountFlags::NOFOLLOW);

/// What another process needs to go on with a device: whoever holds both keeps its readers waiting
/// while nobody serves them.
#[derive(Debug)]
pub struct KeptDevice {
    /// The connection to the kernel.
    pub fuse: OwnedFd,
    /// Which requests are unanswered.
    pub journal: Option<OwnedFd>,
}

/// The node's FUSE mount. Ends with [`Device::stop`] or, unless it is kept, when dropped.
#[derive(Debug)]
pub struct Device {
    mountpoint: PathBuf,
    connection: Arc<Connection>,
    files: Arc<Files>,
    /// The loop's threads; none any more when the mount was taken away or left.
    threads: Mutex<Option<Vec<JoinHandle<()>>>>,
    /// Somebody else holds the descriptors too: the mount is not this process's to take away.
    kept: AtomicBool,
    adopted: bool,
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
        let written = std::env::var_os(WRITTEN_ALWAYS).is_some_and(|value| value == "1");
        Self::start_with(mountpoint, threads, written)
    }

    fn start_with(
        mountpoint: &Path,
        threads: usize,
        written: bool,
    ) -> Result<Arc<Device>, SessionError> {
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
        let device = Self::new(mountpoint, connection, false);
        device.connection.handshake(written)?;
        device.serve(threads)?;
        Ok(device)
    }

    /// Goes on with a device that an earlier process made at `mountpoint` and left, or was killed
    /// over. Its readers wait and notice nothing.
    ///
    /// READs of layers that are not there yet are held until they are added, or until
    /// [`Device::restored`] says that they never will be.
    ///
    /// # Errors
    ///
    /// When the connection has ended, or nobody knows which requests are unanswered. What is mounted
    /// at `mountpoint` is then taken away, so that its readers get errors instead of waiting for
    /// ever, and a new device is to be started.
    pub fn adopt(
        kept: KeptDevice,
        mountpoint: &Path,
        threads: usize,
    ) -> Result<Arc<Device>, SessionError> {
        Self::try_adopt(kept, mountpoint, threads).inspect_err(|_| {
            // Other holders of the descriptors do not keep it: FORCE aborts. Not mounted is as good.
            let _ = rustix::mount::unmount(mountpoint, TAKE_AWAY);
        })
    }

    fn try_adopt(
        kept: KeptDevice,
        mountpoint: &Path,
        threads: usize,
    ) -> Result<Arc<Device>, SessionError> {
        let journal = kept.journal.ok_or(SessionError::NoJournal)?;
        let journal = Journal::adopt(journal)
            .map_err(|source| SessionError::System {
                step: "mapping the journal",
                source,
            })?
            .ok_or(SessionError::NoJournal)?;
        let connection = Connection::adopt(kept.fuse, journal)?;
        let device = Self::new(mountpoint, connection, true);
        device.files.reads.begin_restoring();
        // Before the loop starts: what it has read by then would come twice.
        match device.connection.journal() {
            Some(journal) if journal.is_written() => {
                device.files.take_over(&device.connection, journal);
            }
            _ => device.connection.ask_again()?,
        }
        device.serve(threads)?;
        Ok(device)
    }

    fn new(mountpoint: &Path, connection: Connection, adopted: bool) -> Arc<Device> {
        Arc::new(Device {
            mountpoint: mountpoint.to_path_buf(),
            connection: Arc::new(connection),
            files: Arc::new(Files::default()),
            threads: Mutex::new(Some(Vec::new())),
            kept: AtomicBool::new(adopted),
            adopted,
        })
    }

    /// Starts the loop on a connection that is mounted and past its handshake.
    fn serve(&self, threads: usize) -> Result<(), SessionError> {
        let handler: Arc<dyn Handler> = Arc::clone(&self.files) as _;
        let started = session::serve(&self.connection, &handler, threads)?;
        self.files
            .running
            .fetch_add(started.len(), Ordering::SeqCst);
        *self.threads.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
        Ok(())
    }

    /// Whether an earlier process made it.
    #[must_use]
    pub fn is_adopted(&self) -> bool {
        self.adopted
    }

    /// The layers of the earlier process that are mounted have all been added: READs of others are
    /// EIO from now on.
    pub fn restored(&self) {
        self.files.reads.restored();
    }

    /// What another process needs to go on. From now on dropping the device leaves it.
    ///
    /// # Errors
    ///
    /// When descriptors cannot be duplicated.
    pub fn keep(&self) -> io::Result<KeptDevice> {
        let (fuse, journal) = self.connection.descriptors()?;
        self.kept.store(true, Ordering::SeqCst);
        Ok(KeptDevice { fuse, journal })
    }

    /// Whether somebody else holds what is needed to go on.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.kept.load(Ordering::SeqCst)
    }

    /// Ends this process's part and nothing else: readers go on waiting, for whoever adopts what
    /// [`Device::keep`] gave. No request is answered from here any more.
    pub fn leave(&self) {
        let mut held = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(threads) = held.take() else { return };
        self.connection.leave();
        join(threads);
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
        self.files.reads.add(file);
    }

    /// Takes a file away. Reads that are parked are still answered; later ones get EIO.
    pub fn remove(&self, number: u64) {
        self.files.reads.remove(number);
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

    /// READs of all layers that are not answered yet.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.files.reads.unanswered_in_all()
    }

    /// READs of layer `number` that are not answered yet.
    #[cfg(test)]
    fn unanswered(&self, number: u64) -> usize {
        self.files.reads.unanswered(number)
    }

    /// Answers every READ of layer `number` with EIO, those that wait and, until the guard is
    /// dropped, those to come: for a layer that is taken away. Its mount must not go while one is
    /// unanswered: the kernel would wait for it, with every `sync`, and no signal ends that.
    pub fn refuse(&self, number: u64) -> Refused {
        let refused = self.files.reads.shut(number);
        self.files.reads.fail(number);
        refused
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
        if let Err(error) = rustix::mount::unmount(&self.mountpoint, TAKE_AWAY) {
            tracing::warn!(path = %self.mountpoint.display(), %error, "fuse mount cannot be unmounted");
            if self.is_served() {
                // The threads sleep in the kernel and only the end of the process ends them.
                return;
            }
        }
        join(threads);
    }
}

fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a thread of the fuse loop panicked");
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.is_kept() {
            self.leave();
        } else {
            self.stop();
        }
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
mod adopt_tests;
#[cfg(test)]
mod reads_tests;
#[cfg(test)]
#[path = "../tests/support/double.rs"]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
