//! The referrers API of the test registry.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::{StatusCode, body::Frame, header};

use super::{
    access::pairs,
    push::header_value,
    serve::{Answer, Head, full, text},
    setup::Referrers,
    state::{Inner, Shared},
};
use soci_oci::{
    descriptor::Descriptor,
    digest::Digest,
    json,
    manifest::{ImageIndex, Manifest},
    media_type,
};

/// Delay between the chunks of the endless list, so that the test gets CPU time.
const BETWEEN: Duration = Duration::from_micros(200);

/// GET of the referrers of `subject`.
pub(super) fn list(shared: &Shared, head: &Head, name: &str, subject: &Digest) -> Answer {
    match &shared.setup.referrers {
        Referrers::Missing => text(StatusCode::NOT_FOUND, "404 page not found"),
        Referrers::UnknownName => text(
            StatusCode::NOT_FOUND,
            r#"{"errors":[{"code":"NAME_UNKNOWN","message":"repository name not known to registry"}]}"#,
        ),
        Referrers::Html => {
            let mut answer = text(StatusCode::OK, "<html><body>Welcome</body></html>");
            let html = header::HeaderValue::from_static("text/html");
            answer.headers_mut().insert(header::CONTENT_TYPE, html);
            answer
        }
        Referrers::Endless => endless(),
        Referrers::Circle => {
            let mut answer = page(&[]);
            let own = format!("<{}?{}>; rel=\"next\"", head.path, head.query);
            answer.headers_mut().insert("link", header_value(&own));
            answer
        }
        Referrers::Api { page, filters } => api(shared, head, name, subject, *page, *filters),
    }
}

fn api(
    shared: &Shared,
    head: &Head,
    name: &str,
    subject: &Digest,
    size: usize,
    filters: bool,
) -> Answer {
    let query = pairs(&head.query);
    let value = |key: &str| query.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
    let wanted = value("artifactType").filter(|_| filters);
    let mut all = shared.inner().referrers(name, subject);
    if let Some(wanted) = &wanted {
        all.retain(|referrer| referrer.artifact_type == *wanted);
    }
    let from: usize = value("from")
        .and_then(|from| from.parse().ok())
        .unwrap_or(0);
    let until = from.saturating_add(size.max(1)).min(all.len());
    let mut answer = page(all.get(from..until).unwrap_or_default());
    let headers = answer.headers_mut();
    if wanted.is_some() {
        headers.insert("oci-filters-applied", header_value("artifactType"));
    }
    if until < all.len() {
        let artifact_type = match &wanted {
            Some(wanted) => format!("&artifactType={}", wanted.replace('+', "%2B")),
            None => String::new(),
        };
        let next = format!("<{}?from={until}{artifact_type}>; rel=\"next\"", head.path);
        headers.insert(header::LINK, header_value(&next));
    }
    answer
}

fn page(referrers: &[Descriptor]) -> Answer {
    let index = ImageIndex::new(referrers.to_vec());
    let mut answer = text(StatusCode::OK, "");
    *answer.body_mut() = full(json::to_vec(&index).into());
    let index = header::HeaderValue::from_static(media_type::OCI_INDEX);
    answer.headers_mut().insert(header::CONTENT_TYPE, index);
    answer
}

fn endless() -> Answer {
    let blanks = Bytes::from(vec![b' '; 64 << 10]);
    let chunks = futures_util::stream::unfold((), move |()| {
        let blanks = blanks.clone();
        async move {
            tokio::time::sleep(BETWEEN).await;
            Some((Ok(Frame::data(blanks)), ()))
        }
    });
    let mut answer = page(&[]);
    *answer.body_mut() = StreamBody::new(chunks).boxed_unsync();
    answer
}

impl Inner {
    /// The descriptors of a repository's manifests that have this `subject`, sorted by digest.
    fn referrers(&self, repository: &str, subject: &Digest) -> Vec<Descriptor> {
        let of_name = self
            .manifests
            .iter()
            .filter(|((name, _), _)| name == repository);
        let referring = of_name.filter_map(|((_, digest), (media_type, bytes))| {
            let manifest: Manifest = json::from_slice(bytes).ok()?;
            let names = manifest.subject.as_ref()?.digest == *subject;
            let artifact_type = match manifest.artifact_type.as_str() {
                "" => manifest.config.media_type.clone(),
                stated => stated.to_owned(),
            };
            names.then(|| Descriptor {
                annotations: manifest.annotations.clone(),
                artifact_type,
                ..Descriptor::new(media_type.as_str(), *digest, bytes.len() as u64)
            })
        });
        referring.collect()
    }
}
