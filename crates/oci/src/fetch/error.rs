//! Why bytes did not come, and whom else that concerns.

use std::{sync::Arc, time::Duration};

use super::ByteRange;
use crate::{registry::retry, url::RedactedUrl};

/// Why bytes did not come. Cheap to clone: one failure may be told to many waiters.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The caller asked for bytes that the blob does not have.
    #[error("range {start}..{end} is empty or outside the blob's {size} bytes")]
    OutsideBlob {
        /// First byte asked for.
        start: u64,
        /// Exclusive end asked for.
        end: u64,
        /// Size of the blob.
        size: u64,
    },
    /// The source stopped early.
    #[error("bytes {range} ended after {received} bytes")]
    Short {
        /// The range asked for.
        range: ByteRange,
        /// Bytes that had come.
        received: u64,
    },
    /// The source sent more than the range, or the range does not fit in memory.
    #[error("more bytes came than range {range} has")]
    TooLong {
        /// The range asked for.
        range: ByteRange,
    },
    /// Nothing arrived for the whole idle time.
    #[error("no byte of {range} from {url} for {} s", idle.as_secs_f32())]
    Stalled {
        /// What was being read.
        range: ByteRange,
        /// From where.
        url: RedactedUrl,
        /// How long nothing came.
        idle: Duration,
    },
    /// Nothing came (or was taken) for the whole idle time, outside of ranges.
    #[error("{url} is silent for {} s", idle.as_secs_f32())]
    Silent {
        /// Who is silent.
        url: RedactedUrl,
        /// For how long.
        idle: Duration,
    },
    /// A document that is larger than any honest one.
    #[error("{url} answered with more than {limit} bytes")]
    Oversized {
        /// Who answered.
        url: RedactedUrl,
        /// The limit in bytes.
        limit: u64,
    },
    /// The source answered, but not with the range: another part, another size, or the whole blob.
    #[error("{url} answered bytes {asked} with {got}")]
    WrongRange {
        /// The range asked for.
        asked: ByteRange,
        /// What the answer claims to be.
        got: String,
        /// Who answered.
        url: RedactedUrl,
    },
    /// The source gave something else than what was asked for by its digest.
    #[error("{url} gave other bytes than the digest says")]
    WrongBytes {
        /// Who answered.
        url: RedactedUrl,
    },
    /// The source refused with a status.
    #[error("{url} answered {status}{}{}", detail_suffix(detail), asked_suffix(*retry_after))]
    Status {
        /// HTTP status code.
        status: u16,
        /// What the registry's error body says, shortened; may be empty.
        detail: String,
        /// How long the registry asks us to stay away.
        retry_after: Option<Duration>,
        /// Who answered.
        url: RedactedUrl,
    },
    /// Credentials are missing or were refused.
    #[error("{host} does not let us into {repository}: {reason}")]
    Unauthorized {
        /// Registry host.
        host: String,
        /// Repository in it.
        repository: String,
        /// What was tried.
        reason: String,
    },
    /// No answer: no connection, a reset, broken TLS.
    #[error("no answer from {url}")]
    Transport {
        /// Who was asked.
        url: RedactedUrl,
        /// False if not even a connection came about.
        connected: bool,
        /// True if another attempt may succeed; false for a bad certificate, for instance.
        transient: bool,
        /// The transport's own account, without URLs.
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// Bytes come, and too few of them to wait for.
    #[error("only {received} bytes in {} s", lasted.as_secs_f32())]
    TooSlow {
        /// Bytes that came in that time.
        received: u64,
        /// How long it lasted.
        lasted: Duration,
    },
    /// Not the registry but what gives tokens for it has trouble.
    #[error("no token for {repository} of {host}")]
    Token {
        /// Registry host.
        host: String,
        /// Repository in it.
        repository: String,
        /// The token endpoint's failure.
        #[source]
        source: Box<FetchError>,
    },
    /// Not the registry but where it sends us has trouble.
    #[error("{url} redirects to where the bytes do not come from")]
    Redirected {
        /// Where it began.
        url: RedactedUrl,
        /// The failure there.
        #[source]
        source: Box<FetchError>,
    },
    /// There is nobody to ask.
    #[error("no host to ask")]
    NoHost,
    /// Redirects that never end.
    #[error("more than {limit} redirects from {url}")]
    Redirects {
        /// Where it began.
        url: RedactedUrl,
        /// How many were followed.
        limit: usize,
    },
    /// A redirect to what is not a URL that we follow.
    #[error("{url} redirects to {target}, which cannot be followed")]
    BadRedirect {
        /// Who answered.
        url: RedactedUrl,
        /// Where it pointed.
        target: RedactedUrl,
    },
    /// What answers is no registry: a page for people, such as a proxy's.
    #[error("{url} answered with a web page, as no registry does")]
    WebPage {
        /// Who answered.
        url: RedactedUrl,
    },
    /// All attempts are used up; the last one's failure is the source.
    #[error("giving up after {attempts} attempts")]
    GaveUp {
        /// Number of requests made.
        attempts: u32,
        /// The last failure.
        #[source]
        last: Box<FetchError>,
    },
    /// A local source could not be read.
    #[error("read {range} of a local blob")]
    Io {
        /// The range asked for.
        range: ByteRange,
        /// The system's account.
        #[source]
        source: Arc<std::io::Error>,
    },
}

