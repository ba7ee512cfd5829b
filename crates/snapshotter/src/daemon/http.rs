//! Serves small documents over HTTP on a TCP or Unix socket.
//!
//! A failure to listen is tried again every few seconds, so that a daemon that replaces another one
//! gets the address when that one is gone.

use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use crate::listen::{Address, Inherited, Listener};
use crate::sync::{Arc, Weak};

pub(super) const PLAIN: &str = "text/plain; charset=utf-8";
/// Maximum number of connections. Further ones wait.
const CONNECTIONS: usize = 16;
/// How long an answer may take, from the connection to its end.
const LONGEST: Duration = Duration::from_secs(30);
/// How often to try again to listen, or to accept a connection.
const AGAIN: Duration = Duration::from_secs(2);
/// How often a site tidies.
const TIDY: Duration = Duration::from_secs(600);

/// An answer.
pub(super) type Answer = Response<Full<Bytes>>;

/// What is served.
pub(super) trait Site: Send + Sync + Sized + 'static {
    /// Its name in the log.
    const WHAT: &'static str;

    /// Answers a request for a path. The site is gone when the daemon ends. A connection must not
    /// keep it for long, because the end of the device is its drop.
    fn answer(site: Weak<Self>, path: String) -> impl Future<Output = Answer> + Send;

    /// Called every few minutes.
    fn tidy(&self) {}
}

/// Where to listen.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// `tcp`, `tcp4`, `tcp6`, or `unix`.
    pub(super) network: String,
    /// `host:port` or a path.
    pub(super) address: String,
    /// Whether to take a socket from the process that serves it: an earlier one of this daemon,
    /// which is about to end.
    pub(super) replaces: bool,
    /// Where the user sets the address, for error messages.
    pub(super) set_by: &'static str,
}

/// A place that is or will be listened at.
#[derive(Debug)]
pub(super) struct Endpoint {
    place: Place,
    /// `None` if another process has the address.
    socket: Option<Socket>,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        /// Removes the path on drop.
        _path: Listener,
    },
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Socket {
    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix { listener, .. } => Box::new(listener.accept().await?.0),
        })
    }
}

impl Endpoint {
    /// Listens. A failure is an error if the endpoint `must` exist, otherwise it is logged and
    /// tried again later.
    pub(super) async fn open(what: &str, place: Place, must: bool) -> anyhow::Result<Self> {
        let mut endpoint = Self {
            place,
            socket: None,
        };
        match endpoint.listen(what).await {
            Err(error) if must => return Err(error),
            Err(error) => {
                let error = format!("{error:#}");
                error!(
                    error,
                    "{what} is not served; trying again every few seconds"
                );
            }
            Ok(socket) => endpoint.socket = Some(socket),
        }
        Ok(endpoint)
    }

    async fn listen(&self, what: &str) -> anyhow::Result<Socket> {
        let Place {
            network,
            address,
            replaces,
            set_by,
        } = &self.place;
        listen(network, address, *replaces).await.with_context(|| {
            format!("cannot serve {what} at the {network} address {address:?} ({set_by})")
        })
    }

