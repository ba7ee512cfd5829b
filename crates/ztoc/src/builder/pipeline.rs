//! A pass with several threads, which reads, walks and hashes at the same time. A single thread
//! walks the bytes in order, so the result, including errors, is that of [`GzipBuild::push`]. All
//! channels are bounded, or carry only data that came through a bounded one.
//!
//! ```text
//! caller: read --pieces--> walk: inflate, scan --pieces, where spans begin--> hash
//!    ^                  orders|   ^runs                                        |
//!    |                        crew, for a layer of several members             |
//!    +-------------------------- buffers --------------------------------------+
//! ```

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, TryRecvError, channel, sync_channel};
use std::thread::{self, Builder, Scope, ScopedJoinHandle};

use super::BuildError;
use super::contents::Archive;
use super::crew::Crew;
use super::gzip_pass::{GzipBuild, GzipSink};
use super::plain_pass::PlainBuild;
use super::span_hash::{SpanHasher, SpanStart};
use crate::gzip::pieces::{PIECE, Piece, Pieces};
use crate::gzip::walk::Walk;

/// Pieces queued between two threads, enough to absorb short delays.
const QUEUE: usize = 8;

/// A piece that was walked, and the starts of the spans in it.
type Walked = (Piece, Vec<SpanStart>);

/// Processes a gzip layer with up to `threads` threads and `memory` bytes for inflating ahead.
/// Returns false, without having read anything, if threads cannot be started.
pub(super) fn gzip(
    build: &mut GzipBuild<impl Archive>,
    layer: &mut impl Read,
    threads: usize,
    memory: usize,
) -> Result<bool, BuildError> {
    let GzipBuild { walk, sink, hasher } = build;
    thread::scope(|scope| {
        let (pieces_in, pieces) = sync_channel(QUEUE);
        let (walked_in, walked) = sync_channel(QUEUE);
        let (buffers_in, buffers) = channel();
        let hashing = spawn(scope, "ztoc-hash", move || {
            hash(hasher, &walked, &buffers_in);
        });
        let walking = spawn(scope, "ztoc-walk", move || {
            Walker::new(walk, sink, pieces, walked_in).run(|| Crew::start(scope, threads, memory))
        });
        let (Ok(hashing), Ok(walking)) = (hashing, walking) else {
            return Ok(false);
        };
        let read = feed(layer, pieces_in, &buffers);
        let walked = join(walking);
        join(hashing);
        // An error in the bytes precedes the failed read, so it is reported first.
        walked.and(read).map(|()| true)
    })
}

/// Processes an uncompressed layer; reading overlaps with the rest. Returns the same as [`gzip`].
pub(super) fn plain(build: &mut PlainBuild<'_>, layer: &mut impl Read) -> Result<bool, BuildError> {
    thread::scope(|scope| {
        let (pieces_in, pieces) = sync_channel::<Piece>(QUEUE);
        let (buffers_in, buffers) = channel();
        let scanning = spawn(scope, "ztoc-scan", move || {
            for piece in pieces {
                build.push(&piece);
                reuse(piece, &buffers_in);
            }
        });
        let Ok(scanning) = scanning else {
            return Ok(false);
        };
        let read = feed(layer, pieces_in, &buffers);
        join(scanning);
        read.map(|()| true)
    })
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    Builder::new()
        .name(name.to_owned())
        .spawn_scoped(scope, work)
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread
        .join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Reads the layer to its end, or until the receiver is gone.
fn feed(
    layer: &mut impl Read,
    pieces: SyncSender<Piece>,
    buffers: &Receiver<Vec<u8>>,
) -> Result<(), BuildError> {
    loop {
        let mut buffer = buffers.try_recv().unwrap_or_default();
        buffer.resize(PIECE, 0);
        let mut filled = 0;
        let read = loop {
            match super::read(layer, buffer.get_mut(filled..).unwrap_or_default()) {
                Ok(Some(bytes)) => filled += bytes.len(),
                end => break end.map(drop),
            }
            if filled == PIECE {
                break Ok(());
            }
        };
        buffer.truncate(filled);
        let is_last = filled < PIECE;
        if filled > 0 && pieces.send(Arc::new(buffer)).is_err() {
            return Ok(());
        }
        read?;
        if is_last {
            return Ok(());
        }
    }
}

fn hash(hasher: &mut SpanHasher, walked: &Receiver<Walked>, buffers: &Sender<Vec<u8>>) {
    for (piece, starts) in walked {
        hasher.hash(&piece, starts);
        reuse(piece, buffers);
    }
}

/// Returns the buffer of a piece for reuse, unless the piece is shared.
fn reuse(piece: Piece, buffers: &Sender<Vec<u8>>) {
    if let Some(buffer) = Arc::into_inner(piece) {
        buffers.send(buffer).unwrap_or_default();
    }
}

/// Walks through the layer.
struct Walker<'b, A> {
    walk: &'b mut Walk,
    sink: &'b mut GzipSink<A>,
    pieces: Receiver<Piece>,
    walked: SyncSender<Walked>,
    /// Bytes that were read but not walked yet.
    ahead: Pieces,
    has_ended: bool,
}

