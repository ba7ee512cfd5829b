//! Keys that select where to look for an index, and the parallel mode.

mod parallel;

use super::declare::{TABLE, Value, table};

pub(super) use self::parallel::LIMITS;
pub use self::parallel::{Parallel, ParallelError, Stream};

table! {
    /// How images are pulled.
    pub struct PullModes {
        /// Indexes among the referrers of an image.
        soci_v1: SociV1 = SociV1::default();
        /// Indexes named in the manifest of an image.
        soci_v2: SociV2 = SociV2::default();
        /// Download and unpacking of whole layers.
        parallel_pull_unpack: Parallel = Parallel::default();
        /// Makes a zTOC of each gzip layer that is pulled whole, while it is pulled. The space of an
        /// unused layer can then be given back in part, and is downloaded again when it is read. The
        /// decompression takes about a fifth more CPU time, and `decompress_streams` is not used for
        /// such layers.
        build_index: bool = false, ours;
    }
}

/// Tables with declarations of their own.
macro_rules! tables {
    ($($table:ty),+) => {$(
        impl Value for $table {
            const KIND: &'static str = TABLE;

            fn toml(&self) -> String {
                String::new()
            }
        }
    )+};
}

tables!(SociV1, SociV2, Parallel);

table! {
    /// Indexes of version 1.
    pub struct SociV1 {
        /// Looks for an index among the referrers of an image.
        enable: bool = false;
    }
}

table! {
    /// Indexes of version 2.
    pub struct SociV2 {
        /// Uses the index that the manifest of an image names.
        enable: bool = true;
    }
}
