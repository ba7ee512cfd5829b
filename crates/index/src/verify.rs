//! Whether an image and its SOCI indexes fit each other.
//!
//! A [`Verification`] walks an image from its target: image index, manifests, the SOCI indexes that
//! they name or that name them, zTOCs and prefetch artifacts. Whatever is wrong is a [`Finding`], told
//! as soon as it is found; only a store that fails otherwise than by not having something ends the
//! walk. `deep` reads every layer as well, once, from front to back ([`reads`], [`deep`](self::deep)).
//!
//! An image may lawfully be there in part: members of an image index whose manifest and SOCI index are
//! both absent are counted, not blamed, and layers without a zTOC are in order.

mod deep;
mod finding;
mod image;
mod reads;
mod soci;

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use soci_oci::manifest::{self, Kind, MAX_DOCUMENT_BYTES};
use soci_oci::store::{ContentStore, StoreError};
use soci_oci::{Descriptor, Digest, Platform};

pub use finding::{Finding, Part, Problem};

/// What is to be checked, and how.
pub struct Verification {
    /// Where everything lies.
    pub store: Arc<dyn ContentStore>,
    /// Read every layer.
    pub deep: bool,
    /// Only manifests for these platforms; none: all that are there.
    pub platforms: Vec<Platform>,
    /// The store may lack layers, as containerd's does when images are started lazily. Such layers are
    /// only missed when they are to be read.
    pub may_lack_layers: bool,
    /// Version 1 indexes that are said to belong to a manifest.
    pub referrers: Vec<(Digest, Descriptor)>,
    /// Is told of bytes of layers that were read.
    pub progress: Arc<dyn Fn(u64) + Send + Sync>,
}

impl std::fmt::Debug for Verification {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verification")
            .field("store", &self.store)
            .field("deep", &self.deep)
            .field("platforms", &self.platforms)
            .finish_non_exhaustive()
    }
}

/// What was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Image manifests.
    pub manifests: usize,
    /// Image manifests, listed by an image index, that are not there; nor is a SOCI index of theirs.
    pub absent: usize,
    /// SOCI indexes.
    pub indexes: usize,
    /// Distinct layers of those manifests.
    pub layers: usize,
    /// zTOCs.
    pub ztocs: usize,
    /// Prefetch artifacts.
    pub prefetches: usize,
    /// Bytes of layers that were read.
    pub bytes: u64,
    /// Things that are wrong.
    #[serde(skip)]
    pub problems: usize,
}

/// All that there is to say about an image, for machines.
#[derive(Debug, serde::Serialize)]
pub struct Report {
    /// The image, as the user named it.
    pub image: String,
    /// What it is.
    pub digest: Digest,
    /// Whether nothing is wrong.
    pub ok: bool,
    /// What is.
    pub problems: Vec<Finding>,
    /// What was looked at.
    pub checked: Summary,
}

impl Verification {
    /// Checks the image that `target` describes; `found` is told what is wrong.
    pub async fn run(
        self,
        target: &Descriptor,
        found: &mut (dyn FnMut(Finding) + Send),
    ) -> Result<Summary, StoreError> {
        let mut walk = Walk {
            options: self,
            found,
            summary: Summary::default(),
            layers: HashSet::new(),
            queue: Vec::new(),
            read: HashSet::new(),
            checked: HashSet::new(),
        };
        walk.image(target).await?;
        walk.summary.layers = walk.layers.len();
        Ok(walk.summary)
    }
}

/// A verification that is under way.
struct Walk<'a> {
    options: Verification,
    found: &'a mut (dyn FnMut(Finding) + Send),
    summary: Summary,
    /// Layers of the manifests so far.
    layers: HashSet<Digest>,
    /// Layers that are to be read.
    queue: Vec<reads::Queued>,
    /// The same and those that were read, each with the zTOC that it is read for.
    read: HashSet<(Digest, Option<Digest>)>,
    /// SOCI indexes that were checked, each for a manifest.
    checked: HashSet<(Digest, Digest)>,
}

impl Walk<'_> {
    fn tell(&mut self, part: Part, digest: Digest, problem: Problem) {
        self.tell_of(part, digest, None, problem);
    }

    fn tell_of(&mut self, part: Part, digest: Digest, layer: Option<Digest>, problem: Problem) {
        self.summary.problems += 1;
        (self.found)(Finding {
            part,
            digest,
            layer,
            problem,
        });
    }

    /// The bytes of a blob, if it is what its descriptor says.
    async fn bytes(
        &mut self,
        part: Part,
        from: &Descriptor,
        limit: u64,
    ) -> Result<Option<Bytes>, StoreError> {
        let problem = match self.options.store.read(&from.digest, limit).await {
            Ok(bytes) if bytes.len() as u64 == from.size => return Ok(Some(bytes)),
            Ok(bytes) => Problem::Size(from.size, bytes.len() as u64),
            Err(error) => blob_problem(error)?,
        };
        self.tell(part, from.digest, problem);
        Ok(None)
    }

    /// A document, if it is what its descriptor says.
    async fn document<T: Kind>(
        &mut self,
        part: Part,
        from: &Descriptor,
    ) -> Result<Option<T>, StoreError> {
        let Some(bytes) = self.bytes(part, from, MAX_DOCUMENT_BYTES).await? else {
            return Ok(None);
        };
        match manifest::parse(&bytes, &from.media_type) {
            Ok(document) => Ok(Some(document)),
            Err(error) => {
                self.tell(part, from.digest, Problem::Document(Box::new(error)));
                Ok(None)
            }
        }
    }

    /// That a blob is there and as long as its descriptor says; its bytes are not looked at.
    async fn presence(&mut self, part: Part, blob: &Descriptor) -> Result<(), StoreError> {
        match self.options.store.size(&blob.digest).await? {
            None => self.tell(part, blob.digest, Problem::Missing),
            Some(size) if size != blob.size => {
                self.tell(part, blob.digest, Problem::Size(blob.size, size));
            }
            Some(_) => {}
        }
        Ok(())
    }
}

/// What a store's error says about a blob; an error about the store itself stays one.
fn blob_problem(error: StoreError) -> Result<Problem, StoreError> {
    match error {
        StoreError::NotFound(_) => Ok(Problem::Missing),
        StoreError::Digest(mismatch) => Ok(Problem::Digest(*mismatch.actual)),
        StoreError::Size {
            expected, actual, ..
        } => Ok(Problem::Size(expected, actual)),
        StoreError::TooLarge { size, limit, .. } => Ok(Problem::TooLarge(size, limit)),
        other => Err(other),
    }
}
