//! A registry inside the test's own process.
//!
//! It has its own thread and runtime, so that a test may block, pause its clock or run without a
//! runtime. Its port is bound once and kept: while it is switched off, connections are refused there and nobody else
//! can take the port. Dropping it closes every connection and ends the thread.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::SocketAddr,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::watch;

use super::{
    access::{Access, Token},
    fault::{Fault, Script},
    serve,
};
use crate::{descriptor::Descriptor, digest::Digest, reference::ImageRef};

/// Where blobs really are: the registry answers a GET of a blob with a redirect to an address that
/// carries a signature and runs out.
#[derive(Clone, Debug)]
pub struct Redirect {
    /// How often one signed address may be used.
    pub uses: u32,
    /// What a used-up address answers.
    pub expired: Expired,
}

/// What a signed address answers when it has run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expired {
    /// 403, as most object stores.
    Forbidden,
    /// 400 with an XML body that says `ExpiredToken`, as S3 with temporary credentials.
    ExpiredToken,
}

/// How a test registry is. `Setup::default()` is plain HTTP on a free port, open to everybody, quick and honest.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    /// Port on 127.0.0.1; 0 takes a free one.
    pub port: u16,
    /// HTTPS with a certificate for `localhost` and 127.0.0.1 by [`TestRegistry::ca_pem`].
    pub tls: bool,
    /// Who may use it.
    pub access: Access,
    /// Time from a request's arrival to its answer.
    pub latency: Duration,
    /// Pace of every single body, in bytes per second.
    pub pace: Option<u64>,
    /// Requests that are served at once; one more is answered with 429.
    pub most_requests: Option<usize>,
    /// Redirects of blobs.
    pub redirect: Option<Redirect>,
}

/// One request as it was seen, in order of arrival.
#[derive(Clone, Debug)]
pub struct Seen {
    /// `GET`, `HEAD`, `POST`, ...
    pub method: String,
    /// Path without the query.
    pub path: String,
    /// The query, undecoded.
    pub query: String,
    /// The `Range` asked for, end exclusive.
    pub range: Option<Range<u64>>,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// The `Host` header.
    pub host: String,
    /// The `User-Agent` header.
    pub user_agent: String,
    /// Status of the answer; 0 if there was none.
    pub status: u16,
}

/// Content of a blob.
#[derive(Clone)]
pub(super) enum Content {
    Memory(Bytes),
    File(PathBuf, u64),
}

impl Content {
    pub(super) fn size(&self) -> u64 {
        match self {
            Content::Memory(bytes) => bytes.len() as u64,
            Content::File(_, size) => *size,
        }
    }
}

#[derive(Default)]
pub(super) struct Inner {
    pub(super) blobs: HashMap<Digest, Content>,
    /// Which repository may show which blob.
    pub(super) links: BTreeSet<(String, Digest)>,
    pub(super) manifests: BTreeMap<(String, Digest), (String, Bytes)>,
    pub(super) tags: BTreeMap<(String, String), Digest>,
    pub(super) uploads: HashMap<String, Vec<u8>>,
    pub(super) uploads_begun: u64,
    pub(super) tokens: Vec<Token>,
    pub(super) tokens_issued: u64,
    /// Signed addresses: signature → uses left.
    pub(super) signatures: HashMap<String, u32>,
    pub(super) script: Script,
    pub(super) seen: Vec<Seen>,
    pub(super) sent: HashMap<Digest, u64>,
    pub(super) in_flight: usize,
    pub(super) most_in_flight: usize,
    pub(super) connections: u64,
}

pub(super) struct Shared {
    pub(super) setup: Setup,
    pub(super) address: SocketAddr,
    inner: Mutex<Inner>,
    /// Whether connections are accepted right now, for `set_online` to wait on.
    accepting: (Mutex<bool>, Condvar),
}

impl Shared {
    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn base_url(&self) -> String {
        let scheme = if self.setup.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    pub(super) fn set_accepting(&self, accepting: bool) {
        let (flag, changed) = &self.accepting;
        *flag.lock().unwrap_or_else(PoisonError::into_inner) = accepting;
        changed.notify_all();
    }

    fn wait_accepting(&self, wanted: bool) {
        let (flag, changed) = &self.accepting;
        let flag = flag.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = changed.wait_timeout_while(flag, Duration::from_secs(10), |accepting| {
            *accepting != wanted
        });
        let (flag, _) = wait.unwrap_or_else(PoisonError::into_inner);
        assert!(*flag == wanted, "the test registry did not switch in time");
    }
}

/// What the registry's thread should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Serve,
    Refuse,
    Stop,
}

