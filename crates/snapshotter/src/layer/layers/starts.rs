//! The notes about what was read first of layers, open or not.

use std::collections::HashSet;

use super::Layers;
use crate::{
    cpu::{Lane, Lost},
    layer::{Context, Layer, Notes, Replayed, StartUse, spans::in_order},
    store::LayerKey,
    sync::Arc,
};

impl Layers {
    /// What was read first of these layers. `None` for a layer that the store does not have, or of
    /// which nothing was read.
    ///
    /// # Errors
    /// The pool lost the job.
    pub async fn notes(&self, keys: &[LayerKey]) -> Result<Vec<Option<Notes>>, Lost> {
        let (context, keys) = (Arc::clone(&self.context), keys.to_vec());
        let look = move || keys.iter().map(|key| notes_of(&context, key)).collect();
        self.context.cpu.run(Lane::Files, look).await
    }

    /// Has a layer download what a recorded start read of it, in the order of the start and before
    /// the rest of the node's layers.
    pub fn replay(&self, layer: &Arc<Layer>, ranges: &[Replayed]) {
        layer.spans.set_replay(ranges);
        self.run_completion(layer, false);
    }

    /// What readers did with the recorded spans of a layer. `None` if it was not opened.
    pub fn start_use(&self, key: &LayerKey, ranges: &[Replayed]) -> Option<StartUse> {
        let number = self.context.store.number(key)?;
        let starts = self.context.starts.find(number)?;
        // A complete layer may be closed.
        let complete = self.get(key).is_none_or(|layer| layer.is_complete());
        let spans = in_order(ranges, starts.span_count());
        let recorded: HashSet<u32> = spans.map(|(span, _)| span).collect();
        Some(starts.start_use(complete, |span| recorded.contains(&span)))
    }

    /// Writes the notes that their files lack.
    pub(super) async fn write_notes(&self) {
        let context = Arc::clone(&self.context);
        let write = move || write_new(&context);
        if let Err(lost) = self.context.cpu.run(Lane::FilesBehind, write).await {
            tracing::error!(error = %lost, "writing the notes about starts failed");
        }
    }
}

fn notes_of(context: &Context, key: &LayerKey) -> Option<Notes> {
    let number = context.store.number(key)?;
    let notes = match context.starts.find(number) {
        Some(starts) => starts.notes(),
        None => Notes::parse(&context.store.starts(number).ok()??)?,
    };
    (!notes.notes.is_empty()).then_some(notes)
}

/// Writes the notes that their files lack. Blocks on the disk.
pub(super) fn write_new(context: &Context) {
    for (number, notes) in context.starts.take_new() {
        if let Err(error) = context.store.write_starts(number, &notes.to_bytes()) {
            tracing::debug!(number = number.0, error = %error, "cannot write what was read first of a layer");
        }
    }
}
