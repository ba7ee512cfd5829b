//! Pushes version 1 indexes to the registry of their image.
//!
//! [`select`] finds the newest recorded index of each platform's manifest. [`push`] checks whether
//! the registry already has an index of that manifest, and then copies the index and everything
//! that it refers to, children first: the subject (with its content, if the registry lacks it), the
//! configuration and the zTOCs. Content that the registry has, or can mount from another of its
//! repositories, is not sent.
//!
//! Events are reported as [`Note`]s, whose texts match the reference's output.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use soci_oci::manifest::DocumentError;
use soci_oci::reference::ImageRef;
use soci_oci::{Descriptor, Digest, Platform};
use soci_registry::{Listing, Registry, RegistryError};
use soci_store::{ContentStore, StoreError};

use crate::artifacts::ArtifactsError;
use crate::image::{ImageError, Offered};
use crate::model::ARTIFACT_TYPE_V1;

mod graph;
mod select;

use graph::Graph;
pub use select::select;

/// What to do if the registry already has an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// Warn, and push.
    #[default]
    Warn,
    /// Do not push.
    Skip,
    /// Push without checking.
    Allow,
}

/// Options of a push.
#[derive(Debug, Clone, Copy)]
pub struct PushOptions {
    /// What to do if the registry already has an index.
    pub existing: Existing,
    /// Maximum number of concurrent copies of blobs and manifests.
    pub uploads: usize,
}

/// An index to push.
#[derive(Debug, Clone)]
pub struct Selected {
    /// The requested platform.
    pub platform: Platform,
    /// The image manifest that the index refers to.
    pub subject: Digest,
    /// The index.
    pub index: Descriptor,
}

/// An event to report to the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// The image has a version 2 index, which is part of the image.
    VersionTwo,
    /// The registry is queried for indexes.
    Checking,
    /// The registry already has an index. Another one is pushed.
    PushingAnyway(Found),
    /// The registry already has an index for this image manifest. Nothing is pushed.
    NotPushing(Found, Digest),
    /// This index is being copied.
    Index(Digest),
    /// The registry already has this blob or manifest.
    Skipped(Digest),
    /// The blob or manifest is being copied.
    Pushing(Digest),
    /// The blob or manifest has been copied.
    Pushed(Digest),
}

/// The indexes in the registry. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found(pub Vec<Digest>);

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [only] => write!(
                f,
                "soci index found in remote repository with digest: {only}"
            ),
            _ => f.write_str("multiple soci indices found in remote repository"),
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::VersionTwo => f.write_str(
                "[WARN] Skippping SOCI index manifest v2. \
                 You should push the whole image with higher level tools like finch or nerdctl.",
            ),
            Self::Checking => {
                f.write_str("checking if a soci index already exists in remote repository...")
            }
            Self::PushingAnyway(found) => write!(f, "[WARN] {found}: pushing index anyway"),
            Self::NotPushing(found, manifest) => write!(
                f,
                "{found}: skipping pushing artifacts for image manifest: {manifest}"
            ),
            Self::Index(digest) => write!(f, "pushing soci index with digest: {digest}"),
            Self::Skipped(digest) => write!(f, "skipped artifact with digest: {digest}"),
            Self::Pushing(digest) => write!(f, "pushing artifact with digest: {digest}"),
            Self::Pushed(digest) => {
                write!(f, "successfully pushed artifact with digest: {digest}")
            }
        }
    }
}

/// Receives events. It is called from several tasks concurrently and must not block for long.
pub trait PushObserver: Send + Sync {
    /// Reports an event.
    fn note(&self, note: &Note);
    /// Reports that this many more bytes have been sent.
    fn sent(&self, _bytes: u64) {}
}

/// What was done with a blob or manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The repository already had it.
    Skipped,
    /// The registry mounted it from another repository.
    Mounted,
    /// It was uploaded.
    Pushed,
}

/// A blob or manifest of a pushed index.
#[derive(Debug, Clone)]
pub struct CopiedBlob {
    /// Its descriptor.
    pub blob: Descriptor,
    /// What was done with it.
    pub outcome: Outcome,
}

