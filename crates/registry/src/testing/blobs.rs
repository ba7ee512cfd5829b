//! Downloads from the test registry: manifests, blobs and ranges, and the faults in them.

use std::{io, ops::Range, os::unix::fs::FileExt, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::{Method, Response, StatusCode, body::Frame, header};

use super::{
    access::pairs,
    fault::Wrong,
    serve::{Answer, Body, Head, full, text},
    setup::Expired,
    state::{Content, Shared},
};
use soci_oci::digest::Digest;

/// Size of a body chunk in bytes.
const CHUNK: u64 = 64 << 10;
/// How long to wait before closing a connection, so that the client can read what was sent.
const BEFORE_CUT: Duration = Duration::from_millis(30);

pub(super) fn manifest(
    shared: &Arc<Shared>,
    head: &Head,
    name: &str,
    object: &str,
    wrong: Option<Wrong>,
) -> Answer {
    let Some((media_type, bytes)) = shared.inner().manifest(name, object) else {
        return text(
            StatusCode::NOT_FOUND,
            r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#,
        );
    };
    let digest = Digest::sha256(&bytes);
    let size = bytes.len() as u64;
    let mut answer = Response::new(match (&head.method, wrong) {
        (&Method::HEAD, _) => full(Bytes::new()),
        (_, None) => full(bytes),
        (_, wrong) => {
            let content = Content::Memory(bytes);
            stream(shared, digest, content, 0..size, wrong)
        }
    });
    set(&mut answer, "content-type", &media_type);
    set(&mut answer, "content-length", &size.to_string());
    set(&mut answer, "docker-content-digest", &digest.to_string());
    answer
}

pub(super) fn blob(
    shared: &Arc<Shared>,
    head: &Head,
    name: &str,
    digest: &Digest,
    wrong: Option<Wrong>,
) -> Answer {
    let content = {
        let inner = shared.inner();
        let linked = inner.links.contains(&(name.to_owned(), *digest));
        inner.blobs.get(digest).filter(|_| linked).cloned()
    };
    let Some(content) = content else {
        return text(
            StatusCode::NOT_FOUND,
            r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown to registry"}]}"#,
        );
    };
    match &shared.setup.redirect {
        Some(redirect) if head.method == Method::GET => {
            let mut inner = shared.inner();
            let signature = format!("do-not-print-{}", inner.signatures.len() + inner.seen.len());
            inner.signatures.insert(signature.clone(), redirect.uses);
            drop(inner);
            // Another host name for the same server: a client must not send its credentials to it.
            let target =
                shared.base_url().replace("127.0.0.1", "localhost") + &format!("/signed/{digest}");
            let mut answer = text(StatusCode::TEMPORARY_REDIRECT, "");
            set(
                &mut answer,
                "location",
                &format!("{target}?X-Signature={signature}&part=1"),
            );
            answer
        }
        _ => send(shared, head, digest, content, wrong),
    }
}

/// Responds with a blob at its signed address. Like object stores, rejects a request that also has
/// other credentials.
pub(super) fn signed(
    shared: &Arc<Shared>,
    head: &Head,
    digest: &Digest,
    wrong: Option<Wrong>,
) -> Answer {
    if head.authorization.is_some() {
        return text(StatusCode::BAD_REQUEST, "only one auth mechanism allowed");
    }
    let referer = head.referer.as_deref().unwrap_or_default();
    let is_known =
        referer.starts_with(&shared.base_url()) && referer.ends_with(&digest.to_string());
    if shared.setup.wants_referer && !is_known {
        return text(StatusCode::FORBIDDEN, "hot links are not allowed");
    }
    let signature = pairs(&head.query)
        .into_iter()
        .find(|(key, _)| key == "X-Signature");
    let (good, content) = {
        let mut inner = shared.inner();
        let uses = signature.and_then(|(_, value)| inner.signatures.get_mut(&value));
        let good = uses.is_some_and(|left| {
            let any = *left > 0;
            *left = left.saturating_sub(1);
            any
        });
        (good, inner.blobs.get(digest).cloned())
    };
    let expired = shared
        .setup
        .redirect
        .as_ref()
        .map(|redirect| redirect.expired);
    match (good, content) {
        (true, Some(content)) => send(shared, head, digest, content, wrong),
        (true, None) => text(StatusCode::NOT_FOUND, "no such object"),
        (false, _) if expired == Some(Expired::ExpiredToken) => {
            let mut answer = text(
                StatusCode::BAD_REQUEST,
                "<?xml version=\"1.0\"?><Error><Code>ExpiredToken</Code></Error>",
            );
            set(&mut answer, "content-type", "application/xml");
            answer
        }
        (false, _) => text(
            StatusCode::FORBIDDEN,
            "<Error><Code>AccessDenied</Code></Error>",
        ),
    }
}

/// Responds with a blob or a range of it, with or without a fault.
fn send(
    shared: &Arc<Shared>,
    head: &Head,
    digest: &Digest,
    content: Content,
    wrong: Option<Wrong>,
) -> Answer {
    let size = content.size();
    let asked = head.range.clone().filter(|_| {
        !matches!(
            wrong,
            Some(Wrong::IgnoreRange | Wrong::IgnoreRangeAndCut(_) | Wrong::WholeWithoutLength(_))
        )
    });
    let (status, mut range) = match asked {
        Some(range) if range.start >= size || is_refused(&range, size, wrong.as_ref()) => {
            let mut answer = text(StatusCode::RANGE_NOT_SATISFIABLE, "");
            set(&mut answer, "content-range", &format!("bytes */{size}"));
            return answer;
        }
        Some(range) => (
            StatusCode::PARTIAL_CONTENT,
            range.start..range.end.min(size),
        ),
        None => (StatusCode::OK, 0..size),
    };
    let wrong = match wrong {
        Some(Wrong::IgnoreRangeAndCut(bytes)) => Some(Wrong::Cut(bytes)),
        other => other,
    };
    let mut total = size.to_string();
    let mut length_change = 0_i64;
    match wrong {
        Some(Wrong::ShiftRange(by)) => {
            range = (range.start + by).min(size - 1)..(range.end + by).min(size);
        }
        Some(Wrong::WholeWithoutLength(bytes)) => range.end = range.end.min(bytes),
        Some(Wrong::GiveAtMost(most)) => range.end = range.end.min(range.start + most),
        Some(Wrong::UnknownTotal) => total = "*".to_owned(),
        Some(Wrong::OtherTotal(by)) => total = (size + by).to_string(),
        Some(Wrong::Shorten(by)) => length_change = -i64::try_from(by).unwrap_or(i64::MAX),
        Some(Wrong::Lengthen(by)) => length_change = i64::try_from(by).unwrap_or(i64::MAX),
        _ => {}
    }
    let has_parts = matches!(wrong, Some(Wrong::Multipart));
    let has_range = !matches!(wrong, Some(Wrong::NoContentRange));
    let has_length = !matches!(wrong, Some(Wrong::WholeWithoutLength(_)));
    let length = (range.end - range.start).saturating_add_signed(length_change);
    let body = if head.method == Method::HEAD {
        full(Bytes::new())
    } else {
        stream(
            shared,
            *digest,
            content,
            range.start..range.start + length,
            wrong,
        )
    };
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    set(&mut answer, "content-type", "application/octet-stream");
    set(&mut answer, "accept-ranges", "bytes");
    set(&mut answer, "docker-content-digest", &digest.to_string());
    if has_length {
        set(&mut answer, "content-length", &length.to_string());
    }
    if status == StatusCode::PARTIAL_CONTENT && has_parts {
        set(
            &mut answer,
            "content-type",
            "multipart/byteranges; boundary=b",
        );
    } else if status == StatusCode::PARTIAL_CONTENT && has_range {
        let line = format!("bytes {}-{}/{total}", range.start, range.end - 1);
        set(&mut answer, "content-range", &line);
    }
    answer
}

fn is_refused(range: &Range<u64>, size: u64, wrong: Option<&Wrong>) -> bool {
    match wrong {
        Some(Wrong::RefuseEnd { open }) => range.end == size || *open && range.end == u64::MAX,
        _ => false,
    }
}

/// The body of a range. Bytes after the end of the blob are zeros.
fn stream(
    shared: &Arc<Shared>,
    digest: Digest,
    content: Content,
    range: Range<u64>,
    wrong: Option<Wrong>,
) -> Body {
    let shared = Arc::clone(shared);
    let start = range.start;
    let chunks = futures_util::stream::unfold(start, move |at| {
        let (shared, digest, content) = (Arc::clone(&shared), digest, content.clone());
        let (end, wrong) = (range.end, wrong.clone());
        async move {
            let mut until = (at + CHUNK).min(end);
            if let Some(Wrong::Cut(bytes) | Wrong::Stall(bytes)) = wrong {
                let stop = start.saturating_add(bytes);
                if at >= stop {
                    if matches!(wrong, Some(Wrong::Stall(_))) {
                        std::future::pending::<()>().await;
                    }
                    tokio::time::sleep(BEFORE_CUT).await;
                    return Some((Err(io::Error::other("the script cuts here")), end));
                }
                until = until.min(stop);
            }
            if at >= end {
                return None;
            }
            let mut chunk = match read(&content, at..until) {
                Ok(chunk) => chunk,
                Err(error) => return Some((Err(error), end)),
            };
            if let Some(Wrong::Flip(offset)) = wrong
                && let Some(byte) = offset.checked_sub(at).and_then(|i| chunk.get_mut(index(i)))
            {
                *byte = !*byte;
            }
            if let Some(pace) = shared.setup.pace {
                let wait = Duration::from_secs(until - at).div_f64(pace.max(1) as f64);
                tokio::time::sleep(wait).await;
            }
            *shared.inner().sent.entry(digest).or_default() += until - at;
            Some((Ok(Frame::data(Bytes::from(chunk))), until))
        }
    });
    StreamBody::new(chunks).boxed_unsync()
}

fn read(content: &Content, range: Range<u64>) -> io::Result<Vec<u8>> {
    let mut out = vec![0; index(range.end - range.start)];
    let inside = content.size().clamp(range.start, range.end) - range.start;
    let part = &mut out[..index(inside)];
    match content {
        Content::Memory(bytes) => {
            part.copy_from_slice(&bytes[index(range.start)..index(range.start + inside)]);
        }
        Content::File(path, _) => std::fs::File::open(path)?.read_exact_at(part, range.start)?,
    }
    Ok(out)
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

fn set(answer: &mut Answer, name: &'static str, value: &str) {
    let value = header::HeaderValue::from_str(value).expect("our own header values are text");
    answer.headers_mut().insert(name, value);
}

/// Parses a single `bytes=a-b` or `bytes=a-`. For other forms the whole blob is sent, which a
/// server may do.
pub(super) fn parse_range(value: &str) -> Option<Range<u64>> {
    let (start, end) = value.strip_prefix("bytes=")?.split_once('-')?;
    let start = start.parse().ok()?;
    let end = if end.is_empty() {
        u64::MAX
    } else {
        end.parse::<u64>().ok()?.checked_add(1)?
    };
    (start < end).then_some(start..end)
}
