//! The decoded bytes of a span, which readers may share.

use std::ops::Deref;

use crate::sync::Arc;

/// The bytes of a span in a decoder's buffer, or on their own.
pub(super) enum Decoded<'d> {
    Buffer(&'d [u8]),
    Own(Arc<Vec<u8>>),
}

impl Decoded<'_> {
    /// For readers and for keeping. Copies the bytes of a buffer.
    pub(super) fn share(&self) -> Arc<Vec<u8>> {
        match self {
            Decoded::Buffer(bytes) => Arc::new(bytes.to_vec()),
            Decoded::Own(bytes) => Arc::clone(bytes),
        }
    }
}

impl Deref for Decoded<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Decoded::Buffer(bytes) => bytes,
            Decoded::Own(bytes) => bytes,
        }
    }
}
