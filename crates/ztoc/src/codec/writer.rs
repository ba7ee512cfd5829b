//! Writes FlatBuffers back to front, with temporary files for large buffers.
//!
//! An object is written before the objects that refer to it and has a higher offset, so a buffer
//! grows at its front. The writer stores the bytes in reverse order, which turns this into an
//! append, and finished parts do not have to stay in memory.
//!
//! Positions count from the end of the buffer, and alignment is relative to that end, as the format
//! requires. Objects written elsewhere ([`Writer::skip`]) are counted, but not stored here.

use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom, Write};

use tempfile::SpooledTempFile;

/// Bytes that stay in memory, enough for a table of about 10,000 files.
const SPOOL_SIZE: usize = 1 << 20;

/// Bytes copied at a time.
const BLOCK: usize = 64 * 1024;

/// Position of an object: the distance in bytes from its first byte to the end of the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct At(u32);

/// A buffer under construction.
#[derive(Debug)]
pub(super) struct Writer {
    /// Everything written since the last [`Writer::skip`], last byte first; the newest part is in
    /// `recent`.
    spool: SpooledTempFile,
    recent: Vec<u8>,
    /// Size of the whole buffer so far, in bytes.
    used: u32,
    /// Largest alignment so far.
    alignment: u32,
    /// Tables of the same shape share a vtable.
    vtables: HashMap<Vec<u8>, At>,
    /// Fields of the current table: number and position.
    fields: Vec<(u16, At)>,
    /// The end of the current table.
    tail: u32,
}

/// A number type of a field.
pub(super) trait Scalar: Copy + PartialEq {
    type Bytes: AsRef<[u8]>;
    fn bytes(self) -> Self::Bytes;
}

macro_rules! scalars {
    ($($number:ty),*) => {$(
        impl Scalar for $number {
            type Bytes = [u8; size_of::<$number>()];
            fn bytes(self) -> Self::Bytes {
                self.to_le_bytes()
            }
        }
    )*};
}

scalars!(i8, i32, u32, i64);

/// A finished part of a buffer.
#[derive(Debug)]
pub(super) struct Written {
    spool: SpooledTempFile,
    recent: Vec<u8>,
}

impl Writer {
    pub(super) fn new() -> Self {
        Self {
            spool: SpooledTempFile::new(SPOOL_SIZE),
            recent: Vec::with_capacity(BLOCK),
            used: 0,
            alignment: 1,
            vtables: HashMap::new(),
            fields: Vec::new(),
            tail: 0,
        }
    }

    /// Size of the buffer so far, in bytes.
    pub(super) fn used(&self) -> u32 {
        self.used
    }

    /// Returns the finished part and continues before `len` bytes that are stored elsewhere.
    pub(super) fn skip(&mut self, len: u32) -> io::Result<Written> {
        self.count(len as usize)?;
        Ok(Written {
            spool: std::mem::replace(&mut self.spool, SpooledTempFile::new(SPOOL_SIZE)),
            recent: std::mem::take(&mut self.recent),
        })
    }

    /// Writes a byte string: length, bytes, a zero.
    pub(super) fn string(&mut self, bytes: &[u8]) -> io::Result<At> {
        self.align(bytes.len() + 1, 4)?;
        self.push(&[0])?;
        self.push(bytes)?;
        self.scalar(u32_len(bytes.len())?)
    }

    /// Writes a vector of references.
    pub(super) fn vector(&mut self, objects: &[At]) -> io::Result<At> {
        self.align(objects.len() * 4, 4)?;
        for object in objects.iter().rev() {
            self.reference(*object)?;
        }
        self.scalar(u32_len(objects.len())?)
    }

    /// Writes the length of a byte vector whose content was passed to [`Writer::skip`].
    pub(super) fn vector_of_skipped(&mut self, len: u32) -> io::Result<At> {
        self.scalar(len)
    }

    /// Writes zeros, so that `len` bytes in front of them begin at a multiple of `alignment`.
    pub(super) fn align(&mut self, len: usize, alignment: u32) -> io::Result<()> {
        self.alignment = self.alignment.max(alignment);
        let end = self.used as usize + len;
        let padding = end.next_multiple_of(alignment as usize) - end;
        self.push([0; 8].get(..padding).unwrap_or_default())
    }

