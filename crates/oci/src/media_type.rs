//! Media types of images and what they say about a layer's compression.
//!
//! The rules are containerd's, since both sides of every wire apply them: everything behind the
//! first `+` is a list of suffixes, which is sorted, and only its last member counts.

use std::fmt;

/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// OCI layer, plain tar.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// OCI layer, gzip.
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// OCI layer that registries may refuse to hold, plain tar.
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
/// Docker layer that is kept elsewhere.
pub const DOCKER_FOREIGN_LAYER: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";
/// Docker layer that is kept elsewhere, gzip.
pub const DOCKER_FOREIGN_LAYER_GZIP: &str =
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
/// The media type of zTOC blobs.
pub const OCTET_STREAM: &str = "application/octet-stream";

const OCI_LAYER_PREFIX: &str = "application/vnd.oci.image.layer.";

/// How the media type says that a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayerCompression {
    /// gzip.
    Gzip,
    /// Plain tar, said so by an OCI type.
    Uncompressed,
    /// A Docker type without suffix: taken as plain tar, though old tools may have compressed it.
    Unknown,
    /// zstd.
    Zstd,
    /// A layer type whose compression containerd cannot tell.
    Unresolved,
}

impl LayerCompression {
    /// The reference's name of the algorithm, as it appears in messages.
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

/// A type that has a layer's prefix and no known base.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unrecognised mediatype {0}: not implemented")]
pub struct UnknownLayerType(pub String);

/// Whether this is a manifest of one image, OCI or Docker.
#[must_use]
pub fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}

/// Whether this is a list of manifests, OCI or Docker.
#[must_use]
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_INDEX)
}

/// Whether containerd takes this as the type of a layer.
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

/// The compression that a layer's type declares; asked for types of which [`is_layer`] is true.
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

/// The base and the suffix that counts: the greatest, since containerd sorts them.
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
