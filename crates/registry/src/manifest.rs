//! Manifests and indexes: resolves what a reference names, and downloads documents by tag or digest.

use bytes::Bytes;
use reqwest::{
    Method,
    header::{ACCEPT, HeaderMap, HeaderValue},
};

use super::{
    Registry, RegistryError,
    answer::{descriptor_of, no_web_page, read_capped},
    auth::Scope,
    endpoint::Call,
    failed,
    hosts::Operation,
    refusal::refused,
    rounds::{At, over_hosts},
};
use crate::{fetch::FetchError, url::RedactedUrl};
use soci_oci::{descriptor::Descriptor, digest::Digest, media_type, reference::ImageRef};

/// Size limit in bytes for a manifest or index. Registries and the Go snapshotter use the same
/// limit.
pub const MAX_MANIFEST: u64 = 4 << 20;

/// A manifest or index, byte for byte.
#[derive(Clone, Debug)]
pub struct RawManifest {
    /// The media type that the registry returned.
    pub media_type: String,
    /// The digest, verified against the bytes.
    pub digest: Digest,
    /// The document.
    pub bytes: Bytes,
}

impl Registry {
    /// Returns the media type, digest and size of the manifest or index that a reference names.
    pub async fn resolve(&self, image: &ImageRef) -> Result<Descriptor, RegistryError> {
        let object = object_of(image)?;
        let what = format!("manifests/{object}");
        let endpoints = self.endpoints(image, operation(&object))?;
        let scope = Scope::pull(image.repository());
        let found = over_hosts(&endpoints, self.options.retry, |endpoint| {
            let (what, scope) = (what.clone(), scope.clone());
            Box::pin(async move {
                let mut call = Call::new(Method::HEAD, endpoint.url(&what));
                call.headers = accept_manifests();
                let (url, answer) = endpoint.follow(call, &scope).await?;
                match answer.status().as_u16() {
                    200 => no_web_page(&answer).map(|_| descriptor_of(&answer)),
                    // Some registries do not support HEAD; fall back to GET.
                    405 | 501 => Ok(None),
                    _ => Err(refused(RedactedUrl::from(&url), answer).await),
                }
            })
        })
        .await
        .map_err(|error| failed(image, &what, error))?;
        match (found, image.digest()) {
            (Some(found), None) => Ok(found),
            (Some(found), Some(digest)) if found.digest == *digest => Ok(found),
            _ => {
                let manifest = self.get_manifest(image, &object).await?;
                let size = manifest.bytes.len() as u64;
                Ok(Descriptor::new(manifest.media_type, manifest.digest, size))
            }
        }
    }

    /// Downloads the manifest or index that the reference names.
    pub async fn root(&self, image: &ImageRef) -> Result<RawManifest, RegistryError> {
        self.get_manifest(image, &object_of(image)?).await
    }

    /// Downloads the manifest or index with this digest from the image's repository.
    pub async fn manifest(
        &self,
        image: &ImageRef,
        digest: &Digest,
    ) -> Result<RawManifest, RegistryError> {
        self.get_manifest(image, &digest.to_string()).await
    }

    /// Downloads a manifest by tag or digest. Bytes that do not match the digest count as a failure
    /// of the host.
    async fn get_manifest(
        &self,
        image: &ImageRef,
        object: &str,
    ) -> Result<RawManifest, RegistryError> {
        let at = At {
            hosts: self.endpoints(image, operation(object))?,
            retry: self.options.retry,
        };
        let scope = Scope::pull(image.repository());
        self.get_manifest_at(&at, image, object, scope).await
    }

    pub(crate) async fn get_manifest_at(
        &self,
        at: &At,
        image: &ImageRef,
        object: &str,
        scope: Scope,
    ) -> Result<RawManifest, RegistryError> {
        let what = format!("manifests/{object}");
        let expected = object.parse::<Digest>().ok();
        let (media_type, bytes) = over_hosts(&at.hosts, at.retry, |endpoint| {
            let (what, scope) = (what.clone(), scope.clone());
            Box::pin(async move {
                let mut call = Call::new(Method::GET, endpoint.url(&what));
                call.headers = accept_manifests();
                let (url, answer) = endpoint.follow(call, &scope).await?;
                let url = RedactedUrl::from(&url);
                if answer.status() != reqwest::StatusCode::OK {
                    return Err(refused(url, answer).await);
                }
                let media_type = no_web_page(&answer)?;
                let bytes = read_capped(url.clone(), answer, MAX_MANIFEST).await?;
                match expected {
                    Some(digest) if !digest.matches(&bytes) => Err(FetchError::WrongBytes { url }),
                    _ => Ok((media_type, bytes)),
                }
            })
        })
        .await
        .map_err(|error| failed(image, &what, error))?;
        Ok(RawManifest {
            media_type,
            digest: expected.unwrap_or_else(|| Digest::sha256(&bytes)),
            bytes,
        })
    }
}

/// The operation that requests a manifest by this name.
fn operation(object: &str) -> Operation {
    if object.parse::<Digest>().is_ok() {
        Operation::Pull
    } else {
        Operation::Resolve
    }
}

fn object_of(image: &ImageRef) -> Result<String, RegistryError> {
    image.object().ok_or_else(|| RegistryError::NoObject {
        image: image.to_string(),
    })
}

pub(crate) fn accept_manifests() -> HeaderMap {
    let types = [
        media_type::OCI_MANIFEST,
        media_type::OCI_INDEX,
        media_type::DOCKER_MANIFEST,
        media_type::DOCKER_INDEX,
        "*/*",
    ];
    let value = HeaderValue::try_from(types.join(", "));
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, value.expect("media types make a header value"));
    headers
}
