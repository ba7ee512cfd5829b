//! The journal: memory that outlives the process, with the requests that were read from the kernel
//! and are not answered.
//!
//! It is a memfd that whoever keeps the `/dev/fuse` descriptor keeps beside it. Requests are read
//! *into* it, each thread into its own buffer, so that there is no moment at which a killed process
//! had one that nobody else knows of; READs then move to a table until their answer is written. Where
//! the kernel can send requests again (Linux 6.9) it only says so, and stays empty.
//!
//! What it holds may be answered already: a process can die between the answer and the stroke. The
//! kernel takes no second answer, so answering again does no harm.

#![allow(
    unsafe_code,
    reason = "memory that another process reads after this one's death is mapped: `word`, `Buffer`"
)]

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

/// Receive buffer of a loop thread in bytes. The kernel demands room for its largest request: 8 KiB
/// or a WRITE with its headers. Longer ones (setxattr) it refuses by itself.
pub(super) const RECEIVE: usize = 16 * 1024;

/// First word of a journal, and the layout that the rest of it has.
const MAGIC: u64 = u64::from_le_bytes(*b"socijrnl");
const LAYOUT: u64 = 1;
/// Words of the header, in which the first three count: magic, layout, how requests come back.
const HEADER_WORDS: usize = 512;
const RESENT: u64 = 1;
const WRITTEN_DOWN: u64 = 2;
/// Buffers, one for each thread of the loop.
const BUFFERS: usize = 8;
const BUFFER_WORDS: usize = RECEIVE / 8;
/// READs that can be written down: twice what the kernel sends at once.
const SLOTS: usize = 8192;
/// Identity, layer, offset, size.
const SLOT_WORDS: usize = 4;
const TABLE: usize = HEADER_WORDS + BUFFERS * BUFFER_WORDS;
const WORDS: usize = TABLE + SLOTS * SLOT_WORDS;

/// Where a READ is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot(usize);

/// A READ as it is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) unique: u64,
    pub(super) layer: u64,
    pub(super) offset: u64,
    pub(super) size: u32,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Journal {
    memory: OwnedFd,
    map: MmapRaw,
    /// Whether requests are written down here; else the kernel sends them again.
    written: bool,
    free: Mutex<Vec<Slot>>,
    lent: [AtomicBool; BUFFERS],
    overflown: AtomicBool,
}

