//! The error for a response that refuses a request, with the registry's own message.
//!
//! Only the messages of a registry's error document are shown. Other bodies are not, because their
//! content is unknown.

use std::time::{Duration, SystemTime};

use reqwest::Response;

use super::retry::retry_after;
use crate::{
    fetch::{FetchError, is_transient_status},
    url::RedactedUrl,
};

/// Bytes of an error body that are read.
const MAX_DETAIL: usize = 16 << 10;
/// Characters of an error text that are shown.
const SHOWN_DETAIL: usize = 200;

/// Converts an unsuccessful response to an error with the registry's message.
pub(crate) async fn refused(url: RedactedUrl, answer: Response) -> FetchError {
    // The text of a transient error is not useful. Closing the connection is faster than reading
    // it.
    let most = if is_transient_status(answer.status().as_u16()) {
        0
    } else {
        MAX_DETAIL
    };
    refused_text(url, answer, most).await
}

/// Like [`refused`], but reads at most `most` bytes of the body.
pub(crate) async fn refused_text(url: RedactedUrl, answer: Response, most: usize) -> FetchError {
    let status = answer.status().as_u16();
    let wait = answer.headers().get(reqwest::header::RETRY_AFTER);
    let wait = wait.and_then(|value| value.to_str().ok());
    let retry_after = wait.and_then(|value| retry_after(value, SystemTime::now()));
    let detail = detail(&beginning(answer, most).await);
    FetchError::Status {
        status,
        detail,
        retry_after,
        url,
    }
}

/// The messages of a registry's error document, or an empty string. Other bodies are not shown,
/// because their content is unknown.
pub(crate) fn detail(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<Entry>,
    }
    #[derive(serde::Deserialize, Default)]
    #[serde(default)]
    struct Entry {
        code: String,
        message: String,
    }
    let Ok(Errors { errors }) = serde_json::from_slice(body) else {
        return String::new();
    };
    let text = |entry: &Entry| {
        format!("{} {}", entry.code, entry.message)
            .trim()
            .to_owned()
    };
    let texts: Vec<String> = errors.iter().map(text).collect();
    let printable = texts.join("; ").replace(char::is_control, " ");
    printable.chars().take(SHOWN_DETAIL).collect()
}

/// Reads at most `most` bytes from the start of a body. After an error, returns the bytes received
/// so far.
pub(crate) async fn beginning(mut answer: Response, most: usize) -> Vec<u8> {
    /// An error text is not worth a longer wait.
    const PATIENCE: Duration = Duration::from_secs(2);
    let mut body = Vec::new();
    let read = async {
        while body.len() < most {
            match answer.chunk().await {
                Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                Ok(None) | Err(_) => break,
            }
        }
    };
    if tokio::time::timeout(PATIENCE, read).await.is_err() {
        tracing::debug!("an error's text did not come in time");
    }
    body.truncate(most);
    body
}