    /// Answers requests until it is dropped.
    pub(super) async fn serve<S: Site>(mut self, site: S) {
        let what = S::WHAT;
        let socket = loop {
            if let Some(socket) = self.socket.take() {
                break socket;
            }
            tokio::time::sleep(AGAIN).await;
            match self.listen(what).await {
                Ok(socket) => self.socket = Some(socket),
                Err(error) => tracing::debug!(error = format!("{error:#}"), "still not served"),
            }
        };
        info!(address = self.place.address, "serving {what}");
        // Connections must not keep the parts, because the end of the device is their drop.
        let site = Arc::new(site);
        let mut connections = JoinSet::new();
        let mut tidy = tokio::time::interval(TIDY);
        loop {
            tokio::select! {
                accepted = socket.accept(), if connections.len() < CONNECTIONS => match accepted {
                    Ok(stream) => {
                        connections.spawn(answer(stream, Arc::downgrade(&site)));
                    }
                    Err(error) => {
                        warn!(%error, "cannot accept a request for {what}");
                        tokio::time::sleep(AGAIN).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                _ = tidy.tick() => site.tidy(),
            }
        }
    }
}

async fn listen(network: &str, address: &str, replaces: bool) -> anyhow::Result<Socket> {
    if network == "unix" {
        if !replaces {
            check_free(address.as_ref()).await?;
        }
        let path = Address::Path(address.into());
        let path = Listener::open(&path, &mut Inherited::default())?;
        // Also if its directory is open to other users.
        fs::set_permissions(address, Permissions::from_mode(0o600))?;
        return Ok(Socket::Unix {
            listener: path.for_runtime()?,
            _path: path,
        });
    }
    let mut last = None;
    for address in resolve(network, address).await? {
        match TcpListener::bind(address).await {
            Ok(listener) => return Ok(Socket::Tcp(listener)),
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => Err(error.into()),
        None => bail!("the host has no address of this network"),
    }
}

/// Refuses a path with a file, or with a socket that another process serves.
async fn check_free(path: &Path) -> anyhow::Result<()> {
    let found = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    if !found.file_type().is_socket() {
        bail!("the path exists and is not a socket");
    }
    if UnixStream::connect(path).await.is_ok() {
        bail!("another process serves this socket");
    }
    Ok(())
}

/// The socket addresses to try, in order. An empty host means all addresses of the machine.
async fn resolve(network: &str, address: &str) -> anyhow::Result<Vec<SocketAddr>> {
    let (four, six) = match network {
        "tcp" => (true, true),
        "tcp4" => (true, false),
        "tcp6" => (false, true),
        _ => bail!("unknown network: use tcp, tcp4, tcp6, or unix"),
    };
    let (host, port) = address.rsplit_once(':').context("no port")?;
    let port: u16 = port.parse().context("the port is not a number")?;
    let mut found = if host.is_empty() {
        // An IPv6 socket accepts IPv4 too, unless the system is set up otherwise.
        let all = [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()];
        all.map(|all| SocketAddr::new(all, port)).to_vec()
    } else {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let found = tokio::net::lookup_host((host, port)).await?;
        let mut found: Vec<_> = found.collect();
        found.sort_by_key(SocketAddr::is_ipv6);
        found
    };
    found.retain(|address| if address.is_ipv4() { four } else { six });
    Ok(found)
}

/// Answers the request of one connection.
async fn answer<S: Site>(stream: Box<dyn Stream>, site: Weak<S>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let path = request.uri().path().to_owned();
        let answer = S::answer(Weak::clone(&site), path);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    // One request per connection, so that the deadline of the connection is that of the answer.
    let connection = server
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(LONGEST, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a request for {} ended early", S::WHAT),
        Err(_) => tracing::debug!("a request for {} took too long", S::WHAT),
    }
}

pub(super) fn response(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Answer {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// The answer for an unknown path.
pub(super) fn not_found() -> Answer {
    response(StatusCode::NOT_FOUND, PLAIN, "404 page not found\n")
}

/// The answer while the daemon ends.
pub(super) fn ending() -> Answer {
    response(StatusCode::SERVICE_UNAVAILABLE, PLAIN, "the daemon ends\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn resolved(network: &str, address: &str) -> String {
        match resolve(network, address).await {
            Ok(found) => format!("{found:?}"),
            Err(error) => format!("{error:#}"),
        }
    }

    #[tokio::test]
    async fn addresses_are_those_of_the_network() {
        for (network, address, wanted) in [
            ("tcp", "127.0.0.1:9900", "[127.0.0.1:9900]"),
            ("tcp", ":80", "[[::]:80, 0.0.0.0:80]"),
            ("tcp4", ":80", "[0.0.0.0:80]"),
            ("tcp6", "[::1]:80", "[[::1]:80]"),
            ("tcp4", "[::1]:80", "[]"),
            ("tcp", "127.0.0.1", "no port"),
            (
                "udp",
                ":80",
                "unknown network: use tcp, tcp4, tcp6, or unix",
            ),
        ] {
            assert_eq!(
                resolved(network, address).await,
                wanted,
                "{network} {address}"
            );
        }
        assert!(
            resolved("tcp", ":x")
                .await
                .starts_with("the port is not a number")
        );
    }

    #[tokio::test]
    async fn a_path_that_is_in_use_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("file"), "kept").unwrap();
        let _other = UnixListener::bind(path("live")).unwrap();
        for (name, said) in [("file", "not a socket"), ("live", "another process")] {
            let error = listen("unix", path(name).to_str().unwrap(), false).await;
            let error = format!("{:#}", error.unwrap_err());
            assert!(error.contains(said), "{error}");
        }
        assert_eq!(std::fs::read(path("file")).unwrap(), b"kept");
        drop(UnixListener::bind(path("dead")).unwrap());
        for (name, replaces) in [("dead", false), ("live", true)] {
            let path = path(name);
            let listened = listen("unix", path.to_str().unwrap(), replaces).await;
            assert!(listened.is_ok(), "{name}");
        }
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_an_error_only_if_it_must_be_served() {
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = other.local_addr().unwrap().to_string();
        let place = Place {
            network: "tcp".to_owned(),
            address: address.clone(),
            replaces: false,
            set_by: "a key",
        };
        let error = Endpoint::open("it", place.clone(), true).await.unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.contains(&address) && error.contains("in use") && error.contains("a key"),
            "{error}"
        );
        let endpoint = Endpoint::open("it", place, false).await.unwrap();
        assert!(endpoint.socket.is_none());
        drop(other);
        assert!(endpoint.listen("it").await.is_ok());
    }

    #[tokio::test]
    async fn only_the_owner_may_open_a_socket() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("status.sock");
        let _socket = listen("unix", path.to_str().unwrap(), false).await.unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