impl Journal {
    /// A new one.
    pub(super) fn create(written: bool) -> Result<Self, Errno> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = rustix::fs::memfd_create("soci-journal", flags)?;
        rustix::fs::ftruncate(&memory, bytes(WORDS))?;
        // Nobody who keeps it can pull the mapping away from under us.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&memory, seals)?;
        let journal = Self::map(memory, written)?;
        let how = if written { WRITTEN_DOWN } else { RESENT };
        for (index, value) in [MAGIC, LAYOUT, how].into_iter().enumerate() {
            journal.put(index, value);
        }
        Ok(journal)
    }

    /// One that an earlier process left; none if it is not understood.
    pub(super) fn adopt(memory: OwnedFd) -> Result<Option<Self>, Errno> {
        let size = u64::try_from(rustix::fs::fstat(&memory)?.st_size);
        let seals = rustix::fs::fcntl_get_seals(&memory).unwrap_or(SealFlags::empty());
        if size != Ok(bytes(WORDS)) || !seals.contains(SealFlags::SHRINK) {
            return Ok(None);
        }
        let mut journal = Self::map(memory, false)?;
        if journal.get(0) != MAGIC || journal.get(1) != LAYOUT {
            return Ok(None);
        }
        match journal.get(2) {
            RESENT => {}
            WRITTEN_DOWN => journal.written = true,
            _ => return Ok(None),
        }
        let free = (0..SLOTS).map(Slot).rev();
        let free = free.filter(|slot| journal.read(*slot).is_none()).collect();
        *journal.free.lock().unwrap_or_else(PoisonError::into_inner) = free;
        Ok(Some(journal))
    }

    fn map(memory: OwnedFd, written: bool) -> Result<Self, Errno> {
        let map = MmapOptions::new().len(WORDS * 8).map_raw(&memory);
        let map = map.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::NOMEM))?;
        Ok(Self {
            memory,
            map,
            written,
            free: Mutex::new((0..SLOTS).map(Slot).rev().collect()),
            lent: Default::default(),
            overflown: AtomicBool::new(false),
        })
    }

    /// The descriptor, for whoever keeps it.
    pub(super) fn memory(&self) -> &OwnedFd {
        &self.memory
    }

    /// Whether requests are written down here; else the kernel sends them again.
    pub(super) fn is_written(&self) -> bool {
        self.written
    }

    fn word(&self, index: usize) -> Option<&AtomicU64> {
        if index >= WORDS {
            return None;
        }
        let word = self.map.as_mut_ptr().wrapping_add(index * 8).cast::<u64>();
        // JUSTIFICATION: memory that is shared with another process has no safe form.
        // SAFETY: the word lies in the mapping, which begins at a page, lives as long as `self` and cannot
        // shrink (sealed); all of it but the buffers is only ever used through atomics.
        Some(unsafe { AtomicU64::from_ptr(word) })
    }

    fn get(&self, index: usize) -> u64 {
        self.word(index)
            .map_or(0, |word| word.load(Ordering::Acquire))
    }

    fn put(&self, index: usize, value: u64) {
        if let Some(word) = self.word(index) {
            word.store(value, Ordering::Release);
        }
    }

    /// Writes a READ down; nothing where the kernel sends it again, or there is no room.
    pub(super) fn record(&self, read: Written) -> Option<Slot> {
        if !self.written {
            return None;
        }
        let free = &self.free;
        let Some(slot) = free.lock().unwrap_or_else(PoisonError::into_inner).pop() else {
            if !self.overflown.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    slots = SLOTS,
                    "journal is full: some reads would not survive a restart"
                );
            }
            return None;
        };
        let at = TABLE + slot.0 * SLOT_WORDS;
        self.put(at + 1, read.layer);
        self.put(at + 2, read.offset);
        self.put(at + 3, u64::from(read.size));
        // Last: from here on the entry counts.
        self.put(at, read.unique);
        Some(slot)
    }

    /// Strikes a READ that is answered.
    pub(super) fn strike(&self, slot: Slot) {
        self.put(TABLE + slot.0 * SLOT_WORDS, 0);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(slot);
    }

    fn read(&self, slot: Slot) -> Option<Written> {
        let at = TABLE + slot.0 * SLOT_WORDS;
        let unique = self.get(at);
        (unique != 0).then(|| Written {
            unique,
            layer: self.get(at + 1),
            offset: self.get(at + 2),
            size: u32::try_from(self.get(at + 3)).unwrap_or(0),
        })
    }

    /// The READs that an earlier process left.
    pub(super) fn reads(&self) -> Vec<(Slot, Written)> {
        let slots = (0..SLOTS).map(Slot);
        slots
            .filter_map(|slot| Some((slot, self.read(slot)?)))
            .collect()
    }

    /// The buffer of a thread of the loop; each is lent to one at a time.
    pub(super) fn buffer(self: &Arc<Self>, index: usize) -> Option<Buffer> {
        let lent = self.lent.get(index)?;
        if !self.written || lent.swap(true, Ordering::AcqRel) {
            return None;
        }
        let journal = Arc::clone(self);
        Some(Buffer { journal, index })
    }

    /// All buffers, for what an earlier process read into them.
    pub(super) fn buffers(self: &Arc<Self>) -> Vec<Buffer> {
        (0..BUFFERS)
            .filter_map(|index| self.buffer(index))
            .collect()
    }
}

/// A receive buffer in the journal.
#[derive(Debug)]
pub(super) struct Buffer {
    journal: Arc<Journal>,
    index: usize,
}

