//! Errors of downloads, and which other downloads they affect.

use std::{sync::Arc, time::Duration};

use super::ByteRange;
use crate::{breaker::Failure, url::RedactedUrl};

/// Why a download failed. Cheap to clone, because several waiters may receive the same failure.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The caller requested bytes that the blob does not have.
    #[error("range {start}..{end} is empty or outside the blob's {size} bytes")]
    OutsideBlob {
        /// First requested byte.
        start: u64,
        /// Exclusive end of the request.
        end: u64,
        /// Size of the blob.
        size: u64,
    },
    /// The source stopped early.
    #[error("bytes {range} ended after {received} bytes")]
    Short {
        /// The requested range.
        range: ByteRange,
        /// Bytes received before that.
        received: u64,
    },
    /// The source sent more than the range, or the range does not fit in memory.
    #[error("more bytes came than range {range} has")]
    TooLong {
        /// The requested range.
        range: ByteRange,
    },
    /// No byte of a range arrived within the idle timeout.
    #[error("no byte of {range} from {url} for {} s", idle.as_secs_f32())]
    Stalled {
        /// The requested range.
        range: ByteRange,
        /// The address that stalled.
        url: RedactedUrl,
        /// The idle timeout.
        idle: Duration,
    },
    /// No response headers arrived, or a transfer other than a range made no progress, within the
    /// timeout.
    #[error("{url} is silent for {} s", idle.as_secs_f32())]
    Silent {
        /// The address that did not respond.
        url: RedactedUrl,
        /// The timeout.
        idle: Duration,
    },
    /// A document exceeds its size limit.
    #[error("{url} answered with more than {limit} bytes")]
    Oversized {
        /// The address that responded.
        url: RedactedUrl,
        /// The limit in bytes.
        limit: u64,
    },
    /// The response does not match the requested range: another part or another size.
    #[error("{url} answered bytes {asked} with {got}")]
    WrongRange {
        /// The requested range.
        asked: ByteRange,
        /// What the response claims to contain.
        got: String,
        /// The address that responded.
        url: RedactedUrl,
    },
    /// The bytes do not match the requested digest.
    #[error("{url} gave other bytes than the digest says")]
    WrongBytes {
        /// The address that responded.
        url: RedactedUrl,
    },
    /// The source responded with an error status.
    #[error("{url} answered {status}{}{}", detail_suffix(detail), asked_suffix(*retry_after))]
    Status {
        /// HTTP status code.
        status: u16,
        /// Text of the registry's error document, shortened; may be empty.
        detail: String,
        /// The wait that the registry requested.
        retry_after: Option<Duration>,
        /// The address that responded.
        url: RedactedUrl,
    },
    /// Credentials are missing or were rejected.
    #[error("{host} does not let us into {repository}: {reason}")]
    Unauthorized {
        /// Registry host.
        host: String,
        /// Repository on that host.
        repository: String,
        /// Why access failed.
        reason: String,
    },
    /// No response: connection failure, reset, or TLS failure.
    #[error("no answer from {url}")]
    Transport {
        /// The requested address.
        url: RedactedUrl,
        /// False if no connection was established.
        connected: bool,
        /// True if a retry may succeed; false for a bad certificate, for example.
        transient: bool,
        /// The transport's error, without URLs.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// Bytes arrive too slowly to keep waiting.
    #[error("only {received} bytes in {} s", lasted.as_secs_f32())]
    TooSlow {
        /// Bytes received in that time.
        received: u64,
        /// The measured time.
        lasted: Duration,
    },
    /// The token endpoint failed, not the registry.
    #[error("no token for {repository} of {host}")]
    Token {
        /// Registry host.
        host: String,
        /// Repository on that host.
        repository: String,
        /// The token endpoint's failure.
        #[source]
        source: Box<FetchError>,
    },
    /// The target of a redirect failed, not the registry.
    #[error("{url} redirects to where the bytes do not come from")]
    Redirected {
        /// The first address of the request.
        url: RedactedUrl,
        /// The failure at the target.
        #[source]
        source: Box<FetchError>,
    },
    /// There is no host to ask.
    #[error("no host to ask")]
    NoHost,
    /// Too many redirects.
    #[error("more than {limit} redirects from {url}")]
    Redirects {
        /// The first address of the request.
        url: RedactedUrl,
        /// The maximum number of redirects.
        limit: usize,
    },
    /// The target of a redirect is not a URL that the client follows.
    #[error("{url} redirects to {target}, which cannot be followed")]
    BadRedirect {
        /// The address that responded.
        url: RedactedUrl,
        /// The target of the redirect.
        target: RedactedUrl,
    },
    /// The response is a web page, for example from a proxy. Registries do not return web pages.
    #[error("{url} answered with a web page, as no registry does")]
    WebPage {
        /// The address that responded.
        url: RedactedUrl,
    },
    /// All attempts failed.
    #[error("giving up after {attempts} attempts")]
    GaveUp {
        /// Number of requests sent.
        attempts: u32,
        /// The last failure.
        #[source]
        last: Box<FetchError>,
    },
    /// A local source could not be read.
    #[error("read {range} of a local blob")]
    Io {
        /// The requested range.
        range: ByteRange,
        /// The system's error.
        #[source]
        source: Arc<std::io::Error>,
    },
}

