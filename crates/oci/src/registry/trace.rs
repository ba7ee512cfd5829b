//! Telling what goes over the wire, for who debugs a registry.

use std::{fmt, sync::Arc};

use reqwest::StatusCode;

use crate::{fetch::FetchError, url::RedactedUrl};

/// A request, or what became of it. Shows no secrets: neither headers nor values of queries.
#[derive(Debug)]
pub enum Traffic<'a> {
    /// Sent now.
    Request {
        /// `GET`, `HEAD`, ...
        method: &'a str,
        /// Where to.
        url: &'a RedactedUrl,
    },
    /// The head of an answer came.
    Answer {
        /// Code and reason: `200 OK`.
        status: StatusCode,
    },
    /// No answer came.
    Failed {
        /// Why.
        error: &'a FetchError,
    },
}

/// As the reference's command line prints it.
impl fmt::Display for Traffic<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Traffic::Request { method, url } => write!(f, "http req {method} {url}"),
            Traffic::Answer { status } => write!(f, "http res {status}"),
            Traffic::Failed { error } => write!(f, "http err {error}"),
        }
    }
}

/// Is told of all traffic, at once and in order of time; must not block for long.
#[derive(Clone)]
pub struct Trace(Arc<dyn Fn(&Traffic<'_>) + Send + Sync>);

impl Trace {
    /// Calls this for everything.
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
