//! Tracks the writes of layers on their way to disk; see `store::writeback`.

use std::{
    ops::Range,
    time::{Duration, Instant},
};

use super::{Context, data::Data};
use crate::{
    cpu::Lane,
    places::Piece,
    store::writeback::{self, Part},
    sync::{Arc, Weak},
};

/// How long a sync waits for earlier writes before it writes the rest itself.
const SETTLE: Duration = Duration::from_secs(2);

/// One of the two files of a layer.
#[derive(Clone, Debug)]
pub(super) struct Written {
    data: Weak<Data>,
    heads: bool,
}

pub(super) type Writeback = writeback::Writeback<Written>;

/// Writes everything to disk, until the layers are dropped.
pub(super) async fn run(writeback: Arc<Writeback>, context: Weak<Context>) {
    loop {
        let Part { of, range } = writeback.next().await;
        let bytes = range.end - range.start;
        let Some(context) = context.upgrade() else {
            return;
        };
        let job = move || {
            let data = of.data.upgrade()?;
            let begun = Instant::now();
            data.write_out(of.heads, range);
            Some((begun, Instant::now()))
        };
        let took = context.cpu.run(Lane::FilesBehind, job).await;
        drop(context);
        writeback.is_out(bytes, took.ok().flatten());
    }
}

impl Context {
    /// Reports that a range of a layer's tar was written.
    pub(super) fn wrote(&self, data: &Arc<Data>, tar: Range<u64>) {
        let (mut contents, mut rest): (Option<Range<u64>>, Option<Range<u64>>) = (None, None);
        for piece in data.files.places.pieces(tar) {
            let (range, start, len) = match piece {
                Piece::Data { data: at, len, .. } => (&mut contents, at, len),
                Piece::Heads { heads: at, len, .. } => (&mut rest, at, len),
            };
            let first = range.as_ref().map_or(start, |range| range.start);
            *range = Some(first..start + len);
        }
        for (range, heads) in [(contents, false), (rest, true)] {
            let data = Arc::downgrade(data);
            if let Some(range) = range {
                self.writeback.wrote(Written { data, heads }, range);
            }
        }
    }

    /// Waits until a sync has little left to write. While the guard lives, no background data is
    /// written.
    pub(super) async fn calm(&self) -> writeback::Quiet<Written> {
        let quiet = self.writeback.hush();
        let calm = async {
            self.writeback.no_turns().await;
            self.writeback.settled().await;
        };
        // Not indefinitely, because the disk may be slow or the cores busy.
        let _ = tokio::time::timeout(SETTLE, calm).await;
        quiet
    }

    /// Like [`Context::calm`], for a layer that is fully written. Other layers may continue to
    /// write.
    pub(super) async fn settle(&self) {
        let _ = tokio::time::timeout(SETTLE, self.writeback.settled()).await;
    }
}