/// The scope of a failure: which other requests will fail too. Ordered from wide to narrow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Concern {
    /// The host: no connection can be established.
    Host,
    /// The repository, with the current credentials.
    Repository,
    /// One blob at this source.
    Blob,
}

impl FetchError {
    /// The scope of the failure. A failure that may affect only one blob counts as
    /// [`Concern::Blob`], so that it does not delay other blobs.
    pub fn concern(&self) -> Concern {
        match self {
            FetchError::Transport {
                connected: false, ..
            } => Concern::Host,
            FetchError::Unauthorized { .. }
            | FetchError::Token { .. }
            | FetchError::Status {
                status: 401 | 403, ..
            } => Concern::Repository,
            FetchError::GaveUp { last, .. } => last.concern(),
            _ => Concern::Blob,
        }
    }

    /// The wait that an overloaded host requested (status 429 or 503 with `Retry-After`). Such a
    /// response is not a failure of the source.
    pub fn busy(&self) -> Option<Duration> {
        match self {
            FetchError::Status {
                status: 429 | 503,
                retry_after,
                ..
            } => *retry_after,
            FetchError::GaveUp { last, .. } => last.busy(),
            _ => None,
        }
    }

    /// Marks a failure of an address to which `url` redirected. Outages and access failures there
    /// do not apply to the registry.
    pub(crate) fn behind_redirect(self, url: &RedactedUrl) -> FetchError {
        let is_of_target = match &self {
            FetchError::Transport { .. } | FetchError::Silent { .. } => true,
            FetchError::Status { status, .. } => {
                matches!(status, 401 | 403) || is_transient_status(*status)
            }
            _ => false,
        };
        if !is_of_target {
            return self;
        }
        FetchError::Redirected {
            url: url.clone(),
            source: Box::new(self),
        }
    }

    /// Whether the same request may succeed later: after network problems, overload or an outage.
    /// Bad ranges and malformed responses are permanent.
    ///
    /// Rejected credentials and denied access (403) count as transient: some registries return 403
    /// for expired credentials. New ones become available when the registry or the keychain
    /// recovers, and for a reader that waits in the kernel a retry is better than an error.
    pub fn is_transient(&self) -> bool {
        match self {
            FetchError::Short { .. }
            | FetchError::Stalled { .. }
            | FetchError::Silent { .. }
            | FetchError::TooSlow { .. }
            | FetchError::Unauthorized { .. } => true,
            FetchError::Transport { transient, .. } => *transient,
            FetchError::Status { status, .. } => self.is_denied() || is_transient_status(*status),
            FetchError::GaveUp { last, .. } => last.is_transient(),
            FetchError::Token { source, .. } => source.is_transient(),
            // The credentials are those of the redirect, not ours.
            FetchError::Redirected { source, .. } => source.is_transient() && !source.is_denied(),
            FetchError::OutsideBlob { .. }
            | FetchError::TooLong { .. }
            | FetchError::WrongRange { .. }
            | FetchError::WrongBytes { .. }
            | FetchError::Oversized { .. }
            | FetchError::NoHost
            | FetchError::Redirects { .. }
            | FetchError::BadRedirect { .. }
            | FetchError::WebPage { .. }
            | FetchError::Io { .. } => false,
        }
    }

