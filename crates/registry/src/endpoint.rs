//! Requests to one host for one image: addresses, credentials and redirects of a single attempt.

use std::{sync::Arc, time::Duration};

use reqwest::{
    Method, Response, StatusCode, Url,
    header::{HeaderMap, HeaderValue, LOCATION, REFERER},
};

mod authorized;
mod elsewhere;
mod mirror;

use super::{
    auth::{Auth, Scope, authorize},
    hosts::{Host, HostError, Scheme},
    refusal::{beginning, detail},
    transport::{Peer, Transport, Way},
};
use crate::{fetch::FetchError, url::RedactedUrl};
use mirror::Waiting;
use soci_oci::reference::ImageRef;

/// Maximum number of redirects; same value as the Go snapshotter.
pub(crate) const MAX_REDIRECTS: usize = 10;
/// Bytes of an error body that are inspected.
const MAX_REFUSAL: usize = 64 << 10;
/// Responses of HTTPS servers to plain HTTP: Go, nginx, Apache.
const SPEAKS_TLS: [&str; 3] = [
    "HTTP request to an HTTPS server",
    "plain HTTP request was sent to HTTPS port",
    "plain HTTP to an SSL-enabled server port",
];

#[derive(Debug)]
pub(crate) struct Endpoint {
    host: Host,
    /// The root URL of the host without and with TLS. Which one applies may only become known
    /// later.
    roots: (Url, Url),
    image: ImageRef,
    transport: Arc<Transport>,
    auth: Arc<Auth>,
    peer: Arc<Peer>,
    is_mirror: bool,
}

/// A request whose body, if any, can be sent again.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Option<bytes::Bytes>,
    pub(crate) way: Way,
}

impl Call {
    pub(crate) fn new(method: Method, url: Url) -> Call {
        Call {
            method,
            url,
            headers: HeaderMap::new(),
            body: None,
            way: Way::Front,
        }
    }
}

impl Endpoint {
    pub(crate) fn new(
        host: Host,
        image: ImageRef,
        transport: Arc<Transport>,
        auth: Arc<Auth>,
    ) -> Result<Endpoint, HostError> {
        let root = |scheme: &str| {
            let bad = |_| HostError::BadHost {
                host: host.authority.clone(),
            };
            Url::parse(&format!("{scheme}://{}/", host.authority)).map_err(bad)
        };
        let roots = (root("http")?, root("https")?);
        // Use the authority of the request URLs: lowercase, and without the default port.
        let root = match host.scheme {
            Scheme::Https | Scheme::HttpsFirst => &roots.1,
            Scheme::Http | Scheme::Guess => &roots.0,
        };
        let peer = transport.peer(root.authority());
        Ok(Endpoint {
            host,
            roots,
            image,
            transport,
            auth,
            peer,
            is_mirror: false,
        })
    }

    fn is_plain(&self) -> bool {
        match self.host.scheme {
            Scheme::Https => false,
            Scheme::Http => true,
            Scheme::Guess => !self.peer.wants_tls(),
            Scheme::HttpsFirst => self.peer.speaks_plain(),
        }
    }

    fn root(&self) -> &Url {
        if self.is_plain() {
            &self.roots.0
        } else {
            &self.roots.1
        }
    }

    /// URL of an object in the image's repository, such as `manifests/latest`.
    pub(crate) fn url(&self, tail: &str) -> Url {
        let mut url = self.root().clone();
        url.set_path(&format!(
            "{}/{}/{tail}",
            self.host.path,
            self.image.repository()
        ));
        self.naming_registry(url)
    }

    /// Adds the registry that a mirror is asked for, as containerd does for every request to it.
    pub(crate) fn naming_registry(&self, mut url: Url) -> Url {
        if let Some(registry) = &self.host.stands_for
            && !url.query_pairs().any(|(key, _)| key == "ns")
        {
            url.query_pairs_mut().append_pair("ns", registry);
        }
        url
    }

    /// Whether a URL belongs to this host and may therefore receive its credentials.
    fn is_ours(&self, url: &Url) -> bool {
        self.root().origin() == url.origin()
    }

