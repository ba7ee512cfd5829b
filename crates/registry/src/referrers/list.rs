//! Lists the referrers of a manifest, from mirrors and from the origin.

use std::sync::Arc;

use super::{FILTER, Listing, MAX_LIST, MAX_PAGES, page::page};
use crate::{
    Registry, RegistryError,
    auth::Scope,
    endpoint::Endpoint,
    error::failed,
    hosts::Operation,
    retry::RetryPolicy,
    rounds::{At, over_hosts},
};
use soci_oci::{descriptor::Descriptor, digest::Digest, reference::ImageRef};

/// A list of referrers that a caller wants. An empty artifact type means all of them.
pub(super) struct Wanted<'a> {
    pub(super) image: &'a ImageRef,
    pub(super) subject: &'a Digest,
    pub(super) artifact_type: &'a str,
}

impl Registry {
    /// Lists the manifests in the image's repository that name `subject` and have this artifact
    /// type, in the registry's order.
    ///
    /// # Errors
    ///
    /// [`RegistryError::NotFound`] if the registry does not know the repository.
    pub async fn referrers(
        &self,
        image: &ImageRef,
        subject: &Digest,
        artifact_type: &str,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let mut mirrors = self.endpoints(image, Operation::Referrers)?;
        let Some(origin) = mirrors.pop() else {
            return Ok(Vec::new());
        };
        let wanted = Wanted {
            image,
            subject,
            artifact_type,
        };
        let mut avoided = Vec::new();
        for mirror in &mirrors {
            let Some(turn) = mirror.turn() else {
                avoided.push(mirror);
                continue;
            };
            if let Some(listed) = self.listed_by(mirror, &wanted).await {
                turn.succeeded();
                return Ok(listed);
            }
        }
        let error = match self.referrers_of_origin(origin, &wanted).await {
            Err(error) if error.is_transient() => error,
            listed => return listed,
        };
        for mirror in avoided {
            if let Some(listed) = self.listed_by(mirror, &wanted).await {
                return Ok(listed);
            }
        }
        Err(error)
    }

    /// The list of a mirror, unless it is empty. The mirror is asked once.
    async fn listed_by(
        &self,
        mirror: &Arc<Endpoint>,
        wanted: &Wanted<'_>,
    ) -> Option<Vec<Descriptor>> {
        let once = At {
            hosts: vec![Arc::clone(mirror)],
            retry: RetryPolicy::ONCE,
        };
        let listed = match self.referrers_by_api(&once, wanted).await {
            Ok(Some(listed)) => Ok(listed),
            Ok(None) => self.referrers_by_tag(&once, wanted).await,
            Err(error) => Err(error),
        };
        match listed {
            Ok(listed) => Some(listed).filter(|listed| !listed.is_empty()),
            Err(error) => {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "mirror passed over"
                );
                None
            }
        }
    }

    async fn referrers_of_origin(
        &self,
        origin: Arc<Endpoint>,
        wanted: &Wanted<'_>,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let image = wanted.image;
        let at = self.at(origin);
        if self.listing.get(image) == Some(Listing::Tag) {
            return self.referrers_by_tag(&at, wanted).await;
        }
        match self.referrers_by_api(&at, wanted).await? {
            Some(referrers) => {
                self.listing.set(image, Listing::Api);
                Ok(referrers)
            }
            None => {
                self.listing.set(image, Listing::Tag);
                self.referrers_by_tag(&at, wanted).await
            }
        }
    }

    pub(super) fn at(&self, host: Arc<Endpoint>) -> At {
        At {
            hosts: vec![host],
            retry: self.options.retry,
        }
    }

    /// `None` if the host does not support the referrers API.
    pub(super) async fn referrers_by_api(
        &self,
        at: &At,
        wanted: &Wanted<'_>,
    ) -> Result<Option<Vec<Descriptor>>, RegistryError> {
        let Wanted {
            image,
            subject,
            artifact_type,
        } = *wanted;
        let what = format!("referrers/{subject}");
        let Some(host) = at.hosts.first() else {
            return Ok(None);
        };
        let mut url = host.url(&what);
        if !artifact_type.is_empty() {
            url.query_pairs_mut().append_pair(FILTER, artifact_type);
        }
        let (mut next, mut bytes, mut all) = (Some(url), 0, Vec::new());
        for number in 0..MAX_PAGES {
            let Some(url) = next else {
                return Ok(Some(all));
            };
            let scope = Scope::pull(image.repository());
            let wanted = artifact_type.to_owned();
            let page = over_hosts(&at.hosts, at.retry, |endpoint| {
                let (url, scope, wanted) = (url.clone(), scope.clone(), wanted.clone());
                Box::pin(async move { page(&endpoint, url, &scope, &wanted).await })
            });
            let page = page.await.map_err(|error| failed(image, &what, error))?;
            let page = match page {
                Some(page) => page,
                None if number == 0 => return Ok(None),
                None => {
                    return Err(RegistryError::BrokenList {
                        what: format!("{image}: {what}"),
                        page: number + 1,
                    });
                }
            };
            bytes += page.bytes;
            all.extend(page.referrers);
            next = page.next.map(|url| host.naming_registry(url));
            if bytes > MAX_LIST {
                break;
            }
        }
        Err(RegistryError::TooLarge {
            what: format!("{image}: {what}"),
            limit: MAX_LIST,
        })
    }

    async fn referrers_by_tag(
        &self,
        at: &At,
        wanted: &Wanted<'_>,
    ) -> Result<Vec<Descriptor>, RegistryError> {
        let Wanted { image, subject, .. } = *wanted;
        let scope = Scope::pull(image.repository());
        let Some((_, index)) = self.tagged_list(at, image, subject, scope).await? else {
            return Ok(Vec::new());
        };
        let mut referrers = index.manifests.unwrap_or_default();
        referrers.retain(|referrer| referrer.artifact_type == wanted.artifact_type);
        Ok(referrers)
    }
}
