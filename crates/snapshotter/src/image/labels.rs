//! The labels that we read and write. Every other label is kept as it is.

use std::collections::BTreeMap;

/// Labels of a snapshot, or of a request.
pub type Labels = BTreeMap<String, String>;

/// Name under which containerd wants the layer committed; its presence asks for a remote snapshot.
pub const TARGET: &str = "containerd.io/snapshot.ref";
/// Reference of the image.
pub const IMAGE_REFERENCE: &str = "containerd.io/snapshot/cri.image-ref";
/// Digest of the manifest of the image's platform.
pub const MANIFEST_DIGEST: &str = "containerd.io/snapshot/cri.manifest-digest";
/// Digest of the layer.
pub const LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";
/// Size of the layer in bytes, decimal; only some clients send it.
pub const LAYER_SIZE: &str = "containerd.io/snapshot/remote/soci.size";
/// Digest of the index to use, where the user gave one.
pub const INDEX_DIGEST: &str = "containerd.io/snapshot/remote/soci.index.digest";
/// Marks a snapshot whose bytes come as they are read.
pub const REMOTE: &str = "containerd.io/snapshot/remote";
/// Value of [`REMOTE`].
pub const REMOTE_VALUE: &str = "remote snapshot";
/// Namespace that the snapshot was made in.
pub const NAMESPACE: &str = "containerd.io/snapshot/remote/namespace";
/// Marks layers of an image that has an index; the value is `true`.
pub const HAS_INDEX: &str = "containerd.io/snapshot/remote/has.soci.index.digest";

/// The value of a label; an empty one counts as none.
pub(crate) fn value<'a>(labels: &'a Labels, key: &str) -> Option<&'a str> {
    labels
        .get(key)
        .map(String::as_str)
        .filter(|value| !value.is_empty())
}

/// Whether the labels say which layer of which image is wanted.
pub(crate) fn names_a_layer(labels: &Labels) -> bool {
    [IMAGE_REFERENCE, MANIFEST_DIGEST, LAYER_DIGEST]
        .iter()
        .all(|key| value(labels, key).is_some())
}
