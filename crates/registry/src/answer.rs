//! Evaluates response headers, and reads small response bodies.

use std::time::Duration;

use bytes::Bytes;
use reqwest::{Response, header::CONTENT_TYPE};

use super::transport::broken;
use crate::{fetch::FetchError, url::RedactedUrl};
use soci_oci::{descriptor::Descriptor, digest::Digest};

/// The media type of a document, without parameters.
pub(super) fn media_type_of(answer: &Response) -> String {
    let value = answer
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let essence = value.and_then(|value| value.split(';').next());
    essence.unwrap_or_default().trim().to_owned()
}

/// Returns the media type. Fails for a web page, because a registry does not send one.
pub(super) fn no_web_page(answer: &Response) -> Result<String, FetchError> {
    match media_type_of(answer) {
        page if page.eq_ignore_ascii_case("text/html") => Err(FetchError::WebPage {
            url: RedactedUrl::from(answer.url()),
        }),
        media_type => Ok(media_type),
    }
}

/// Builds a descriptor from the headers of a manifest; `None` if a header is missing.
pub(super) fn descriptor_of(answer: &Response) -> Option<Descriptor> {
    let digest = stated_digest(answer)?;
    let size = header(answer, "content-length")?.parse::<u64>().ok()?;
    let media_type = media_type_of(answer);
    (!media_type.is_empty()).then(|| Descriptor::new(media_type, digest, size))
}

/// The digest in the response headers.
pub(super) fn stated_digest(answer: &Response) -> Option<Digest> {
    header(answer, "docker-content-digest")?.parse().ok()
}

fn header<'a>(answer: &'a Response, name: &str) -> Option<&'a str> {
    answer.headers().get(name)?.to_str().ok()
}

/// Reads a complete body of at most `limit` bytes.
pub(super) async fn read_capped(
    url: RedactedUrl,
    mut answer: Response,
    limit: u64,
) -> Result<Bytes, FetchError> {
    /// Longest wait for a chunk. Only small documents are read here, from a server that has just
    /// responded.
    const IDLE: Duration = Duration::from_secs(20);
    let mut all = Vec::new();
    loop {
        let chunk = match tokio::time::timeout(IDLE, answer.chunk()).await {
            Ok(chunk) => chunk.map_err(|error| broken(url.clone(), error))?,
            Err(_) => return Err(FetchError::Silent { url, idle: IDLE }),
        };
        let Some(chunk) = chunk else {
            return Ok(all.into());
        };
        if (all.len() + chunk.len()) as u64 > limit {
            return Err(FetchError::Oversized { url, limit });
        }
        all.extend_from_slice(&chunk);
    }
}
