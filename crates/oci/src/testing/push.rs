//! What the test registry takes: uploads in any of the ways clients use, and manifests.

use bytes::Bytes;
use hyper::{Method, StatusCode, header};

use super::{
    access::pairs,
    registry::{Content, Shared},
    serve::{Answer, Head, text},
};
use crate::digest::Digest;

/// PUT of a manifest by tag or digest.
pub(super) fn manifest(
    shared: &Shared,
    head: &Head,
    name: &str,
    object: &str,
    body: Bytes,
) -> Answer {
    let digest = match object.parse::<Digest>() {
        Ok(digest) if digest.matches(&body) => digest,
        Ok(_) => return text(StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
        Err(_) => Digest::sha256(&body),
    };
    let mut inner = shared.inner();
    if object.parse::<Digest>().is_err() {
        inner
            .tags
            .insert((name.to_owned(), object.to_owned()), digest);
    }
    inner
        .manifests
        .insert((name.to_owned(), digest), (head.content_type.clone(), body));
    drop(inner);
    created(&format!("/v2/{name}/manifests/{digest}"), &digest)
}

/// POST begins (and may mount, or be everything), PATCH adds, PUT adds and ends.
pub(super) fn upload(shared: &Shared, head: &Head, name: &str, id: &str, body: &[u8]) -> Answer {
    let query = pairs(&head.query);
    let value = |key: &str| {
        query
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, v)| v.as_str())
    };
    let digest = value("digest").and_then(|digest| digest.parse::<Digest>().ok());
    if head.method == Method::POST {
        let mount = value("mount").and_then(|digest| digest.parse::<Digest>().ok());
        if let (Some(digest), Some(from)) = (mount, value("from")) {
            let mut inner = shared.inner();
            if inner.links.contains(&(from.to_owned(), digest)) {
                inner.links.insert((name.to_owned(), digest));
                drop(inner);
                return created(&format!("/v2/{name}/blobs/{digest}"), &digest);
            }
        }
        if let Some(digest) = digest {
            return finish(shared, name, &digest, body.to_vec());
        }
        let mut inner = shared.inner();
        inner.uploads_begun += 1;
        let id = format!("upload-{}", inner.uploads_begun);
        inner.uploads.insert(id.clone(), Vec::new());
        drop(inner);
        return accepted(name, &id, 0);
    }
    if head.method == Method::PATCH {
        let mut inner = shared.inner();
        let Some(upload) = inner.uploads.get_mut(id) else {
            return text(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN");
        };
        upload.extend_from_slice(body);
        let size = upload.len();
        drop(inner);
        return accepted(name, id, size);
    }
    let Some(mut bytes) = shared.inner().uploads.remove(id) else {
        return text(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN");
    };
    bytes.extend_from_slice(body);
    match digest {
        Some(digest) => finish(shared, name, &digest, bytes),
        None => text(StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
    }
}

fn finish(shared: &Shared, name: &str, digest: &Digest, bytes: Vec<u8>) -> Answer {
    if !digest.matches(&bytes) {
        return text(
            StatusCode::BAD_REQUEST,
            r#"{"errors":[{"code":"DIGEST_INVALID","message":"digest does not match"}]}"#,
        );
    }
    let mut inner = shared.inner();
    inner.links.insert((name.to_owned(), *digest));
    inner.blobs.insert(*digest, Content::Memory(bytes.into()));
    drop(inner);
    created(&format!("/v2/{name}/blobs/{digest}"), digest)
}

fn accepted(name: &str, id: &str, size: usize) -> Answer {
    let mut answer = text(StatusCode::ACCEPTED, "");
    let headers = answer.headers_mut();
    let location = format!("/v2/{name}/blobs/uploads/{id}?state=kept");
    headers.insert(header::LOCATION, header_value(&location));
    headers.insert("docker-upload-uuid", header_value(id));
    headers.insert(
        header::RANGE,
        header_value(&format!("0-{}", size.saturating_sub(1))),
    );
    answer
}

fn created(location: &str, digest: &Digest) -> Answer {
    let mut answer = text(StatusCode::CREATED, "");
    let headers = answer.headers_mut();
    headers.insert(header::LOCATION, header_value(location));
    headers.insert("docker-content-digest", header_value(&digest.to_string()));
    answer
}

fn header_value(text: &str) -> header::HeaderValue {
    header::HeaderValue::from_str(text).expect("our own header values are text")
}
