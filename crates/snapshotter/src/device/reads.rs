//! The files of the device, and the READs of them that the kernel still waits for.
//!
//! This module alone knows which READs of which layer are unanswered, so it answers each exactly
//! once. A READ is *held* (its file is not known yet), *waiting* (its file has been asked), or
//! being answered. All three count as unanswered.
//!
//! READs of a layer are refused while the layer is removed: none may be unanswered when its mount
//! goes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rustix::io::Errno;

use super::journal::{Slot, Written};
use super::session::Connection;
use super::wire::Unique;
use crate::layer::{DeviceFile, ReadError};
use crate::metrics::{ReadFailure, global as metrics};

/// A READ as the kernel sent it.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) connection: Arc<Connection>,
    pub(super) unique: Unique,
    pub(super) layer: u64,
    pub(super) offset: u64,
    pub(super) size: u32,
    /// Its entry in the journal until it is answered.
    pub(super) slot: Option<Slot>,
}

impl Arrived {
    /// A READ that the kernel has just sent.
    pub(super) fn new(connection: &Arc<Connection>, unique: Unique, read: (u64, u64, u32)) -> Self {
        let (layer, offset, size) = read;
        let slot = connection.record(Written {
            unique: unique.0,
            layer,
            offset,
            size,
        });
        let connection = Arc::clone(connection);
        Self {
            connection,
            unique,
            layer,
            offset,
            size,
            slot,
        }
    }

    /// Answers the READ, for the first and last time.
    fn reply(&self, answer: Result<&[u8], Errno>) {
        match answer {
            Ok(bytes) => self.connection.reply(self.unique, bytes),
            Err(error) => self.connection.reply_error(self.unique, error),
        }
        if !self.connection.has_left() {
            self.connection.strike(self.slot);
        }
    }
}

/// READs of one layer, and the guards that refuse them.
#[derive(Default)]
struct LayerReads {
    waiting: HashMap<Unique, Arrived>,
    held: Vec<Arrived>,
    /// Number of READs taken out of `waiting` or `held` whose reply is not written yet.
    answering: usize,
    /// Number of guards that refuse new READs.
    refusals: usize,
}

impl LayerReads {
    fn unanswered(&self) -> usize {
        self.waiting.len() + self.held.len() + self.answering
    }

    fn is_idle(&self) -> bool {
        self.unanswered() == 0 && self.refusals == 0
    }
}

#[derive(Default)]
struct State {
    files: HashMap<u64, Arc<dyn DeviceFile>>,
    layers: HashMap<u64, LayerReads>,
    /// The layers of an earlier process are still being opened: READs of unknown layers are held.
    restoring: bool,
}

/// See the module documentation.
#[derive(Default)]
pub(super) struct Reads {
    state: Mutex<State>,
    unanswered: AtomicUsize,
}

/// What to do with a READ.
enum Verdict {
    Go(Arc<dyn DeviceFile>),
    Held,
    Refuse(Arrived, &'static str),
}

impl Reads {
    fn state(&self) -> MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds READs of unknown layers from now on.
    pub(super) fn begin_restoring(&self) {
        self.state().restoring = true;
    }

    /// Fails READs of unknown layers from now on, including held ones.
    pub(super) fn restored(self: &Arc<Self>) {
        let left: Vec<u64> = {
            let mut state = self.state();
            state.restoring = false;
            state.layers.keys().copied().collect()
        };
        for layer in left {
            self.release(layer);
        }
    }

    pub(super) fn add(self: &Arc<Self>, file: Arc<dyn DeviceFile>) {
        let number = file.number();
        self.state().files.insert(number, file);
        self.release(number);
    }

    pub(super) fn remove(&self, number: u64) {
        self.state().files.remove(&number);
    }

    pub(super) fn get(&self, number: u64) -> Option<Arc<dyn DeviceFile>> {
        self.state().files.get(&number).cloned()
    }

