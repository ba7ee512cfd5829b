//! Version 1 indexes on their way to the registry of their image.
//!
//! [`select`] finds, for each platform, the newest index that was recorded for the image's manifest. [`push`] looks whether
//! the registry has an index of that manifest already, and then copies the index with everything it refers to, children
//! first: the subject (with all that it consists of, should the registry not have it), the configuration, the zTOCs.
//! Nothing is sent that the registry has or can take over from another of its repositories.
//!
//! What happens is told as [`Note`]s, whose texts are those that the reference prints.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use soci_oci::manifest::DocumentError;
use soci_oci::reference::ImageRef;
use soci_oci::registry::{Listing, Registry, RegistryError};
use soci_oci::store::{ContentStore, StoreError};
use soci_oci::{Descriptor, Digest, Platform};

use crate::artifacts::ArtifactsError;
use crate::image::ImageError;
use crate::model::ARTIFACT_TYPE_V1;

mod graph;
mod select;

use graph::Graph;
pub use select::select;

/// What to do about an index that the registry has already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Existing {
    /// Say so, and push.
    #[default]
    Warn,
    /// Push nothing.
    Skip,
    /// Do not even look.
    Allow,
}

/// How to push.
#[derive(Debug, Clone, Copy)]
pub struct PushOptions {
    /// About an index that is there already.
    pub existing: Existing,
    /// Blobs and manifests under way at once.
    pub uploads: usize,
}

/// An index that is to be pushed.
#[derive(Debug, Clone)]
pub struct Selected {
    /// The platform as it was asked for.
    pub platform: Platform,
    /// The image's manifest that it refers to.
    pub subject: Digest,
    /// The index.
    pub index: Descriptor,
}

/// Something that whoever waits wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// The image has an index of version 2, which is part of the image.
    VersionTwo,
    /// The registry is asked for indexes.
    Checking,
    /// The registry has an index, and gets another.
    PushingAnyway(Found),
    /// The registry has an index, and gets no other for this image manifest.
    NotPushing(Found, Digest),
    /// This index is copied now.
    Index(Digest),
    /// The registry has this blob or manifest.
    Skipped(Digest),
    /// It is copied now.
    Pushing(Digest),
    /// It was copied.
    Pushed(Digest),
}

/// Indexes that the registry has; never empty.
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

/// Is told what happens; called from several tasks at once, and must not block for long.
pub trait PushObserver: Send + Sync {
    /// Something happened.
    fn note(&self, note: &Note);
    /// So many bytes more were sent.
    fn sent(&self, _bytes: u64) {}
}

/// What became of a blob or manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The repository had it.
    Skipped,
    /// The registry took it over from another repository.
    Mounted,
    /// It was sent.
    Pushed,
}

/// A blob or manifest of a pushed index.
#[derive(Debug, Clone)]
pub struct CopiedBlob {
    /// What it is.
    pub blob: Descriptor,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of an index.
#[derive(Debug)]
pub struct Pushed {
    /// The indexes that the registry had before; not known if it was not asked.
    pub existing: Vec<Digest>,
    /// Who lists the index from now on, as far as it was learnt.
    pub listing: Option<Listing>,
    /// Everything that was looked at, in the order of its end; empty if nothing was to be pushed.
    pub blobs: Vec<CopiedBlob>,
    /// How long it took.
    pub took: Duration,
}

/// Why an index was not pushed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PushError {
    /// The image is not for this platform. The reference says no more, and scripts know it.
    #[error("not found")]
    NoManifest(Platform),
    /// The image is none, or not there.
    #[error(transparent)]
    Image(ImageError),
    /// The records cannot be read.
    #[error(transparent)]
    Records(#[from] ArtifactsError),
    /// There is nothing to push for a platform.
    #[error("could not find any soci index manifest v1 to push for platform {0}")]
    NoIndex(Platform),
    /// The registry does not say which indexes it has.
    #[error("failed to fetch list of referrers")]
    Referrers(#[source] RegistryError),
    /// The index or something that it refers to was not copied.
    #[error("error pushing graph to remote")]
    Graph(#[from] GraphError),
}

/// Why something was not copied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// Neither the registry nor we have it.
    #[error("{what} {digest}: not found ({remedy})")]
    Missing {
        /// What it is to the index.
        what: &'static str,
        /// Its digest.
        digest: Digest,
        /// What helps.
        remedy: &'static str,
    },
    /// A document is not what it should be.
    #[error("{digest}")]
    Document {
        /// The document.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        source: Box<DocumentError>,
    },
    /// Our side does not give something.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The registry does not take something.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// Copies an index to the repository of `image`. `store` has the index and its zTOCs, and the image as far as the
/// registry has it not.
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
    // An index that is there but not listed was left so by a push that ended in between.
    let listed =
        options.existing == Existing::Allow || pushed.existing.contains(&selected.index.digest);
    let index = &selected.index;
    let graph = Graph::new(
        registry,
        image,
        store,
        observer,
        options.uploads,
        &index.digest,
    );
    let (listing, blobs) = graph.push_index(index, listed).await?;
    pushed.listing = listing;
    pushed.blobs = blobs;
    pushed.took = begun.elapsed();
    Ok(pushed)
}

/// Indexes of an image manifest that the registry has.
async fn existing(
    registry: &Registry,
    image: &ImageRef,
    subject: &Digest,
) -> Result<Vec<Digest>, PushError> {
    match registry.referrers(image, subject, ARTIFACT_TYPE_V1).await {
        Ok(referrers) => Ok(referrers.iter().map(|referrer| referrer.digest).collect()),
        // A repository that is not there has none; whether it can be made is seen soon.
        Err(RegistryError::NotFound { .. }) => Ok(Vec::new()),
        Err(error) => Err(PushError::Referrers(error)),
    }
}
