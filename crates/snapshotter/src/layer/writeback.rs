//! What layers have written, on its way to the disk: `store::writeback` says why.

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

/// Longest wait for what others have written: a sync of ours then takes what is left.
const SETTLE: Duration = Duration::from_secs(2);

/// One of the two files of a layer.
#[derive(Clone, Debug)]
pub(super) struct Written {
    data: Weak<Data>,
    heads: bool,
}

pub(super) type Writeback = writeback::Writeback<Written>;

/// Brings everything to the disk, until the layers are gone.
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
    /// A range of a layer's tar was written.
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

    /// Waits until a sync brings little to the disk at once. While the guard lives nothing is written that nobody waits for.
    pub(super) async fn calm(&self) -> writeback::Quiet<Written> {
        let quiet = self.writeback.hush();
        let calm = async {
            self.writeback.no_turns().await;
            self.writeback.settled().await;
        };
        // Not for ever: the disk may be slow, or the cores busy.
        let _ = tokio::time::timeout(SETTLE, calm).await;
        quiet
    }

    /// The same for a layer of which everything is written: others may go on.
    pub(super) async fn settle(&self) {
        let _ = tokio::time::timeout(SETTLE, self.writeback.settled()).await;
    }
}
