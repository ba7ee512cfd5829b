//! Mirrors of the caller's configuration, in any way people write them.

use std::time::Duration;

use reqwest::{Url, header::HeaderMap};

use super::{Host, HostError, Scheme, is_this_machine, stands_for};
use crate::{host_files::TlsOverrides, url::RedactedUrl};

/// One mirror.
#[derive(Clone, Debug, Default)]
pub struct Mirror {
    /// `host[:port][/path]`, or a URL with a scheme. The default path is `/v2`.
    pub host: String,
    /// Use plain HTTP if `host` has no scheme.
    pub insecure: bool,
    /// Timeout until the response headers arrive, in place of the general one. Does not apply to
    /// the body.
    pub timeout: Option<Duration>,
}

impl Mirror {
    pub(super) fn to_host(&self, registry: &str) -> Result<Host, HostError> {
        let bad = || HostError::BadMirror {
            host: registry.to_owned(),
            mirror: RedactedUrl::new(&self.host),
        };
        let text = self.host.trim();
        let (explicit, rest) = match text.split_once("://") {
            Some(("https", rest)) => (Some(Scheme::Https), rest),
            Some(("http", rest)) => (Some(Scheme::Http), rest),
            Some(_) => return Err(bad()),
            // "//host" is a URL without a scheme.
            None => (None, text.strip_prefix("//").unwrap_or(text)),
        };
        // Parsed only for validation and for the path. The authority is taken from the text, so
        // that an explicit port is kept.
        let url = Url::parse(&format!("https://{rest}")).map_err(|_| bad())?;
        let credentials = !url.username().is_empty() || url.password().is_some();
        if credentials || url.query().is_some() || url.fragment().is_some() {
            return Err(bad());
        }
        let authority = rest
            .split('/')
            .next()
            .filter(|a| !a.is_empty())
            .ok_or_else(bad)?;
        let path = url.path().trim_end_matches('/');
        let scheme = explicit.unwrap_or(match () {
            () if self.insecure => Scheme::Http,
            () if is_this_machine(&url) => Scheme::Guess,
            () => Scheme::Https,
        });
        Ok(Host {
            authority: authority.to_owned(),
            path: if path.is_empty() {
                "/v2".to_owned()
            } else {
                path.to_owned()
            },
            scheme,
            stands_for: stands_for(authority, registry),
            timeout: self.timeout,
            tls: TlsOverrides::default(),
            headers: HeaderMap::new(),
            dial_timeout: None,
        })
    }
}
