//! A host that others can replace: whether to ask it in its turn, and what counts against it.
//!
//! A reader has deadlines of its own and may give up a request before the mirror has answered.
//! [`Waiting`] notices that. Otherwise, a mirror with a long timeout would stay first, and use up the
//! deadline of every reader.

use std::time::Instant;

use reqwest::Url;

use super::Endpoint;
use crate::{
    breaker::{Failure, Turn},
    fetch::FetchError,
    url::RedactedUrl,
};

impl Endpoint {
    /// Marks it as one that others can replace.
    pub(crate) fn into_mirror(self) -> Endpoint {
        Endpoint {
            is_mirror: true,
            ..self
        }
    }

    /// The turn of this host, held while it is asked. Without one, ask it after all others.
    pub(crate) fn turn(&self) -> Option<Turn<'_>> {
        self.peer.turn()
    }

    /// Whether this is a mirror, not the last host of its image.
    pub(crate) fn is_mirror(&self) -> bool {
        self.is_mirror
    }

    /// Records a failed attempt, so that other hosts are preferred for a while.
    pub(crate) fn note(&self, error: &FetchError) {
        match error.failure() {
            // Nothing is gained by avoiding the origin, except if it is not there at all.
            Some(Failure::Silent) if self.is_mirror || !error.is_answer() => {
                self.avoid(Failure::Silent, error);
            }
            Some(Failure::Broken) => self.broke(error),
            _ => {}
        }
    }

    /// Records that the bytes of this host are of no use: they are wrong, or break off.
    pub(crate) fn broke(&self, error: &FetchError) {
        if self.is_mirror {
            self.avoid(Failure::Broken, error);
        }
    }

    fn avoid(&self, failure: Failure, error: &FetchError) {
        if let Some(pause) = self.peer.failed(failure)
            && self.is_mirror
        {
            tracing::warn!(
                mirror = self.host.authority,
                error = error as &dyn std::error::Error,
                seconds = pause.as_secs(),
                "a mirror fails; other hosts are asked first for a while"
            );
        }
    }
}

/// A request without an answer yet. Dropping it means that nobody waits any more. It counts as
/// silence after the general timeout, whatever the mirror's own is.
pub(super) struct Waiting<'a> {
    mirror: Option<&'a Endpoint>,
    failure: Failure,
    since: Instant,
}

impl<'a> Waiting<'a> {
    /// Begins to wait for this address. Only mirrors are watched.
    pub(super) fn for_answer(endpoint: &'a Endpoint, url: &Url) -> Waiting<'a> {
        Waiting {
            mirror: Some(endpoint).filter(|endpoint| endpoint.is_mirror),
            // The mirror itself answers, with a redirect, even while its target is silent.
            failure: match endpoint.is_ours(url) {
                true => Failure::Silent,
                false => Failure::Broken,
            },
            since: Instant::now(),
        }
    }

    /// The request has an outcome, which others judge.
    pub(super) fn over(mut self) {
        self.mirror = None;
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let idle = self.since.elapsed();
        if let Some(mirror) = self.mirror
            && idle >= mirror.transport.patience()
        {
            let url = RedactedUrl::from(mirror.root());
            mirror.avoid(self.failure, &FetchError::Silent { url, idle });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::{
        Hosts, Options, auth::Auth, credentials::Anonymous, retry::RetryPolicy,
        transport::Transport,
    };
    use soci_oci::reference::ImageRef;

    #[test]
    fn an_answer_of_the_mirror_does_not_end_the_silence_of_its_target() {
        for (address, ends) in [
            ("https://mirror.example/v2/", true),
            ("https://storage.example/", false),
        ] {
            let options = Options {
                connect_timeout: Duration::ZERO,
                head_timeout: Duration::ZERO,
                ..Options::default()
            };
            let transport = Arc::new(Transport::new(&options).expect("a client"));
            let auth = Arc::new(Auth::new(Arc::new(Anonymous), RetryPolicy::default()));
            let image = ImageRef::parse("mirror.example/app:v1").expect("a name");
            let host = Hosts::default().origin(&image).expect("a host");
            let mirror = Endpoint::new(host, image, transport, auth).expect("an address");
            let mirror = mirror.into_mirror();
            let url = Url::parse(address).expect(address);
            drop(Waiting::for_answer(&mirror, &url));
            assert!(mirror.turn().is_none(), "{address}");
            assert_eq!(mirror.peer.answered(), ends, "{address}");
        }
    }
}
