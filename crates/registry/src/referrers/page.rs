//! Requests one page of a registry's list of referrers.

use reqwest::{
    Method, Response, Url,
    header::{ACCEPT, HeaderMap, HeaderValue, LINK},
};

use super::FILTER;
use crate::{
    MAX_MANIFEST,
    answer::{media_type_of, read_capped},
    auth::Scope,
    endpoint::{Call, Endpoint},
    fetch::FetchError,
    refusal::refused,
    url::RedactedUrl,
};
use soci_oci::{
    descriptor::Descriptor,
    manifest::{self, ImageIndex},
    media_type,
};

/// The annotation that a draft of the specification used in place of `OCI-Filters-Applied`.
const OLD_FILTERS: &str = "org.opencontainers.referrers.filtersApplied";

/// One page of the list.
pub(super) struct Page {
    pub(super) referrers: Vec<Descriptor>,
    pub(super) bytes: u64,
    pub(super) next: Option<Url>,
}

/// Requests one page; `None` if the response is not a list of referrers.
pub(super) async fn page(
    endpoint: &Endpoint,
    url: Url,
    scope: &Scope,
    wanted: &str,
) -> Result<Option<Page>, FetchError> {
    let mut call = Call::new(Method::GET, url);
    call.headers
        .insert(ACCEPT, HeaderValue::from_static(media_type::OCI_INDEX));
    let (url, answer) = endpoint.follow(call, scope).await?;
    let shown = RedactedUrl::from(&url);
    match answer.status().as_u16() {
        200 if media_type_of(&answer) == media_type::OCI_INDEX => {}
        // A registry without the referrers API may serve its website under this path, or reject the
        // path in one of these ways.
        200 | 400 | 405 | 406 | 410 | 422 | 501 => return Ok(None),
        404 => {
            return match refused(shown, answer).await {
                FetchError::Status { detail, .. } if !detail.contains("NAME_UNKNOWN") => Ok(None),
                error => Err(error),
            };
        }
        _ => return Err(refused(shown, answer).await),
    }
    let next = next_page(&url, &answer)?;
    let filtered = is_filter(header(answer.headers(), "oci-filters-applied"));
    let bytes = read_capped(shown.clone(), answer, MAX_MANIFEST).await?;
    let Ok(index) = manifest::parse::<ImageIndex>(&bytes, media_type::OCI_INDEX) else {
        return Ok(None);
    };
    let filtered = filtered || is_filter(index.annotations.get(OLD_FILTERS).map_or("", |f| f));
    let mut referrers = index.manifests.unwrap_or_default();
    referrers.retain(|referrer| {
        wanted.is_empty()
            || referrer.artifact_type == wanted
            // Some registries filter and then omit the artifact type, which all entries share.
            || filtered && referrer.artifact_type.is_empty()
    });
    Ok(Some(Page {
        referrers,
        bytes: bytes.len() as u64,
        next,
    }))
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default()
}

fn is_filter(applied: &str) -> bool {
    applied.split(',').any(|filter| filter.trim() == FILTER)
}

/// The next page according to `Link`. Only the same host is accepted.
fn next_page(url: &Url, answer: &Response) -> Result<Option<Url>, FetchError> {
    let links = answer.headers().get_all(LINK).iter();
    let mut targets = links.filter_map(|link| next_target(link.to_str().ok()?));
    let Some(target) = targets.next() else {
        return Ok(None);
    };
    match url.join(target) {
        Ok(next) if next.origin() == url.origin() => Ok(Some(next)),
        _ => Err(FetchError::BadRedirect {
            url: RedactedUrl::from(url),
            target: RedactedUrl::new(target),
        }),
    }
}

/// The target of `<address>; rel="next"`, which may be one of several links.
fn next_target(link: &str) -> Option<&str> {
    link.split(',').find_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let mut parameters = parameters.split(';').map(str::trim);
        parameters
            .any(|parameter| matches!(parameter, "rel=next" | "rel=\"next\""))
            .then_some(target)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found_among_links() {
        for (link, target) in [
            ("</v2/a?n=1>; rel=\"next\"", Some("/v2/a?n=1")),
            ("</p>; rel=\"prev\", </n>; title=x; rel=next", Some("/n")),
            ("</p>; rel=\"prev\"", None),
            ("/v2/a; rel=\"next\"", None),
            ("", None),
        ] {
            assert_eq!(next_target(link), target, "{link}");
        }
    }

    #[test]
    fn a_filter_is_one_of_those_applied() {
        assert!(is_filter("artifactType"));
        assert!(is_filter("other, artifactType"));
        assert!(!is_filter("artifactTypes") && !is_filter(""));
    }
}
