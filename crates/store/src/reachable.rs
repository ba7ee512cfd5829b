//! Lists the blobs of an image.

use std::collections::{BTreeMap, HashMap};

use super::{ContentStore, MAX_DEPTH, StoreError};
use soci_oci::descriptor::Descriptor;
use soci_oci::digest::Digest;
use soci_oci::manifest::{self, DocumentError, ImageIndex, MAX_DOCUMENT_BYTES, Manifest};
use soci_oci::media_type;

/// Why the blobs of an image cannot be listed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReachableError {
    /// The store failed to return a blob.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A manifest or index is invalid.
    #[error("{digest}")]
    Document {
        /// The document.
        digest: Digest,
        /// Why it is invalid.
        #[source]
        source: Box<DocumentError>,
    },
}

/// Returns every blob that is reachable from `root` and present in the store, with its size in
/// bytes. Blobs that the source never had are omitted: layers of other platforms, and layers that
/// are stored elsewhere.
pub async fn reachable(
    store: &dyn ContentStore,
    root: &Descriptor,
) -> Result<BTreeMap<Digest, u64>, ReachableError> {
    let mut found = BTreeMap::new();
    let mut depths: HashMap<Digest, usize> = HashMap::new();
    let mut queue = vec![(root.clone(), 0)];
    while let Some((descriptor, depth)) = queue.pop() {
        let Descriptor {
            digest, media_type, ..
        } = &descriptor;
        // A shorter path from the root leaves more depth to follow, so visit the blob again.
        let is_known = depths.get(digest).is_some_and(|&known| known <= depth);
        if is_known || depth > MAX_DEPTH {
            continue;
        }
        let Some(size) = store.size(digest).await? else {
            continue;
        };
        found.insert(*digest, size);
        depths.insert(*digest, depth);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Content;
    use crate::layout::Layout;
    use soci_oci::json;

    fn index(layout: &Layout, members: Vec<Descriptor>) -> Descriptor {
        let bytes = json::to_vec(&ImageIndex::new(members));
        let descriptor = Descriptor::of(media_type::OCI_INDEX, &bytes);
        let content = Content::Bytes(bytes.into());
        layout.store(&descriptor, content).unwrap();
        descriptor
    }

    #[tokio::test]
    async fn what_a_short_way_reaches_is_found_whatever_the_order() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::create(folder.path()).unwrap().unsynced();
        let leaf = index(&layout, Vec::new());
        let shared = index(&layout, vec![leaf.clone()]);
        let mut far = shared.clone();
        for _ in 1..MAX_DEPTH {
            far = index(&layout, vec![far]);
        }
        for members in [[&shared, &far], [&far, &shared]] {
            let root = index(&layout, members.map(Clone::clone).to_vec());
            let found = reachable(&layout, &root).await.unwrap();
            assert!(found.contains_key(&leaf.digest));
            assert_eq!(found.len(), MAX_DEPTH + 2);
        }
    }
}
