//! Small files that must be intact or absent: written under a temporary name, synced, renamed, and
//! sealed with a SHA-256.
//!
//! The seal is an extended attribute of the file (`user.soci.seal`). It contains the checksum and
//! the boot in which the checksum was last verified, so one fsync covers content and seal. Within
//! one boot a file is hashed once. After a reboot it is hashed again, because a power failure may
//! have damaged it.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Read as _, Write},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

pub use super::mapped::Mapped;
use super::mapped::read_through;
use crate::sync::atomic::{AtomicU64, Ordering};

/// The state of a sealed file.
#[derive(Debug)]
pub enum Sealed<T> {
    /// There is no such file.
    Missing,
    /// Its checksum does not match, or it has none.
    Torn,
    /// It is intact.
    Whole(T),
}

/// The extended attribute with the checksum and the boot id.
const SEAL: &str = "user.soci.seal";

/// A directory with sealed files, and the id of this boot.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    boot: String,
}

impl Folder {
    /// Accesses the sealed files of a directory.
    pub fn new(path: impl Into<PathBuf>, boot: &str) -> Folder {
        Folder {
            path: path.into(),
            boot: boot.to_owned(),
        }
    }

    /// The path of the directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The id of this boot.
    pub fn boot(&self) -> &str {
        &self.boot
    }

