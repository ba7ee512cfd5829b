//! How layers behave on this node, and what they share.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    spans::{Spare, Waits},
    writeback::Writeback,
};
use crate::{
    cpu::Cpu,
    fetch::Scheduler,
    store::{LayerStore, space::Limits},
    sync::{Arc, atomic::AtomicU64},
};

/// A pull asks for its next layer sooner, and so does a program that starts for its next file.
const PAUSE: Duration = Duration::from_millis(200);
/// Longest wait for one.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// How layers behave, for the node.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tar headers are not checked (`disable_verification`). Span digests always are.
    pub trust_headers: bool,
    /// Fetches of a span in all before wrong bytes become an error; at least 2 are made: bytes may be
    /// damaged on the way once. (`max_span_verification_retries` + 1)
    pub span_fetches: u32,
    /// How long completion pauses after a failure at first, and at most.
    pub pause: (std::time::Duration, std::time::Duration),
    /// How often written spans are made durable.
    pub sync_every: std::time::Duration,
    /// How much may be fetched that nobody has asked for.
    pub limits: Limits,
    /// The page cache of `data` is dropped again and again: mounts read through it and keep a copy of their own.
    pub drops_copies: bool,
}

impl Default for Options {
    fn default() -> Options {
        let seconds = std::time::Duration::from_secs;
        Options {
            trust_headers: false,
            span_fetches: 2,
            pause: (seconds(1), seconds(60)),
            sync_every: seconds(10),
            limits: Limits::default(),
            drops_copies: false,
        }
    }
}

/// What layers share.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) cpu: Arc<Cpu>,
    pub(super) fetch: Arc<Scheduler>,
    pub(super) store: Arc<LayerStore>,
    pub(super) options: Options,
    /// Turns of passes over whole layers.
    pub(super) passes: tokio::sync::Semaphore,
    /// Whose turn it is to be held against its tar.
    pub(super) proving: tokio::sync::Semaphore,
    /// Spans that the disk did not take.
    pub(super) spare: Spare,
    /// What is written and not on the disk.
    pub(super) writeback: Arc<Writeback>,
    /// Reads that waited.
    pub(super) waits: Waits,
    /// Bytes on disk of all layers, where that is limited; looked at again now and then.
    pub(super) used: AtomicU64,
}

impl Context {
    /// Waits until nobody pulls or reads for a moment, but not for ever: a sync of a layer holds up those of the records
    /// that a pull waits for, and the reads of the disk.
    pub(super) async fn wait_for_pause(&self) {
        let until = Instant::now() + LONGEST_WAIT;
        while self.fetch.was_urgent(PAUSE) && Instant::now() < until {
            tokio::time::sleep(PAUSE / 4).await;
        }
    }
}