    /// The numbers of all files, in order.
    pub(super) fn numbers(&self) -> Vec<u64> {
        let mut numbers: Vec<u64> = self.state().files.keys().copied().collect();
        numbers.sort_unstable();
        numbers
    }

    /// All unanswered READs.
    pub(super) fn unanswered_in_all(&self) -> usize {
        self.unanswered.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(super) fn unanswered(&self, number: u64) -> usize {
        let state = self.state();
        state.layers.get(&number).map_or(0, LayerReads::unanswered)
    }

    /// Accepts a READ from the kernel.
    pub(super) fn arrive(self: &Arc<Self>, read: Arrived) {
        self.unanswered.fetch_add(1, Ordering::Relaxed);
        self.hand_on(read);
    }

    /// Passes a READ to its file, unless it is refused or held.
    fn hand_on(self: &Arc<Self>, read: Arrived) {
        let (layer, unique) = (read.layer, read.unique);
        let (offset, size) = (read.offset, read.size);
        match self.admit(read) {
            Verdict::Held => {}
            Verdict::Refuse(read, reason) => {
                tracing::warn!(layer, offset, size, reason, "read of layer data refused");
                metrics().reads_failed(ReadFailure::Removed, None, 1);
                read.reply(Err(Errno::IO));
                self.finish(layer, 1);
            }
            Verdict::Go(file) => {
                let there = file.size().saturating_sub(offset);
                let len = u32::try_from(there).unwrap_or(u32::MAX).min(size);
                let reads = Arc::clone(self);
                let ticket = Ticket {
                    reads,
                    layer,
                    unique,
                    len,
                };
                if len == 0 {
                    ticket.answer(Ok(Bytes::new()));
                } else {
                    file.read(offset, len, Box::new(move |result| ticket.answer(result)));
                }
            }
        }
    }

    fn admit(&self, read: Arrived) -> Verdict {
        let mut state = self.state();
        let State {
            files,
            layers,
            restoring,
        } = &mut *state;
        let reads = layers.entry(read.layer).or_default();
        if reads.refusals > 0 {
            reads.answering += 1;
            return Verdict::Refuse(read, "the layer is being removed");
        }
        let Some(file) = files.get(&read.layer) else {
            if *restoring {
                reads.held.push(read);
                return Verdict::Held;
            }
            reads.answering += 1;
            return Verdict::Refuse(read, "the layer does not exist");
        };
        reads.waiting.insert(read.unique, read);
        Verdict::Go(Arc::clone(file))
    }

    /// Takes a waiting READ to answer it. `None` if it has already been taken.
    fn claim(&self, layer: u64, unique: Unique) -> Option<Arrived> {
        let mut state = self.state();
        let reads = state.layers.get_mut(&layer)?;
        let read = reads.waiting.remove(&unique)?;
        reads.answering += 1;
        Some(read)
    }

    /// Records that the replies of `count` taken READs are written.
    fn finish(&self, layer: u64, count: usize) {
        self.unanswered.fetch_sub(count, Ordering::Relaxed);
        let mut state = self.state();
        let Some(reads) = state.layers.get_mut(&layer) else {
            return;
        };
        reads.answering = reads.answering.saturating_sub(count);
        if reads.is_idle() {
            state.layers.remove(&layer);
        }
    }

    /// Answers all READs of a layer with EIO, except those that are already being answered.
    pub(super) fn fail(&self, layer: u64) {
        let failed: Vec<Arrived> = {
            let mut state = self.state();
            let Some(reads) = state.layers.get_mut(&layer) else {
                return;
            };
            let waiting = reads.waiting.drain().map(|(_, read)| read);
            let failed: Vec<Arrived> = waiting.chain(reads.held.drain(..)).collect();
            reads.answering += failed.len();
            failed
        };
        if failed.is_empty() {
            return;
        }
        let count = failed.len();
        tracing::warn!(
            layer,
            count,
            "reads of layer data failed: the layer is being removed"
        );
        metrics().reads_failed(ReadFailure::Removed, None, count);
        for read in &failed {
            read.reply(Err(Errno::IO));
        }
        self.finish(layer, count);
    }

    /// Refuses READs of the layer until the guard is dropped.
    pub(super) fn shut(self: &Arc<Self>, layer: u64) -> Refused {
        self.state().layers.entry(layer).or_default().refusals += 1;
        Refused {
            reads: Arc::clone(self),
            layer,
        }
    }

    fn open(self: &Arc<Self>, layer: u64) {
        if let Some(reads) = self.state().layers.get_mut(&layer) {
            reads.refusals = reads.refusals.saturating_sub(1);
        }
        self.release(layer);
    }

    /// Processes the held READs of a layer again. Those that must still be held are held again.
    fn release(self: &Arc<Self>, layer: u64) {
        let released = {
            let mut state = self.state();
            let Some(reads) = state.layers.get_mut(&layer) else {
                return;
            };
            if reads.is_idle() {
                state.layers.remove(&layer);
                return;
            }
            std::mem::take(&mut reads.held)
        };
        for read in released {
            self.hand_on(read);
        }
    }
}

/// Refuses the READs of a layer until dropped.
#[must_use = "reads of the layer are accepted again when this is dropped"]
pub struct Refused {
    reads: Arc<Reads>,
    layer: u64,
}

impl std::fmt::Debug for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Refused")
            .field("layer", &self.layer)
            .finish_non_exhaustive()
    }
}

