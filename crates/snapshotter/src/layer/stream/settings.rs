//! Limits of whole downloads.

use std::num::{NonZeroU64, NonZeroUsize};

use super::Programs;

/// Bytes per step: enough for a connection to reach its full rate.
const STEP: u64 = 2 << 20;
/// The smallest step. Smaller ones cost more requests than they are worth.
const SMALLEST: u64 = 64 << 10;
/// Memory for the compressed bytes of all passes together.
const WINDOW: u64 = 48 << 20;
/// Concurrent passes at most.
const MOST_PASSES: usize = 7;

/// Limits of whole downloads. Without values, all are chosen for this node.
#[derive(Clone, Debug, Default)]
pub struct WholeOptions {
    /// Bytes of one request (`concurrent_download_chunk_size`). Larger ones than those of our own
    /// are divided.
    pub chunk: Option<NonZeroU64>,
    /// Layers that are downloaded and unpacked at the same time (`max_concurrent_unpacks`).
    pub passes: Option<NonZeroUsize>,
    /// The same for one image (`max_concurrent_unpacks_per_image`).
    pub passes_per_image: Option<NonZeroUsize>,
    /// Programs that decompress (`decompress_streams`).
    pub programs: Programs,
    /// Make a zTOC of each gzip layer (`build_index`).
    pub indexes: bool,
}

impl WholeOptions {
    /// Bytes per step.
    pub(super) fn step(&self) -> u64 {
        self.chunk
            .map_or(STEP, |chunk| chunk.get().clamp(SMALLEST, STEP))
    }

    /// Steps that one pass may hold. They bound its memory.
    pub(super) fn steps(&self) -> usize {
        let window = WINDOW / (self.passes() as u64);
        usize::try_from(window / self.step()).unwrap_or(1).max(1)
    }

    /// Concurrent passes: one per core, and two that wait for the network.
    pub(in crate::layer) fn passes(&self) -> usize {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let own = (cores + 2).clamp(4, MOST_PASSES);
        self.passes.map_or(own, |passes| passes.get().min(own))
    }

    /// Concurrent passes for one image. Without values, one is left for another image: all layers
    /// of one may wait for a slow registry.
    pub(in crate::layer) fn passes_per_image(&self) -> usize {
        let most = self.passes();
        match (self.passes_per_image, self.passes) {
            (Some(passes), _) => passes.get().min(most),
            (None, Some(_)) => most,
            (None, None) => most - 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_whatever_is_configured() {
        let sizes = [1, 100 << 10, 16 << 20, u64::MAX];
        let counts = [1, 2, 1000];
        for chunk in sizes.map(NonZeroU64::new).into_iter().chain([None]) {
            for passes in counts.map(NonZeroUsize::new).into_iter().chain([None]) {
                let options = WholeOptions {
                    chunk,
                    passes,
                    passes_per_image: passes,
                    ..WholeOptions::default()
                };
                let steps = (options.passes() * options.steps()) as u64;
                assert!(steps * options.step() <= WINDOW, "{options:?}");
                assert!(options.steps() > 1, "{options:?}");
                assert!(options.passes_per_image() <= MOST_PASSES);
            }
        }
    }

    #[test]
    fn one_image_does_not_take_every_pass_unless_that_is_configured() {
        let own = WholeOptions::default();
        assert!((4..=MOST_PASSES).contains(&own.passes()));
        assert_eq!(own.passes_per_image(), own.passes() - 1);
        let with = |passes, passes_per_image| WholeOptions {
            passes: NonZeroUsize::new(passes),
            passes_per_image: NonZeroUsize::new(passes_per_image),
            ..WholeOptions::default()
        };
        // 0 is no value.
        for ((passes, per_image), wanted) in [
            ((1, 0), (1, 1)),
            ((3, 0), (3, 3)),
            ((3, 2), (3, 2)),
            ((3, 9), (3, 3)),
        ] {
            let options = with(passes, per_image);
            let found = (options.passes(), options.passes_per_image());
            assert_eq!(found, wanted, "{passes} {per_image}");
        }
        assert_eq!(with(0, 99).passes_per_image(), own.passes());
    }
}
