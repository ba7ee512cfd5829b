//! Selects the layers that get a zTOC, based only on their descriptors.

use std::collections::HashMap;

use soci_oci::media_type::{self, LayerCompression};
use soci_oci::{Descriptor, Digest, Manifest};
use soci_ztoc::Compression;

use super::BuildOptions;
use super::error::{BuildError, LayerError};
use super::outcome::Skip;
use crate::model::PREFETCH_MEDIA_TYPE;

/// The suffix of media types for encrypted layers.
const ENCRYPTED: &str = "encrypted";

/// The decision for one layer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan {
    Ignore,
    Skip(Skip),
    /// The job with this number creates the zTOC.
    Build(usize),
}

/// A layer to read.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) layer: Descriptor,
    pub(super) compression: Compression,
}

/// The distinct layers of all manifests.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    pub(super) list: Vec<Job>,
    by_layer: HashMap<(Digest, bool), usize>,
}

impl Jobs {
    /// Decides about the layers of a manifest, in order.
    pub(super) fn plan(
        &mut self,
        manifest: &Manifest,
        options: &BuildOptions,
    ) -> Result<Vec<Plan>, BuildError> {
        let (mut plans, mut errors) = (Vec::new(), Vec::new());
        for layer in manifest.layers() {
            match self.plan_layer(layer, options) {
                Ok(plan) => plans.push(plan),
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() {
            Ok(plans)
        } else {
            Err(BuildError::Layers(errors))
        }
    }

    fn plan_layer(
        &mut self,
        layer: &Descriptor,
        options: &BuildOptions,
    ) -> Result<Plan, LayerError> {
        let media_type = &layer.media_type;
        if media_type == PREFETCH_MEDIA_TYPE {
            return Ok(Plan::Ignore);
        }
        if !media_type::is_layer(media_type) {
            let media_type = media_type.clone();
            return Err(LayerError::NoLayer {
                digest: layer.digest,
                media_type,
            });
        }
        if layer.size < options.min_layer_size {
            let limit = options.min_layer_size;
            return Ok(Plan::Skip(Skip::Small { limit }));
        }
        let compression = match media_type::layer_compression(media_type)? {
            LayerCompression::Gzip if is_encrypted(media_type) => {
                return Ok(Plan::Skip(Skip::Compression(ENCRYPTED)));
            }
            LayerCompression::Gzip => Compression::Gzip,
            LayerCompression::Uncompressed | LayerCompression::Unknown => Compression::Plain,
            compression @ (LayerCompression::Zstd | LayerCompression::Unresolved) => {
                return Ok(Plan::Skip(Skip::Compression(compression.name())));
            }
        };
        if compression == Compression::Plain && options.span_size == 0 {
            return Err(LayerError::SpanSize(layer.digest));
        }
        Ok(Plan::Build(self.number(layer, compression)))
    }

    /// Returns the job of a layer. Each layer is read once.
    fn number(&mut self, layer: &Descriptor, compression: Compression) -> usize {
        let key = (layer.digest, compression == Compression::Gzip);
        *self.by_layer.entry(key).or_insert_with(|| {
            self.list.push(Job {
                layer: layer.clone(),
                compression,
            });
            self.list.len() - 1
        })
    }
}

/// The reference checks only the last suffix and would treat encrypted data as gzip.
pub(crate) fn is_encrypted(media_type: &str) -> bool {
    media_type
        .split('+')
        .skip(1)
        .any(|suffix| suffix == ENCRYPTED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(media_type: &str, size: u64, span_size: u64) -> Result<Plan, LayerError> {
        let layer = Descriptor::new(media_type, Digest::sha256(b"l"), size);
        let options = BuildOptions {
            span_size,
            min_layer_size: 10,
            ..BuildOptions::default()
        };
        Jobs::default().plan_layer(&layer, &options)
    }

    #[test]
    fn what_is_too_small_comes_before_what_is_unsupported() {
        let zstd = "application/vnd.oci.image.layer.v1.tar+zstd";
        let small = Plan::Skip(Skip::Small { limit: 10 });
        assert_eq!(plan(zstd, 9, 1).unwrap(), small);
        let unsupported = Plan::Skip(Skip::Compression("zstd"));
        assert_eq!(plan(zstd, 10, 1).unwrap(), unsupported);
        assert_eq!(plan(PREFETCH_MEDIA_TYPE, 9, 1).unwrap(), Plan::Ignore);
    }

    #[test]
    fn ciphertext_is_not_taken_for_gzip() {
        for (media_type, name) in [
            (
                "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
                "encrypted",
            ),
            (
                "application/vnd.oci.image.layer.v1.tar+encrypted+gzip",
                "encrypted",
            ),
            ("application/vnd.oci.image.layer.v1.tar+encrypted", ""),
        ] {
            let expected = Plan::Skip(Skip::Compression(name));
            assert_eq!(plan(media_type, 10, 1).unwrap(), expected, "{media_type}");
        }
    }

    #[test]
    fn a_span_size_of_zero_needs_blocks() {
        let gzip = plan(media_type::OCI_LAYER_GZIP, 10, 0).unwrap();
        assert_eq!(gzip, Plan::Build(0));
        let error = plan(media_type::OCI_LAYER, 10, 0).unwrap_err().to_string();
        assert!(error.ends_with("span size must be > 0"), "{error}");
    }
}
