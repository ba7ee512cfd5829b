//! A user namespace that exists only to name an ID map: `mount_setattr` takes its descriptor, and
//! the mount then keeps the map.
//!
//! Only a process with one thread can enter a new user namespace, so a child does. It is a fork
//! that never becomes another program: it enters the namespace, reports its number, and waits until
//! its parent has opened the namespace, or is gone. Runs on the mount thread, so that the child gets
//! no descriptor of the FUSE mount.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};

/// Maximum number of ranges of a map, by the kernel.
pub(crate) const MAX_RANGES: usize = 340;

/// A range of IDs and what they become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    /// The first ID in files and in the container.
    pub(crate) inside: u32,
    /// What it becomes on the host.
    pub(crate) outside: u32,
    /// Number of IDs.
    pub(crate) count: u32,
}

/// The owners of files as a container and as the host see them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owners {
    pub(crate) uids: Vec<Range>,
    pub(crate) gids: Vec<Range>,
}

/// Creates a user namespace with this map and returns a descriptor of it.
pub(super) fn with_map(owners: &Owners) -> io::Result<OwnedFd> {
    let (mut born, report) = pipe()?;
    let (wait, release) = pipe()?;
    std::thread::scope(|scope| {
        let held = release.as_raw_fd();
        // Returns when the child has ended.
        let child = std::thread::Builder::new()
            .name("soci-userns".to_owned())
            .spawn_scoped(scope, move || child::wait_in_namespace(report, wait, held))?;
        let mut pid = [0; 4];
        let opened = match born.read_exact(&mut pid) {
            Ok(()) => open(u32::from_le_bytes(pid), owners),
            // The child could not enter a namespace. Its own error says why.
            Err(error) => Err(error),
        };
        drop(release);
        let ended = child.join().map_err(|_| io::ErrorKind::Other)?;
        match ended {
            Err(refused) => Err(refused),
            Ok(()) => opened,
        }
    })
}

fn pipe() -> io::Result<(File, File)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((File::from(read), File::from(write)))
}

/// Gives the namespace of a process its map and opens it.
fn open(pid: u32, owners: &Owners) -> io::Result<OwnedFd> {
    for (file, ranges) in [("uid_map", &owners.uids), ("gid_map", &owners.gids)] {
        let lines: String = ranges.iter().map(Range::line).collect();
        // The kernel takes a map in one write.
        let mut map = fs::OpenOptions::new()
            .write(true)
            .open(format!("/proc/{pid}/{file}"))?;
        map.write_all(lines.as_bytes())?;
    }
    Ok(File::open(format!("/proc/{pid}/ns/user"))?.into())
}

impl Range {
    fn line(&self) -> String {
        format!("{} {} {}\n", self.inside, self.outside, self.count)
    }
}

/// JUSTIFICATION: code between fork and exec has no safe wrapper. SAFETY of the module: the child
/// makes system calls only. It neither allocates nor takes a lock, which another thread of its
/// parent may hold, and it ends without running destructors.
mod child {
    #![allow(unsafe_code, reason = "code that runs in a forked child")]

    use std::fs::File;
    use std::io;
    use std::os::fd::{AsRawFd as _, RawFd};
    use std::os::unix::process::CommandExt as _;
    use std::process::Command;

    /// What the child reports instead of becoming another program.
    const DONE: i32 = libc::ECANCELED;

    /// Forks a child that enters a user namespace, writes its process number to `report`, and ends
    /// when the last writer of `wait` is gone. `release` is this process's writer, of which the
    /// child has a copy.
    pub(super) fn wait_in_namespace(report: File, wait: File, release: RawFd) -> io::Result<()> {
        let (to, from) = (report.as_raw_fd(), wait.as_raw_fd());
        // Never run: the child ends before.
        let mut command = Command::new("/proc/self/exe");
        // SAFETY: the closure makes system calls only, on descriptors that are open in the child,
        // whose table is a copy.
        unsafe {
            command.pre_exec(move || in_child(to, from, release));
        }
        match command.spawn() {
            Err(error) if error.raw_os_error() == Some(DONE) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(io::Error::other("the child became another program")),
        }
    }

    fn in_child(report: RawFd, wait: RawFd, release: RawFd) -> io::Result<()> {
        let last = io::Error::last_os_error;
        // SAFETY: closes the child's copy, which no value owns.
        unsafe { libc::close(release) };
        // SAFETY: no memory is involved.
        if unsafe { libc::unshare(libc::CLONE_NEWUSER) } != 0 {
            return Err(last());
        }
        // SAFETY: always succeeds.
        let pid = unsafe { libc::getpid() }.to_le_bytes();
        // SAFETY: `pid` is readable for its length.
        let written = unsafe { libc::write(report, pid.as_ptr().cast(), pid.len()) };
        if usize::try_from(written) != Ok(pid.len()) {
            return Err(last());
        }
        let mut byte = 0_u8;
        // SAFETY: `byte` is writable for one byte. Returns at the end of the file, or by a signal.
        unsafe { libc::read(wait, std::ptr::from_mut(&mut byte).cast(), 1) };
        Err(io::Error::from_raw_os_error(DONE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owners(ranges: &[(u32, u32, u32)]) -> Owners {
        let range = |&(inside, outside, count): &(u32, u32, u32)| Range {
            inside,
            outside,
            count,
        };
        let ranges: Vec<_> = ranges.iter().map(range).collect();
        Owners {
            uids: ranges.clone(),
            gids: ranges,
        }
    }

    #[test]
    fn a_namespace_is_made_for_any_number_of_ranges() {
        if std::env::var_os("SOCI_SANDBOX").is_none() {
            return;
        }
        let many: Vec<_> = (0..100).map(|n| (n * 10, 100_000 + n * 20, 10)).collect();
        for map in [&[(0, 100_000, 65_536)][..], &many] {
            let namespace = with_map(&owners(map)).unwrap();
            let link = format!("/proc/self/fd/{}", namespace.as_raw_fd());
            let name = fs::read_link(link).unwrap();
            assert!(name.to_string_lossy().starts_with("user:["), "{name:?}");
        }
    }

    #[test]
    fn a_map_that_the_kernel_refuses_is_an_error() {
        if std::env::var_os("SOCI_SANDBOX").is_none() {
            return;
        }
        // Overlapping ranges.
        let error = with_map(&owners(&[(0, 1000, 10), (5, 2000, 10)])).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{error}");
    }
}
