//! The labels that the snapshotter reads and writes. It preserves all other labels.

use std::collections::BTreeMap;

/// Labels of a snapshot or a request.
pub type Labels = BTreeMap<String, String>;

/// Name under which containerd wants the layer committed. Its presence requests a remote snapshot.
pub const TARGET: &str = "containerd.io/snapshot.ref";
/// Reference of the image.
pub const IMAGE_REFERENCE: &str = "containerd.io/snapshot/cri.image-ref";
/// Digest of the manifest of the image's platform.
pub const MANIFEST_DIGEST: &str = "containerd.io/snapshot/cri.manifest-digest";
/// Digest of the layer.
pub const LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";
/// Size of the layer in bytes, in decimal. Only some clients send it.
pub const LAYER_SIZE: &str = "containerd.io/snapshot/remote/soci.size";
/// Digest of the index to use, if the user specified one.
pub const INDEX_DIGEST: &str = "containerd.io/snapshot/remote/soci.index.digest";
/// Marks a snapshot whose bytes are downloaded on demand.
pub const REMOTE: &str = "containerd.io/snapshot/remote";
/// Value of [`REMOTE`].
pub const REMOTE_VALUE: &str = "remote snapshot";
/// Namespace in which the snapshot was created.
pub const NAMESPACE: &str = "containerd.io/snapshot/remote/namespace";
/// Marks layers of an image that has an index. The value is `true`.
pub const HAS_INDEX: &str = "containerd.io/snapshot/remote/has.soci.index.digest";

/// The value of a label. An empty value counts as missing.
pub(crate) fn value<'a>(labels: &'a Labels, key: &str) -> Option<&'a str> {
    labels
        .get(key)
        .map(String::as_str)
        .filter(|value| !value.is_empty())
}

/// Whether the labels are those of a layer whose bytes are downloaded on demand.
pub(crate) fn is_lazy(labels: &Labels) -> bool {
    value(labels, REMOTE).is_some()
}

/// Whether the labels name an image and a layer.
pub(crate) fn names_a_layer(labels: &Labels) -> bool {
    [IMAGE_REFERENCE, MANIFEST_DIGEST, LAYER_DIGEST]
        .iter()
        .all(|key| value(labels, key).is_some())
}
