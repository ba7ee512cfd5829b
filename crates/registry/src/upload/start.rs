//! The requests around the bytes of an upload: mount a blob instead, start an upload, and check that
//! it was stored.

use bytes::Bytes;
use reqwest::{Method, Response, Url};

use super::super::{
    RegistryError,
    answer::no_web_page,
    auth::Scope,
    endpoint::{Call, Endpoint, MAX_REDIRECTS, redirect_target},
    refusal::refused,
};
use crate::{fetch::FetchError, url::RedactedUrl};
use soci_oci::{digest::Digest, reference::ImageRef};

/// Checks that the registry has stored the upload as a blob.
pub(super) async fn filed(answer: Response) -> Result<(), FetchError> {
    match answer.status().as_u16() {
        200 | 201 | 204 => Ok(()),
        _ => Err(refused(RedactedUrl::from(&answer.url().clone()), answer).await),
    }
}

pub(super) async fn mount(
    endpoint: &Endpoint,
    image: &ImageRef,
    digest: &Digest,
    from: &str,
) -> Result<Response, FetchError> {
    let scope = Scope::push(image.repository(), Some(from));
    let mut url = endpoint.url("blobs/uploads/");
    url.query_pairs_mut()
        .append_pair("mount", &digest.to_string())
        .append_pair("from", from);
    begin(endpoint, url, &scope).await
}

/// Starts an upload. The returned response has status 201 or 202.
pub(super) async fn begin(
    endpoint: &Endpoint,
    url: Url,
    scope: &Scope,
) -> Result<Response, FetchError> {
    let mut call = Call {
        body: Some(Bytes::new()),
        ..Call::new(Method::POST, url)
    };
    for _ in 0..=MAX_REDIRECTS {
        let answer = endpoint.send(&call, scope).await?;
        match answer.status().as_u16() {
            201 | 202 => return Ok(answer),
            307 | 308 => call.url = redirect_target(&call.url, &answer)?,
            status => {
                if status == 200 {
                    no_web_page(&answer)?;
                }
                return Err(refused(RedactedUrl::from(&call.url), answer).await);
            }
        }
    }
    Err(FetchError::Redirects {
        url: RedactedUrl::from(&call.url),
        limit: MAX_REDIRECTS,
    })
}

/// The URL for the bytes of an upload.
pub(super) fn upload_url(begun: &Response, digest: &Digest) -> Result<Url, RegistryError> {
    let mut url =
        redirect_target(begun.url(), begun).map_err(|_| RegistryError::NoUploadLocation {
            url: RedactedUrl::from(begun.url()),
        })?;
    url.query_pairs_mut()
        .append_pair("digest", &digest.to_string());
    Ok(url)
}
