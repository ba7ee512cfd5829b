//! Finds and publishes the manifests that refer to another manifest.
//!
//! Either the registry lists the manifests that name another one as their subject (`GET
//! referrers/<digest>`), or the list is an OCI index under the tag `<algorithm>-<hex>` of the
//! subject, which clients maintain. The client detects once per repository which of the two applies
//! ([`Listing`]) and remembers it.
//!
//! Lists are read from mirrors first. A mirror counts only if it lists something, because it may not
//! know the API or recent pushes: what the origin lists is final. Lists are written, and looked at
//! for that, at the origin only.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use reqwest::Method;

use super::{
    At, MAX_MANIFEST, Registry, RegistryError, auth::Scope, endpoint::Call, failed,
    refusal::refused,
};
use crate::url::RedactedUrl;
use soci_oci::{
    descriptor::Descriptor,
    digest::Digest,
    json,
    manifest::{self, ImageIndex, Manifest},
    media_type,
    reference::ImageRef,
};

mod list;
mod page;

use list::Wanted;

/// Limits on the pages and total bytes of one list, far above realistic lists.
const MAX_PAGES: usize = 256;
const MAX_LIST: u64 = 16 << 20;
/// Above this number of repositories, all are dropped.
const MANY_REPOSITORIES: usize = 1024;
/// The only filter that the specification defines.
const FILTER: &str = "artifactType";

/// Where the list of referrers is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listing {
    /// The registry maintains it.
    Api,
    /// Clients maintain it in an index under a tag.
    Tag,
}

/// The detected listings, by host and repository.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<HashMap<(String, String), Listing>>);

impl Known {
    fn get(&self, image: &ImageRef) -> Option<Listing> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&key(image)).copied()
    }

    fn set(&self, image: &ImageRef, listing: Listing) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MANY_REPOSITORIES {
            known.clear();
        }
        known.insert(key(image), listing);
    }
}

fn key(image: &ImageRef) -> (String, String) {
    (image.host().to_owned(), image.repository().to_owned())
}

impl Registry {
    /// Where the image's repository lists referrers, if that is known.
    pub fn listing(&self, image: &ImageRef) -> Option<Listing> {
        self.listing.get(image)
    }

    /// Pushes a manifest that names a subject under its digest, and adds it to the subject's list
    /// of referrers. The blobs and manifests that it refers to must already be in the repository.
    pub async fn push_referrer(
        &self,
        image: &ImageRef,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Listing, RegistryError> {
        let digest = Digest::sha256(&bytes);
        let what = format!("{image}: manifests/{digest}");
        let manifest: Manifest = manifest::parse(&bytes, media_type).map_err(bad(&what))?;
        let put = self
            .put_manifest(image, &digest.to_string(), media_type, bytes.clone())
            .await?;
        let Some(subject) = manifest.subject else {
            return Ok(Listing::Api);
        };
        if put.has_subject {
            self.listing.set(image, Listing::Api);
        }
        if self.keeps_list(image, &subject.digest).await? {
            return Ok(Listing::Api);
        }
        let artifact_type = match manifest.artifact_type {
            stated if stated.is_empty() => manifest.config.media_type,
            stated => stated,
        };
        let entry = Descriptor {
            annotations: manifest.annotations,
            artifact_type,
            ..Descriptor::of(media_type, &bytes)
        };
        self.list_under_tag(image, &subject.digest, entry).await?;
        Ok(Listing::Tag)
    }

    /// Whether the registry lists referrers of this repository; asks the registry if that is not
    /// known.
    async fn keeps_list(&self, image: &ImageRef, subject: &Digest) -> Result<bool, RegistryError> {
        if let Some(listing) = self.listing.get(image) {
            return Ok(listing == Listing::Api);
        }
        let wanted = Wanted {
            image,
            subject,
            artifact_type: "",
        };
        let at = self.at(Arc::new(self.origin(image)?));
        let listed = match self.referrers_by_api(&at, &wanted).await {
            // A manifest was just pushed to this repository. A registry that reports it as unknown
            // does not list its referrers.
            Err(RegistryError::NotFound { .. }) => false,
            listed => listed?.is_some(),
        };
        let listing = if listed { Listing::Api } else { Listing::Tag };
        self.listing.set(image, listing);
        Ok(listed)
    }

    /// The index under the subject's tag, and its digest.
    async fn tagged_list(
        &self,
        at: &At,
        image: &ImageRef,
        subject: &Digest,
        scope: Scope,
    ) -> Result<Option<(Digest, ImageIndex)>, RegistryError> {
        let tag = tag_of(subject);
        let raw = match self.get_manifest_at(at, image, &tag, scope).await {
            Err(RegistryError::NotFound { .. }) => return Ok(None),
            raw => raw?,
        };
        let what = format!("{image}: manifests/{tag}");
        let index = manifest::parse(&raw.bytes, media_type::OCI_INDEX).map_err(bad(&what))?;
        Ok(Some((raw.digest, index)))
    }

    /// Adds an entry to the index under the subject's tag, unless it is present.
    async fn list_under_tag(
        &self,
        image: &ImageRef,
        subject: &Digest,
        entry: Descriptor,
    ) -> Result<(), RegistryError> {
        let scope = Scope::push(image.repository(), None);
        let at = self.at(Arc::new(self.origin(image)?));
        let (old, mut index) = match self.tagged_list(&at, image, subject, scope).await? {
            Some((digest, index)) => (Some(digest), index),
            None => (None, ImageIndex::new(Vec::new())),
        };
        let entries = index.manifests.get_or_insert_default();
        if entries.iter().any(|known| known.digest == entry.digest) {
            return Ok(());
        }
        entries.push(entry);
        media_type::OCI_INDEX.clone_into(&mut index.media_type);
        let (tag, bytes) = (tag_of(subject), json::to_vec(&index));
        if bytes.len() as u64 > MAX_MANIFEST {
            return Err(RegistryError::TooLarge {
                what: format!("{image}: manifests/{tag}"),
                limit: MAX_MANIFEST,
            });
        }
        let new = self
            .push_manifest(image, &tag, media_type::OCI_INDEX, bytes.into())
            .await?;
        if let Some(old) = old.filter(|old| *old != new)
            && let Err(error) = self.delete_manifest(image, &old).await
        {
            // Many registries do not support deletion. The new list is in place, and the old one is
            // harmless.
            tracing::debug!(%error, "superseded list of referrers left");
        }
        Ok(())
    }

    /// Deletes a manifest, without retries.
    async fn delete_manifest(
        &self,
        image: &ImageRef,
        digest: &Digest,
    ) -> Result<(), RegistryError> {
        let what = format!("manifests/{digest}");
        let endpoint = self.origin(image)?;
        let call = Call::new(Method::DELETE, endpoint.url(&what));
        let scope = Scope::delete(image.repository());
        let deleted = match endpoint.send(&call, &scope).await {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => Err(refused(RedactedUrl::from(&call.url), answer).await),
            Err(error) => Err(error),
        };
        deleted.map_err(|error| failed(image, &what, error))
    }
}

/// The tag for the list of referrers, for registries without the referrers API.
fn tag_of(subject: &Digest) -> String {
    subject.to_string().replace(':', "-")
}

fn bad<E>(what: &str) -> impl FnOnce(E) -> RegistryError
where
    E: std::error::Error + Send + Sync + 'static,
{
    move |error| RegistryError::BadDocument {
        what: what.to_owned(),
        source: Arc::new(error),
    }
}
