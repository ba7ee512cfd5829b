//! Streams large results to standard output.

use std::io::{self, BufWriter, ErrorKind, StdoutLock, Write};

use anyhow::{Context as _, Result};

/// Buffered standard output. A closed pipe is not an error, but the caller should stop: see
/// [`Stream::is_open`].
#[derive(Debug)]
pub(crate) struct Stream {
    out: BufWriter<StdoutLock<'static>>,
    open: bool,
}

impl Stream {
    pub(crate) fn new() -> Self {
        Self {
            out: BufWriter::with_capacity(64 << 10, io::stdout().lock()),
            open: true,
        }
    }

    /// Whether the pipe is still open.
    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if !self.open {
            return Ok(());
        }
        let written = self.out.write_all(bytes);
        self.judge(written)
    }

    /// Flushes the buffer. Without this call, buffered data is lost.
    pub(crate) fn finish(mut self) -> Result<()> {
        let flushed = if self.open { self.out.flush() } else { Ok(()) };
        let judged = self.judge(flushed);
        // Discard the buffer, so that a failed write is not retried on drop.
        drop(self.out.into_parts());
        judged
    }

    fn judge(&mut self, result: io::Result<()>) -> Result<()> {
        match result {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.open = false;
                Ok(())
            }
            other => other.context("cannot write to standard output"),
        }
    }
}

/// Prints a complete result.
pub(crate) fn show(text: &str) -> Result<()> {
    let mut stream = Stream::new();
    stream.write(text.as_bytes())?;
    stream.finish()
}
