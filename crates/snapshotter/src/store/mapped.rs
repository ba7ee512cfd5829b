//! Files of the store as memory: read first, then mapped.
//!
//! A page of a map that the disk cannot give is SIGBUS, the end of the process; at each start again. Reading the whole
//! file first makes of it an error that somebody can act on, and leaves the pages in the page cache for the map. What
//! goes bad after it was read, and after its page was taken away, still ends the process; it is found at the next start.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

/// Bytes read at once.
const STEP: usize = 1 << 17;

/// Reads a file from its start to its end, and says how long it is.
///
/// # Errors
/// The system's; a file that ends before its size.
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
/// The store's files are replaced by rename and never cut, so the bytes behind a mapping stay. The file is read once
/// before it is mapped: what the disk cannot give is an error of the opening.
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
        // SAFETY: files that are mapped are only ever replaced by rename or unlinked, by this process alone in
        // its own folder; they are never truncated or written again, so the bytes do not change under the slice.
        let map = unsafe { memmap2::Mmap::map(file) }?;
        Ok(Mapped(Some(map)))
    }

    /// Takes the file's pages out of the process; a later access maps them again.
    ///
    /// # Errors
    /// The system's.
    pub fn release(&self) -> io::Result<()> {
        let Some(map) = &self.0 else { return Ok(()) };
        // JUSTIFICATION: the safe advices keep the pages counted as ours.
        #[allow(
            unsafe_code,
            reason = "memmap2 has this advice for every kind of mapping"
        )]
        // SAFETY: the mapping is a shared, read-only one of a file that does not change: the pages hold nothing
        // that the file does not.
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
    fn what_cannot_be_read_is_an_error_and_no_signal() {
        // Reading the first page of a process, which is not mapped, is EIO: as a bad sector.
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
    fn a_file_is_read_to_its_end() {
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
