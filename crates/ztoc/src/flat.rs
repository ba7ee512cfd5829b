//! Reads FlatBuffers tables without trusting them: every access is bounds-checked.
//!
//! The official runtime verifies a buffer once ([`crate::codec`]), and afterwards no access can
//! fail. If one does, because a mapped file was modified, the result is an empty value, never a
//! read outside the buffer.

#![warn(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects
)]

/// One table: a position in a verified buffer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table<'a> {
    buf: &'a [u8],
    pos: usize,
}

/// A vector of tables.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vector<'a> {
    buf: &'a [u8],
    /// Position of the first element.
    pos: usize,
    len: usize,
}

impl<'a> Table<'a> {
    /// The root table of a buffer.
    pub(crate) fn root(buf: &'a [u8]) -> Self {
        Self {
            buf,
            pos: u32_at(buf, 0).unwrap_or(0) as usize,
        }
    }

    /// The byte string in field `id`; empty if the field is absent.
    pub(crate) fn bytes(&self, id: u16) -> &'a [u8] {
        self.vector_bounds(id, 1)
            .and_then(|(pos, len)| self.buf.get(pos..)?.get(..len))
            .unwrap_or_default()
    }

    /// The table in field `id`.
    pub(crate) fn table(&self, id: u16) -> Option<Table<'a>> {
        let pos = follow(self.buf, self.field(id)?)?;
        Some(Table { buf: self.buf, pos })
    }

    /// The vector of offsets in field `id`; empty if the field is absent.
    pub(crate) fn vector(&self, id: u16) -> Vector<'a> {
        let (pos, len) = self.vector_bounds(id, 4).unwrap_or((0, 0));
        Vector {
            buf: self.buf,
            pos,
            len,
        }
    }

    pub(crate) fn i8(&self, id: u16, default: i8) -> i8 {
        self.scalar(id).map_or(default, i8::from_le_bytes)
    }

    pub(crate) fn i32(&self, id: u16) -> i32 {
        self.scalar(id).map_or(0, i32::from_le_bytes)
    }

    pub(crate) fn u32(&self, id: u16) -> u32 {
        self.scalar(id).map_or(0, u32::from_le_bytes)
    }

    pub(crate) fn i64(&self, id: u16) -> i64 {
        self.scalar(id).map_or(0, i64::from_le_bytes)
    }

    fn scalar<const N: usize>(&self, id: u16) -> Option<[u8; N]> {
        self.buf.get(self.field(id)?..)?.first_chunk().copied()
    }

    /// First element and length of the vector in field `id`, if it lies within the buffer.
    fn vector_bounds(&self, id: u16, element: usize) -> Option<(usize, usize)> {
        let at = follow(self.buf, self.field(id)?)?;
        let len = u32_at(self.buf, at)? as usize;
        let pos = at.checked_add(4)?;
        let end = len.checked_mul(element)?.checked_add(pos)?;
        (end <= self.buf.len()).then_some((pos, len))
    }

    /// Position of field `id`, if present.
    pub(crate) fn field(&self, id: u16) -> Option<usize> {
        let back = i32::from_le_bytes(*self.buf.get(self.pos..)?.first_chunk()?);
        let vtable = self
            .pos
            .checked_add_signed(isize::try_from(back).ok()?.checked_neg()?)?;
        let slot = usize::from(id).checked_mul(2)?.checked_add(4)?;
        if slot >= usize::from(u16_at(self.buf, vtable)?) {
            return None;
        }
        match u16_at(self.buf, vtable.checked_add(slot)?)? {
            0 => None,
            offset => self.pos.checked_add(usize::from(offset)),
        }
    }
}

impl<'a> Vector<'a> {
    pub(crate) const EMPTY: Self = Self {
        buf: &[],
        pos: 0,
        len: 0,
    };

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The table at `index`; an empty one if out of bounds.
    pub(crate) fn table(&self, index: usize) -> Table<'a> {
        let pos = self.target(index).unwrap_or(self.buf.len());
        Table { buf: self.buf, pos }
    }

    /// The byte string at `index`; empty if out of bounds.
    pub(crate) fn bytes(&self, index: usize) -> &'a [u8] {
        let read = || {
            let at = self.target(index)?;
            let len = u32_at(self.buf, at)? as usize;
            self.buf.get(at.checked_add(4)?..)?.get(..len)
        };
        read().unwrap_or_default()
    }

    fn target(&self, index: usize) -> Option<usize> {
        if index >= self.len {
            return None;
        }
        follow(self.buf, index.checked_mul(4)?.checked_add(self.pos)?)
    }
}

/// The target of the offset at `pos`.
fn follow(buf: &[u8], pos: usize) -> Option<usize> {
    pos.checked_add(u32_at(buf, pos)? as usize)
}

fn u32_at(buf: &[u8], pos: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*buf.get(pos..)?.first_chunk()?))
}

fn u16_at(buf: &[u8], pos: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*buf.get(pos..)?.first_chunk()?))
}
