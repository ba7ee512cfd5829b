//! Zeros that need no disk space: long runs of zeros are not written where the file has a hole.

use std::{fs::File, os::unix::fs::FileExt as _};

use rustix::{fs::SeekFrom, io::Errno};

/// Zeros are detected in whole pages.
const PAGE: usize = 4096;
/// Shorter runs of zeros are written, because checking for a hole costs a system call.
const SHORTEST: usize = 64 << 10;

/// Splits bytes for offset `place` into stretches. The flag is true for a long run of zero pages.
pub(super) fn stretches(bytes: &[u8], place: u64) -> impl Iterator<Item = (&[u8], bool)> {
    let into = usize::try_from(place % PAGE as u64).unwrap_or(0);
    let (first, pages) = bytes.split_at(((PAGE - into) % PAGE).min(bytes.len()));
    let first = (!first.is_empty()).then_some((first, false));
    first.into_iter().chain(runs(pages))
}

fn runs(bytes: &[u8]) -> impl Iterator<Item = (&[u8], bool)> {
    let mut pages = bytes.chunks(PAGE).peekable();
    let mut from = 0;
    std::iter::from_fn(move || {
        let kind = is_zeros(pages.peek()?);
        let mut to = from;
        while let Some(page) = pages.next_if(|page| is_zeros(page) == kind) {
            to += page.len();
        }
        let run = bytes.get(from..to)?;
        from = to;
        Some((run, kind && run.len() >= SHORTEST))
    })
}

fn is_zeros(page: &[u8]) -> bool {
    static ZEROS: [u8; PAGE] = [0; PAGE];
    page.len() == PAGE && page == ZEROS
}

/// Whether this range has never been written. Moves the file's own position, which is not used.
pub(super) fn is_hole(file: &File, place: u64, len: usize) -> bool {
    match rustix::fs::seek(file, SeekFrom::Data(place)) {
        Ok(data) => data >= place + len as u64,
        Err(Errno::NXIO) => true,
        Err(_) => false,
    }
}

/// Writes to a range that is new. Long runs of zeros stay holes.
pub(super) fn write_new(file: &File, bytes: &[u8], place: u64) -> std::io::Result<()> {
    let mut at = place;
    for (stretch, is_zero) in stretches(bytes, place) {
        if !is_zero {
            file.write_all_at(stretch, at)?;
        }
        at += stretch.len() as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_runs_of_zeros_stay_holes() {
        let mut bytes = vec![0; 40 * PAGE];
        bytes[0] = 1;
        bytes[22 * PAGE] = 1;
        let place = 3 * PAGE as u64 + 100;
        let found: Vec<_> = stretches(&bytes, place)
            .map(|(part, zeros)| (part.len(), zeros))
            .collect();
        let wanted = [
            (PAGE - 100, false),
            (21 * PAGE, true),
            (PAGE, false),
            (17 * PAGE, true),
            (100, false),
        ];
        assert_eq!(found, wanted);
        assert_eq!(stretches(&[], 0).count(), 0);
        assert!(stretches(&bytes[1..SHORTEST], 1).all(|(_, zeros)| !zeros));
        let file = tempfile::tempfile().expect("a file");
        file.set_len(1 << 20).expect("sized");
        write_new(&file, &bytes, place).expect("written");
        let mut read = vec![1; bytes.len()];
        file.read_exact_at(&mut read, place).expect("readable");
        assert_eq!(read, bytes);
        let hole = 4 * PAGE as u64;
        assert!(
            is_hole(&file, hole, 21 * PAGE),
            "needs a file system with holes"
        );
        assert!(!is_hole(&file, hole, 22 * PAGE) && !is_hole(&file, hole - 1, 1));
        assert!(is_hole(&file, (1 << 20) - 100, 100));
    }
}
