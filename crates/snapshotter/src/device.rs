//! The node's one FUSE mount: a directory with one file per layer that serves the layer's `data`.
//!
//! The EROFS mounts of incomplete layers use such a file as their device, so the only important
//! request is READ. A READ is **parked** as a value in the `done` callback of [`DeviceFile::read`].
//! The file answers it from any thread, immediately or after an outage. The threads of this module
//! never wait.
//!
//! `wire` parses requests and builds replies; `session` is the descriptor, the INIT handshake
//! and the threads; `files` answers requests; `reads` tracks unanswered READs. Invariants:
//!
//! * A READ is answered exactly once, in full or with an error. A dropped `done`, a panic and a
//!   wrong length give EIO, because some kernels turn a short answer into zeros.
//! * A signal never ends a READ: INTERRUPT is ignored.
//! * A node number is the layer's number in the store and an open file has no state, so another
//!   process that holds the descriptor and the store can continue.
//! * No READ of a layer is unanswered when its loop device is switched or its mount is removed.
//! * Only the mount thread touches paths below the mount. Other threads would wait for themselves.

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

/// Environment variable that enables the journal even if the kernel can resend requests.
const WRITTEN_ALWAYS: &str = "SOCI_DEVICE_JOURNAL";

/// FORCE aborts the connection, which also wakes the threads. DETACH removes the mount even if an
/// EROFS mount still has one of its files open.
const TAKE_AWAY: UnmountFlags = UnmountFlags::FORCE
    .union(UnmountFlags::DETACH)
    .union(UnmountFlags::NOFOLLOW);

/// What another process needs to take over a device. While a process holds both descriptors,
/// readers wait even if no process serves them.
#[derive(Debug)]
pub struct KeptDevice {
    /// The connection to the kernel.
    pub fuse: OwnedFd,
    /// The journal of unanswered requests.
    pub journal: Option<OwnedFd>,
}

/// The node's FUSE mount. It ends with [`Device::stop`] or, unless it is kept, when dropped.
#[derive(Debug)]
pub struct Device {
    mountpoint: PathBuf,
    connection: Arc<Connection>,
    files: Arc<Files>,
    /// The threads of the loop; `None` after [`Device::stop`] or [`Device::leave`].
    threads: Mutex<Option<Vec<JoinHandle<()>>>>,
    /// Another process holds the descriptors too, so dropping the device must not unmount it.
    kept: AtomicBool,
    adopted: bool,
}

impl Device {
    /// Opens a connection, mounts it at `mountpoint`, which is created if missing, and starts
    /// `threads` threads.
    ///
    /// The caller must first detach any mount that an earlier process left at `mountpoint`.
    ///
    /// # Errors
    ///
    /// When the kernel does not support FUSE, refuses the mount, or lacks a required capability.
    pub fn start(mountpoint: &Path, threads: usize) -> Result<Arc<Device>, SessionError> {
        let written = std::env::var_os(WRITTEN_ALWAYS).is_some_and(|value| value == "1");
        Self::start_with(mountpoint, threads, written)
    }

    fn start_with(
        mountpoint: &Path,
        threads: usize,
        written: bool,
    ) -> Result<Arc<Device>, SessionError> {
        // No stat: a mount that is already there may never answer.
        match rustix::fs::mkdir(mountpoint, rustix::fs::Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(source) => {
                return Err(SessionError::System {
                    step: "cannot create the FUSE mount point",
                    source,
                });
            }
        }
        let connection = Connection::open()?;
        connection.mount(mountpoint)?;
        // From here on, dropping the device unmounts it.
        let device = Self::new(mountpoint, connection, false);
        device.connection.handshake(written)?;
        device.serve(threads)?;
        Ok(device)
    }

