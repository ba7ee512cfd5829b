//! Serves metrics over HTTP, at `/metrics`.
//!
//! A scrape takes short locks only, so neither readers nor a registry can delay it. Other tasks of
//! its thread run between the encoding of two families.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::FileTypeExt as _;
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
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use crate::config::Service;
use crate::device::Device;
use crate::image::Images;
use crate::listen::{Address, Inherited, Listener};
use crate::metrics::{self, Figures, MetricFamily, Scraped};
use crate::snapshots::Late;
use crate::sync::{Arc, Weak};

const PATH: &str = "/metrics";
const PLAIN: &str = "text/plain; charset=utf-8";
/// Maximum number of connections. Further ones wait.
const CONNECTIONS: usize = 16;
/// How long a scrape may take, from the connection to the end of the answer.
const LONGEST: Duration = Duration::from_secs(30);
/// How often to try again to listen, or to accept a connection.
const AGAIN: Duration = Duration::from_secs(2);
/// How often series of removed layers are forgotten.
const TIDY: Duration = Duration::from_secs(600);

/// The parts of the daemon that a scrape asks.
#[derive(Debug)]
pub(super) struct Observer {
    pub(super) late: Late,
    pub(super) devices: watch::Receiver<Option<Arc<Device>>>,
}

impl Observer {
    fn families(&self) -> Vec<MetricFamily> {
        let figures = self.late.get().map(Images::figures);
        let parked = self.devices.borrow().as_ref().map(|device| device.parked());
        metrics::global().gather(&Figures {
            parked: parked.unwrap_or(0),
            ..figures.unwrap_or_default()
        })
    }

    fn tidy(&self) {
        if let Some(images) = self.late.get() {
            metrics::global().operations.forget_old(&images.stored());
        }
    }
}

/// Where metrics are served.
#[derive(Debug)]
pub(super) struct Endpoint {
    network: String,
    address: String,
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
    /// Listens at the address of the configuration. `None` if metrics are not served. A failure is
    /// an error if the endpoint `must` exist, otherwise it is logged and tried again later.
    pub(super) async fn open(service: &Service, must: bool) -> anyhow::Result<Option<Self>> {
        if !service.serves_metrics() {
            return Ok(None);
        }
        let mut endpoint = Self {
            network: service.metrics_network.clone(),
            address: service.metrics_address.clone(),
            socket: None,
        };
        match endpoint.listen().await {
            Err(error) if must => return Err(error),
            Err(error) => {
                let error = format!("{error:#}");
                error!(
                    error,
                    "metrics are not served; trying again every few seconds"
                );
            }
            Ok(socket) => endpoint.socket = Some(socket),
        }
        Ok(Some(endpoint))
    }

    async fn listen(&self) -> anyhow::Result<Socket> {
        let Self {
            network, address, ..
        } = self;
        listen(network, address).await.with_context(|| {
            format!(
                "cannot serve metrics at the {network} address {address:?} (metrics_network and metrics_address)"
            )
        })
    }

    /// Answers scrapes until it is dropped.
    pub(super) async fn serve(mut self, observer: Observer) {
        let socket = loop {
            if let Some(socket) = self.socket.take() {
                break socket;
            }
            tokio::time::sleep(AGAIN).await;
            match self.listen().await {
                Ok(socket) => self.socket = Some(socket),
                Err(error) => tracing::debug!(error = format!("{error:#}"), "still not served"),
            }
        };
        info!(address = self.address, "serving metrics");
        // Connections must not keep the parts, because the end of the device is their drop.
        let observer = Arc::new(observer);
        let mut connections = JoinSet::new();
        let mut tidy = tokio::time::interval(TIDY);
        loop {
            tokio::select! {
                accepted = socket.accept(), if connections.len() < CONNECTIONS => match accepted {
                    Ok(stream) => {
                        connections.spawn(answer(stream, Arc::downgrade(&observer)));
                    }
                    Err(error) => {
                        warn!(%error, "cannot accept a scrape");
                        tokio::time::sleep(AGAIN).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                _ = tidy.tick() => observer.tidy(),
            }
        }
    }
}

async fn listen(network: &str, address: &str) -> anyhow::Result<Socket> {
    if network == "unix" {
        check_free(address.as_ref()).await?;
        let path = Address::Path(address.into());
        let path = Listener::open(&path, &mut Inherited::default())?;
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

/// Counts a scrape in progress, also if its client disconnects.
struct InFlight;

impl InFlight {
    fn new() -> Self {
        metrics::global().scraping.inc();
        Self
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        metrics::global().scraping.dec();
    }
}

/// Answers the requests of one connection.
async fn answer(stream: Box<dyn Stream>, observer: Weak<Observer>) {
    let service = service_fn(move |request| respond(request, Weak::clone(&observer)));
    let mut server = hyper::server::conn::http1::Builder::new();
    // One scrape per connection, so that the deadline of the connection is that of the scrape.
    let connection = server
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(LONGEST, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a scrape ended early"),
        Err(_) => tracing::debug!("a scrape took too long"),
    }
}

async fn respond(
    request: Request<Incoming>,
    observer: Weak<Observer>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.uri().path() != PATH {
        return Ok(response(
            StatusCode::NOT_FOUND,
            PLAIN,
            "404 page not found\n",
        ));
    }
    let metrics = metrics::global();
    let _in_flight = InFlight::new();
    let Some(families) = observer.upgrade().map(|observer| observer.families()) else {
        metrics.scrapes.inc(Scraped::Unavailable);
        return Ok(response(
            StatusCode::SERVICE_UNAVAILABLE,
            PLAIN,
            "the daemon ends\n",
        ));
    };
    Ok(match encoded(&families).await {
        Ok(text) => {
            metrics.scrapes.inc(Scraped::Success);
            response(StatusCode::OK, metrics::CONTENT_TYPE, text)
        }
        Err(error) => {
            metrics.scrapes.inc(Scraped::Failure);
            response(
                StatusCode::INTERNAL_SERVER_ERROR,
                PLAIN,
                format!("{error}\n"),
            )
        }
    })
}

async fn encoded(families: &[MetricFamily]) -> Result<String, prometheus::Error> {
    let mut text = String::new();
    for family in families {
        metrics::encode(family, &mut text)?;
        tokio::task::yield_now().await;
    }
    Ok(text)
}

fn response(
    status: StatusCode,
    kind: &'static str,
    text: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
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
            let error = listen("unix", path(name).to_str().unwrap()).await;
            let error = format!("{:#}", error.unwrap_err());
            assert!(error.contains(said), "{error}");
        }
        assert_eq!(std::fs::read(path("file")).unwrap(), b"kept");
        drop(UnixListener::bind(path("dead")).unwrap());
        assert!(listen("unix", path("dead").to_str().unwrap()).await.is_ok());
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_an_error_only_at_the_first_start() {
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = other.local_addr().unwrap().to_string();
        let service = Service {
            metrics_address: address.clone(),
            ..Service::default()
        };
        let error = Endpoint::open(&service, true).await.unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.contains(&address) && error.contains("in use"),
            "{error}"
        );
        let endpoint = Endpoint::open(&service, false).await.unwrap().unwrap();
        assert!(endpoint.socket.is_none());
        drop(other);
        assert!(endpoint.listen().await.is_ok());
        let silent = Service {
            no_prometheus: true,
            ..service
        };
        assert!(Endpoint::open(&silent, true).await.unwrap().is_none());
    }
}