    /// Begins a table. Its fields follow, then [`Writer::end_table`].
    pub(super) fn begin_table(&mut self) {
        self.fields.clear();
        self.tail = self.used;
    }

    /// Writes a numeric field, unless it has its default value.
    pub(super) fn number<S: Scalar>(&mut self, field: u16, value: S, default: S) -> io::Result<()> {
        if value != default {
            let at = self.scalar(value)?;
            self.fields.push((field, at));
        }
        Ok(())
    }

    /// Writes a field that refers to an object.
    pub(super) fn object(&mut self, field: u16, object: At) -> io::Result<()> {
        let at = self.reference(object)?;
        self.fields.push((field, at));
        Ok(())
    }

    /// Ends the table. Writes its vtable unless an identical one exists.
    pub(super) fn end_table(&mut self) -> io::Result<At> {
        self.align(4, 4)?;
        let table = self.used + 4;
        let slots = self.fields.iter().map(|(field, _)| field + 1).max();
        let mut vtable = vec![0; 4 + 2 * usize::from(slots.unwrap_or(0))];
        let mut put = |at: usize, value: u32| {
            if let (Some(slot), Ok(value)) = (
                vtable.get_mut(at..).and_then(|rest| rest.first_chunk_mut()),
                u16::try_from(value),
            ) {
                *slot = value.to_le_bytes();
            }
        };
        put(0, 4 + 2 * u32::from(slots.unwrap_or(0)));
        put(2, table - self.tail);
        for (field, at) in &self.fields {
            put(4 + 2 * usize::from(*field), table - at.0);
        }
        let known = self.vtables.get(&vtable).copied();
        let vtable_at = known.unwrap_or(At(table + u32_len(vtable.len())?));
        self.scalar(vtable_at.0.wrapping_sub(table))?;
        if known.is_none() {
            self.push(&vtable)?;
            self.vtables.insert(vtable, vtable_at);
        }
        Ok(At(table))
    }

    /// Writes the reference to the root table, which is the first word of the buffer.
    pub(super) fn finish(&mut self, root: At) -> io::Result<Written> {
        self.align(4, self.alignment)?;
        self.reference(root)?;
        self.skip(0)
    }

    fn scalar<S: Scalar>(&mut self, value: S) -> io::Result<At> {
        let bytes = value.bytes();
        let bytes = bytes.as_ref();
        self.align(bytes.len(), u32_len(bytes.len())?)?;
        self.push(bytes)?;
        Ok(At(self.used))
    }

    /// Writes the distance from here to an object.
    fn reference(&mut self, object: At) -> io::Result<At> {
        self.align(4, 4)?;
        self.scalar(self.used + 4 - object.0)
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.count(bytes.len())?;
        self.recent.extend(bytes.iter().rev());
        if self.recent.len() >= BLOCK {
            self.spool.write_all(&self.recent)?;
            self.recent.clear();
        }
        Ok(())
    }

    fn count(&mut self, len: usize) -> io::Result<()> {
        let used = self.used.checked_add(u32_len(len)?);
        // Distances are signed, so the buffer must stay within `i32`.
        self.used = used
            .filter(|&used| i32::try_from(used).is_ok())
            .ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(())
    }
}

impl Written {
    /// Writes the bytes of the part in their final order.
    pub(super) fn copy_to(mut self, out: &mut impl Write) -> io::Result<()> {
        self.recent.reverse();
        out.write_all(&self.recent)?;
        let mut left = self.spool.seek(SeekFrom::End(0))?;
        while left > 0 {
            let len = left.min(BLOCK as u64);
            left -= len;
            self.recent.resize(usize::try_from(len).unwrap_or(BLOCK), 0);
            self.spool.seek(SeekFrom::Start(left))?;
            self.spool.read_exact(&mut self.recent)?;
            self.recent.reverse();
            out.write_all(&self.recent)?;
        }
        Ok(())
    }
}

fn u32_len(len: usize) -> io::Result<u32> {
    u32::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge.into())
}
