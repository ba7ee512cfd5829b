//! Reports HTTP traffic, for debugging registries.

use std::{fmt, sync::Arc};

use reqwest::StatusCode;

use crate::{fetch::FetchError, url::RedactedUrl};

/// A request or its outcome. Contains no secrets: neither headers nor query values.
#[derive(Debug)]
pub enum Traffic<'a> {
    /// A request is sent.
    Request {
        /// `GET`, `HEAD`, ...
        method: &'a str,
        /// The address.
        url: &'a RedactedUrl,
    },
    /// Response headers arrived.
    Answer {
        /// HTTP status code.
        status: u16,
    },
    /// No response arrived.
    Failed {
        /// The reason.
        error: &'a FetchError,
    },
}

/// The format of the Go `soci` command.
impl fmt::Display for Traffic<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Traffic::Request { method, url } => write!(f, "http req {method} {url}"),
            Traffic::Answer { status } => match StatusCode::from_u16(*status) {
                // Includes the reason phrase: `200 OK`.
                Ok(status) => write!(f, "http res {status}"),
                Err(_) => write!(f, "http res {status}"),
            },
            Traffic::Failed { error } => {
                write!(f, "http err {error}")?;
                let mut cause = std::error::Error::source(error);
                while let Some(error) = cause {
                    write!(f, ": {error}")?;
                    cause = error.source();
                }
                Ok(())
            }
        }
    }
}

/// A callback for all traffic, called immediately and in chronological order. It must not block for
/// long.
#[derive(Clone)]
pub struct Trace(Arc<dyn Fn(&Traffic<'_>) + Send + Sync>);

impl Trace {
    /// Creates a trace that calls `tell` for each event.
    pub fn new(tell: impl Fn(&Traffic<'_>) + Send + Sync + 'static) -> Trace {
        Trace(Arc::new(tell))
    }

    pub(super) fn tell(&self, traffic: &Traffic<'_>) {
        (self.0)(traffic);
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trace")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_told_in_the_words_of_the_reference_and_without_secrets() {
        let url =
            RedactedUrl::new("https://me:hunter2@r.test/v2/a/blobs/uploads/1?signature=hunter2");
        let method = "PUT";
        let request = Traffic::Request { method, url: &url };
        assert_eq!(
            request.to_string(),
            "http req PUT https://xxxxx@r.test/v2/a/blobs/uploads/1?signature=redacted"
        );
        let status = 404;
        let answer = Traffic::Answer { status };
        assert_eq!(answer.to_string(), "http res 404 Not Found");
        let error = FetchError::Transport {
            connected: false,
            url: RedactedUrl::new("https://r.test/v2/"),
            transient: true,
            source: Arc::new(std::io::Error::other("connection refused")),
        };
        let failed = Traffic::Failed { error: &error };
        assert_eq!(
            failed.to_string(),
            "http err no answer from https://r.test/v2/: connection refused"
        );
    }
}
