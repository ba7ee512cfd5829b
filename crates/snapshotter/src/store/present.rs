//! Which spans are stored in `data`: one byte per span, in memory and in the file `present`.
//!
//! | value | meaning | valid |
//! |--|--|--|
//! | 0 | absent | - |
//! | 1 | its bytes were written | until the next boot |
//! | 2 | an `fdatasync` has succeeded since | permanently |
//!
//! The file contains the id of the boot that wrote the 1s; in another boot they count as 0. A mark
//! is written after the bytes it stands for, by one process, without ordering: a lost mark only
//! costs a second download. After a failed `fdatasync` every 1 becomes 0, because any page written
//! before may be lost. The header also records whether the layer is complete: all spans durable,
//! and every tar header matches the zTOC.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::Path,
};

use super::sealed::missing_is_none;
use crate::sync::atomic::{AtomicBool, AtomicU8, Ordering};

const MAGIC: &[u8; 8] = b"socipr\x00\x01";
/// Magic, boot id (36 bytes and padding), complete, reserved.
const HEADER: usize = 64;
const BOOT: std::ops::Range<usize> = 8..56;
const COMPLETE: usize = 56;

const WRITTEN: u8 = 1;
const DURABLE: u8 = 2;

/// What the file says, without the marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peek {
    pub(super) spans: usize,
    pub(super) present: usize,
    pub(super) complete: bool,
}

/// Reads the file of a layer that is not open, and does not change it. `None` if it is missing or
/// damaged.
///
/// # Errors
/// The system's.
pub(super) fn peek(path: &Path, boot: &str) -> io::Result<Option<Peek>> {
    let Some(table) = missing_is_none(fs::read(path))? else {
        return Ok(None);
    };
    if table.len() < HEADER || !table.starts_with(MAGIC) {
        return Ok(None);
    }
    let (head, marks) = table.split_at(HEADER);
    let is_of_boot = head[BOOT] == padded(boot);
    let counts = |mark: &&u8| **mark >= DURABLE || (**mark == WRITTEN && is_of_boot);
    Ok(Some(Peek {
        spans: marks.len(),
        present: marks.iter().filter(counts).count(),
        complete: head[COMPLETE] == 1 && marks.iter().all(|mark| *mark == DURABLE),
    }))
}

/// A boot id as in the header.
fn padded(boot: &str) -> [u8; BOOT.end - BOOT.start] {
    let mut name = [0; BOOT.end - BOOT.start];
    let length = boot.len().min(name.len());
    name[..length].copy_from_slice(&boot.as_bytes()[..length]);
    name
}

/// The marks of one layer.
#[derive(Debug)]
pub struct Present {
    file: File,
    spans: Box<[AtomicU8]>,
    complete: AtomicBool,
}

impl Present {
    /// Opens the marks of a layer of `spans` spans, or creates them. Marks that another boot wrote
    /// and did not make durable are cleared.
    ///
    /// # Errors
    /// The system's.
    pub fn open(path: &Path, spans: usize, boot: &str) -> io::Result<Present> {
        let found = missing_is_none(fs::read(path))?.unwrap_or_default();
        let known = found.len() == HEADER + spans && found.get(..8) == Some(MAGIC);
        let mut table = if known {
            found
        } else {
            vec![0; HEADER + spans]
        };
        let name = padded(boot);
        if !known || table[BOOT] != name {
            for mark in &mut table[HEADER..] {
                *mark = if *mark == DURABLE { DURABLE } else { 0 };
            }
            table[..8].copy_from_slice(MAGIC);
            table[BOOT].copy_from_slice(&name);
            replace(path, &table, known)?;
        }
        let marks = table[HEADER..]
            .iter()
            .map(|mark| AtomicU8::new((*mark).min(DURABLE)))
            .collect();
        let file = File::options().read(true).write(true).open(path)?;
        Ok(Present {
            file,
            spans: marks,
            // A crash may have separated the two writes when spans were removed.
            complete: AtomicBool::new(
                table[COMPLETE] == 1 && table[HEADER..].iter().all(|mark| *mark == DURABLE),
            ),
        })
    }

