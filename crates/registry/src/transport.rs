//! Sends one request over HTTP/1.1: connections, TLS, limits and timeouts. No retries, redirects or
//! credentials.
//!
//! HTTP/1.1 is deliberate: several connections carry bodies in parallel, and it needs less CPU time
//! than one HTTP/2 connection (measured: 0.51 s against 0.60 s per GB).

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use reqwest::{Client, Method, RequestBuilder, Response, Url, header::HeaderMap};
use rustls::RootCertStore;

use super::{
    Options, RegistryError,
    no_proxy::NoProxy,
    stamp::Stamp,
    tls::{Roots, Tls, client_config, is_about_certificates},
    trace::{Trace, Traffic},
};
use crate::{
    fetch::{FetchError, is_transient_status},
    url::RedactedUrl,
};

mod peer;

pub(crate) use peer::Peer;

/// How long idle connections are kept; same value as the Go snapshotter.
const POOL_IDLE: Duration = Duration::from_secs(90);
/// A read that waits longer than this for its response gives up its permit, so that a stalled blob
/// does not delay other requests to the host.
const TURN: Duration = Duration::from_secs(1);
/// Above this number of settings, all are dropped and made again when they are needed.
const MANY_VARIANTS: usize = 64;
/// Above this number of hosts, unused ones are dropped. Redirects lead to many different storage
/// hosts.
const MANY_PEERS: usize = 256;

/// Sends requests with one set of TLS settings. All transports derived from one [`Transport::new`]
/// share what is known about hosts.
#[derive(Debug)]
pub(crate) struct Transport {
    clients: Arc<Clients>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Clients {
    front: Pool,
    behind: Pool,
}

/// A set of reusable connections.
#[derive(Debug)]
struct Pool {
    proxied: Client,
    /// For addresses that are never contacted through a proxy, see [`NoProxy`].
    direct: Client,
}

/// Selects the connection pool. Background requests have their own pool, so that they do not occupy
/// the connections of waiting readers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Way {
    #[default]
    Front,
    Behind,
}

#[derive(Debug)]
struct Shared {
    user_agent: String,
    connect_timeout: Duration,
    head_timeout: Duration,
    most_requests: usize,
    trace: Option<Trace>,
    roots: RootCertStore,
    no_proxy: NoProxy,
    peers: Mutex<HashMap<String, Arc<Peer>>>,
    /// One entry per distinct settings of a host in the configuration.
    variants: Mutex<HashMap<Settings, Variant>>,
}

/// How a host is connected to, if it has settings of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Settings {
    pub(crate) tls: Tls,
    /// Timeout for connecting, in place of the general one.
    pub(crate) dial_timeout: Option<Duration>,
}

/// The connections with such settings, and the certificates that they were made with.
#[derive(Debug)]
struct Variant {
    certificates: Vec<Option<Stamp>>,
    clients: Arc<Clients>,
}

impl Transport {
    pub(crate) fn new(options: &Options) -> Result<Transport, RegistryError> {
        let shared = Shared {
            user_agent: options.user_agent.clone(),
            connect_timeout: options.connect_timeout,
            head_timeout: options.connect_timeout.saturating_add(options.head_timeout),
            most_requests: options.most_requests,
            trace: options.trace.clone(),
            roots: Roots::from_env().load(),
            no_proxy: NoProxy::from_env(),
            peers: Mutex::default(),
            variants: Mutex::default(),
        };
        Ok(Transport {
            clients: Arc::new(shared.clients(&options.tls, options.connect_timeout)?),
            shared: Arc::new(shared),
        })
    }

    /// The general timeout for the response headers, including the time to connect.
    pub(crate) fn patience(&self) -> Duration {
        self.shared.head_timeout
    }

    /// A transport with other settings. Replaced certificate files are noticed.
    pub(crate) fn with(&self, settings: &Settings) -> Result<Transport, RegistryError> {
        let shared = Arc::clone(&self.shared);
        let certificates = settings.tls.files().map(Stamp::of).collect();
        if let Some(known) = shared.variants().get(settings)
            && known.certificates == certificates
        {
            let clients = Arc::clone(&known.clients);
            return Ok(Transport {
                clients,
                shared: Arc::clone(&shared),
            });
        }
        let dial = settings.dial_timeout.unwrap_or(shared.connect_timeout);
        let clients = Arc::new(shared.clients(&settings.tls, dial)?);
        let variant = Variant {
            certificates,
            clients: Arc::clone(&clients),
        };
        let mut variants = shared.variants();
        if variants.len() >= MANY_VARIANTS {
            variants.clear();
        }
        variants.insert(settings.clone(), variant);
        drop(variants);
        Ok(Transport { clients, shared })
    }

    /// Sends a request and waits for the response headers, whatever the status. `timeout` replaces
    /// the general timeout; it includes sending the body, if any.
    pub(crate) async fn send(
        &self,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: Option<reqwest::Body>,
        timeout: Option<Duration>,
    ) -> Result<Response, FetchError> {
        self.send_by(Way::Front, method, url, headers, body, timeout)
            .await
    }

    /// Like [`Transport::send`], over the connections of `way`.
    pub(crate) async fn send_by(
        &self,
        way: Way,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: Option<reqwest::Body>,
        timeout: Option<Duration>,
    ) -> Result<Response, FetchError> {
        let reads = matches!(method, Method::GET | Method::HEAD);
        let mut request = self.request(way, method, url).headers(headers);
        if let Some(body) = body {
            request = request.body(body);
        }
        let patience = timeout.unwrap_or(self.shared.head_timeout);
        let silence = async {
            tokio::time::sleep(patience).await;
            patience
        };
        let turn = async {
            match reads {
                true => tokio::time::sleep(TURN).await,
                false => std::future::pending().await,
            }
        };
        self.exchange(request, turn, silence).await
    }

