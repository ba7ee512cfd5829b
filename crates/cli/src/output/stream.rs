//! Results on standard output while they are made.

use std::io::{self, BufWriter, ErrorKind, StdoutLock, Write};

use anyhow::{Context as _, Result};

/// Standard output for large results. Nobody listening is no error, but the end of the work: see
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

    /// Whether somebody still listens.
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

    /// Writes what is left. What is not flushed is lost.
    pub(crate) fn finish(mut self) -> Result<()> {
        let flushed = if self.open { self.out.flush() } else { Ok(()) };
        let judged = self.judge(flushed);
        // What could not be written must not be tried again.
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

/// Prints a result as a whole.
pub(crate) fn show(text: &str) -> Result<()> {
    let mut stream = Stream::new();
    stream.write(text.as_bytes())?;
    stream.finish()
}
