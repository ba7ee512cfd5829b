//! Decompresses a whole layer as a stream, in whichever format its first bytes show.
//!
//! The caller brings the output buffers, so that it can pass them on without a copy and bound them.

use thiserror::Error;

use crate::gzip::GzipError;
use crate::gzip::layer::Members;
use crate::zstd::{self, Frames, ZstdError};

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
    /// Starts a stream. A zstd window takes up to 128 MiB of memory.
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

    /// The largest zstd window that [`LayerDecoder::small`] accepts, in bytes.
    pub const SMALL_WINDOW: u64 = 1 << zstd::SMALL_WINDOW_LOG;

    /// As [`LayerDecoder::new`], for zstd frames whose window is at most
    /// [`LayerDecoder::SMALL_WINDOW`]. Others are an error.
    ///
    /// # Errors
    /// [`LayerError`] if there is no memory for the decoder.
    pub fn small(format: LayerFormat) -> Result<Self, LayerError> {
        match format {
            LayerFormat::Zstd => {
                let frames = Frames::limited(zstd::SMALL_WINDOW_LOG)?;
                Ok(Self(Kind::Zstd(frames)))
            }
            LayerFormat::Plain | LayerFormat::Gzip => Self::new(format),
        }
    }

    /// Whether [`LayerDecoder::small`] accepts the first frame or member of a layer, according to
    /// its first bytes. False if they do not say.
    #[must_use]
    pub fn is_small(start: &[u8]) -> bool {
        match LayerFormat::sniff(start) {
            LayerFormat::Zstd => {
                zstd::window(start).is_some_and(|window| window <= Self::SMALL_WINDOW)
            }
            LayerFormat::Plain | LayerFormat::Gzip => true,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame with a window of two to the power of `log`, and five bytes as they are.
    fn frame(log: u8) -> Vec<u8> {
        let header = [0x28, 0xb5, 0x2f, 0xfd, 0x00, (log - 10) << 3];
        [&header[..], &[0x29, 0, 0], b"hello"].concat()
    }

    fn decode(mut decoder: LayerDecoder, layer: &[u8]) -> Result<Vec<u8>, LayerError> {
        let (mut input, mut out) = (layer, vec![0; 100]);
        let filled = decoder.fill(&mut input, &mut out)?;
        out.truncate(filled);
        decoder.finish().map(|()| out)
    }

    #[test]
    fn a_small_decoder_refuses_large_windows_also_of_later_frames() {
        let small = || LayerDecoder::small(LayerFormat::Zstd).unwrap();
        let large = || LayerDecoder::new(LayerFormat::Zstd).unwrap();
        let (eight, sixteen) = (frame(23), frame(24));
        assert!(LayerDecoder::is_small(&eight));
        assert!(!LayerDecoder::is_small(&sixteen));
        assert!(!LayerDecoder::is_small(&eight[..5]));
        assert_eq!(decode(small(), &eight).unwrap(), b"hello");
        assert_eq!(decode(large(), &sixteen).unwrap(), b"hello");
        assert_eq!(decode(large(), &frame(27)).unwrap(), b"hello");
        assert!(decode(large(), &frame(28)).is_err());
        let later = [eight, sixteen].concat();
        assert!(LayerDecoder::is_small(&later));
        assert_eq!(decode(large(), &later).unwrap(), b"hellohello");
        let error = decode(small(), &later).unwrap_err().to_string();
        assert!(error.contains("too much memory"), "{error}");
    }
}