    /// Number of spans.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether the layer has no spans.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Whether a span is stored.
    pub fn has(&self, span: u32) -> bool {
        self.mark(span)
            .is_some_and(|mark| mark.load(Ordering::Acquire) != 0)
    }

    /// The number of stored spans.
    pub fn count(&self) -> usize {
        self.spans
            .iter()
            .filter(|mark| mark.load(Ordering::Relaxed) != 0)
            .count()
    }

    /// Whether all spans are durable and every tar header matched.
    pub fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// Records that the bytes of a span are written. The mark in memory is set even if the file
    /// cannot be written.
    ///
    /// # Errors
    /// The system's. The mark is then lost when this process ends.
    pub fn written(&self, span: u32) -> io::Result<()> {
        let Some(mark) = self.mark(span) else {
            return Ok(());
        };
        mark.store(WRITTEN, Ordering::Release);
        self.file
            .write_all_at(&[WRITTEN], HEADER as u64 + u64::from(span))
    }

    /// The spans that are written and not yet durable.
    pub fn volatile(&self) -> Vec<u32> {
        let marks = (0_u32..).zip(&self.spans);
        marks
            .filter(|(_, mark)| mark.load(Ordering::Relaxed) == WRITTEN)
            .map(|(id, _)| id)
            .collect()
    }

    /// Records that these spans were written before an `fdatasync` that succeeded.
    ///
    /// # Errors
    /// The system's.
    pub fn durable(&self, spans: &[u32]) -> io::Result<()> {
        for &span in spans {
            let Some(mark) = self.mark(span) else {
                continue;
            };
            let was = mark.compare_exchange(WRITTEN, DURABLE, Ordering::AcqRel, Ordering::Relaxed);
            if was.is_ok() {
                self.file
                    .write_all_at(&[DURABLE], HEADER as u64 + u64::from(span))?;
            }
        }
        Ok(())
    }

    /// Clears the marks that are not durable, after an `fdatasync` has failed. Returns those spans.
    pub fn forget_volatile(&self) -> Vec<u32> {
        let lost = self.volatile();
        for &span in &lost {
            if let Some(mark) = self.mark(span) {
                mark.store(0, Ordering::Release);
            }
            if let Err(error) = self
                .file
                .write_all_at(&[0], HEADER as u64 + u64::from(span))
            {
                tracing::error!(span, error = %error, "cannot clear the mark of a lost span in the file");
            }
        }
        lost
    }

    /// Records that all spans are durable and every header matched. Survives a power failure.
    ///
    /// # Errors
    /// The system's. The layer is then not marked complete.
    pub fn set_complete(&self) -> io::Result<()> {
        self.file.write_all_at(&[1], COMPLETE as u64)?;
        self.file.sync_data()?;
        self.complete.store(true, Ordering::Release);
        Ok(())
    }

    /// Records that the layer is not, or may not be, complete. Survives a power failure. Returns
    /// whether it was complete.
    ///
    /// # Errors
    /// The system's. In this process the layer counts as not complete in any case.
    pub fn clear_complete(&self) -> io::Result<bool> {
        let was = self.complete.swap(false, Ordering::AcqRel);
        self.file.write_all_at(&[0], COMPLETE as u64)?;
        self.file.sync_data()?;
        Ok(was)
    }

    /// Whether a span's bytes are durable.
    pub fn is_durable(&self, span: u32) -> bool {
        self.mark(span)
            .is_some_and(|mark| mark.load(Ordering::Acquire) == DURABLE)
    }

    /// Marks these spans as absent. Survives a power failure. The layer must not be marked
    /// complete.
    ///
    /// # Errors
    /// The system's. In this process the spans count as absent in any case.
    pub fn take_out(&self, spans: &[u32]) -> io::Result<()> {
        for &span in spans {
            if let Some(mark) = self.mark(span) {
                mark.store(0, Ordering::Release);
            }
        }
        for &span in spans {
            self.file
                .write_all_at(&[0], HEADER as u64 + u64::from(span))?;
        }
        self.file.sync_data()
    }

    fn mark(&self, span: u32) -> Option<&AtomicU8> {
        self.spans.get(usize::try_from(span).ok()?)
    }
}

