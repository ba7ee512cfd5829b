//! The journal: memory that outlives the process and contains the unanswered requests.
//!
//! It is a memfd that is kept together with the `/dev/fuse` descriptor. Each thread reads requests
//! directly *into* its own buffer of the journal, so a killed process never holds a request that
//! the next one does not know. A READ then moves to a table until its answer is written. If the
//! kernel can resend requests (Linux 6.9), the journal only records that and stays empty.
//!
//! A recorded request may already be answered, because a process can die before it strikes the
//! entry. The kernel rejects a second answer, so answering again is harmless.

#![allow(
    unsafe_code,
    reason = "maps memory that another process reads after this one ends: `word`, `Buffer`"
)]

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

/// Receive buffer of a thread in bytes. The kernel requires room for its largest request: 8 KiB, or
/// a WRITE with its headers. It rejects longer requests (setxattr) itself.
pub(super) const RECEIVE: usize = 16 * 1024;

/// First word of a journal, and the version of its layout.
const MAGIC: u64 = u64::from_le_bytes(*b"socijrnl");
const LAYOUT: u64 = 1;
/// Words of the header. The first three are used: magic, layout, how requests are recovered.
const HEADER_WORDS: usize = 512;
const RESENT: u64 = 1;
const WRITTEN_DOWN: u64 = 2;
/// Number of buffers, one for each thread.
const BUFFERS: usize = 8;
const BUFFER_WORDS: usize = RECEIVE / 8;
/// Number of READs that can be recorded: twice what the kernel sends at once.
const SLOTS: usize = 8192;
/// Identity, layer, offset, size.
const SLOT_WORDS: usize = 4;
const TABLE: usize = HEADER_WORDS + BUFFERS * BUFFER_WORDS;
const WORDS: usize = TABLE + SLOTS * SLOT_WORDS;

/// Index of a recorded READ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot(usize);

/// A recorded READ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) unique: u64,
    pub(super) layer: u64,
    pub(super) offset: u64,
    pub(super) size: u32,
}

/// See the module documentation.
#[derive(Debug)]
pub(super) struct Journal {
    memory: OwnedFd,
    map: MmapRaw,
    /// Whether requests are recorded. Otherwise the kernel resends them.
    written: bool,
    free: Mutex<Vec<Slot>>,
    lent: [AtomicBool; BUFFERS],
    overflown: AtomicBool,
}

impl Journal {
    /// Creates a journal.
    pub(super) fn create(written: bool) -> Result<Self, Errno> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = rustix::fs::memfd_create("soci-journal", flags)?;
        rustix::fs::ftruncate(&memory, bytes(WORDS))?;
        // A process that keeps the descriptor cannot shrink the mapping.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&memory, seals)?;
        let journal = Self::map(memory, written)?;
        let how = if written { WRITTEN_DOWN } else { RESENT };
        for (index, value) in [MAGIC, LAYOUT, how].into_iter().enumerate() {
            journal.put(index, value);
        }
        Ok(journal)
    }

    /// Adopts the journal of an earlier process. `None` if its layout is unknown.
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

    /// The descriptor of the memory.
    pub(super) fn memory(&self) -> &OwnedFd {
        &self.memory
    }

    /// Whether requests are recorded. Otherwise the kernel resends them.
    pub(super) fn is_written(&self) -> bool {
        self.written
    }

    fn word(&self, index: usize) -> Option<&AtomicU64> {
        if index >= WORDS {
            return None;
        }
        let word = self.map.as_mut_ptr().wrapping_add(index * 8).cast::<u64>();
        // JUSTIFICATION: memory shared with another process has no safe wrapper.
        // SAFETY: the word lies in the mapping, which is page-aligned, lives as long as `self` and
        // cannot shrink (sealed). All of it but the buffers is only accessed through atomics.
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

    /// Records a READ. `None` if the kernel resends it, or if the journal is full.
    pub(super) fn record(&self, read: Written) -> Option<Slot> {
        if !self.written {
            return None;
        }
        let free = &self.free;
        let Some(slot) = free.lock().unwrap_or_else(PoisonError::into_inner).pop() else {
            if !self.overflown.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    slots = SLOTS,
                    "the journal is full, some reads will not survive a restart"
                );
            }
            return None;
        };
        let at = TABLE + slot.0 * SLOT_WORDS;
        self.put(at + 1, read.layer);
        self.put(at + 2, read.offset);
        self.put(at + 3, u64::from(read.size));
        // Written last: it makes the entry valid.
        self.put(at, read.unique);
        Some(slot)
    }

    /// Removes a READ that is answered.
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

    /// The buffer of a thread. Each buffer is lent once at a time.
    pub(super) fn buffer(self: &Arc<Self>, index: usize) -> Option<Buffer> {
        let lent = self.lent.get(index)?;
        if !self.written || lent.swap(true, Ordering::AcqRel) {
            return None;
        }
        let journal = Arc::clone(self);
        Some(Buffer { journal, index })
    }

    /// All buffers, for the requests that an earlier process read into them.
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
        // JUSTIFICATION: as for `word`; the kernel reads requests into memory that outlives the
        // process.
        // SAFETY: the range lies in the mapping (`index` is below `BUFFERS`), which the journal
        // keeps alive. `lent` allows one `Buffer` for it, and none of its words is accessed as an
        // atomic.
        unsafe { std::slice::from_raw_parts_mut(buffer, RECEIVE) }
    }

    /// The request in the buffer, if any. Its first field is its length.
    #[expect(
        clippy::disallowed_methods,
        reason = "the kernel writes it in host byte order"
    )]
    pub(super) fn request(&mut self) -> Option<&[u8]> {
        let bytes = self.bytes();
        let len = u32::from_ne_bytes(*bytes.first_chunk()?);
        let len = usize::try_from(len).ok().filter(|&len| len > 0)?;
        bytes.get(..len)
    }

    /// Marks the buffer as empty.
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

    /// The journal as seen by another process that has the descriptor.
    fn adopted(journal: &Journal) -> Option<Journal> {
        Journal::adopt(journal.memory().try_clone().unwrap()).unwrap()
    }

    #[test]
    fn recorded_reads_are_found_by_the_next_process_until_struck() {
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
        // New entries do not overwrite the adopted ones.
        for n in 1000..1000 + 8190 {
            let slot = next.record(read(n)).unwrap();
            assert!(!slots[98..].contains(&slot));
        }
        assert_eq!(next.record(read(1)), None, "full");
        next.strike(found[0].0);
        assert!(next.record(read(2)).is_some());
    }

    #[test]
    fn a_request_in_a_buffer_is_found_by_the_next_process_until_cleared() {
        let journal = Arc::new(Journal::create(true).unwrap());
        let mut buffer = journal.buffer(3).unwrap();
        assert!(journal.buffer(3).is_none(), "the buffer is already lent");
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
    fn nothing_is_recorded_if_the_kernel_resends() {
        let journal = Arc::new(Journal::create(false).unwrap());
        assert_eq!(journal.record(read(1)), None);
        assert!(journal.buffer(0).is_none());
        assert!(!adopted(&journal).unwrap().is_written());
    }

    #[test]
    fn other_memory_is_not_adopted_as_a_journal() {
        let journal = Journal::create(true).unwrap();
        journal.put(1, LAYOUT + 1);
        assert!(adopted(&journal).is_none());
        let other = rustix::fs::memfd_create("other", MemfdFlags::CLOEXEC).unwrap();
        assert!(Journal::adopt(other).unwrap().is_none());
    }
}
