//! Maps files of the store into memory, after reading each file once.
//!
//! A page of a mapping that the disk cannot read raises SIGBUS and ends the process, at every
//! start. Reading the whole file first turns this into an error that can be handled, and leaves the
//! pages in the page cache. A page that goes bad later still ends the process once it is evicted
//! and read again. The next start detects that.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

/// Bytes per read.
const STEP: usize = 1 << 17;

/// Reads a file from start to end and returns its length.
///
/// # Errors
/// The system's; a file that ends before its reported size.
pub(super) fn read_through(file: &File, mut each: impl FnMut(&[u8])) -> io::Result<u64> {
    let size = file.metadata()?.len();
    let room = usize::try_from(size).map_or(STEP, |size| size.clamp(1, STEP));
    let mut buffer = vec![0; room];
    let mut at = 0;
    loop {
        match file.read_at(&mut buffer, at) {
            Ok(0) if at < size => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(0) => return Ok(at),
            Ok(length) => {
                each(buffer.get(..length).unwrap_or_default());
                at += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A read-only mapping of a file of the store.
///
/// Files of the store are replaced by rename and never truncated, so the mapped bytes do not
/// change. The file is read once before it is mapped, so unreadable sectors are reported here.
#[derive(Debug)]
pub struct Mapped(Option<memmap2::Mmap>);

impl Mapped {
    /// Maps a file of the store.
    ///
    /// # Errors
    /// The system's.
    pub fn open(path: &Path) -> io::Result<Mapped> {
        Mapped::of(&File::open(path)?)
    }

    pub(super) fn of(file: &File) -> io::Result<Mapped> {
        if read_through(file, |_| ())? == 0 {
            return Ok(Mapped(None));
        }
        #[allow(unsafe_code, reason = "mapping a file has no safe form")]
        // SAFETY: mapped files are only replaced by rename or unlinked, and only by this process in
        // its own directory. They are never truncated or rewritten, so the bytes under the slice do
        // not change.
        let map = unsafe { memmap2::Mmap::map(file) }?;
        Ok(Mapped(Some(map)))
    }

    /// Removes the file's pages from the process. A later access maps them again.
    ///
    /// # Errors
    /// The system's.
    pub fn release(&self) -> io::Result<()> {
        let Some(map) = &self.0 else { return Ok(()) };
        // JUSTIFICATION: the safe kinds of advice leave the pages accounted to this process.
        #[allow(
            unsafe_code,
            reason = "memmap2 has this advice for every kind of mapping"
        )]
        // SAFETY: this is a shared, read-only mapping of a file that does not change, so the pages
        // contain nothing that the file does not.
        unsafe {
            map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed)
        }
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn an_unreadable_file_is_an_error_and_not_a_signal() {
        // Reading the first page of a process, which is not mapped, fails with EIO, like a bad
        // sector.
        let bad = File::open("/proc/self/mem").expect("a file whose start cannot be read");
        let error = read_through(&bad, |_| ()).expect_err("EIO");
        assert_eq!(
            error.raw_os_error(),
            Some(rustix::io::Errno::IO.raw_os_error())
        );
        let error = Mapped::of(&bad).expect_err("not mapped");
        assert_eq!(
            error.raw_os_error(),
            Some(rustix::io::Errno::IO.raw_os_error())
        );
    }

    #[test]
    fn read_through_reads_the_whole_file() {
        let mut file = tempfile::tempfile().expect("a file");
        assert!(Mapped::of(&file).expect("empty").as_ref().is_empty());
        let content: Vec<u8> = (0..=255).cycle().take(3 * STEP + 5).collect();
        file.write_all(&content).expect("written");
        let mut read = Vec::new();
        let size = read_through(&file, |part| read.extend_from_slice(part));
        assert_eq!(size.expect("read"), content.len() as u64);
        assert!(read == content);
        assert!(Mapped::of(&file).expect("mapped").as_ref() == content);
    }
}
