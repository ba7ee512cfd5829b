//! Checks that an image and its SOCI indexes are consistent.
//!
//! A [`Verification`] walks an image from its target: image index, manifests, the SOCI indexes that
//! they name or that refer to them, zTOCs and prefetch artifacts. Each problem is reported
//! immediately as a [`Finding`]. A missing blob is a finding too; any other store error ends the
//! walk. `deep` also reads every layer once, from start to end (`reads`, `deep`), and compares its
//! archive with the diff-IDs of the configurations (`unpacked`).
//!
//! An image may be incomplete: members of an image index whose manifest and SOCI index are both
//! missing are counted but not reported, and layers do not need a zTOC.

mod deep;
mod finding;
mod image;
mod reads;
mod soci;
mod unpacked;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use soci_oci::manifest::{self, Kind, MAX_DOCUMENT_BYTES};
use soci_oci::{Descriptor, Digest, Platform};
use soci_store::{ContentStore, StoreError};

pub use finding::{Finding, Part, Problem};

/// What to check, and how.
pub struct Verification {
    /// The store that contains everything.
    pub store: Arc<dyn ContentStore>,
    /// Whether to read every layer.
    pub deep: bool,
    /// The platforms to check. If empty, all manifests that are present.
    pub platforms: Vec<Platform>,
    /// Whether the store may lack layers, as containerd's does if images are loaded lazily. Missing
    /// layers are then reported only if they have to be read.
    pub may_lack_layers: bool,
    /// Version 1 indexes that refer to a manifest, each with the digest of that manifest.
    pub referrers: Vec<(Digest, Descriptor)>,
    /// Called with the number of layer bytes that were read.
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

/// Counts of what was checked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Image manifests.
    pub manifests: usize,
    /// Image manifests listed by an image index that are missing together with their SOCI index.
    pub absent: usize,
    /// SOCI indexes.
    pub indexes: usize,
    /// Distinct layers of the manifests.
    pub layers: usize,
    /// zTOCs.
    pub ztocs: usize,
    /// Prefetch artifacts.
    pub prefetches: usize,
    /// Bytes of layers that were read.
    pub bytes: u64,
    /// Layers that were read but not compared with a diff-ID: they are compressed with zstd,
    /// encrypted, or of an unknown compression, and cannot be unpacked here.
    pub not_unpacked: usize,
    /// Problems found.
    #[serde(skip)]
    pub problems: usize,
}

/// The machine-readable result for an image.
#[derive(Debug, serde::Serialize)]
pub struct Report {
    /// The image as the user named it.
    pub image: String,
    /// The digest of the image.
    pub digest: Digest,
    /// Whether no problems were found.
    pub ok: bool,
    /// The problems.
    pub problems: Vec<Finding>,
    /// Counts of what was checked.
    pub checked: Summary,
}

impl Verification {
    /// Checks the image that `target` describes and calls `found` for each problem.
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
            diff_ids: HashMap::new(),
        };
        walk.image(target).await?;
        walk.summary.layers = walk.layers.len();
        Ok(walk.summary)
    }
}

/// The state of a verification.
struct Walk<'a> {
    options: Verification,
    found: &'a mut (dyn FnMut(Finding) + Send),
    summary: Summary,
    /// Layers of the manifests visited so far.
    layers: HashSet<Digest>,
    /// Layers to read.
    queue: Vec<reads::Queued>,
    /// The layers in `queue` and those already read, each with the zTOC that it is compared with.
    read: HashSet<(Digest, Option<Digest>)>,
    /// SOCI indexes that were checked, each with its manifest.
    checked: HashSet<(Digest, Digest)>,
    /// What configurations say about a layer: the configuration, and the diff-ID.
    diff_ids: HashMap<Digest, BTreeSet<(Digest, Digest)>>,
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

    /// Returns the bytes of a blob if they match its descriptor.
    async fn read(
        &self,
        from: &Descriptor,
        limit: u64,
    ) -> Result<Result<Bytes, Problem>, StoreError> {
        Ok(match self.options.store.read(&from.digest, limit).await {
            Ok(bytes) if bytes.len() as u64 == from.size => Ok(bytes),
            Ok(bytes) => Err(Problem::Size(from.size, bytes.len() as u64)),
            Err(error) => Err(blob_problem(error)?),
        })
    }

    /// Like [`Self::read`], and reports the problem.
    async fn bytes(
        &mut self,
        part: Part,
        from: &Descriptor,
        limit: u64,
    ) -> Result<Option<Bytes>, StoreError> {
        let read = self.read(from, limit).await?;
        Ok(self.report(part, from, read))
    }

    /// Returns a document if it matches its descriptor.
    async fn document<T: Kind>(
        &mut self,
        part: Part,
        from: &Descriptor,
    ) -> Result<Option<T>, StoreError> {
        let bytes = self.bytes(part, from, MAX_DOCUMENT_BYTES).await?;
        Ok(bytes.and_then(|bytes| self.parse(part, from, &bytes)))
    }

    fn parse<T: Kind>(&mut self, part: Part, from: &Descriptor, bytes: &[u8]) -> Option<T> {
        let parsed = manifest::parse(bytes, &from.media_type);
        let parsed = parsed.map_err(|error| Problem::Document(Box::new(error)));
        self.report(part, from, parsed)
    }

    /// Reports the problem, if there is one.
    fn report<T>(&mut self, part: Part, from: &Descriptor, found: Result<T, Problem>) -> Option<T> {
        found
            .map_err(|problem| self.tell(part, from.digest, problem))
            .ok()
    }

    /// Checks that a blob is present and has the size in its descriptor. Does not read it.
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

/// Converts a store error about a blob to a problem. An error of the store itself remains an error.
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
