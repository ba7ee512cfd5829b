//! The graph of an image: its documents and the blobs that they refer to.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use crate::{ContentStore, DocumentBudget, MAX_DEPTH, ReachableError, StoreError};
use soci_oci::descriptor::Descriptor;
use soci_oci::digest::Digest;
use soci_oci::manifest::{self, ImageIndex, MAX_DOCUMENT_BYTES, Manifest};
use soci_oci::media_type;

/// Maximum number of documents in one image.
const MAX_DOCUMENTS: usize = 10_000;

/// A document of the graph.
#[derive(Debug, Clone)]
pub struct Node {
    /// The descriptor that refers to it.
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
    let mut numbers: HashMap<Digest, usize> = HashMap::new();
    let mut budget = DocumentBudget::new(root.digest);
    let mut queue = vec![(root.clone(), 0)];
    while let Some((descriptor, depth)) = queue.pop() {
        let known = numbers.get(&descriptor.digest).copied();
        if known.is_some_and(|number| graph.documents[number].depth >= depth) {
            continue;
        }
        if depth > MAX_DEPTH {
            return Err(StoreError::TooDeep(descriptor.digest).into());
        }
        if graph.documents.len() >= MAX_DOCUMENTS {
            let text = "an image with more than 10000 manifests and indexes";
            return Err(StoreError::Archive(text).into());
        }
        let number = match known {
            // A longer path than before: its descendants are deeper too, so visit them again.
            Some(number) => number,
            None => {
                let node = read(store, descriptor, &mut budget).await?;
                numbers.insert(node.descriptor.digest, graph.documents.len());
                graph.documents.push(node);
                graph.documents.len() - 1
            }
        };
        graph.documents[number].depth = depth;
        let (documents, blobs) = named(&graph.documents[number])?;
        queue.extend(documents.into_iter().map(|named| (named, depth + 1)));
        graph
            .blobs
            .extend(blobs.into_iter().map(|blob| (blob.digest, blob)));
    }
    Ok(graph)
}

async fn read(
    store: &dyn ContentStore,
    descriptor: Descriptor,
    budget: &mut DocumentBudget,
) -> Result<Node, StoreError> {
    budget.take(descriptor.size)?;
    let bytes = store.read(&descriptor.digest, MAX_DOCUMENT_BYTES).await?;
    if bytes.len() as u64 != descriptor.size {
        return Err(StoreError::Size {
            digest: descriptor.digest,
            expected: descriptor.size,
            actual: bytes.len() as u64,
        });
    }
    Ok(Node {
        descriptor,
        bytes,
        depth: 0,
    })
}

/// The documents and the other blobs that a document refers to, without layers that are stored
/// elsewhere.
fn named(node: &Node) -> Result<(Vec<Descriptor>, Vec<Descriptor>), ReachableError> {
    let Descriptor {
        digest, media_type, ..
    } = &node.descriptor;
    let document = |source| ReachableError::Document {
        digest: *digest,
        source: Box::new(source),
    };
    if media_type::is_index(media_type) {
        let index: ImageIndex = manifest::parse(&node.bytes, media_type).map_err(document)?;
        let members = index.manifests.unwrap_or_default();
        return Ok(members.into_iter().partition(is_document));
    }
    let manifest: Manifest = manifest::parse(&node.bytes, media_type).map_err(document)?;
    let mut blobs = manifest.layers.unwrap_or_default();
    blobs.retain(|layer| !is_elsewhere(layer));
    blobs.push(manifest.config);
    Ok((Vec::new(), blobs))
}

fn is_document(descriptor: &Descriptor) -> bool {
    let media_type = &descriptor.media_type;
    media_type::is_index(media_type) || media_type::is_manifest(media_type)
}

/// Whether the layer is not stored in registries; clients download it from the URLs in its
/// descriptor.
fn is_elsewhere(layer: &Descriptor) -> bool {
    media_type::is_nondistributable(&layer.media_type) && !layer.urls.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Content;
    use crate::layout::Layout;
    use soci_oci::descriptor::Annotations;
    use soci_oci::json;

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