/// Replaces the file. `durable` is set if there is something to lose; marks lost in a power failure
/// only cost a second download.
fn replace(path: &Path, table: &[u8], durable: bool) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = File::create(&temporary)?;
    file.write_all(table)?;
    if durable {
        file.sync_data()?;
    }
    fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_durable_marks_survive_a_reboot() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("present");
        let present = Present::open(&path, 4, "boot-1").expect("opened");
        for span in [0, 1, 3] {
            present.written(span).expect("marked");
        }
        present.durable(&[1, 2]).expect("marked");
        drop(present);
        let same = Present::open(&path, 4, "boot-1").expect("opened");
        assert_eq!(
            [0, 1, 2, 3].map(|span| same.has(span)),
            [true, true, false, true]
        );
        assert_eq!(same.volatile(), [0, 3]);
        drop(same);
        let other = Present::open(&path, 4, "boot-2").expect("opened");
        assert_eq!(
            [0, 1, 2, 3].map(|span| other.has(span)),
            [false, true, false, false]
        );
        drop(other);
        let back = Present::open(&path, 4, "boot-1").expect("opened");
        assert_eq!(back.count(), 1, "marks of an earlier boot stay cleared");
    }

    #[test]
    fn a_failed_sync_clears_marks_that_are_not_durable() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("present");
        let present = Present::open(&path, 3, "boot").expect("opened");
        for span in 0..3 {
            present.written(span).expect("marked");
        }
        present.durable(&[1]).expect("marked");
        assert_eq!(present.forget_volatile(), [0, 2]);
        assert_eq!(present.count(), 1);
        assert_eq!(Present::open(&path, 3, "boot").expect("opened").count(), 1);
    }

    #[test]
    fn the_marks_of_a_closed_layer_can_be_counted() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("present");
        let peek = |boot| super::peek(&path, boot).expect("readable");
        assert_eq!(peek("boot-1"), None);
        let present = Present::open(&path, 3, "boot-1").expect("opened");
        present.written(0).expect("marked");
        present.durable(&[0]).expect("marked");
        present.written(2).expect("marked");
        let counted = |present, complete| {
            Some(Peek {
                spans: 3,
                present,
                complete,
            })
        };
        assert_eq!(peek("boot-1"), counted(2, false));
        assert_eq!(peek("boot-2"), counted(1, false));
        present.written(1).expect("marked");
        present.durable(&[1, 2]).expect("marked");
        present.set_complete().expect("marked");
        assert_eq!(peek("boot-2"), counted(3, true));
    }

    #[test]
    fn removed_spans_stay_absent() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("present");
        let present = Present::open(&path, 3, "boot-1").expect("opened");
        for span in 0..3 {
            present.written(span).expect("marked");
        }
        present.durable(&[0, 1, 2]).expect("marked");
        present.set_complete().expect("marked");
        assert!(present.clear_complete().expect("cleared"));
        assert!(!present.clear_complete().expect("cleared"));
        present.take_out(&[1]).expect("removed");
        assert!(!present.has(1) && present.is_durable(2) && !present.is_complete());
        // Simulates a crash between the two writes, in the other order.
        present.set_complete().expect("marked");
        drop(present);
        let present = Present::open(&path, 3, "boot-2").expect("opened");
        assert_eq!((present.count(), present.is_complete()), (2, false));
    }

    #[test]
    fn marks_of_another_format_are_discarded() {
        let root = tempfile::tempdir().expect("a directory");
        let path = root.path().join("present");
        let present = Present::open(&path, 3, "boot").expect("opened");
        for span in 0..3 {
            present.written(span).expect("marked");
        }
        present.durable(&[0, 1, 2]).expect("marked");
        present.set_complete().expect("marked");
        assert!(
            Present::open(&path, 3, "boot")
                .expect("opened")
                .is_complete()
        );
        let other = Present::open(&path, 4, "boot").expect("opened");
        assert_eq!((other.count(), other.is_complete()), (0, false));
        fs::write(&path, b"torn").expect("written");
        assert_eq!(Present::open(&path, 4, "boot").expect("opened").count(), 0);
    }
}