/// What a failure is about, and so who else has to expect it. Wider before narrower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Concern {
    /// The host: nobody gets a connection.
    Host,
    /// The repository, with our credential for it.
    Repository,
    /// This blob there.
    Blob,
}

impl FetchError {
    /// What it is about. A failure that may be one blob's alone is: others must not pay for it.
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

    /// The host is there and asks to be left alone for so long: no failure of anybody.
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

    /// Where this came from is not the registry itself but an address that it redirected to, from `url` on: then what is
    /// true of that host or of our rights there says nothing of the registry.
    pub(crate) fn behind_redirect(self, url: &RedactedUrl) -> FetchError {
        match self {
            FetchError::Transport { .. }
            | FetchError::Status {
                status: 401 | 403 | 429 | 503,
                ..
            } => FetchError::Redirected {
                url: url.clone(),
                source: Box::new(self),
            },
            other => other,
        }
    }

    /// Whether the same request may succeed later without anybody changing anything: the network, a busy registry, an
    /// outage. Bad ranges, refusals and broken answers are not.
    ///
    /// Refused credentials count as transient: tokens come back when the registry or the keychain does, and a reader
    /// that waits in the kernel is better served by another try than by an error.
    pub fn is_transient(&self) -> bool {
        match self {
            FetchError::Short { .. }
            | FetchError::Stalled { .. }
            | FetchError::Silent { .. }
            | FetchError::TooSlow { .. }
            | FetchError::Unauthorized { .. } => true,
            FetchError::Transport { transient, .. } => *transient,
            FetchError::Status { status, .. } => retry::is_transient_status(*status),
            FetchError::GaveUp { last, .. } => last.is_transient(),
            FetchError::Token { source, .. } | FetchError::Redirected { source, .. } => {
                source.is_transient()
            }
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

    /// Whether the registry has answered, and will not give the bytes to who we are: credentials that it does not know, a
    /// blob that it does not have, an answer that is none.
    pub fn is_refusal(&self) -> bool {
        match self {
            FetchError::Unauthorized { .. } => true,
            FetchError::GaveUp { last, .. } => last.is_refusal(),
            FetchError::Token { source, .. } | FetchError::Redirected { source, .. } => {
                source.is_refusal()
            }
            FetchError::OutsideBlob { .. } | FetchError::Io { .. } => false,
            other => !other.is_transient(),
        }
    }

    /// Whether asking again within the same operation makes sense: transient, not about who we are, and not after all
    /// attempts (which a token endpoint has had as well).
    pub(crate) fn is_worth_repeating(&self) -> bool {
        let had_its_attempts = matches!(
            self,
            FetchError::Unauthorized { .. } | FetchError::Token { .. } | FetchError::GaveUp { .. }
        );
        self.is_transient() && !had_its_attempts
    }

    /// Requests that were made before this was told.
    pub(crate) fn attempts(&self) -> u32 {
        match self {
            FetchError::GaveUp { attempts, .. } => *attempts,
            FetchError::Token { source, .. } | FetchError::Redirected { source, .. } => {
                source.attempts()
            }
            _ => 1,
        }
    }

    /// How long the registry asked us to stay away.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_it_is_about() {
        let url = || RedactedUrl::new("https://registry.example/v2/");
        let transport = |connected| FetchError::Transport {
            url: url(),
            connected,
            transient: true,
            source: Arc::new(std::io::Error::other("broken")),
        };
        let status = |status, retry_after| FetchError::Status {
            status,
            detail: String::new(),
            retry_after,
            url: url(),
        };
        let gave_up = |last| FetchError::GaveUp {
            attempts: 9,
            last: Box::new(last),
        };
        assert_eq!(transport(false).concern(), Concern::Host);
        assert_eq!(gave_up(transport(false)).concern(), Concern::Host);
        assert_eq!(transport(true).concern(), Concern::Blob);
        // The host that a registry redirects to is not the registry.
        assert_eq!(
            transport(false).behind_redirect(&url()).concern(),
            Concern::Blob
        );
        assert_eq!(status(401, None).concern(), Concern::Repository);
        assert_eq!(status(403, None).concern(), Concern::Repository);
        assert_eq!(
            status(403, None).behind_redirect(&url()).concern(),
            Concern::Blob
        );
        for code in [404, 500, 503] {
            assert_eq!(status(code, None).concern(), Concern::Blob);
        }
        let minute = Some(Duration::from_secs(60));
        assert!(
            status(429, minute)
                .to_string()
                .ends_with("429 (it asks for a wait of 60 s)")
        );
        assert_eq!(gave_up(status(503, minute)).busy(), minute);
        assert!(status(503, None).is_worth_repeating());
        assert!(!gave_up(status(503, None)).is_worth_repeating());
        assert_eq!(status(503, None).busy(), None);
        assert_eq!(status(500, minute).busy(), None);
        let token = FetchError::Token {
            host: "registry.example".to_owned(),
            repository: "app".to_owned(),
            source: Box::new(transport(false)),
        };
        assert_eq!(token.concern(), Concern::Repository);
        assert!(token.is_transient() && !token.is_worth_repeating());
    }
}