impl<'b, A: Archive> Walker<'b, A> {
    fn new(
        walk: &'b mut Walk,
        sink: &'b mut GzipSink<A>,
        pieces: Receiver<Piece>,
        walked: SyncSender<Walked>,
    ) -> Self {
        Self {
            walk,
            sink,
            pieces,
            walked,
            ahead: Pieces::default(),
            has_ended: false,
        }
    }

    /// Walks to the end of the bytes. Calls `start` when a second member begins.
    fn run(mut self, start: impl Fn() -> Option<Crew>) -> Result<(), BuildError> {
        let mut crew = None;
        while self.read_ahead(self.walk.consumed() + 1) {
            if self.walk.is_between_members()
                && let Some(crew) = crew.get_or_insert_with(&start)
            {
                self.take_over(crew)?;
            }
            let at = self.walk.consumed();
            self.walk.advance(self.ahead.at(at), self.sink)?;
            self.release();
        }
        Ok(())
    }

    /// Takes over the crew's runs as long as they fit.
    fn take_over(&mut self, crew: &mut Crew) -> Result<(), BuildError> {
        if crew.rests() {
            return Ok(());
        }
        loop {
            self.give_orders(crew);
            let Some(run) = crew.take(self.walk.consumed()) else {
                return Ok(());
            };
            let was_right = self.walk.take_over(&run, self.sink)?;
            self.release();
            crew.learn(run, was_right);
            if !was_right {
                return Ok(());
            }
        }
    }

    /// Gives the crew orders while bytes are available. Waits for bytes only if the run that the
    /// walk needs next has not been ordered.
    fn give_orders(&mut self, crew: &mut Crew) {
        let at = self.walk.consumed();
        let ratio = self.walk.ratio();
        while let Some(until) = crew.wants(at, ratio) {
            let are_there = if crew.has_ordered(at) {
                self.read_ahead_at_once(until)
            } else {
                self.read_ahead(until)
            };
            if !(are_there || self.has_ended) || !crew.order(&self.ahead, at, ratio) {
                return;
            }
        }
    }

    /// Reads until bytes up to `until` are available. Returns whether they are.
    fn read_ahead(&mut self, until: u64) -> bool {
        while self.ahead.end() < until && !self.has_ended {
            match self.pieces.recv() {
                Ok(piece) => self.ahead.push(piece),
                Err(_) => self.has_ended = true,
            }
        }
        self.ahead.end() >= until
    }

    /// Like [`Self::read_ahead`], without waiting.
    fn read_ahead_at_once(&mut self, until: u64) -> bool {
        while self.ahead.end() < until {
            match self.pieces.try_recv() {
                Ok(piece) => self.ahead.push(piece),
                Err(error) => {
                    self.has_ended |= error == TryRecvError::Disconnected;
                    return false;
                }
            }
        }
        true
    }

    /// Passes on the pieces that the walk has finished.
    fn release(&mut self) {
        while let Some((piece, end)) = self.ahead.pop_before(self.walk.consumed()) {
            let starts = self.sink.starts(end).collect();
            // Fails only after a panic, which `join` resumes.
            self.walked.send((piece, starts)).unwrap_or_default();
        }
    }
}
