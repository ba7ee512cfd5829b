//! The settings of layers, and the state that layers share.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::{
    paced::Paced,
    spans::{Room, Spare, Waits},
    starts::{AllStarts, Notes, Starts},
    stream::{Turns, WholeOptions},
    tally::Tallies,
    writeback::Writeback,
};
use crate::{
    cpu::Cpu,
    fetch::Scheduler,
    store::{LayerFiles, LayerStore, space::Limits},
    sync::{Arc, atomic::AtomicU64},
};

/// During a pull or a program start, the next request comes sooner than this.
const PAUSE: Duration = Duration::from_millis(200);
/// The longest wait for such a pause.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// The settings of layers on this node.
#[derive(Clone, Debug)]
pub struct Options {
    /// Do not check tar headers (`disable_verification`). Span digests are always checked.
    pub trust_headers: bool,
    /// Maximum fetches of a span before wrong bytes become an error
    /// (`max_span_verification_retries` + 1). At least 2 are made, because bytes can be damaged in
    /// transit once.
    pub span_fetches: u32,
    /// The first and the longest pause of completion after a failure.
    pub pause: (std::time::Duration, std::time::Duration),
    /// How often written spans are made durable.
    pub sync_every: std::time::Duration,
    /// Limits for background downloads.
    pub limits: Limits,
    /// Note what is read first of each layer.
    pub notes_starts: bool,
    /// The pace of background downloads; `None` for the speed of the network.
    pub pace: Option<Paced>,
    /// Drop the page cache of `data` regularly, because mounts read through it and keep their own
    /// copy.
    pub drops_copies: bool,
    /// Limits of whole downloads, and the programs that decompress.
    pub whole: WholeOptions,
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
            notes_starts: true,
            pace: None,
            drops_copies: false,
            whole: WholeOptions::default(),
        }
    }
}

/// The state that layers share.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) cpu: Arc<Cpu>,
    pub(super) fetch: Arc<Scheduler>,
    pub(super) store: Arc<LayerStore>,
    pub(super) options: Options,
    /// Tasks that may outlive the request that started them.
    pub(super) tasks: TaskTracker,
    /// Turns for downloading whole layers.
    pub(super) passes: Arc<Turns>,
    /// Permit for verifying one layer at a time.
    pub(super) proving: tokio::sync::Semaphore,
    /// Memory for spans that are decoded while they arrive.
    pub(super) early: Room,
    /// Spans that the disk did not accept.
    pub(super) spare: Spare,
    /// Bytes that are written and not yet on disk.
    pub(super) writeback: Arc<Writeback>,
    /// Reads that waited for bytes.
    pub(super) waits: Waits,
    /// What was read first of each layer.
    pub(super) starts: AllStarts,
    /// What each layer cost, open or not.
    pub(super) tallies: Tallies,
    /// Bytes on disk of all layers, if that is limited or reported. Measured periodically.
    pub(super) used: AtomicU64,
}

impl Context {
    /// The notes about the first reads of a layer, with those of an earlier process.
    pub(super) fn starts_of(&self, files: &mut LayerFiles) -> Arc<Starts> {
        let earlier = files.starts.take();
        let new = || {
            let earlier = earlier.and_then(|bytes| Notes::parse(&bytes));
            Starts::new(files.present.len(), earlier, self.options.notes_starts)
        };
        self.starts.of(files.number, new)
    }

    /// Waits until no pull and no reader is active for a moment, but not indefinitely. A sync of a
    /// layer delays the syncs of snapshot records that a pull waits for, and reads from disk.
    pub(super) async fn wait_for_pause(&self) {
        let until = Instant::now() + LONGEST_WAIT;
        while self.fetch.was_urgent(PAUSE) && Instant::now() < until {
            tokio::time::sleep(PAUSE / 4).await;
        }
    }
}
