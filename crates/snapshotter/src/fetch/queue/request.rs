//! Byte ranges of blobs, and requests that carry them.

use std::ops::Range;

use soci_oci::Digest;

use super::{FlightId, PieceId};
use crate::{
    fetch::Class,
    sync::{Arc, atomic::AtomicU64},
};

/// A byte range of a blob.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) blob: Digest,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Key {
    pub(crate) fn range(&self) -> Range<u64> {
        self.start..self.end
    }
}

/// One request to make: consecutive pieces of one blob. Neighbors may share a byte.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) flight: FlightId,
    pub(crate) blob: Digest,
    pub(crate) image: Arc<str>,
    pub(crate) class: Class,
    pub(crate) pieces: Vec<(PieceId, Range<u64>)>,
    /// The first byte that has not arrived. The flight updates it as it reads the body.
    pub(crate) position: Arc<AtomicU64>,
}

impl Request {
    /// From the first byte of the first piece to the end of the last piece.
    pub(crate) fn range(&self) -> Range<u64> {
        let start = self.pieces.first().map_or(0, |(_, range)| range.start);
        start..self.pieces.last().map_or(start, |(_, range)| range.end)
    }
}
