//! Pushes manifests and indexes.

use std::sync::Arc;

use bytes::Bytes;
use reqwest::{
    Method,
    header::{CONTENT_TYPE, HeaderValue},
};

use crate::{
    Registry, RegistryError, auth::Scope, endpoint::Call, failed, over_hosts, refusal::refused,
    url::RedactedUrl,
};
use soci_oci::{digest::Digest, reference::ImageRef};

/// A pushed manifest.
pub(crate) struct PutManifest {
    pub(crate) digest: Digest,
    /// The registry recognized the subject and lists the manifest as its referrer.
    pub(crate) has_subject: bool,
}

impl Registry {
    /// Pushes a manifest or index under a tag or its digest. Returns its digest.
    pub async fn push_manifest(
        &self,
        image: &ImageRef,
        object: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Digest, RegistryError> {
        let put = self.put_manifest(image, object, media_type, bytes).await?;
        Ok(put.digest)
    }

    pub(crate) async fn put_manifest(
        &self,
        image: &ImageRef,
        object: &str,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<PutManifest, RegistryError> {
        let what = format!("manifests/{object}");
        let digest = match object.parse::<Digest>() {
            Ok(digest) if digest.matches(&bytes) => digest,
            Ok(_) => {
                return Err(RegistryError::WrongBytes {
                    what: format!("{image}: {what}"),
                });
            }
            Err(_) => Digest::sha256(&bytes),
        };
        let scope = Scope::push(image.repository(), None);
        let origin = [Arc::new(self.origin(image)?)];
        let pushed = over_hosts(&origin, self.options.retry, |endpoint| {
            let (what, scope) = (what.clone(), scope.clone());
            let (media_type, bytes) = (media_type.to_owned(), bytes.clone());
            Box::pin(async move {
                let url = endpoint.url(&what);
                let mut call = Call {
                    body: Some(bytes),
                    ..Call::new(Method::PUT, url)
                };
                if let Ok(media_type) = HeaderValue::try_from(media_type) {
                    call.headers.insert(CONTENT_TYPE, media_type);
                }
                let answer = endpoint.send(&call, &scope).await?;
                match answer.status().as_u16() {
                    200..=299 => Ok(answer.headers().contains_key("oci-subject")),
                    _ => Err(refused(RedactedUrl::from(&call.url), answer).await),
                }
            })
        });
        let has_subject = pushed.await.map_err(|error| failed(image, &what, error))?;
        Ok(PutManifest {
            digest,
            has_subject,
        })
    }
}