    /// Marks a failure at `url` as a redirect's failure if a redirect from `from` led to another
    /// host.
    pub(crate) fn at(&self, url: &Url, from: &RedactedUrl, error: FetchError) -> FetchError {
        if self.is_ours(url) {
            error
        } else {
            error.behind_redirect(from)
        }
    }

    /// Sends a request and authenticates at most once if the host requires it. Does not follow
    /// redirects. The caller evaluates every response except failed authentication.
    pub(crate) async fn send(&self, call: &Call, scope: &Scope) -> Result<Response, FetchError> {
        let known = self.peer.wants_tls() || self.peer.speaks_plain();
        match self.host.scheme {
            Scheme::Guess if !known && self.is_ours(&call.url) => {
                self.send_guessing(call, scope).await
            }
            Scheme::HttpsFirst if !known && self.is_ours(&call.url) => {
                self.send_https_first(call, scope).await
            }
            _ => self.send_authorized(call, scope).await,
        }
    }

    /// The first request to a host that is contacted over HTTPS but may support only HTTP.
    async fn send_https_first(&self, call: &Call, scope: &Scope) -> Result<Response, FetchError> {
        let error = match self.send_authorized(call, scope).await {
            // An untrusted certificate is no reason to fall back to plain HTTP.
            Err(
                error @ FetchError::Transport {
                    transient: true, ..
                },
            ) => error,
            answer => {
                if answer.is_ok() {
                    self.peer.set_wants_tls();
                }
                return answer;
            }
        };
        let mut plain = call.clone();
        if plain.url.set_scheme("http").is_err() || self.probe(&plain.url).await.is_err() {
            return Err(error);
        }
        self.peer.set_speaks_plain();
        self.send_authorized(&plain, scope).await
    }

    /// Checks that a server responds at this address. Sends no credentials.
    async fn probe(&self, url: &Url) -> Result<Response, FetchError> {
        let (url, none) = (url.clone(), HeaderMap::new());
        self.transport
            .send(Method::HEAD, url, none, None, self.host.timeout)
            .await
    }

    /// The first request to a registry on this machine.
    async fn send_guessing(&self, call: &Call, scope: &Scope) -> Result<Response, FetchError> {
        let answer = self.send_authorized(call, scope).await;
        let tls = match answer {
            Ok(answer) if answer.status() == StatusCode::BAD_REQUEST => {
                let url = RedactedUrl::from(&call.url);
                let text = beginning(answer, MAX_REFUSAL).await;
                let bad = FetchError::Status {
                    status: 400,
                    detail: detail(&text),
                    retry_after: None,
                    url,
                };
                let text = String::from_utf8_lossy(&text);
                if !SPEAKS_TLS.iter().any(|said| text.contains(said)) {
                    self.peer.set_speaks_plain();
                    return Err(bad);
                }
                bad
            }
            Err(error @ (FetchError::Transport { .. } | FetchError::Silent { .. })) => error,
            answer => {
                self.peer.set_speaks_plain();
                return answer;
            }
        };
        // The server does not seem to support plain HTTP. If HTTPS works, use it from now on.
        let mut secure = call.clone();
        if secure.url.set_scheme("https").is_err() {
            return Err(tls);
        }
        match self.probe(&secure.url).await {
            Ok(_) => {}
            // An untrusted certificate still shows that the server uses TLS.
            Err(
                untrusted @ FetchError::Transport {
                    transient: false, ..
                },
            ) => {
                self.peer.set_wants_tls();
                return Err(untrusted);
            }
            Err(_) => return Err(tls),
        }
        self.peer.set_wants_tls();
        self.send_authorized(&secure, scope).await
    }

