//! Work on blocking threads that ends soon after the task that waits for it is dropped.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Stops the work on another thread when it is dropped.
#[derive(Debug, Default)]
pub(super) struct StopOnDrop(Arc<AtomicBool>);

impl StopOnDrop {
    pub(super) fn flag(&self) -> Stop {
        Stop(Arc::clone(&self.0))
    }
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Tells the work whether its results are still needed.
#[derive(Debug, Clone)]
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Whether the work is stopped.
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Fails when the work is stopped. Nobody receives the error.
    pub(super) fn check(&self) -> io::Result<()> {
        if self.is_set() {
            return Err(io::Error::other("given up"));
        }
        Ok(())
    }
}

/// A reader or writer that fails when the work is stopped.
pub(super) struct Stoppable<T> {
    inner: T,
    stop: Stop,
}

impl<T> Stoppable<T> {
    pub(super) fn new(inner: T, stop: &StopOnDrop) -> Self {
        Self::of(inner, stop.flag())
    }

    pub(super) fn of(inner: T, stop: Stop) -> Self {
        Self { inner, stop }
    }

    pub(super) fn into_inner(self) -> T {
        self.inner
    }
}

impl<R: Read> Read for Stoppable<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stop.check()?;
        self.inner.read(buffer)
    }
}

impl<W: Write> Write for Stoppable<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stop.check()?;
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