impl Buffer {
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        let at = (HEADER_WORDS + self.index * BUFFER_WORDS) * 8;
        let buffer = self.journal.map.as_mut_ptr().wrapping_add(at);
        // JUSTIFICATION: as `word`: the kernel reads requests into memory that outlives the process.
        // SAFETY: the range lies in the mapping (`index` is below `BUFFERS`), which lives as long as the
        // journal held here; `lent` lets one `Buffer` exist for it, and no word of it is used as an atomic.
        unsafe { std::slice::from_raw_parts_mut(buffer, RECEIVE) }
    }

    /// The request in it, if there is one: its first field, the length, says so.
    #[expect(
        clippy::disallowed_methods,
        reason = "the kernel wrote it, in the machine's byte order"
    )]
    pub(super) fn request(&mut self) -> Option<&[u8]> {
        let bytes = self.bytes();
        let len = u32::from_ne_bytes(*bytes.first_chunk()?);
        let len = usize::try_from(len).ok().filter(|&len| len > 0)?;
        bytes.get(..len)
    }

    /// Says that there is no request in it any more.
    pub(super) fn clear(&mut self) {
        if let Some(header) = self.bytes().get_mut(..8) {
            header.fill(0);
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(lent) = self.journal.lent.get(self.index) {
            lent.store(false, Ordering::Release);
        }
    }
}

fn bytes(words: usize) -> u64 {
    u64::try_from(words).unwrap_or(u64::MAX).saturating_mul(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(unique: u64) -> Written {
        Written {
            unique,
            layer: 7,
            offset: unique << 12,
            size: 4096,
        }
    }

    /// What another process that has the descriptor makes of it.
    fn adopted(journal: &Journal) -> Option<Journal> {
        Journal::adopt(journal.memory().try_clone().unwrap()).unwrap()
    }

    #[test]
    fn what_is_written_and_not_struck_is_found_by_the_next() {
        let journal = Journal::create(true).unwrap();
        let slots: Vec<Slot> = (1..=100)
            .map(|n| journal.record(read(n)).unwrap())
            .collect();
        for slot in &slots[..98] {
            journal.strike(*slot);
        }
        let next = adopted(&journal).unwrap();
        let found = next.reads();
        assert_eq!(
            found,
            [(slots[98], read(99)), (slots[99], read(100))].to_vec()
        );
        // Its own entries do not lie on those that it found.
        for n in 1000..1000 + 8190 {
            let slot = next.record(read(n)).unwrap();
            assert!(!slots[98..].contains(&slot));
        }
        assert_eq!(next.record(read(1)), None, "full");
        next.strike(found[0].0);
        assert!(next.record(read(2)).is_some());
    }

    #[test]
    fn a_request_in_a_buffer_is_found_by_the_next_until_it_is_cleared() {
        let journal = Arc::new(Journal::create(true).unwrap());
        let mut buffer = journal.buffer(3).unwrap();
        assert!(journal.buffer(3).is_none(), "lent to one");
        assert!(journal.buffer(BUFFERS).is_none());
        buffer.bytes()[..5].copy_from_slice(b"\x05\0\0\0x");
        let next = Arc::new(adopted(&journal).unwrap());
        let found: Vec<Vec<u8>> = next
            .buffers()
            .iter_mut()
            .filter_map(|buffer| buffer.request().map(<[u8]>::to_vec))
            .collect();
        assert_eq!(found, [b"\x05\0\0\0x".to_vec()]);
        buffer.clear();
        let mut again = next.buffer(3).unwrap();
        assert_eq!(again.request(), None);
    }

    #[test]
    fn where_the_kernel_sends_again_nothing_is_written() {
        let journal = Arc::new(Journal::create(false).unwrap());
        assert_eq!(journal.record(read(1)), None);
        assert!(journal.buffer(0).is_none());
        assert!(!adopted(&journal).unwrap().is_written());
    }

    #[test]
    fn what_is_not_a_journal_is_not_taken_for_one() {
        let journal = Journal::create(true).unwrap();
        journal.put(1, LAYOUT + 1);
        assert!(adopted(&journal).is_none());
        let other = rustix::fs::memfd_create("other", MemfdFlags::CLOEXEC).unwrap();
        assert!(Journal::adopt(other).unwrap().is_none());
    }
}