/// The result of pushing an index.
#[derive(Debug)]
pub struct Pushed {
    /// The indexes that the registry had before. Empty if the registry was not queried.
    pub existing: Vec<Digest>,
    /// How the index is listed as a referrer, if known.
    pub listing: Option<Listing>,
    /// All blobs and manifests in the order of completion. Empty if nothing was pushed.
    pub blobs: Vec<CopiedBlob>,
    /// How long the push took.
    pub took: Duration,
}

/// Why an index was not pushed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    /// The image has no manifest for a platform. The text begins with the reference's because
    /// scripts match it.
    #[error("not found: image manifest for {platform}{}", Offered(.offered))]
    NoManifest {
        /// The platform. Boxed to keep the error small.
        platform: Box<Platform>,
        /// The platforms of the image.
        offered: Vec<Platform>,
    },
    /// The image is invalid or missing.
    #[error(transparent)]
    Image(ImageError),
    /// The records cannot be read.
    #[error(transparent)]
    Records(#[from] ArtifactsError),
    /// No index is recorded for this platform.
    #[error("could not find any soci index manifest v1 to push for platform {0}")]
    NoIndex(Platform),
    /// The registry could not be queried for indexes.
    #[error("failed to fetch list of referrers")]
    Referrers(#[source] RegistryError),
    /// The index or one of its references could not be copied.
    #[error("error pushing graph to remote")]
    Graph(#[from] GraphError),
}

/// Why a blob or manifest could not be copied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// Neither the registry nor the local store has it.
    #[error("{what} {digest}: not found ({remedy})")]
    Missing {
        /// Its role in the index.
        what: &'static str,
        /// Its digest.
        digest: Digest,
        /// What the user can do.
        remedy: &'static str,
    },
    /// A document is invalid.
    #[error("{digest}")]
    Document {
        /// The document.
        digest: Digest,
        /// Why it is invalid.
        #[source]
        source: Box<DocumentError>,
    },
    /// The local store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The registry request failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// Copies an index to the repository of `image`. `store` has the index, its zTOCs, and the parts of
/// the image that the registry lacks.
pub async fn push(
    registry: &Registry,
    image: &ImageRef,
    store: &Arc<dyn ContentStore>,
    selected: &Selected,
    options: PushOptions,
    observer: &Arc<dyn PushObserver>,
) -> Result<Pushed, PushError> {
    let begun = Instant::now();
    let mut pushed = Pushed {
        existing: Vec::new(),
        listing: None,
        blobs: Vec::new(),
        took: Duration::ZERO,
    };
    if options.existing != Existing::Allow {
        observer.note(&Note::Checking);
        pushed.existing = existing(registry, image, &selected.subject).await?;
    }
    if !pushed.existing.is_empty() {
        let found = Found(pushed.existing.clone());
        if options.existing == Existing::Skip {
            observer.note(&Note::NotPushing(found, selected.subject));
            pushed.took = begun.elapsed();
            return Ok(pushed);
        }
        observer.note(&Note::PushingAnyway(found));
    }
    observer.note(&Note::Index(selected.index.digest));
    // An index that is present but not listed was left by an interrupted push.
    let listed =
        options.existing == Existing::Allow || pushed.existing.contains(&selected.index.digest);
    let index = &selected.index;
    let graph = Graph::new(registry, image, store, observer, options.uploads);
    let (listing, blobs) = graph.push_index(index, listed).await?;
    pushed.listing = listing;
    pushed.blobs = blobs;
    pushed.took = begun.elapsed();
    Ok(pushed)
}

/// Returns the indexes of an image manifest in the registry.
async fn existing(
    registry: &Registry,
    image: &ImageRef,
    subject: &Digest,
) -> Result<Vec<Digest>, PushError> {
    match registry.referrers(image, subject, ARTIFACT_TYPE_V1).await {
        Ok(referrers) => Ok(referrers.iter().map(|referrer| referrer.digest).collect()),
        // A missing repository has no indexes. The upload shows whether it can be created.
        Err(RegistryError::NotFound { .. }) => Ok(Vec::new()),
        Err(error) => Err(PushError::Referrers(error)),
    }
}