    /// Takes over a device that an earlier process created at `mountpoint`, whether that process
    /// left it or was killed. Its readers keep waiting and see no error.
    ///
    /// READs of layers that have not been added yet are held until they are added or until
    /// [`Device::restored`] is called.
    ///
    /// # Errors
    ///
    /// When the connection has ended or the unanswered requests are unknown. The mount at
    /// `mountpoint` is then removed, so that its readers get errors instead of waiting
    /// indefinitely, and the caller must start a new device.
    pub fn adopt(
        kept: KeptDevice,
        mountpoint: &Path,
        threads: usize,
    ) -> Result<Arc<Device>, SessionError> {
        Self::try_adopt(kept, mountpoint, threads).inspect_err(|_| {
            // Other holders of the descriptors do not prevent this: FORCE aborts. It may already be
            // unmounted.
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
                step: "cannot map the journal",
                source,
            })?
            .ok_or(SessionError::NoJournal)?;
        let connection = Connection::adopt(kept.fuse, journal)?;
        let device = Self::new(mountpoint, connection, true);
        device.files.reads.begin_restoring();
        // Before the loop starts. Otherwise requests that the loop has read would be handled twice.
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

    /// Starts the threads on a connection that is mounted and has completed its handshake.
    fn serve(&self, threads: usize) -> Result<(), SessionError> {
        let handler: Arc<dyn Handler> = Arc::clone(&self.files) as _;
        let started = session::serve(&self.connection, &handler, threads)?;
        self.files
            .running
            .fetch_add(started.len(), Ordering::SeqCst);
        *self.threads.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
        Ok(())
    }

    /// Whether the device was adopted from an earlier process.
    #[must_use]
    pub fn is_adopted(&self) -> bool {
        self.adopted
    }

    /// Ends the restore phase: all mounted layers of the earlier process have been added. From now
    /// on, READs of unknown layers fail with EIO.
    pub fn restored(&self) {
        self.files.reads.restored();
    }

    /// Returns what another process needs to take over. From now on, dropping the device does not
    /// unmount it.
    ///
    /// # Errors
    ///
    /// When the descriptors cannot be duplicated.
    pub fn keep(&self) -> io::Result<KeptDevice> {
        let (fuse, journal) = self.connection.descriptors()?;
        self.kept.store(true, Ordering::SeqCst);
        Ok(KeptDevice { fuse, journal })
    }

    /// Whether another process can take over.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.kept.load(Ordering::SeqCst)
    }

    /// Stops this process's threads only. Readers keep waiting for a process that adopts what
    /// [`Device::keep`] returned. This process answers no more requests.
    pub fn leave(&self) {
        let mut held = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(threads) = held.take() else { return };
        self.connection.leave();
        join(threads);
    }

    /// Makes `file` readable at the [`Device::path`] of its number. It replaces an earlier file
    /// with that number for all readers that have it open.
    ///
    /// Numbers below 2 are reserved by the kernel and rejected.
    pub fn add(&self, file: Arc<dyn DeviceFile>) {
        let number = file.number();
        if number < FIRST_FILE {
            tracing::error!(
                number,
                "layer number is reserved by the kernel, the layer cannot be read"
            );
            return;
        }
        self.files.reads.add(file);
    }

    /// Removes a file. Parked reads are still answered; later ones fail with EIO.
    pub fn remove(&self, number: u64) {
        self.files.reads.remove(number);
    }

    /// Path of the file of layer `number`, for the `device=` option of a mount.
    #[must_use]
    pub fn path(&self, number: u64) -> PathBuf {
        self.mountpoint.join(number.to_string())
    }

    /// The mount point of the device.
    #[must_use]
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Number of unanswered READs of all layers.
    #[must_use]
    pub fn parked(&self) -> usize {
        self.files.reads.unanswered_in_all()
    }

    /// Number of unanswered READs of layer `number`.
    #[cfg(test)]
    fn unanswered(&self, number: u64) -> usize {
        self.files.reads.unanswered(number)
    }

    /// Answers every READ of layer `number` with EIO, both parked ones and, until the guard is
    /// dropped, new ones. Use it before the layer's last mount is removed: with an unanswered READ,
    /// the unmount and every `sync` would block, and no signal ends that.
    pub fn refuse(&self, number: u64) -> Refused {
        let refused = self.files.reads.shut(number);
        self.files.reads.fail(number);
        refused
    }

    /// Whether the connection is served. False after another process unmounted or aborted it.
    #[must_use]
    pub fn is_served(&self) -> bool {
        self.files.running.load(Ordering::SeqCst) > 0
    }

    /// Ends the connection: waiting requests fail, the mount is removed, and the threads end. EROFS
    /// mounts on it should be removed first.
    pub fn stop(&self) {
        // Held until the end, so that a concurrent caller returns only when the device has stopped.
        let mut held = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(threads) = held.take() else { return };
        if let Err(error) = rustix::mount::unmount(&self.mountpoint, TAKE_AWAY) {
            tracing::warn!(path = %self.mountpoint.display(), %error, "cannot unmount the FUSE file system");
            if self.is_served() {
                // The threads sleep in the kernel, and only the end of the process ends them.
                return;
            }
        }
        join(threads);
    }
}

fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        if thread.join().is_err() {
            tracing::error!("a FUSE thread panicked");
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

/// The kernel's own timeout for FUSE requests, if set. A READ that is parked longer aborts the
/// whole connection, so read budgets must stay well below it.
#[must_use]
pub fn request_timeout() -> Option<Duration> {
    let read = |name| std::fs::read_to_string(Path::new("/proc/sys/fs/fuse").join(name)).ok();
    effective_timeout(
        read("default_request_timeout").as_deref(),
        read("max_request_timeout").as_deref(),
    )
}

/// The smaller of the two settings, in seconds. 0, absent or unreadable means no timeout.
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
