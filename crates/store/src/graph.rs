//! The traversal of an image: from its root to the manifests, and from those to their blobs.
//!
//! A [`Traversal`] does no I/O. Its caller takes the [next document](Traversal::next_document),
//! reads it, and [enters](Traversal::enter) its bytes to learn what the document refers to. A
//! document that is not entered is left out, with everything that only it refers to.
//!
//! Each document is returned once, in the order of its shortest path from the root, so the result
//! does not depend on the order of members. [`Limits`] bound the memory of the traversal and of the
//! caller. The role decides what a document is: layers and configurations are always blobs.

use std::collections::{HashMap, VecDeque};

use super::{DocumentBudget, MAX_DEPTH, MAX_IMAGE_DOCUMENTS, StoreError};
use soci_oci::descriptor::Descriptor;
use soci_oci::digest::Digest;
use soci_oci::manifest::{self, DocumentError, ImageIndex, Manifest};
use soci_oci::media_type;

/// Why the documents or blobs of an image cannot be listed. Exhaustive, because callers translate
/// every case.
#[derive(Debug, thiserror::Error)]
pub enum ReachableError {
    /// The store failed to return a blob, or the image exceeds a limit.
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

/// What a traversal accepts.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Maximum number of indexes that enclose a document on its shortest path.
    pub depth: usize,
    /// Maximum number of documents that are named, whether or not they are entered.
    pub documents: usize,
    /// Maximum total size in bytes of the documents that are entered.
    pub bytes: u64,
}

impl Limits {
    /// For a caller that keeps the documents, or all of the descriptors in them.
    pub const KEPT: Self = Self {
        depth: MAX_DEPTH,
        // The largest published indexes have a few hundred members.
        documents: 10_000,
        bytes: MAX_IMAGE_DOCUMENTS,
    };

    /// For a caller that drops each document. The traversal itself keeps one pair of numbers per
    /// reference, which is at most a tenth of the bytes.
    pub const DROPPED: Self = Self {
        bytes: 16 * MAX_IMAGE_DOCUMENTS,
        ..Self::KEPT
    };
}

/// A manifest or index that an image refers to.
#[derive(Debug, Clone)]
pub struct Document {
    /// Its media type, digest and size. Other fields are dropped, because a document can refer to
    /// thousands of others.
    pub descriptor: Descriptor,
    /// The length of the shortest path from the root.
    depth: usize,
}

/// The state of a traversal.
#[derive(Debug)]
pub struct Traversal {
    limits: Limits,
    budget: DocumentBudget,
    /// All known documents in the order of their depth.
    documents: Vec<Document>,
    /// The position of each document in `documents`.
    numbers: HashMap<Digest, usize>,
    /// The number of documents that were returned.
    returned: usize,
    /// Positions of an index and of its member.
    references: Vec<(u32, u32)>,
}

impl Traversal {
    /// Starts at the manifest or index `root`. Messages about limits name `image`.
    #[must_use]
    pub fn new(image: Digest, root: &Descriptor, limits: Limits) -> Self {
        let mut traversal = Self {
            limits,
            budget: DocumentBudget::with_limit(image, limits.bytes),
            documents: Vec::new(),
            numbers: HashMap::new(),
            returned: 0,
            references: Vec::new(),
        };
        traversal.number(root, 0);
        traversal
    }

    /// The next document to read, or `None` if there is no other.
    pub fn next_document(&mut self) -> Option<Document> {
        let next = self.documents.get(self.returned)?;
        self.returned += 1;
        Some(next.clone())
    }

    /// Parses a document and adds the documents that it refers to. Returns the other blobs: the
    /// configuration and the layers of a manifest, or other members of an index. The caller has
    /// verified the digest.
    ///
    /// # Errors
    /// [`ReachableError`] if the document is invalid, or if a limit is exceeded.
    pub fn enter(
        &mut self,
        document: &Document,
        bytes: &[u8],
    ) -> Result<Vec<Descriptor>, ReachableError> {
        let Descriptor {
            digest, media_type, ..
        } = &document.descriptor;
        if document.depth > self.limits.depth {
            return Err(StoreError::TooDeep(*digest).into());
        }
        self.budget.take(bytes.len() as u64)?;
        let invalid = |source| ReachableError::Document {
            digest: *digest,
            source: Box::new(source),
        };
        if media_type::is_index(media_type) {
            let index: ImageIndex = manifest::parse(bytes, media_type).map_err(invalid)?;
            let members = index.manifests.unwrap_or_default();
            let (documents, blobs) = members.into_iter().partition(is_document);
            self.add_members(document, documents)?;
            return Ok(blobs);
        }
        let manifest: Manifest = manifest::parse(bytes, media_type).map_err(invalid)?;
        let mut blobs = vec![manifest.config];
        blobs.extend(manifest.layers.unwrap_or_default());
        Ok(blobs)
    }

    fn add_members(&mut self, of: &Document, members: Vec<Descriptor>) -> Result<(), StoreError> {
        let parent = self.number(&of.descriptor, of.depth);
        for member in members {
            let child = self.number(&member, of.depth + 1);
            if self.documents.len() > self.limits.documents {
                return Err(StoreError::ManyMembers(self.limits.documents));
            }
            self.references.push((parent, child));
        }
        Ok(())
    }

    /// The position of a document, which is added if it is new.
    fn number(&mut self, of: &Descriptor, depth: usize) -> u32 {
        let number = *self.numbers.entry(of.digest).or_insert_with(|| {
            self.documents.push(Document {
                descriptor: Descriptor::new(of.media_type.clone(), of.digest, of.size),
                depth,
            });
            self.documents.len() - 1
        });
        u32::try_from(number).expect("the limit on documents is far smaller")
    }

    /// The length of the longest path from the root to each document. Documents of one depth do not
    /// refer to each other, so they can be written at once, after those that are deeper.
    #[must_use]
    pub fn depths(&self) -> HashMap<Digest, usize> {
        let mut members: Vec<Vec<usize>> = vec![Vec::new(); self.documents.len()];
        let mut enclosing = vec![0_usize; self.documents.len()];
        for &(parent, child) in &self.references {
            members[parent as usize].push(child as usize);
            enclosing[child as usize] += 1;
        }
        let mut depths = vec![0; self.documents.len()];
        let free = (0..self.documents.len()).filter(|&number| enclosing[number] == 0);
        let mut queue: VecDeque<usize> = free.collect();
        while let Some(parent) = queue.pop_front() {
            for &child in &members[parent] {
                depths[child] = depths[child].max(depths[parent] + 1);
                enclosing[child] -= 1;
                if enclosing[child] == 0 {
                    queue.push_back(child);
                }
            }
        }
        let digests = self.documents.iter().map(|it| it.descriptor.digest);
        digests.zip(depths).collect()
    }
}

fn is_document(descriptor: &Descriptor) -> bool {
    let media_type = &descriptor.media_type;
    media_type::is_index(media_type) || media_type::is_manifest(media_type)
}

#[cfg(test)]
mod tests;
