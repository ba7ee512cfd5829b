//! Connections and requests of the test registry.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpSocket},
    sync::watch,
    task::JoinSet,
};

use super::{
    access, blobs,
    fault::{Asked, Wrong},
    push, referrers,
    state::{Order, Seen, Shared},
    target::Target,
};

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;
pub(super) type Answer = Response<Body>;

/// The parts of a request that handlers use.
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: String,
    pub(super) authorization: Option<String>,
    pub(super) referer: Option<String>,
    pub(super) range: Option<std::ops::Range<u64>>,
    pub(super) content_type: String,
    /// The offset of an uploaded chunk, if the request states it.
    pub(super) part_start: Option<u64>,
}

/// Binds without listening, which reserves the port while the registry is offline.
pub(super) fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// The registry's thread: accepts or refuses connections until it is stopped. `_anchor` reserves
/// the port.
pub(super) fn run(shared: &Arc<Shared>, _anchor: TcpSocket, mut orders: watch::Receiver<Order>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime for the test registry");
    runtime.block_on(async {
        loop {
            let order = *orders.borrow_and_update();
            match order {
                Order::Stop => break,
                Order::Refuse => {
                    shared.set_accepting(false);
                    if orders.changed().await.is_err() {
                        break;
                    }
                }
                Order::Serve => {
                    let socket = bind(shared.address).expect("the anchor keeps the port for us");
                    let listener = socket.listen(1024).expect("a bound socket can listen");
                    shared.set_accepting(true);
                    serve(shared, &listener, &mut orders).await;
                }
            }
        }
    });
}

/// Serves until the order changes, then closes all connections.
async fn serve(shared: &Arc<Shared>, listener: &TcpListener, orders: &mut watch::Receiver<Order>) {
    let mut connections = JoinSet::new();
    let tls = (shared.setup.tls).then(|| tls_acceptor(shared.setup.wants_certificate));
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                shared.inner().connections += 1;
                let (shared, tls) = (Arc::clone(shared), tls.clone());
                connections.spawn(async move {
                    // A client may disconnect at any time, so ignore the error.
                    drop(stream.set_nodelay(true));
                    match tls {
                        None => connection(shared, stream).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                connection(shared, stream).await;
                            }
                        }
                    }
                });
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            changed = orders.changed() => {
                if changed.is_err() || *orders.borrow() != Order::Serve {
                    return;
                }
            }
        }
    }
}

fn tls_acceptor(wants_certificate: bool) -> tokio_rustls::TlsAcceptor {
    use rustls::{
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::WebPkiClientVerifier,
    };

    let chain = CertificateDer::pem_slice_iter(include_bytes!("tls/server.pem"))
        .collect::<Result<Vec<_>, _>>()
        .expect("our own certificate");
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("tls/server.key")).expect("our own key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut clients = rustls::RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(include_bytes!("tls/client-ca.pem"));
    clients
        .add(authority.expect("our own authority"))
        .expect("an authority for clients");
    let roots = Arc::new(clients);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
        .build()
        .expect("there is an authority");
    let builder = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions");
    let builder = if wants_certificate {
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let config = builder
        .with_single_cert(chain, key)
        .expect("certificate and key belong together");
    Arc::new(config).into()
}

async fn connection(shared: Arc<Shared>, stream: impl AsyncRead + AsyncWrite + Unpin) {
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { answer(&shared, request).await }
    });
    let http = hyper::server::conn::http1::Builder::new();
    // Scripted faults end connections with an error, so ignore it.
    drop(http.serve_connection(TokioIo::new(stream), service).await);
}

/// Closes a connection without a response.
#[derive(Debug, thiserror::Error)]
#[error("the script says to hang up")]
struct HangUp;

async fn answer(shared: &Arc<Shared>, request: Request<Incoming>) -> Result<Answer, HangUp> {
    let head = head_of(&request);
    let target = Target::of(&head.path);
    let blob = match &target {
        Target::Blob(_, digest) | Target::Signed(digest) => Some(digest),
        _ => None,
    };
    let path_and_query = format!("{}?{}", head.path, head.query);
    let reading = matches!(head.method, Method::GET | Method::HEAD);
    let asked = Asked {
        path_and_query: &path_and_query,
        head: head.method == Method::HEAD,
        blob: blob.filter(|_| head.method == Method::GET),
        manifest: matches!(target, Target::Manifest(..)) && reading,
        token: target == Target::Token,
        signed: matches!(target, Target::Signed(_)),
    };
    let (number, wrong, busy) = arrive(shared, &request, &head, &asked);
    let _in_flight = InFlight(shared);
    if !shared.setup.latency.is_zero() {
        tokio::time::sleep(shared.setup.latency).await;
    }
    let answer = if busy {
        text(StatusCode::TOO_MANY_REQUESTS, "too many at once")
    } else {
        match wrong {
            Some(Wrong::Hangup) => return Err(HangUp),
            Some(Wrong::Status {
                code,
                headers,
                body,
            }) => {
                // Read the request body first; otherwise the client sees a reset instead of the
                // status.
                drop(request.into_body().collect().await);
                scripted(code, &headers, &body)
            }
            Some(Wrong::Delay(wait)) => {
                tokio::time::sleep(wait).await;
                dispatch(shared, &head, &target, (number, request), None).await
            }
            Some(Wrong::Bare) => {
                let mut answer = dispatch(shared, &head, &target, (number, request), None).await;
                answer.headers_mut().clear();
                answer
            }
            wrong => dispatch(shared, &head, &target, (number, request), wrong).await,
        }
    };
    if let Some(seen) = shared.inner().seen.get_mut(number) {
        seen.status = answer.status().as_u16();
    }
    Ok(answer)
}

