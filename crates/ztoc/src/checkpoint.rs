//! Checkpoints: the state that a decoder needs to start in the middle of a layer.

/// The history that deflate can refer to, in bytes, and the length of a checkpoint's window.
pub const WINDOW: usize = 32 * 1024;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// gzip with one or more members.
    Gzip,
    /// Uncompressed: the blob is the tar.
    Plain,
}

impl Compression {
    /// Detects the compression from the first bytes of a layer, as containerd does when it unpacks:
    /// gzip by its magic number, and anything else is a tar. Pass at least three bytes if the layer
    /// has that many.
    #[must_use]
    pub fn sniff(start: &[u8]) -> Self {
        if start.starts_with(&[0x1f, 0x8b, 0x08]) {
            Self::Gzip
        } else {
            Self::Plain
        }
    }
}

/// The state from which a span can be decoded on its own.
#[derive(Debug, Clone, Copy)]
pub enum Checkpoint<'a> {
    /// The span's bytes are the archive's bytes.
    Plain,
    /// The span is part of a deflate stream.
    Gzip {
        /// Number of high bits of the span's first byte that belong to it, 0 for all.
        bits: u8,
        /// The [`WINDOW`] bytes of output before the span, oldest first, padded with zeros; or
        /// empty, which means all zeros.
        window: &'a [u8],
    },
}
