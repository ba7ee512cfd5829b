//! An image as what it consists of: documents and the blobs that they name.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::manifest::{self, ImageIndex, MAX_DOCUMENT_BYTES, Manifest};
use crate::media_type;
use crate::store::{ContentStore, ReachableError, StoreError};

/// Indexes within indexes beyond this depth are not followed.
const MAX_DEPTH: usize = 8;
/// Documents of one image.
const MAX_DOCUMENTS: usize = 10_000;

/// A document.
#[derive(Debug, Clone)]
pub struct Node {
    /// As it is named.
    pub descriptor: Descriptor,
    /// Its bytes.
    pub bytes: Bytes,
    /// The longest way from the root.
    pub depth: usize,
}

/// All that can be reached.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    /// Documents, the root first.
    pub documents: Vec<Node>,
    /// The other blobs.
    pub blobs: BTreeMap<Digest, Descriptor>,
}

/// Reads all documents of an image. One that is missing is an error; layers that are kept elsewhere are left out.
pub async fn graph(store: &dyn ContentStore, root: &Descriptor) -> Result<Graph, ReachableError> {
    let mut graph = Graph::default();
    let mut numbers: HashMap<Digest, usize> = HashMap::new();
    let mut queue = vec![(root.clone(), 0)];
    while let Some((descriptor, depth)) = queue.pop() {
        if let Some(&number) = numbers.get(&descriptor.digest) {
            let node = &mut graph.documents[number];
            node.depth = node.depth.max(depth);
            continue;
        }
        if depth > MAX_DEPTH || graph.documents.len() >= MAX_DOCUMENTS {
            let text = "an image with too many indexes within indexes";
            return Err(StoreError::Archive(text).into());
        }
        let bytes = store.read(&descriptor.digest, MAX_DOCUMENT_BYTES).await?;
        if bytes.len() as u64 != descriptor.size {
            return Err(StoreError::Size {
                digest: descriptor.digest,
                expected: descriptor.size,
                actual: bytes.len() as u64,
            }
            .into());
        }
        let document = |source| ReachableError::Document {
            digest: descriptor.digest,
            source: Box::new(source),
        };
        let media_type = &descriptor.media_type;
        if media_type::is_index(media_type) {
            let index: ImageIndex = manifest::parse(&bytes, media_type).map_err(document)?;
            for member in index.manifests() {
                if is_document(member) {
                    queue.push((member.clone(), depth + 1));
                } else {
                    graph.blobs.insert(member.digest, member.clone());
                }
            }
        } else {
            let manifest: Manifest = manifest::parse(&bytes, media_type).map_err(document)?;
            let layers = manifest
                .layers()
                .iter()
                .filter(|layer| !is_elsewhere(layer));
            for blob in layers.chain([&manifest.config]) {
                graph.blobs.insert(blob.digest, blob.clone());
            }
        }
        numbers.insert(descriptor.digest, graph.documents.len());
        graph.documents.push(Node {
            descriptor,
            bytes,
            depth,
        });
    }
    Ok(graph)
}

fn is_document(descriptor: &Descriptor) -> bool {
    let media_type = &descriptor.media_type;
    media_type::is_index(media_type) || media_type::is_manifest(media_type)
}

/// Layers that registries do not keep: who wants them asks the addresses in their descriptors.
fn is_elsewhere(layer: &Descriptor) -> bool {
    let media_type = &layer.media_type;
    let is_foreign = media_type.contains("nondistributable") || media_type.contains(".foreign.");
    is_foreign && !layer.urls.is_empty()
}