    fn request(&self, way: Way, method: Method, url: Url) -> RequestBuilder {
        let pool = match way {
            Way::Front => &self.clients.front,
            Way::Behind => &self.clients.behind,
        };
        let client = match self.shared.no_proxy.includes(&url) {
            true => &pool.direct,
            false => &pool.proxied,
        };
        client.request(method, url)
    }

    /// Sends a body as its bytes arrive, then waits for the response headers. The request holds its
    /// permit until `begins` completes. `silence` is first polled once the permit is granted; when
    /// it completes, the request fails with [`FetchError::Silent`].
    pub(crate) async fn send_stream(
        &self,
        url: Url,
        headers: HeaderMap,
        body: reqwest::Body,
        begins: impl Future<Output = ()>,
        silence: impl Future<Output = Duration>,
    ) -> Result<Response, FetchError> {
        let request = self.request(Way::Front, Method::PUT, url);
        let request = request.headers(headers).body(body);
        let turn = async {
            // A slow connection attempt must not delay other requests to the host either.
            drop(tokio::time::timeout(TURN, begins).await);
        };
        self.exchange(request, turn, silence).await
    }

    /// Waits for a permit, sends the request, and waits for the response headers. The permit is
    /// held until they arrive, or until `turn` completes.
    async fn exchange(
        &self,
        request: RequestBuilder,
        turn: impl Future<Output = ()>,
        silence: impl Future<Output = Duration>,
    ) -> Result<Response, FetchError> {
        let (client, request) = request.build_split();
        let request = request.map_err(|error| broken(RedactedUrl::new(""), error))?;
        let shown = RedactedUrl::from(request.url());
        let peer = self.peer(request.url().authority());
        let mut permit = peer.limit.acquire().await;
        self.tell(|| Traffic::Request {
            method: request.method().as_str(),
            url: &shown,
        });
        let asking = async {
            let mut asking = pin!(client.execute(request));
            tokio::select! {
                biased;
                answer = &mut asking => return answer,
                () = turn => permit.lapse(),
            }
            asking.await
        };
        let answer = tokio::select! {
            biased;
            answer = asking => answer.map_err(|error| broken(shown.clone(), error)),
            // Connecting has its own timeout, so a host that is silent here has received the
            // request.
            idle = silence => Err(FetchError::Silent { url: shown.clone(), idle }),
        };
        self.tell(|| match &answer {
            Ok(answer) => Traffic::Answer {
                status: answer.status().as_u16(),
            },
            Err(error) => Traffic::Failed { error },
        });
        match &answer {
            Ok(answer) if matches!(answer.status().as_u16(), 429 | 503) => permit.overloaded(),
            Ok(_) => permit.good(),
            // A single missing response does not mean that the host is overloaded.
            Err(FetchError::Silent { .. }) => drop(permit),
            Err(_) => permit.overloaded(),
        }
        if let Ok(answer) = &answer
            && !is_transient_status(answer.status().as_u16())
            && peer.answered()
        {
            tracing::info!(url = %shown, "a mirror answers again and is asked in its turn");
        }
        answer
    }

    fn tell<'a>(&self, traffic: impl FnOnce() -> Traffic<'a>) {
        if let Some(trace) = &self.shared.trace {
            trace.tell(&traffic());
        }
    }

    /// What is known about a host. Kept at least as long as the returned value.
    pub(crate) fn peer(&self, authority: &str) -> Arc<Peer> {
        let shared = &self.shared;
        let mut peers = shared.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get(authority) {
            return Arc::clone(peer);
        }
        if peers.len() >= MANY_PEERS {
            peers.retain(|_, peer| Arc::strong_count(peer) > 1);
        }
        let peer = Arc::new(Peer::new(shared.most_requests));
        peers.insert(authority.to_owned(), Arc::clone(&peer));
        peer
    }
}

impl Shared {
    fn variants(&self) -> MutexGuard<'_, HashMap<Settings, Variant>> {
        self.variants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clients(&self, tls: &Tls, connect_timeout: Duration) -> Result<Clients, RegistryError> {
        let tls = client_config(&self.roots, tls)?;
        let builder = || {
            Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .user_agent(self.user_agent.clone())
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .connect_timeout(connect_timeout)
                .pool_idle_timeout(POOL_IDLE)
                .http1_only()
        };
        let build = |builder: reqwest::ClientBuilder| {
            builder.build().map_err(|error| RegistryError::Setup {
                source: Arc::new(error),
            })
        };
        let pool = || {
            Ok::<_, RegistryError>(Pool {
                proxied: build(builder())?,
                direct: build(builder().no_proxy())?,
            })
        };
        Ok(Clients {
            front: pool()?,
            behind: pool()?,
        })
    }
}

/// Converts the HTTP library's error, and removes the URL from its text.
pub(crate) fn broken(url: RedactedUrl, error: reqwest::Error) -> FetchError {
    let transient = !error.is_builder() && !is_about_certificates(&error);
    FetchError::Transport {
        url,
        connected: !error.is_connect(),
        transient,
        source: Arc::new(error.without_url()),
    }
}
