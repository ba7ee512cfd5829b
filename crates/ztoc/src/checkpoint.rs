//! Checkpoints: what a decoder needs to begin in the middle of a layer.

/// Bytes of history that deflate can refer back to; a checkpoint's window has this length.
pub const WINDOW: usize = 32 * 1024;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Compression {
    /// gzip, one member or several.
    Gzip,
    /// Not at all: the blob is the tar.
    Plain,
}

impl Compression {
    /// Judges by the first bytes of a layer, as containerd does when it unpacks: gzip by its magic
    /// number, anything else is taken for a tar. Give it at least three bytes where there are so many.
    #[must_use]
    pub fn sniff(start: &[u8]) -> Self {
        if start.starts_with(&[0x1f, 0x8b, 0x08]) {
            Self::Gzip
        } else {
            Self::Plain
        }
    }
}

/// State from which one span can be decoded alone.
#[derive(Debug, Clone, Copy)]
pub enum Checkpoint<'a> {
    /// The span's bytes are the archive's bytes.
    Plain,
    /// The span is a piece of a deflate stream.
    Gzip {
        /// Number of high bits of the span's first byte that belong to it, 0 for all.
        bits: u8,
        /// The [`WINDOW`] bytes of output before the span, oldest first, zeros where there were fewer;
        /// or empty, which stands for zeros only.
        window: &'a [u8],
    },
}
