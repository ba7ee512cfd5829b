use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use soci_registry::credentials::{Credential, Credentials as _};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use super::message::{
    AuthConfig, ImageSpec, PullImageRequest, PullImageResponse, RemoveImageRequest,
};
use super::*;

/// What the backend got: the method, a header, and the message.
type Seen = Arc<Mutex<Vec<(String, String, Bytes)>>>;

/// An image service that remembers its calls. It refuses images with `bad` in their name and sends
/// back the message of methods that it does not know.
#[derive(Clone, Default)]
struct Runtime {
    seen: Seen,
}

impl NamedService for Runtime {
    const NAME: &'static str = ImageService::NAME;
}

impl Service<http::Request<Body>> for Runtime {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let seen = Arc::clone(&self.seen);
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.expect("a request").to_bytes();
            let method = head.uri.path().rsplit('/').next().unwrap().to_owned();
            let header = head.headers.get("x-of-the-kubelet");
            let header = header.map_or("", |value| value.to_str().unwrap());
            let entry = (method.clone(), header.to_owned(), body.clone());
            seen.lock().unwrap().push(entry);
            if body.windows(3).any(|bytes| bytes == b"bad") {
                return Ok(Status::permission_denied("no").into_http());
            }
            let body = match method.as_str() {
                "PullImage" => framed(&PullImageResponse {
                    image_ref: "sha256:id".to_owned(),
                }),
                _ => body,
            };
            let mut trailers = http::HeaderMap::new();
            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
            let body = Full::new(body).with_trailers(async move { Some(Ok(trailers)) });
            let mut answer = http::Response::new(Body::new(body));
            let kind = http::HeaderValue::from_static("application/grpc");
            answer.headers_mut().insert("content-type", kind);
            Ok(answer)
        })
    }
}

fn framed(message: &impl prost::Message) -> Bytes {
    let message = message.encode_to_vec();
    let size = u32::try_from(message.len()).unwrap();
    [&[0], &size.to_be_bytes()[..], &message].concat().into()
}

/// A backend, the service in front of it, and a client.
struct Setup {
    folder: TempDir,
    runtime: Runtime,
    keychain: PullKeychain,
    client: Channel,
    tasks: JoinSet<()>,
}

impl Setup {
    async fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let keychain = PullKeychain::default();
        let mut tasks = JoinSet::new();
        let service = ImageService::new(&folder.path().join("back"), keychain.clone());
        let front = serve(&mut tasks, folder.path().join("front"), service);
        let endpoint = Endpoint::from_shared(format!("unix://{}", front.display())).unwrap();
        Self {
            client: endpoint.connect().await.unwrap(),
            folder,
            runtime: Runtime::default(),
            keychain,
            tasks,
        }
    }

    /// As [`Setup::new`], with a backend that serves.
    async fn running() -> Self {
        let mut setup = Self::new().await;
        setup.start_backend();
        setup
    }

    fn start_backend(&mut self) {
        let path = self.folder.path().join("back");
        serve(&mut self.tasks, path, self.runtime.clone());
    }

    async fn call<A>(
        &self,
        method: &str,
        request: impl prost::Message + 'static,
    ) -> Result<A, Status>
    where
        A: prost::Message + Default + 'static,
    {
        let mut client = Grpc::new(self.client.clone()).max_decoding_message_size(MESSAGE_LIMIT);
        client.ready().await.unwrap();
        let path = format!("/{}/{method}", ImageService::NAME);
        let mut request = Request::new(request);
        let value = "kept".parse().unwrap();
        request.metadata_mut().insert("x-of-the-kubelet", value);
        let codec = ProstCodec::<_, A>::default();
        let path = PathAndQuery::try_from(path).unwrap();
        Ok(client.unary(request, path, codec).await?.into_inner())
    }

    async fn pull(&self, image: &str, user: &str) -> Result<String, Status> {
        let auth = AuthConfig {
            username: user.to_owned(),
            password: "hunter2".to_owned(),
            ..AuthConfig::default()
        };
        let request = PullImageRequest {
            image: Some(spec(image)),
            auth: Some(auth),
        };
        assert!(!format!("{request:?}").contains("hunter2"));
        let answer: PullImageResponse = self.call("PullImage", request).await?;
        Ok(answer.image_ref)
    }

    async fn login(&self, image: &str) -> Option<Credential> {
        let image = ImageRef::parse(image).unwrap();
        self.keychain.get(image.host(), &image).await
    }

    fn methods(&self) -> Vec<String> {
        let seen = self.runtime.seen.lock().unwrap();
        seen.iter().map(|(method, ..)| method.clone()).collect()
    }
}

