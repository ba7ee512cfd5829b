//! Lists the blobs of an image.

use std::collections::BTreeMap;

use super::{ContentStore, Limits, ReachableError, Traversal};
use soci_oci::descriptor::Descriptor;
use soci_oci::digest::Digest;
use soci_oci::manifest::MAX_DOCUMENT_BYTES;

/// Returns every blob that is reachable from `root` and present in the store, with its size in
/// bytes. Blobs that the source never had are omitted: layers of other platforms, and layers that
/// are stored elsewhere.
///
/// # Errors
/// [`ReachableError`] if a document cannot be read or is invalid, or if the documents are too many,
/// too deeply nested or too large in total.
pub async fn reachable(
    store: &dyn ContentStore,
    root: &Descriptor,
) -> Result<BTreeMap<Digest, u64>, ReachableError> {
    let mut found = BTreeMap::new();
    let mut traversal = Traversal::new(root.digest, root, Limits::DROPPED);
    while let Some(document) = traversal.next_document() {
        let digest = document.descriptor.digest;
        let Some(size) = store.size(&digest).await? else {
            continue;
        };
        found.insert(digest, size);
        let bytes = store.read(&digest, MAX_DOCUMENT_BYTES).await?;
        for blob in traversal.enter(&document, &bytes)? {
            if let Some(size) = store.size(&blob.digest).await? {
                found.insert(blob.digest, size);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;
    use crate::{Content, MAX_DEPTH};
    use soci_oci::manifest::ImageIndex;
    use soci_oci::{json, media_type};

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

    #[tokio::test]
    async fn what_the_store_lacks_is_omitted_with_what_only_it_refers_to() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::create(folder.path()).unwrap().unsynced();
        let inner = index(&layout, Vec::new());
        let lost = index(&layout, vec![inner]);
        std::fs::remove_file(layout.blob_path(&lost.digest)).unwrap();
        let foreign = |bytes: &'static [u8]| Descriptor {
            urls: vec!["https://elsewhere/".to_owned()],
            ..Descriptor::of(media_type::DOCKER_FOREIGN_LAYER, bytes)
        };
        let (kept, elsewhere) = (foreign(b"kept"), foreign(b"elsewhere"));
        let content = Content::Bytes(b"kept".as_slice().into());
        layout.store(&kept, content).unwrap();
        let root = index(&layout, vec![lost, kept.clone(), elsewhere]);
        let found = reachable(&layout, &root).await.unwrap();
        let expected = [(root.digest, root.size), (kept.digest, kept.size)];
        assert_eq!(found, BTreeMap::from(expected));
    }

    #[tokio::test]
    async fn an_image_that_is_nested_too_deeply_is_not_listed_in_part() {
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::create(folder.path()).unwrap().unsynced();
        let mut root = index(&layout, Vec::new());
        for _ in 0..=MAX_DEPTH {
            root = index(&layout, vec![root]);
        }
        let error = reachable(&layout, &root).await.unwrap_err();
        assert!(matches!(
            error,
            ReachableError::Store(crate::StoreError::TooDeep(_))
        ));
    }
}
