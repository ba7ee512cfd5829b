//! Media types of images, and the compression that a layer's media type declares.
//!
//! The rules match containerd's, because both sides of a transfer apply them: the text after the
//! first `+` is a list of suffixes, which is sorted, and only the last one counts.

use std::fmt;

/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// OCI layer, uncompressed tar.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// OCI layer, gzip.
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// OCI non-distributable layer, uncompressed tar. Registries may refuse to store it.
pub const OCI_LAYER_NONDISTRIBUTABLE: &str =
    "application/vnd.oci.image.layer.nondistributable.v1.tar";
/// Docker image manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest list.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Docker layer, compressed or not.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// Docker layer, gzip.
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Docker layer, zstd.
pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";
/// Docker foreign layer, which is stored outside the registry.
pub const DOCKER_FOREIGN_LAYER: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";
/// Docker foreign layer, gzip.
pub const DOCKER_FOREIGN_LAYER_GZIP: &str =
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
/// The media type of zTOC blobs.
pub const OCTET_STREAM: &str = "application/octet-stream";

const OCI_LAYER_PREFIX: &str = "application/vnd.oci.image.layer.";

/// The compression that a media type declares for a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerCompression {
    /// gzip.
    Gzip,
    /// Uncompressed tar, as declared by an OCI type.
    Uncompressed,
    /// A Docker type without a suffix. Treated as uncompressed tar, although old tools may have
    /// compressed it.
    Unknown,
    /// zstd.
    Zstd,
    /// A layer type whose compression containerd cannot determine.
    Unresolved,
}

impl LayerCompression {
    /// The name of the algorithm in messages of the reference.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Uncompressed => "uncompressed",
            Self::Unknown => "unknown",
            Self::Zstd => "zstd",
            Self::Unresolved => "",
        }
    }
}

impl fmt::Display for LayerCompression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A type with the prefix of a layer type but an unknown base.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unrecognised mediatype {0}: not implemented")]
pub struct UnknownLayerType(pub String);

/// Whether the type is an image manifest, OCI or Docker.
#[must_use]
pub fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}

/// Whether the type is an image configuration, OCI or Docker.
#[must_use]
pub fn is_config(media_type: &str) -> bool {
    matches!(media_type, OCI_CONFIG | DOCKER_CONFIG)
}

/// Whether the type is a list of manifests, OCI or Docker.
#[must_use]
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_INDEX)
}

/// Whether the type is a layer that registries need not store. Clients download it from the URLs in
/// its descriptor.
#[must_use]
pub fn is_nondistributable(media_type: &str) -> bool {
    media_type.contains("nondistributable") || media_type.contains(".foreign.")
}

/// Whether containerd accepts the type for a layer.
#[must_use]
pub fn is_layer(media_type: &str) -> bool {
    media_type.starts_with(OCI_LAYER_PREFIX)
        || matches!(
            split(media_type).0,
            DOCKER_LAYER
                | DOCKER_LAYER_GZIP
                | DOCKER_LAYER_ZSTD
                | DOCKER_FOREIGN_LAYER
                | DOCKER_FOREIGN_LAYER_GZIP
        )
}

/// The compression that a layer's type declares. Call it for types for which [`is_layer`] is true.
pub fn layer_compression(media_type: &str) -> Result<LayerCompression, UnknownLayerType> {
    let (base, suffix) = split(media_type);
    let docker = |plain| {
        if suffix.is_none() {
            plain
        } else {
            LayerCompression::Unresolved
        }
    };
    Ok(match base {
        DOCKER_LAYER | DOCKER_FOREIGN_LAYER => docker(LayerCompression::Unknown),
        DOCKER_LAYER_GZIP | DOCKER_FOREIGN_LAYER_GZIP => docker(LayerCompression::Gzip),
        DOCKER_LAYER_ZSTD => docker(LayerCompression::Zstd),
        OCI_LAYER | OCI_LAYER_NONDISTRIBUTABLE => match suffix {
            Some("gzip") => LayerCompression::Gzip,
            Some("zstd") => LayerCompression::Zstd,
            None if base == OCI_LAYER => LayerCompression::Uncompressed,
            _ => LayerCompression::Unresolved,
        },
        _ => return Err(UnknownLayerType(media_type.to_owned())),
    })
}

/// Splits the type into its base and the suffix that counts: the greatest one, because containerd
/// sorts suffixes.
fn split(media_type: &str) -> (&str, Option<&str>) {
    match media_type.split_once('+') {
        Some((base, suffixes)) => (base, suffixes.split('+').max()),
        None => (media_type, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compression_follows_containerd() {
        use LayerCompression::{Gzip, Uncompressed, Unknown, Unresolved, Zstd};
        for (media_type, expected) in [
            (OCI_LAYER, Uncompressed),
            (OCI_LAYER_GZIP, Gzip),
            ("application/vnd.oci.image.layer.v1.tar+zstd", Zstd),
            ("application/vnd.oci.image.layer.v1.tar+bzip2", Unresolved),
            (
                "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
                Gzip,
            ),
            (
                "application/vnd.oci.image.layer.v1.tar+encrypted",
                Unresolved,
            ),
            (OCI_LAYER_NONDISTRIBUTABLE, Unresolved),
            (
                "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
                Gzip,
            ),
            (
                "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
                Zstd,
            ),
            (DOCKER_LAYER, Unknown),
            (DOCKER_FOREIGN_LAYER, Unknown),
            (DOCKER_LAYER_GZIP, Gzip),
            (DOCKER_FOREIGN_LAYER_GZIP, Gzip),
            (DOCKER_LAYER_ZSTD, Zstd),
            (
                "application/vnd.docker.image.rootfs.diff.tar.gzip+encrypted",
                Unresolved,
            ),
            (
                "application/vnd.docker.image.rootfs.diff.tar+gzip",
                Unresolved,
            ),
        ] {
            assert!(is_layer(media_type), "{media_type}");
            assert_eq!(layer_compression(media_type), Ok(expected), "{media_type}");
        }
    }

    #[test]
    fn prefix_without_a_known_base_is_a_layer_of_unknown_type() {
        let media_type = "application/vnd.oci.image.layer.v9.foo";
        assert!(is_layer(media_type));
        assert_eq!(
            layer_compression(media_type).unwrap_err().to_string(),
            "unrecognised mediatype application/vnd.oci.image.layer.v9.foo: not implemented"
        );
    }

    #[test]
    fn other_blobs_are_no_layers() {
        for media_type in [
            OCI_CONFIG,
            OCI_MANIFEST,
            OCTET_STREAM,
            "",
            "application/vnd.in-toto+json",
        ] {
            assert!(!is_layer(media_type), "{media_type}");
        }
    }
}