    async fn send_once(
        &self,
        call: &Call,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, FetchError> {
        let mut headers = call.headers.clone();
        if self.is_ours(&call.url) {
            headers.extend(self.host.headers.clone());
        }
        if let Some(value) = authorization {
            authorize(&mut headers, value.clone());
        }
        let body = call.body.clone().map(reqwest::Body::from);
        let (method, url) = (call.method.clone(), call.url.clone());
        let waiting = Waiting::for_answer(self, &url);
        let answer = self
            .transport
            .send_by(call.way, method, url, headers, body, self.host.timeout)
            .await;
        waiting.over();
        answer
    }

    /// Sends a request whose body can be sent only once, with the known credentials and without a
    /// retry. For `begins` and `silence`, see [`Transport::send_stream`].
    pub(crate) async fn send_stream(
        &self,
        url: Url,
        mut headers: HeaderMap,
        body: reqwest::Body,
        scope: &Scope,
        begins: impl Future<Output = ()>,
        silence: impl Future<Output = Duration>,
    ) -> Result<Response, FetchError> {
        if self.is_ours(&url) {
            headers.extend(self.host.headers.clone());
            let access = self.auth.access(&self.host.authority, &self.image, scope);
            if let Some(value) = access.header(&self.auth).await? {
                authorize(&mut headers, value);
            }
        }
        self.transport
            .send_stream(url, headers, body, begins, silence)
            .await
    }

    /// Sends a GET or HEAD request and follows redirects. Returns the response and its URL.
    pub(crate) async fn follow(
        &self,
        mut call: Call,
        scope: &Scope,
    ) -> Result<(Url, Response), FetchError> {
        let start = RedactedUrl::from(&call.url);
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.send(&call, scope).await;
            let answer = answer.map_err(|error| self.at(&call.url, &start, error))?;
            if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok((call.url, answer));
            }
            let target = redirect_target(&call.url, &answer)?;
            set_referer(&mut call.headers, &call.url, &target);
            call.url = target;
        }
        Err(FetchError::Redirects {
            url: start,
            limit: MAX_REDIRECTS,
        })
    }
}

/// States where a redirect came from, which some object stores require. Leaves out the user and the
/// query, which may contain secrets. Nothing is stated to an HTTP server about an HTTPS one.
pub(crate) fn set_referer(headers: &mut HeaderMap, from: &Url, to: &Url) {
    headers.remove(REFERER);
    if from.scheme() == "https" && to.scheme() == "http" {
        return;
    }
    let mut shown = from.clone();
    shown.set_query(None);
    shown.set_fragment(None);
    let has_no_user = shown.set_username("").is_ok() && shown.set_password(None).is_ok();
    if let Ok(value) = HeaderValue::from_str(shown.as_str())
        && has_no_user
    {
        headers.insert(REFERER, value);
    }
}

/// The target of a redirect. Only HTTP and HTTPS URLs are accepted.
pub(crate) fn redirect_target(from: &Url, answer: &Response) -> Result<Url, FetchError> {
    let location = answer
        .headers()
        .get(LOCATION)
        .and_then(|value| value.to_str().ok());
    let target = location.and_then(|location| from.join(location).ok());
    match target {
        Some(target) if matches!(target.scheme(), "http" | "https") && target.has_host() => {
            Ok(target)
        }
        target => Err(FetchError::BadRedirect {
            url: RedactedUrl::from(from),
            target: target
                .as_ref()
                .map_or_else(|| RedactedUrl::new(""), RedactedUrl::from),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Hosts, Options, breaker::Failure, credentials::Anonymous, retry::RetryPolicy};

    #[test]
    fn a_host_is_known_by_the_address_that_requests_go_to() {
        let options = Options::default();
        let transport = Arc::new(Transport::new(&options).expect("a client"));
        let auth = Arc::new(Auth::new(Arc::new(Anonymous), RetryPolicy::default()));
        for (name, plain_http) in [
            ("r.example:443", false),
            ("p.example:80", true),
            ("q.example:5000", false),
        ] {
            let image = ImageRef::parse(&format!("{name}/app:v1")).expect(name);
            let hosts = Hosts {
                plain_http,
                ..Hosts::default()
            };
            let host = hosts.origin(&image).expect(name);
            let (transport, auth) = (Arc::clone(&transport), Arc::clone(&auth));
            let endpoint = Endpoint::new(host, image, Arc::clone(&transport), auth).expect(name);
            let url = endpoint.url("manifests/v1");
            transport.peer(url.authority()).failed(Failure::Silent);
            assert!(endpoint.turn().is_none(), "{url}");
        }
    }
}