fn serve<S>(tasks: &mut JoinSet<()>, path: PathBuf, service: S) -> PathBuf
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    let listener = UnixListener::bind(&path).unwrap();
    let serving = tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming(UnixListenerStream::new(listener));
    tasks.spawn(async move { serving.await.unwrap() });
    path
}

fn spec(image: &str) -> ImageSpec {
    ImageSpec {
        image: image.to_owned(),
    }
}

fn login(user: &str) -> Option<Credential> {
    Some(Credential::new(user, "hunter2"))
}

#[tokio::test]
async fn a_pull_is_forwarded_and_its_credentials_are_remembered() {
    let setup = Setup::running().await;
    assert_eq!(setup.pull("r.io/app:1", "me").await.unwrap(), "sha256:id");
    assert_eq!(setup.login("r.io/app:1").await, login("me"));
    let seen = setup.runtime.seen.lock().unwrap().clone();
    let (method, header, body) = &seen[0];
    assert_eq!((method.as_str(), header.as_str()), ("PullImage", "kept"));
    let got = message_of::<PullImageRequest>(body).unwrap();
    assert_eq!(got.auth.unwrap().password, "hunter2");
}

#[tokio::test]
async fn a_pull_that_fails_does_not_replace_good_credentials() {
    let setup = Setup::running().await;
    setup.pull("r.io/app:1", "me").await.unwrap();
    let status = setup.pull("r.io/app:1", "bad").await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::PermissionDenied, "no")
    );
    assert_eq!(setup.login("r.io/app:1").await, login("me"));
}

#[tokio::test]
async fn the_credentials_of_a_removed_image_are_forgotten() {
    for name in ["r.io/app:1", "sha256:id"] {
        let setup = Setup::running().await;
        setup.pull("r.io/app:1", "me").await.unwrap();
        let remove = |name: &str| {
            let image = Some(spec(name));
            setup.call::<ImageSpec>("RemoveImage", RemoveImageRequest { image })
        };
        remove("bad").await.unwrap_err();
        assert_eq!(setup.login("r.io/app:1").await, login("me"));
        remove(name).await.unwrap();
        assert_eq!(setup.login("r.io/app:1").await, None);
    }
}

#[tokio::test]
async fn every_other_method_and_large_messages_are_forwarded() {
    let setup = Setup::running().await;
    let large = "x".repeat(8 << 20);
    for method in ["ListImages", "ImageFsInfo", "AMethodOfTomorrow"] {
        let answer: ImageSpec = setup.call(method, spec(&large)).await.unwrap();
        assert!(answer.image == large, "{method}");
    }
    assert_eq!(
        setup.methods(),
        ["ListImages", "ImageFsInfo", "AMethodOfTomorrow"]
    );
    let too_large = "x".repeat(MESSAGE_LIMIT);
    let status = setup
        .call::<ImageSpec>("ListImages", spec(&too_large))
        .await;
    assert_eq!(status.unwrap_err().code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_call_waits_for_a_backend_that_starts_and_not_for_ever() {
    let setup = Setup::new().await;
    let status = setup.call::<ImageSpec>("ListImages", spec("a")).await;
    let status = status.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        status
            .message()
            .starts_with("server is not initialized yet"),
        "{status}"
    );
    let runtime = setup.runtime.clone();
    let path = setup.folder.path().join("back");
    let mut tasks = JoinSet::new();
    let late = async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        serve(&mut tasks, path, runtime);
    };
    let (answer, ()) = tokio::join!(setup.call::<ImageSpec>("ListImages", spec("a")), late);
    assert_eq!(answer.unwrap().image, "a");
    assert_eq!(setup.methods(), ["ListImages"]);
}
