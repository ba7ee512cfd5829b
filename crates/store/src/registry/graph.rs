//! The graph of an image: its documents and the blobs that they refer to.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{ContentStore, Limits, ReachableError, StoreError, Traversal};
use soci_oci::descriptor::Descriptor;
use soci_oci::digest::Digest;
use soci_oci::manifest::MAX_DOCUMENT_BYTES;
use soci_oci::media_type;

/// A document of the graph.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its media type, digest and size.
    pub descriptor: Descriptor,
    /// Its bytes.
    pub bytes: Bytes,
    /// The length of the longest path from the root.
    pub depth: usize,
}

/// Everything that is reachable from the root.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    /// The documents; the root is first.
    pub documents: Vec<Node>,
    /// All other blobs.
    pub blobs: BTreeMap<Digest, Descriptor>,
}

/// Reads all documents of an image. Layers that are stored elsewhere are omitted.
///
/// # Errors
/// [`ReachableError`] if a document is missing or invalid, or if the documents are too many, too
/// deeply nested or too large in total.
pub async fn graph(store: &dyn ContentStore, root: &Descriptor) -> Result<Graph, ReachableError> {
    let mut graph = Graph::default();
    let mut traversal = Traversal::new(root.digest, root, Limits::KEPT);
    while let Some(document) = traversal.next_document() {
        let bytes = read(store, &document.descriptor).await?;
        let mut blobs = traversal.enter(&document, &bytes)?;
        blobs.retain(|blob| !is_elsewhere(blob));
        let blobs = blobs.into_iter().map(|blob| (blob.digest, blob));
        graph.blobs.extend(blobs);
        graph.documents.push(Node {
            descriptor: document.descriptor,
            bytes,
            depth: 0,
        });
    }
    let depths = traversal.depths();
    for node in &mut graph.documents {
        node.depth = depths[&node.descriptor.digest];
    }
    Ok(graph)
}

async fn read(store: &dyn ContentStore, descriptor: &Descriptor) -> Result<Bytes, StoreError> {
    let bytes = store.read(&descriptor.digest, MAX_DOCUMENT_BYTES).await?;
    if bytes.len() as u64 != descriptor.size {
        return Err(StoreError::Size {
            digest: descriptor.digest,
            expected: descriptor.size,
            actual: bytes.len() as u64,
        });
    }
    Ok(bytes)
}

/// Whether the layer is not stored in registries; clients download it from the URLs in its
/// descriptor.
fn is_elsewhere(layer: &Descriptor) -> bool {
    media_type::is_nondistributable(&layer.media_type) && !layer.urls.is_empty()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::layout::Layout;
    use crate::{Content, MAX_DEPTH};
    use soci_oci::descriptor::Annotations;
    use soci_oci::json;
    use soci_oci::manifest::ImageIndex;

    struct Images {
        _folder: tempfile::TempDir,
        layout: Layout,
    }

    impl Images {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let layout = Layout::create(folder.path()).unwrap().unsynced();
            Self {
                _folder: folder,
                layout,
            }
        }

        /// Adds an index with these members and an annotation with this text.
        fn index(&self, members: &[&Descriptor], note: String) -> Descriptor {
            let mut index = ImageIndex::new(members.iter().map(|&it| it.clone()).collect());
            index.annotations = Annotations::from([("note".to_owned(), note)]);
            let bytes = json::to_vec(&index);
            let descriptor = Descriptor::of(media_type::OCI_INDEX, &bytes);
            let content = Content::Bytes(bytes.into());
            self.layout.store(&descriptor, content).unwrap();
            descriptor
        }

        fn named(&self, members: &[&Descriptor], name: &str) -> Descriptor {
            self.index(members, name.to_owned())
        }

        async fn depths(&self, root: &Descriptor) -> HashMap<Digest, usize> {
            let graph = graph(&self.layout, root).await.unwrap();
            let nodes = graph.documents.iter();
            nodes
                .map(|node| (node.descriptor.digest, node.depth))
                .collect()
        }
    }

    #[tokio::test]
    async fn documents_that_are_too_large_together_are_refused() {
        let images = Images::new();
        let large = |number: u8| {
            let note = char::from(b'a' + number).to_string();
            images.index(&[], note.repeat(7 << 20))
        };
        let large: Vec<Descriptor> = (0..10).map(large).collect();
        let few = images.named(&large[..8].iter().collect::<Vec<_>>(), "few");
        assert_eq!(images.depths(&few).await.len(), 9);
        let many = images.named(&large.iter().collect::<Vec<_>>(), "many");
        let error = graph(&images.layout, &many).await.unwrap_err();
        let ReachableError::Store(StoreError::TooManyDocuments { image, .. }) = error else {
            panic!("{error}");
        };
        assert_eq!(image, many.digest);
    }

    #[tokio::test]
    async fn a_document_is_as_deep_as_its_longest_way_in_any_order() {
        let images = Images::new();
        let leaf = images.named(&[], "leaf");
        let shared = images.named(&[&leaf], "shared");
        let between = images.named(&[&shared], "between");
        for members in [[&shared, &between], [&between, &shared]] {
            let root = images.named(&members, "root");
            let depths = images.depths(&root).await;
            let depth = |it: &Descriptor| depths[&it.digest];
            assert_eq!(
                [depth(&between), depth(&shared), depth(&leaf)],
                [1, 2, 3],
                "what is written first must not name what comes later"
            );
        }
    }

    #[tokio::test]
    async fn indexes_within_indexes_end_somewhere() {
        let images = Images::new();
        let mut root = images.named(&[], "0");
        for _ in 0..MAX_DEPTH {
            root = images.named(&[&root], "");
        }
        assert_eq!(images.depths(&root).await.len(), MAX_DEPTH + 1);
        let deeper = images.named(&[&root], "");
        assert!(graph(&images.layout, &deeper).await.is_err());
    }
}