impl Drop for Refused {
    fn drop(&mut self) {
        self.reads.open(self.layer);
    }
}

/// The right to answer one READ, unless [`Reads::fail`] answers it first. Dropping it answers EIO.
struct Ticket {
    reads: Arc<Reads>,
    layer: u64,
    unique: Unique,
    len: u32,
}

impl Ticket {
    fn answer(self, result: Result<Bytes, ReadError>) {
        let Some(read) = self.reads.claim(self.layer, self.unique) else {
            return;
        };
        let (layer, offset, len) = (self.layer, read.offset, self.len);
        match result {
            Ok(bytes) if u32::try_from(bytes.len()) == Ok(len) => {
                read.reply(Ok(&bytes));
            }
            Ok(bytes) => {
                let got = bytes.len();
                tracing::error!(
                    layer,
                    offset,
                    len,
                    got,
                    "the layer answered a read with the wrong number of bytes"
                );
                metrics().reads_failed(ReadFailure::Internal, None, 1);
                read.reply(Err(Errno::IO));
            }
            Err(error) => {
                let cause: &dyn std::error::Error = &error;
                tracing::warn!(
                    layer,
                    offset,
                    len,
                    error = cause,
                    "read of layer data failed"
                );
                metrics().reads_failed(error.cause(), Some(&error.subject().layer), 1);
                read.reply(Err(errno(&error)));
            }
        }
        self.reads.finish(layer, 1);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Usually the READ has been answered.
        let Some(read) = self.reads.claim(self.layer, self.unique) else {
            return;
        };
        let (layer, offset, len) = (self.layer, read.offset, self.len);
        tracing::error!(
            layer,
            offset,
            len,
            "read of layer data was dropped without an answer"
        );
        metrics().reads_failed(ReadFailure::Internal, None, 1);
        read.reply(Err(Errno::IO));
        self.reads.finish(layer, 1);
    }
}

/// The errno for each read error. This is the only place that maps errors to errnos.
///
/// EROFS turns every errno into EIO, and no other errno describes these errors better.
pub(super) fn errno(error: &ReadError) -> Errno {
    match error {
        ReadError::Corrupt { .. }
        | ReadError::Undecodable { .. }
        | ReadError::Header { .. }
        | ReadError::Fetch { .. }
        | ReadError::Store { .. }
        | ReadError::Outside { .. }
        | ReadError::Removed { .. } => Errno::IO,
    }
}
