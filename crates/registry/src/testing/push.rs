//! Uploads to the test registry in all forms that clients use, manifests, and deletions.

use bytes::Bytes;
use hyper::{Method, StatusCode, header};

use super::{
    access::{self, pairs},
    serve::{Answer, Head, text},
    setup::Referrers,
    state::{Content, Inner, Shared},
};
use soci_oci::{
    descriptor::Descriptor,
    digest::Digest,
    json,
    manifest::{ImageIndex, Manifest},
};

/// PUT of a manifest by tag or digest. As in real registries, its content must be present, but its
/// subject may be missing.
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
    let document: Option<Manifest> = json::from_slice(&body).ok();
    let subject = document
        .as_ref()
        .and_then(|manifest| manifest.subject.clone());
    let index: Option<ImageIndex> = json::from_slice(&body).ok();
    let mut inner = shared.inner();
    if let Some(missing) = inner.missing(name, document.as_ref(), index.as_ref()) {
        let error = format!(
            r#"{{"errors":[{{"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown to registry: {missing}"}}]}}"#
        );
        return text(StatusCode::BAD_REQUEST, &error);
    }
    if object.parse::<Digest>().is_err() {
        let tag = (name.to_owned(), object.to_owned());
        inner.tags.insert(tag, digest);
    }
    inner
        .manifests
        .insert((name.to_owned(), digest), (head.content_type.clone(), body));
    drop(inner);
    let mut answer = created(&format!("/v2/{name}/manifests/{digest}"), &digest);
    if let (Some(subject), Referrers::Api { .. }) = (subject, &shared.setup.referrers) {
        let subject = header_value(&subject.digest.to_string());
        answer.headers_mut().insert("oci-subject", subject);
    }
    answer
}

/// DELETE of a manifest with its tags, or of a tag.
pub(super) fn delete(shared: &Shared, name: &str, object: &str) -> Answer {
    if shared.setup.keeps_all {
        return unsupported();
    }
    let mut inner = shared.inner();
    let gone = match object.parse::<Digest>() {
        Ok(digest) => {
            let of_manifest =
                |repository: &str, target: &Digest| repository == name && *target == digest;
            inner
                .tags
                .retain(|(repository, _), target| !of_manifest(repository, target));
            inner.manifests.remove(&(name.to_owned(), digest)).is_some()
        }
        Err(_) => {
            let tag = (name.to_owned(), object.to_owned());
            inner.tags.remove(&tag).is_some()
        }
    };
    deleted(gone, "MANIFEST_UNKNOWN")
}

/// DELETE of a blob in one repository. Other repositories keep it.
pub(super) fn delete_blob(shared: &Shared, name: &str, digest: &Digest) -> Answer {
    if shared.setup.keeps_all {
        return unsupported();
    }
    let gone = shared.inner().links.remove(&(name.to_owned(), *digest));
    deleted(gone, "BLOB_UNKNOWN")
}

fn unsupported() -> Answer {
    text(
        StatusCode::METHOD_NOT_ALLOWED,
        r#"{"errors":[{"code":"UNSUPPORTED","message":"The operation is unsupported."}]}"#,
    )
}

fn deleted(was_there: bool, otherwise: &str) -> Answer {
    if was_there {
        return text(StatusCode::ACCEPTED, "");
    }
    let error = format!(r#"{{"errors":[{{"code":"{otherwise}","message":"not here"}}]}}"#);
    text(StatusCode::NOT_FOUND, &error)
}

/// GET of an upload: its progress.
pub(super) fn state(shared: &Shared, name: &str, id: &str) -> Answer {
    let size = shared.inner().uploads.get(id).map(Vec::len);
    let Some(size) = size else {
        return text(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN");
    };
    let mut answer = accepted(name, id, size);
    *answer.status_mut() = StatusCode::NO_CONTENT;
    answer
}

/// DELETE of an upload session.
pub(super) fn cancel(shared: &Shared, id: &str) -> Answer {
    match shared.inner().uploads.remove(id) {
        Some(_) => text(StatusCode::NO_CONTENT, ""),
        None => text(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
    }
}

/// POST starts an upload (and may mount or contain the whole blob), PATCH appends, and PUT appends
/// and completes it.
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
        if let (Some(digest), Some(from)) = (mount, value("from"))
            && mounted(shared, head, name, &digest, from)
        {
            return created(&format!("/v2/{name}/blobs/{digest}"), &digest);
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
        let in_place = head
            .part_start
            .is_none_or(|start| start == upload.len() as u64);
        if in_place {
            upload.extend_from_slice(body);
        }
        let size = upload.len();
        drop(inner);
        let mut answer = accepted(name, id, size);
        if !in_place {
            *answer.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
        }
        return answer;
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

/// Mounts a blob if mounting is enabled, the blob is in the other repository, and the client may
/// read it there.
fn mounted(shared: &Shared, head: &Head, name: &str, digest: &Digest, from: &str) -> bool {
    if shared.setup.mounts_nothing || !access::may(shared, head, from, "pull") {
        return false;
    }
    let mut inner = shared.inner();
    let there = inner.links.contains(&(from.to_owned(), *digest));
    if there {
        inner.links.insert((name.to_owned(), *digest));
    }
    there
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

impl Inner {
    /// Returns the first blob or manifest in a document that is missing from the repository.
    fn missing(
        &self,
        name: &str,
        manifest: Option<&Manifest>,
        index: Option<&ImageIndex>,
    ) -> Option<Digest> {
        let has_blob = |part: &&Descriptor| self.links.contains(&(name.to_owned(), part.digest));
        let has_manifest =
            |part: &&Descriptor| self.manifests.contains_key(&(name.to_owned(), part.digest));
        let blobs =
            manifest.map(|manifest| std::iter::once(&manifest.config).chain(manifest.layers()));
        let mut blobs = blobs
            .into_iter()
            .flatten()
            .filter(|part| part.urls.is_empty());
        let members = index.map(ImageIndex::manifests).unwrap_or_default();
        blobs
            .find(|part| !has_blob(part))
            .or_else(|| members.iter().find(|part| !has_manifest(part)))
            .map(|part| part.digest)
    }
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

pub(super) fn header_value(text: &str) -> header::HeaderValue {
    header::HeaderValue::from_str(text).expect("our own header values are text")
}
