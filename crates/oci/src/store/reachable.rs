//! The blobs that an image consists of.

use std::collections::BTreeMap;

use super::{ContentStore, StoreError};
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::manifest::{self, DocumentError, ImageIndex, MAX_DOCUMENT_BYTES, Manifest};
use crate::media_type;

/// Indexes within indexes beyond this depth are not followed.
const MAX_DEPTH: usize = 8;

/// Why the blobs of an image cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum ReachableError {
    /// The store does not give one.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A manifest or index cannot be read.
    #[error("{digest}")]
    Document {
        /// The document.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        source: Box<DocumentError>,
    },
}

/// Every blob that can be reached from `root` and is in the store, with its size in bytes. What a
/// source never had (layers of other platforms, layers that are kept elsewhere) is left out.
pub async fn reachable(
    store: &dyn ContentStore,
    root: &Descriptor,
) -> Result<BTreeMap<Digest, u64>, ReachableError> {
    let mut found = BTreeMap::new();
    let mut queue = vec![(root.clone(), 0)];
    while let Some((descriptor, depth)) = queue.pop() {
        let Descriptor {
            digest, media_type, ..
        } = &descriptor;
        if found.contains_key(digest) || depth > MAX_DEPTH {
            continue;
        }
        let Some(size) = store.size(digest).await? else {
            continue;
        };
        found.insert(*digest, size);
        let document = |source| ReachableError::Document {
            digest: *digest,
            source: Box::new(source),
        };
        if media_type::is_index(media_type) {
            let bytes = store.read(digest, MAX_DOCUMENT_BYTES).await?;
            let index: ImageIndex = manifest::parse(&bytes, media_type).map_err(document)?;
            queue.extend(
                index
                    .manifests()
                    .iter()
                    .map(|member| (member.clone(), depth + 1)),
            );
        } else if media_type::is_manifest(media_type) {
            let bytes = store.read(digest, MAX_DOCUMENT_BYTES).await?;
            let manifest: Manifest = manifest::parse(&bytes, media_type).map_err(document)?;
            queue.push((manifest.config.clone(), depth + 1));
            queue.extend(
                manifest
                    .layers()
                    .iter()
                    .map(|layer| (layer.clone(), depth + 1)),
            );
        }
    }
    Ok(found)
}