    /// Whether the failure is a refusal: rejected credentials, a missing blob, or a response that
    /// cannot be used. Failures of local reads and invalid ranges are not refusals.
    pub fn is_refusal(&self) -> bool {
        match self {
            FetchError::Unauthorized { .. } => true,
            FetchError::GaveUp { last, .. } => last.is_refusal(),
            FetchError::Token { source, .. } | FetchError::Redirected { source, .. } => {
                source.is_refusal()
            }
            FetchError::OutsideBlob { .. } | FetchError::Io { .. } => false,
            other => other.is_denied() || !other.is_transient(),
        }
    }

    /// Whether the server, or its token endpoint, denied access with the credentials that it got.
    pub(crate) fn is_denied(&self) -> bool {
        match self {
            FetchError::Status { status, .. } => *status == 403,
            FetchError::Token { source, .. } => source.is_denied(),
            _ => false,
        }
    }

    /// Whether to retry within the same operation: only transient failures that are not about
    /// credentials and whose retries are not used up. Token failures have already been retried.
    pub(crate) fn is_worth_repeating(&self) -> bool {
        let had_its_attempts = matches!(
            self,
            FetchError::Unauthorized { .. } | FetchError::Token { .. } | FetchError::GaveUp { .. }
        );
        self.is_transient() && !had_its_attempts && !self.is_denied()
    }

    /// How a host that fails like this is avoided. `None` if it works and only has not what was
    /// asked for, or does not give it to us.
    pub(crate) fn failure(&self) -> Option<Failure> {
        match self {
            FetchError::Transport { .. } | FetchError::Silent { .. } => Some(Failure::Silent),
            FetchError::Status { status, .. } => {
                is_transient_status(*status).then_some(Failure::Silent)
            }
            FetchError::GaveUp { last, .. } => last.failure(),
            // The host itself answers, so its answers do not show that the other end recovers.
            FetchError::Redirected { source, .. } | FetchError::Token { source, .. } => {
                source.failure().map(|_| Failure::Broken)
            }
            FetchError::Short { .. }
            | FetchError::Stalled { .. }
            | FetchError::TooSlow { .. }
            | FetchError::TooLong { .. }
            | FetchError::WrongRange { .. }
            | FetchError::WrongBytes { .. }
            | FetchError::Oversized { .. }
            | FetchError::Redirects { .. }
            | FetchError::BadRedirect { .. }
            | FetchError::WebPage { .. } => Some(Failure::Broken),
            FetchError::OutsideBlob { .. }
            | FetchError::Unauthorized { .. }
            | FetchError::NoHost
            | FetchError::Io { .. } => None,
        }
    }

    /// Whether the host answered with a status.
    pub(crate) fn is_answer(&self) -> bool {
        match self {
            FetchError::Status { .. } => true,
            FetchError::GaveUp { last, .. } => last.is_answer(),
            _ => false,
        }
    }

    /// Number of requests that this failure took.
    pub(crate) fn attempts(&self) -> u32 {
        match self {
            FetchError::GaveUp { attempts, .. } => *attempts,
            FetchError::Token { source, .. } | FetchError::Redirected { source, .. } => {
                source.attempts()
            }
            _ => 1,
        }
    }

    /// The wait that the registry requested.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            FetchError::Status { retry_after, .. } => *retry_after,
            FetchError::GaveUp { last, .. } => last.retry_after(),
            FetchError::Token { source, .. } | FetchError::Redirected { source, .. } => {
                source.retry_after()
            }
            _ => None,
        }
    }
}

fn detail_suffix(detail: &str) -> String {
    if detail.is_empty() {
        String::new()
    } else {
        format!(": {detail}")
    }
}

fn asked_suffix(retry_after: Option<Duration>) -> String {
    match retry_after {
        Some(asked) if !asked.is_zero() => {
            format!(" (it asks for a wait of {} s)", asked.as_secs())
        }
        _ => String::new(),
    }
}

/// Statuses worth a retry: the registry is overloaded or has an internal error.
pub(crate) fn is_transient_status(status: u16) -> bool {
    matches!(status, 408 | 425 | 429) || (status >= 500 && status != 501 && status != 505)
}

#[cfg(test)]
mod tests;
