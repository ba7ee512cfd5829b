//! Decompresses a whole layer as a stream, in whichever format its first bytes show.
//!
//! The caller brings the output buffers, so that it can pass them on without a copy and bound them.

use thiserror::Error;

use crate::gzip::GzipError;
use crate::gzip::layer::Members;
use crate::zstd::{Frames, ZstdError};

/// The format of a layer's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerFormat {
    /// A tar.
    Plain,
    /// gzip with one or more members.
    Gzip,
    /// zstd with one or more frames. This includes zstd:chunked.
    Zstd,
}

impl LayerFormat {
    /// How many of a layer's first bytes decide.
    pub const SNIFFED: usize = 4;

    /// Detects the format from the first bytes of a layer, as containerd does when it unpacks. Pass
    /// [`LayerFormat::SNIFFED`] bytes or more if the layer has that many.
    #[must_use]
    pub fn sniff(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A frame that a decoder skips.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }
}

/// Why a layer cannot be decompressed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LayerError {
    /// It is not valid gzip.
    #[error(transparent)]
    Gzip(#[from] GzipError),
    /// It is not valid zstd, or needs too much memory.
    #[error(transparent)]
    Zstd(#[from] ZstdError),
}

/// Decompresses a layer that is read in order. Accepts what containerd accepts: members and frames
/// with the correct checksums, and nothing after the last.
#[derive(Debug)]
pub struct LayerDecoder(Kind);

#[derive(Debug)]
enum Kind {
    Plain,
    Gzip(Members),
    Zstd(Frames),
}

impl LayerDecoder {
    /// Starts a stream.
    ///
    /// # Errors
    /// [`LayerError`] if there is no memory for the decoder.
    pub fn new(format: LayerFormat) -> Result<Self, LayerError> {
        Ok(Self(match format {
            LayerFormat::Plain => Kind::Plain,
            LayerFormat::Gzip => Kind::Gzip(Members::new()?),
            LayerFormat::Zstd => Kind::Zstd(Frames::new()?),
        }))
    }

    /// Fills `out` from `input`, which it advances, and returns how many bytes it wrote. Fewer than
    /// `out` has room for means that all of `input` is consumed and nothing is held back.
    ///
    /// # Errors
    /// [`LayerError`] if the stream is damaged; the value cannot be used afterwards.
    pub fn fill(&mut self, input: &mut &[u8], out: &mut [u8]) -> Result<usize, LayerError> {
        match &mut self.0 {
            Kind::Plain => {
                let (now, later) = input.split_at(input.len().min(out.len()));
                if let Some(room) = out.get_mut(..now.len()) {
                    room.copy_from_slice(now);
                }
                *input = later;
                Ok(now.len())
            }
            Kind::Gzip(members) => Ok(members.fill(input, out)?),
            Kind::Zstd(frames) => Ok(frames.fill(input, out)?),
        }
    }

    /// Ends the stream.
    ///
    /// # Errors
    /// [`LayerError`] if the stream ends inside a member or frame, or before the first.
    pub fn finish(self) -> Result<(), LayerError> {
        match self.0 {
            Kind::Plain => Ok(()),
            Kind::Gzip(members) => Ok(members.finish()?),
            Kind::Zstd(frames) => Ok(frames.finish()?),
        }
    }
}