/// Records a request. Returns its number, its fault, and whether it exceeds the limit of concurrent
/// requests.
fn arrive(
    shared: &Shared,
    request: &Request<Incoming>,
    head: &Head,
    asked: &Asked<'_>,
) -> (usize, Option<Wrong>, bool) {
    let header = |name| {
        let value = request
            .headers()
            .get(name)
            .and_then(|v: &header::HeaderValue| v.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let seen = Seen {
        method: head.method.to_string(),
        path: head.path.clone(),
        query: head.query.clone(),
        range: head.range.clone(),
        authorization: head.authorization.clone(),
        host: header(header::HOST),
        user_agent: header(header::USER_AGENT),
        content_type: head.content_type.clone(),
        received: 0,
        status: 0,
    };
    let mut inner = shared.inner();
    inner.in_flight += 1;
    inner.most_in_flight = inner.most_in_flight.max(inner.in_flight);
    let busy = shared
        .setup
        .most_requests
        .is_some_and(|most| inner.in_flight > most);
    inner.seen.push(seen);
    (inner.seen.len() - 1, inner.script.take(asked), busy)
}

struct InFlight<'a>(&'a Shared);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.inner().in_flight -= 1;
    }
}

async fn dispatch(
    shared: &Arc<Shared>,
    head: &Head,
    target: &Target,
    request: (usize, Request<Incoming>),
    wrong: Option<Wrong>,
) -> Answer {
    let open = matches!(target, Target::Token | Target::Signed(_));
    if !open && let Some(refusal) = access::refusal(shared, head, target.repository()) {
        return refusal;
    }
    match (target, head.method.as_str()) {
        (Target::Ping, "GET" | "HEAD") => text(StatusCode::OK, "{}"),
        (Target::Token, "GET" | "POST") => {
            let body = read_all(shared, request).await;
            access::token(shared, head, &body)
        }
        (Target::Signed(digest), "GET") => blobs::signed(shared, head, digest, wrong),
        (Target::Blob(name, digest), "GET" | "HEAD") => {
            blobs::blob(shared, head, name, digest, wrong)
        }
        (Target::Manifest(name, object), "GET" | "HEAD") => {
            blobs::manifest(shared, head, name, object, wrong)
        }
        (Target::Tags(name), "GET") => tags(shared, name),
        (Target::Manifest(name, object), "PUT") => {
            let body = read_all(shared, request).await;
            push::manifest(shared, head, name, object, body)
        }
        (Target::Upload(name, id), "POST" | "PATCH" | "PUT") => {
            let body = read_all(shared, request).await;
            push::upload(shared, head, name, id, &body)
        }
        (Target::Upload(name, id), "GET") => push::state(shared, name, id),
        (Target::Upload(_, id), "DELETE") => push::cancel(shared, id),
        (Target::Referrers(name, subject), "GET") => referrers::list(shared, head, name, subject),
        (Target::Manifest(name, object), "DELETE") => push::delete(shared, name, object),
        (Target::Blob(name, digest), "DELETE") => push::delete_blob(shared, name, digest),
        (Target::Unknown, _) => text(StatusCode::NOT_FOUND, "unknown path"),
        _ => text(StatusCode::METHOD_NOT_ALLOWED, "not with this method"),
    }
}

/// Reads a request body. An interrupted body is returned as received; the digest check detects it.
async fn read_all(shared: &Shared, (number, request): (usize, Request<Incoming>)) -> Bytes {
    let mut all = Vec::new();
    let mut stream = request.into_body().into_data_stream();
    while let Some(Ok(chunk)) = stream.next().await {
        all.extend_from_slice(&chunk);
        if let Some(seen) = shared.inner().seen.get_mut(number) {
            seen.received += chunk.len() as u64;
        }
        if let Some(pace) = shared.setup.upload_pace {
            let seconds = chunk.len() as f64 / pace as f64;
            tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        }
    }
    all.into()
}

fn head_of(request: &Request<Incoming>) -> Head {
    let text = |name: header::HeaderName| {
        request
            .headers()
            .get(name)
            .and_then(|v| v.to_str().ok())
            .map(str::to_owned)
    };
    Head {
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        authorization: text(header::AUTHORIZATION),
        referer: text(header::REFERER),
        range: text(header::RANGE).as_deref().and_then(blobs::parse_range),
        content_type: text(header::CONTENT_TYPE).unwrap_or_default(),
        part_start: text(header::CONTENT_RANGE)
            .and_then(|range| range.split('-').next()?.parse().ok()),
    }
}

fn tags(shared: &Shared, name: &str) -> Answer {
    let tags = shared.inner().tags(name);
    text(
        StatusCode::OK,
        &serde_json::json!({ "name": name, "tags": tags }).to_string(),
    )
}

fn scripted(code: u16, headers: &[(&'static str, String)], body: &str) -> Answer {
    let code = StatusCode::from_u16(code).expect("a script uses real status codes");
    let mut answer = text(code, body);
    for (name, value) in headers {
        let value = value.parse().expect("a script uses real header values");
        answer.headers_mut().insert(*name, value);
    }
    answer
}

pub(super) fn full(bytes: Bytes) -> Body {
    Full::new(bytes)
        .map_err(|never: Infallible| match never {})
        .boxed_unsync()
}

pub(super) fn text(status: StatusCode, body: &str) -> Answer {
    let mut answer = Response::new(full(Bytes::copy_from_slice(body.as_bytes())));
    *answer.status_mut() = status;
    let json = header::HeaderValue::from_static("application/json");
    answer.headers_mut().insert(header::CONTENT_TYPE, json);
    answer
}
