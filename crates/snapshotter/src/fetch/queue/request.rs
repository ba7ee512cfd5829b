//! Ranges of blobs, alone and in a request.

use std::ops::Range;

use soci_oci::Digest;

use super::{FlightId, PieceId};
use crate::{
    fetch::Class,
    sync::{Arc, atomic::AtomicU64},
};

/// Which bytes.
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

/// One request to make: pieces that follow each other in one blob (neighbours may share a byte).
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) flight: FlightId,
    pub(crate) blob: Digest,
    pub(crate) image: Arc<str>,
    pub(crate) class: Class,
    pub(crate) pieces: Vec<(PieceId, Range<u64>)>,
    /// First byte that has not come; kept up to date by who reads the body.
    pub(crate) position: Arc<AtomicU64>,
}

impl Request {
    /// From the first piece's first byte to the last piece's end.
    pub(crate) fn range(&self) -> Range<u64> {
        let start = self.pieces.first().map_or(0, |(_, range)| range.start);
        start..self.pieces.last().map_or(start, |(_, range)| range.end)
    }
}