    /// The path of a file in the directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file with its seal and returns the SHA-256 of its content in hex. On return,
    /// content and seal survive a power failure. The name survives one after [`Folder::sync`].
    ///
    /// # Errors
    /// The system's. An existing file with this name is then unchanged.
    pub fn write(
        &self,
        name: &str,
        content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<String> {
        self.write_file(name, true, content)
    }

    /// Like [`Folder::write`], but does not wait for the disk. For files that can be rebuilt: the
    /// seal shows if a power failure has damaged them.
    ///
    /// # Errors
    /// See [`Folder::write`].
    pub fn write_made(
        &self,
        name: &str,
        content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<String> {
        self.write_file(name, false, content)
    }

    fn write_file(
        &self,
        name: &str,
        durable: bool,
        content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<String> {
        // Two concurrent writers of one name must not share a temporary file.
        static WRITES: AtomicU64 = AtomicU64::new(0);
        let write = WRITES.fetch_add(1, Ordering::Relaxed);
        let temporary = self.file(&format!("{name}.{write}.new"));
        let mut hashing = Hashing {
            inner: BufWriter::with_capacity(1 << 16, File::create(&temporary)?),
            hash: Sha256::new(),
        };
        let written = content(&mut hashing).and_then(|()| {
            let Hashing { inner, hash } = hashing;
            let file = inner.into_inner().map_err(io::IntoInnerError::into_error)?;
            let sum = hex(&hash.finalize());
            self.seal(&file, &sum)?;
            if durable {
                file.sync_all()?;
            }
            Ok(sum)
        });
        match written {
            Ok(sum) => {
                fs::rename(&temporary, self.file(name))?;
                Ok(sum)
            }
            Err(error) => {
                drop(fs::remove_file(&temporary));
                Err(error)
            }
        }
    }

    /// The content of a sealed file. `None` if it is missing or damaged.
    ///
    /// # Errors
    /// The system's, except that there is no such file.
    pub fn open(&self, name: &str) -> io::Result<Option<Mapped>> {
        let path = self.file(name);
        let Some(file) = missing_is_none(File::open(&path))? else {
            return Ok(None);
        };
        let Some((sum, boot)) = seal_of(&file)? else {
            return Ok(None);
        };
        if boot != self.boot && !self.is_whole(&file, &sum)? {
            tracing::warn!(file = %path.display(), "a file of the store is damaged; ignoring it");
            return Ok(None);
        }
        Mapped::of(&file).map(Some)
    }

    /// Whether a sealed file exists and is intact. Within the boot in which that was last verified,
    /// its content is not read.
    ///
    /// # Errors
    /// The system's, except that there is no such file.
    pub fn has(&self, name: &str) -> io::Result<bool> {
        let Some(file) = missing_is_none(File::open(self.file(name)))? else {
            return Ok(false);
        };
        match seal_of(&file)? {
            Some((_, boot)) if boot == self.boot => Ok(true),
            Some((sum, _)) => self.is_whole(&file, &sum),
            None => Ok(false),
        }
    }

    /// Hashes a file by reading it, not through a mapping, so that a bad sector is an error. If the
    /// hash matches, seals the file for this boot.
    fn is_whole(&self, file: &File, sum: &str) -> io::Result<bool> {
        let mut hash = Sha256::new();
        read_through(file, |part| hash.update(part))?;
        let whole = sum == hex(&hash.finalize());
        if whole {
            self.seal(file, sum)?;
        }
        Ok(whole)
    }

    /// Reads and verifies the content of a small sealed file.
    ///
    /// # Errors
    /// The system's, except that there is no such file.
    pub fn read(&self, name: &str) -> io::Result<Sealed<Vec<u8>>> {
        let Some(mut file) = missing_is_none(File::open(self.file(name)))? else {
            return Ok(Sealed::Missing);
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let seal = seal_of(&file)?;
        let right = seal.is_some_and(|(sum, _)| sum == hex(&Sha256::digest(&bytes)));
        Ok(if right {
            Sealed::Whole(bytes)
        } else {
            Sealed::Torn
        })
    }

    fn seal(&self, file: &File, sum: &str) -> io::Result<()> {
        let seal = format!("{sum} {}", self.boot);
        let flags = rustix::fs::XattrFlags::empty();
        Ok(rustix::fs::fsetxattr(file, SEAL, seal.as_bytes(), flags)?)
    }

    /// Removes a sealed file.
    ///
    /// # Errors
    /// The system's, except that there is no such file.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        missing_is_none(fs::remove_file(self.file(name)))?;
        Ok(())
    }

    /// Makes the names in the directory survive a power failure.
    ///
    /// # Errors
    /// The system's.
    pub fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

/// The id of this boot.
///
/// # Errors
/// The system's.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

pub(crate) fn missing_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The checksum in the seal of a file, and the boot in which it was last verified.
fn seal_of(file: &File) -> io::Result<Option<(String, String)>> {
    let mut seal = [0; 256];
    let length = match rustix::fs::fgetxattr(file, SEAL, &mut seal) {
        Ok(length) => length,
        Err(rustix::io::Errno::NODATA) => 0,
        Err(error) => return Err(error.into()),
    };
    let seal = seal
        .get(..length)
        .and_then(|seal| std::str::from_utf8(seal).ok());
    let parts = seal.and_then(|seal| seal.split_once(' '));
    Ok(parts.map(|(sum, boot)| (sum.to_owned(), boot.to_owned())))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Hashing<W> {
    inner: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(bytes.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Folder, name: &str, content: &[u8]) {
        folder
            .write(name, |to| to.write_all(content))
            .expect("written");
    }

    #[test]
    fn a_damaged_file_is_detected_after_a_reboot() {
        let root = tempfile::tempdir().expect("a directory");
        let folder = Folder::new(root.path(), "boot-1");
        write(&folder, "meta", b"content");
        assert_eq!(
            folder
                .open("meta")
                .expect("readable")
                .expect("whole")
                .as_ref(),
            b"content"
        );
        // A power failure keeps the name and leaves other bytes.
        fs::write(folder.file("meta"), b"con\0\0\0\0").expect("torn");
        let rebooted = Folder::new(root.path(), "boot-2");
        assert!(rebooted.open("meta").expect("readable").is_none());
        write(&rebooted, "meta", b"again");
        assert_eq!(
            rebooted
                .open("meta")
                .expect("readable")
                .expect("whole")
                .as_ref(),
            b"again"
        );
        let third = Folder::new(root.path(), "boot-3");
        assert_eq!(
            third
                .open("meta")
                .expect("readable")
                .expect("whole")
                .as_ref(),
            b"again"
        );
    }

    #[test]
    fn has_verifies_a_file_once_per_boot() {
        let root = tempfile::tempdir().expect("a directory");
        let folder = Folder::new(root.path(), "boot-1");
        assert!(!folder.has("meta").expect("readable"));
        write(&folder, "meta", b"content");
        assert!(folder.has("meta").expect("readable"));
        let rebooted = Folder::new(root.path(), "boot-2");
        assert!(rebooted.has("meta").expect("readable"));
        fs::write(folder.file("meta"), b"con\0\0\0\0").expect("torn");
        assert!(rebooted.has("meta").expect("readable"), "not read again");
        let third = Folder::new(root.path(), "boot-3");
        assert!(!third.has("meta").expect("readable"));
    }

    #[test]
    fn a_file_with_a_missing_or_damaged_seal_counts_as_absent() {
        let root = tempfile::tempdir().expect("a directory");
        let folder = Folder::new(root.path(), "boot-1");
        assert!(folder.open("meta").expect("readable").is_none());
        write(&folder, "meta", b"");
        assert!(folder.open("meta").expect("readable").is_some());
        let file = File::open(folder.file("meta")).expect("exists");
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::fsetxattr(&file, SEAL, b"torn", flags).expect("set");
        assert!(folder.open("meta").expect("readable").is_none());
        rustix::fs::fremovexattr(&file, SEAL).expect("removed");
        assert!(folder.open("meta").expect("readable").is_none());
        folder.remove("meta").expect("removed");
        folder
            .remove("meta")
            .expect("removing twice is not an error");
        assert!(folder.open("meta").expect("readable").is_none());
    }

    #[test]
    fn a_failing_writer_keeps_the_old_file() {
        let root = tempfile::tempdir().expect("a directory");
        let folder = Folder::new(root.path(), "boot-1");
        write(&folder, "meta", b"old");
        folder
            .write("meta", |_| Err(io::Error::other("no")))
            .expect_err("the writer's error");
        assert_eq!(
            folder
                .open("meta")
                .expect("readable")
                .expect("whole")
                .as_ref(),
            b"old"
        );
    }
}
