//! What `[pull_modes.parallel_pull_unpack]` says about downloads of whole layers.

use std::num::{NonZeroU64, NonZeroUsize};

use tracing::warn;

use crate::config::{Config, ContentStoreKind, Parallel, ParallelError, PullModes};
use crate::fetch;
use crate::layer::{Program, Programs, WholeOptions};
use crate::sync::Arc;

/// The scheduler's own limits, and those of the file.
pub(super) fn fetch_options(parallel: &Parallel) -> Result<fetch::Options, ParallelError> {
    let own = fetch::Options::default();
    let all = parallel.limit(|keys| keys.max_concurrent_downloads);
    let of_image = parallel.limit(|keys| keys.max_concurrent_downloads_per_image);
    let chunk = parallel.chunk_size()?.map_or(u64::MAX, NonZeroU64::get);
    Ok(fetch::Options {
        pull_requests_most: all.map_or(own.pull_requests_most, NonZeroUsize::get),
        pull_requests_per_image: of_image.map_or(own.pull_requests_per_image, NonZeroUsize::get),
        pull_request_bytes: own.pull_request_bytes.min(chunk),
        ..own
    })
}

/// The limits and programs of passes.
pub(super) fn whole_options(modes: &PullModes) -> Result<WholeOptions, ParallelError> {
    let parallel = &modes.parallel_pull_unpack;
    let program = |algorithm| match parallel.decompressor(algorithm) {
        Ok(found) => found.map(|(path, args)| Arc::new(Program::new(path, args.to_vec()))),
        // With the mode on, the configuration is refused for this.
        Err(error) => {
            warn!(algorithm, error = %error, "not using a program to decompress layers");
            None
        }
    };
    Ok(WholeOptions {
        chunk: parallel.chunk_size()?,
        passes: parallel.limit(|keys| keys.max_concurrent_unpacks),
        passes_per_image: parallel.limit(|keys| keys.max_concurrent_unpacks_per_image),
        programs: Programs {
            gzip: program("gzip"),
            zstd: program("zstd"),
        },
        indexes: modes.build_index,
    })
}

/// Whether the compressed layers go to containerd's content store.
pub(super) fn keeps_layers(config: &Config) -> bool {
    config.content_store.kind() == ContentStoreKind::Containerd
        && !config
            .pull_modes
            .parallel_pull_unpack
            .discard_unpacked_layers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_are_set_hold_and_others_are_our_own() {
        let own = fetch::Options::default();
        let of = |keys: &str| {
            let modes = PullModes {
                parallel_pull_unpack: toml::from_str(keys).unwrap(),
                ..PullModes::default()
            };
            let fetch = fetch_options(&modes.parallel_pull_unpack).unwrap();
            (fetch, whole_options(&modes).unwrap())
        };
        let unset = "max_concurrent_downloads = -1\nmax_concurrent_downloads_per_image = 3\n\
                     max_concurrent_unpacks = 0\nmax_concurrent_unpacks_per_image = 1\n\
                     concurrent_download_chunk_size = ''";
        for keys in ["", unset] {
            let (fetch, whole) = of(keys);
            assert_eq!(fetch.pull_requests_most, own.pull_requests_most);
            assert_eq!(fetch.pull_requests_per_image, own.pull_requests_per_image);
            assert_eq!(fetch.pull_request_bytes, own.pull_request_bytes);
            assert_eq!(
                (whole.chunk, whole.passes, whole.passes_per_image),
                (None, None, None)
            );
        }
        let (fetch, whole) = of(
            "max_concurrent_downloads = 10\nmax_concurrent_downloads_per_image = 5\n\
             max_concurrent_unpacks = 2\nmax_concurrent_unpacks_per_image = 2\n\
             concurrent_download_chunk_size = '1mb'\ndecompress_streams.gzip.path = '/bin/sh'\n\
             decompress_streams.zstd.path = '/nobody/has/this'",
        );
        assert_eq!(fetch.pull_requests_most, 10);
        assert_eq!(fetch.pull_requests_per_image, 5);
        assert_eq!(fetch.pull_request_bytes, 1 << 20);
        assert_eq!(whole.passes.map(NonZeroUsize::get), Some(2));
        assert_eq!(whole.passes_per_image.map(NonZeroUsize::get), Some(2));
        assert!(whole.programs.gzip.is_some() && whole.programs.zstd.is_none());
        let (fetch, _) = of("concurrent_download_chunk_size = '16mb'");
        assert_eq!(fetch.pull_request_bytes, own.pull_request_bytes);
    }
}
