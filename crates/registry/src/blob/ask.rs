//! Requests for a range of a blob, and which bytes a response contains.

use reqwest::{
    Response,
    header::{ACCEPT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE},
};

use crate::{
    fetch::{ByteRange, FetchError},
    range::ContentRange,
    refusal::{beginning, refused},
    url::RedactedUrl,
};

/// Error bodies of object stores are short.
const MAX_REFUSAL: usize = 16 << 10;

/// How a range is requested. Some servers reject a range that ends at the last byte.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `bytes=FIRST-LAST`
    Closed,
    /// `bytes=FIRST-`
    Open,
    /// Without a range.
    Whole,
}

impl Form {
    /// The form to try if this one is rejected.
    pub(super) fn next(self) -> Form {
        match self {
            Form::Closed => Form::Open,
            Form::Open | Form::Whole => Form::Whole,
        }
    }
}

pub(super) fn range_headers(range: ByteRange, form: Form) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let value = match form {
        Form::Closed => Some(format!("bytes={range}")),
        Form::Open => Some(format!("bytes={}-", range.start())),
        Form::Whole => None,
    };
    if let Some(value) = value {
        let value = HeaderValue::try_from(value);
        headers.insert(
            RANGE,
            value.expect("digits and a hyphen make a header value"),
        );
    }
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers
}

/// Converts a 400. S3 returns 400 when the credentials in a signed address have expired; this is
/// reported as 401.
pub(super) async fn expired_token(url: RedactedUrl, answer: Response) -> FetchError {
    let is_xml = |value: &HeaderValue| value.as_bytes().starts_with(b"application/xml");
    if !answer.headers().get(CONTENT_TYPE).is_some_and(is_xml) {
        return refused(url, answer).await;
    }
    let body = beginning(answer, MAX_REFUSAL).await;
    let expired = String::from_utf8_lossy(&body).contains("<Code>ExpiredToken</Code>");
    let status = if expired { 401 } else { 400 };
    FetchError::Status {
        status,
        detail: String::new(),
        retry_after: None,
        url,
    }
}

/// Number of bytes of the range that a 206 contains, if it matches the request. `None` if the
/// response does not say which bytes it contains: it has several parts, or neither `Content-Range`
/// nor the length of the range. The digest of the bytes is verified later.
pub(super) fn given_by_part(
    answer: &Response,
    url: &RedactedUrl,
    asked: ByteRange,
    size: u64,
) -> Option<Result<u64, FetchError>> {
    let headers = answer.headers();
    let Some(value) = headers.get(CONTENT_RANGE) else {
        let kind = headers
            .get(CONTENT_TYPE)
            .map_or(&b""[..], HeaderValue::as_bytes);
        let has_parts = kind.starts_with(b"multipart/");
        let is_exact = !has_parts && answer.content_length() == Some(asked.len());
        return is_exact.then(|| Ok(asked.len()));
    };
    let value = value.to_str().unwrap_or_default();
    let given = ContentRange::parse(value).and_then(|given| given.answers(asked, size));
    Some(given.ok_or_else(|| wrong_range(asked, value, url.clone())))
}

pub(super) fn wrong_range(asked: ByteRange, got: &str, url: RedactedUrl) -> FetchError {
    let got = got.chars().filter(|c| !c.is_control());
    FetchError::WrongRange {
        asked,
        got: got.take(80).collect(),
        url,
    }
}

/// End offset of the body of a 200, which starts at the first byte of the blob and may be
/// truncated.
pub(super) fn end_of_whole(
    answer: &Response,
    url: &RedactedUrl,
    asked: ByteRange,
    size: u64,
) -> Result<u64, FetchError> {
    match answer.content_length() {
        Some(length) if length > size => Err(FetchError::WrongRange {
            asked,
            got: format!("{length} bytes of another blob"),
            url: url.clone(),
        }),
        Some(length) if length <= asked.start() => Err(FetchError::Short {
            range: asked,
            received: 0,
        }),
        Some(length) => Ok(length),
        None => Ok(size),
    }
}