/// The registry. See the module's text.
pub struct TestRegistry {
    shared: Arc<Shared>,
    order: watch::Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

impl TestRegistry {
    /// An open registry on a free port.
    pub fn start() -> TestRegistry {
        TestRegistry::with(Setup::default())
    }

    /// A registry as described. Panics if the port cannot be had.
    pub fn with(setup: Setup) -> TestRegistry {
        let anchor = serve::bind(([127, 0, 0, 1], setup.port).into())
            .expect("the port on 127.0.0.1 must be free");
        let address = anchor.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            setup,
            address,
            inner: Mutex::default(),
            accepting: (Mutex::new(false), Condvar::new()),
        });
        let (order, orders) = watch::channel(Order::Serve);
        let thread = std::thread::Builder::new()
            .name("test-registry".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || serve::run(&shared, anchor, orders)
            })
            .expect("a thread for the test registry");
        shared.wait_accepting(true);
        TestRegistry {
            shared,
            order,
            thread: Some(thread),
        }
    }

    /// `127.0.0.1:PORT`, as image names want it.
    pub fn host(&self) -> String {
        self.shared.address.to_string()
    }

    /// Address with port.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// The certificate authority of the registry's TLS certificate.
    pub fn ca_pem() -> &'static str {
        include_str!("tls/ca.pem")
    }

    /// Name of a tag of a repository here.
    pub fn reference(&self, repository: &str, tag: &str) -> ImageRef {
        ImageRef::parse(&format!("{}/{repository}:{tag}", self.host()))
            .expect("a test uses valid names")
    }

    /// Adds a blob to a repository.
    pub fn add_blob(&self, repository: &str, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::sha256(&bytes);
        self.add_content(repository, digest, Content::Memory(bytes));
        digest
    }

    /// Adds a file as a blob of this digest; it is read when it is asked for, never held in memory. The digest is not checked.
    pub fn add_file(&self, repository: &str, digest: &Digest, path: &Path) {
        let size = path.metadata().expect("a test adds files that exist").len();
        self.add_content(repository, *digest, Content::File(path.to_owned(), size));
    }

    fn add_content(&self, repository: &str, digest: Digest, content: Content) {
        let mut inner = self.shared.inner();
        inner.links.insert((repository.to_owned(), digest));
        inner.blobs.insert(digest, content);
    }

    /// Adds a manifest or an index, and perhaps a tag on it.
    pub fn add_manifest(
        &self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> Descriptor {
        let bytes = bytes.into();
        let descriptor = Descriptor::of(media_type, &bytes);
        let digest = descriptor.digest;
        let mut inner = self.shared.inner();
        if let Some(tag) = tag {
            inner
                .tags
                .insert((repository.to_owned(), tag.to_owned()), digest);
        }
        inner.manifests.insert(
            (repository.to_owned(), digest),
            (media_type.to_owned(), bytes),
        );
        descriptor
    }

    /// A blob that is here, by whatever way it came.
    pub fn blob(&self, digest: &Digest) -> Option<Bytes> {
        match self.shared.inner().blobs.get(digest)? {
            Content::Memory(bytes) => Some(bytes.clone()),
            Content::File(path, _) => std::fs::read(path).ok().map(Bytes::from),
        }
    }

    /// Media type and bytes of the manifest that a tag or a digest names.
    pub fn manifest(&self, repository: &str, object: &str) -> Option<(String, Bytes)> {
        self.shared.inner().manifest(repository, object)
    }

    /// Adds a line to the fault script.
    pub fn fault(&self, fault: Fault) {
        self.shared.inner().script.push(fault);
    }

    /// Everything goes right from now on.
    pub fn clear_faults(&self) {
        self.shared.inner().script.clear();
    }

    /// No token handed out so far is good any more.
    pub fn revoke_tokens(&self) {
        self.shared.inner().tokens.clear();
    }

    /// Tokens handed out so far.
    pub fn tokens_issued(&self) -> u64 {
        self.shared.inner().tokens_issued
    }

    /// No signed address handed out so far is good any more.
    pub fn expire_redirects(&self) {
        self.shared.inner().signatures.clear();
    }

    /// Off: open connections break, new ones are refused. On: as before, on the same port. Returns when it is so.
    pub fn set_online(&self, online: bool) {
        self.order
            .send_replace(if online { Order::Serve } else { Order::Refuse });
        self.shared.wait_accepting(online);
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.inner().seen.clone()
    }

    /// Forgets requests and byte counts so far.
    pub fn forget_seen(&self) {
        let mut inner = self.shared.inner();
        inner.seen.clear();
        inner.sent.clear();
    }

    /// Number of requests so far.
    pub fn requests(&self) -> usize {
        self.shared.inner().seen.len()
    }

    /// Bytes of a blob that were handed to connections so far.
    pub fn bytes_sent(&self, digest: &Digest) -> u64 {
        self.shared.inner().sent.get(digest).copied().unwrap_or(0)
    }

    /// The ranges of a blob that were asked for so far, in order, also those that were refused.
    pub fn ranges(&self, digest: &Digest) -> Vec<Range<u64>> {
        let digest = digest.to_string();
        let inner = self.shared.inner();
        let of_blob = inner
            .seen
            .iter()
            .filter(|seen| seen.path.ends_with(&digest));
        of_blob.filter_map(|seen| seen.range.clone()).collect()
    }

    /// The most requests that were being served at one moment.
    pub fn most_in_flight(&self) -> usize {
        self.shared.inner().most_in_flight
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> u64 {
        self.shared.inner().connections
    }
}

impl Inner {
    pub(super) fn manifest(&self, repository: &str, object: &str) -> Option<(String, Bytes)> {
        let digest = match object.parse::<Digest>() {
            Ok(digest) => digest,
            Err(_) => *self.tags.get(&(repository.to_owned(), object.to_owned()))?,
        };
        self.manifests
            .get(&(repository.to_owned(), digest))
            .cloned()
    }
}

impl Drop for TestRegistry {
    fn drop(&mut self) {
        self.order.send_replace(Order::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic in there was printed; a second panic here would hide the test's own.
            drop(thread.join());
        }
    }
}

impl fmt::Debug for TestRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestRegistry")
            .field("address", &self.shared.address)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpStream,
    };

    use super::*;
    use crate::testing::{On, Wrong, noise};

    /// One request over a connection of its own, without our client: status, head and body of the answer.
    fn raw(registry: &TestRegistry, request: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
        let mut stream = TcpStream::connect(registry.address()).expect("the registry listens");
        let length = body.len();
        let head = format!(
            "{request}\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
        );
        let (first, rest) = head.split_once("\r\n").expect("a request line");
        write!(stream, "{} HTTP/1.1\r\n{rest}", first.trim()).expect("send the head");
        stream.write_all(body).expect("send the body");
        let mut answer = Vec::new();
        // A cut connection ends in an error; what came before it counts.
        drop(stream.read_to_end(&mut answer));
        let split = answer
            .windows(4)
            .position(|w| w == b"\r\n\r\n")
            .expect("a complete head");
        let head = String::from_utf8_lossy(&answer[..split]).into_owned();
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|s| s.parse().ok())
            .expect("a status");
        (status, head, answer.split_off(split + 4))
    }

    fn location(head: &str) -> String {
        let line = head
            .lines()
            .find(|line| line.starts_with("location: "))
            .expect("a location");
        line["location: ".len()..].to_owned()
    }

    #[test]
    fn ranges_of_blobs_are_served_and_counted() {
        let registry = TestRegistry::start();
        let bytes = noise(1, 200_000);
        let digest = registry.add_blob("app", bytes.clone());
        let get = format!("GET /v2/app/blobs/{digest}\r\nRange: bytes=70000-199999");
        let (status, head, body) = raw(&registry, &get, b"");
        assert_eq!(status, 206);
        assert!(
            head.contains("content-range: bytes 70000-199999/200000"),
            "{head}"
        );
        assert!(body == bytes[70_000..]);
        assert_eq!(registry.bytes_sent(&digest), 130_000);
        assert_eq!(registry.ranges(&digest)[0], 70_000..200_000);
        assert_eq!(
            raw(&registry, &format!("GET /v2/other/blobs/{digest}"), b"").0,
            404
        );
    }

    #[test]
    fn files_are_served_from_disk() {
        let registry = TestRegistry::start();
        let bytes = noise(2, 100_000);
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(&bytes).expect("write it");
        let digest = Digest::sha256(&bytes);
        registry.add_file("app", &digest, file.path());
        let (status, _, body) = raw(&registry, &format!("GET /v2/app/blobs/{digest}"), b"");
        assert!(status == 200 && body == bytes);
    }

    #[test]
    fn switched_off_it_refuses_and_keeps_its_port() {
        let registry = TestRegistry::start();
        assert_eq!(raw(&registry, "GET /v2/", b"").0, 200);
        let mut idle = TcpStream::connect(registry.address()).expect("the registry listens");
        for _ in 0..3 {
            registry.set_online(false);
            let refused = TcpStream::connect(registry.address()).expect_err("nobody listens");
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
            registry.set_online(true);
            assert_eq!(raw(&registry, "GET /v2/", b"").0, 200);
        }
        let mut byte = [0];
        assert!(
            matches!(idle.read(&mut byte), Ok(0) | Err(_)),
            "open connections broke"
        );
    }

    #[test]
    fn pushes_work_in_every_way_clients_have() {
        let registry = TestRegistry::start();
        let bytes = noise(3, 5000);
        let digest = Digest::sha256(&bytes);
        let (status, head, _) = raw(&registry, "POST /v2/app/blobs/uploads/", b"");
        assert_eq!(status, 202);
        let put = format!("PUT {}&digest={digest}", location(&head));
        assert_eq!(raw(&registry, &put, &bytes).0, 201);
        assert_eq!(registry.blob(&digest).expect("it is there"), bytes);
        let mount = format!("POST /v2/two/blobs/uploads/?mount={digest}&from=app");
        assert_eq!(raw(&registry, &mount, b"").0, 201);
        let (_, head, _) = raw(&registry, "POST /v2/app/blobs/uploads/", b"");
        let patched = raw(&registry, &format!("PATCH {}", location(&head)), b"ab");
        assert_eq!(patched.0, 202);
        let ab = Digest::sha256(b"ab");
        let put = format!("PUT {}&digest={ab}", location(&patched.1));
        assert_eq!(raw(&registry, &put, b"").0, 201);
        let wrong = format!("POST /v2/app/blobs/uploads/?digest={ab}");
        assert_eq!(raw(&registry, &wrong, b"not ab").0, 400);
        let put = "PUT /v2/app/manifests/v1\r\nContent-Type: text/plain";
        assert_eq!(raw(&registry, put, b"{}").0, 201);
        let (media_type, manifest) = registry.manifest("app", "v1").expect("tagged");
        assert_eq!(
            (media_type.as_str(), &manifest[..]),
            ("text/plain", &b"{}"[..])
        );
        let (_, _, tags) = raw(&registry, "GET /v2/app/tags/list", b"");
        assert_eq!(tags, br#"{"name":"app","tags":["v1"]}"#);
    }

    #[test]
    fn the_script_is_followed_line_by_line() {
        let registry = TestRegistry::start();
        let bytes = noise(4, 100_000);
        let digest = registry.add_blob("app", bytes.clone());
        let get = format!("GET /v2/app/blobs/{digest}\r\nRange: bytes=10-99999");
        let on = || On::Blob(digest);
        registry.fault(Fault::once(on(), Wrong::Cut(70_000)).after(1));
        registry.fault(Fault::once(on(), Wrong::Flip(12)));
        registry.fault(Fault::once(on(), Wrong::too_many("7")).after(1));
        let flipped = raw(&registry, &get, b"").2;
        assert!(flipped[2] == !bytes[12] && flipped[3..] == bytes[13..]);
        assert_eq!(raw(&registry, &get, b"").2, bytes[10..70_010]);
        let (status, head, _) = raw(&registry, &get, b"");
        assert!(status == 429 && head.contains("retry-after: 7"), "{head}");
        assert!(raw(&registry, &get, b"").2 == bytes[10..]);
        registry.fault(Fault::always(on(), Wrong::IgnoreRange));
        assert_eq!(raw(&registry, &get, b"").0, 200);
        registry.clear_faults();
        assert_eq!(raw(&registry, &get, b"").0, 206);
    }
}
