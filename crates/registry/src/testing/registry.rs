//! A registry in the process of the test.
//!
//! It runs on its own thread and runtime, so the test may block, pause its clock, or run without a
//! runtime. The port stays bound: while the registry is offline, connections are refused and no
//! other process can take the port. Dropping the registry closes all connections and ends the
//! thread.

use std::{fmt, net::SocketAddr, ops::Range, path::Path, sync::Arc, thread::JoinHandle};

use bytes::Bytes;
use tokio::sync::watch;

use super::{
    fault::Fault,
    serve,
    setup::Setup,
    state::{Content, Order, Seen, Shared},
};
use soci_oci::{descriptor::Descriptor, digest::Digest, reference::ImageRef};

/// The registry. See the module documentation.
pub struct TestRegistry {
    shared: Arc<Shared>,
    order: watch::Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

impl TestRegistry {
    /// Starts an open registry on a free port.
    pub fn start() -> TestRegistry {
        TestRegistry::with(Setup::default())
    }

    /// Starts a registry with this setup. Panics if the port is not available.
    pub fn with(setup: Setup) -> TestRegistry {
        let anchor = serve::bind(([127, 0, 0, 1], setup.port).into())
            .expect("the port on 127.0.0.1 must be free");
        let address = anchor.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared::new(setup, address));
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

    /// `127.0.0.1:PORT`, as used in image names.
    pub fn host(&self) -> String {
        self.shared.address.to_string()
    }

    /// The address with port.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// The certificate authority of the registry's TLS certificate.
    pub fn ca_pem() -> &'static str {
        include_str!("tls/ca.pem")
    }

    /// A client certificate that the registry accepts, and its key.
    pub fn client_pem() -> (&'static str, &'static str) {
        (
            include_str!("tls/client.pem"),
            include_str!("tls/client.key"),
        )
    }

    /// The reference of a tag in a repository of this registry.
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

    /// Adds a file as a blob with this digest. The file is read on request and never held in
    /// memory. The digest is not verified.
    pub fn add_file(&self, repository: &str, digest: &Digest, path: &Path) {
        let size = path.metadata().expect("a test adds files that exist").len();
        self.add_content(repository, *digest, Content::File(path.to_owned(), size));
    }

    fn add_content(&self, repository: &str, digest: Digest, content: Content) {
        let mut inner = self.shared.inner();
        inner.links.insert((repository.to_owned(), digest));
        inner.blobs.insert(digest, content);
    }

    /// Adds a manifest or index, optionally with a tag.
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

    /// Returns a blob of the registry, whether added or uploaded.
    pub fn blob(&self, digest: &Digest) -> Option<Bytes> {
        match self.shared.inner().blobs.get(digest)? {
            Content::Memory(bytes) => Some(bytes.clone()),
            Content::File(path, _) => std::fs::read(path).ok().map(Bytes::from),
        }
    }

    /// Returns the media type and bytes of the manifest with this tag or digest.
    pub fn manifest(&self, repository: &str, object: &str) -> Option<(String, Bytes)> {
        self.shared.inner().manifest(repository, object)
    }

    /// The tags of a repository, in order.
    pub fn tags(&self, repository: &str) -> Vec<String> {
        self.shared.inner().tags(repository)
    }

    /// Whether a repository contains this blob.
    pub fn has_blob(&self, repository: &str, digest: &Digest) -> bool {
        let inner = self.shared.inner();
        inner.links.contains(&(repository.to_owned(), *digest))
    }

    /// Adds a fault to the script.
    pub fn fault(&self, fault: Fault) {
        self.shared.inner().script.push(fault);
    }

    /// Removes all faults.
    pub fn clear_faults(&self) {
        self.shared.inner().script.clear();
    }

    /// Invalidates all tokens issued so far.
    pub fn revoke_tokens(&self) {
        self.shared.inner().tokens.clear();
    }

    /// Moves the token endpoint: new challenges have another address, and the old one responds with
    /// 410.
    pub fn move_tokens(&self) {
        self.shared.inner().tokens_moved = true;
    }

    /// Replaces the password. Tokens that were issued for the old one stay valid.
    pub fn change_password(&self, password: &str) {
        self.shared.inner().password = Some(password.to_owned());
    }

    /// Number of tokens issued so far.
    pub fn tokens_issued(&self) -> u64 {
        self.shared.inner().tokens_issued
    }

    /// Expires all signed addresses issued so far.
    pub fn expire_redirects(&self) {
        self.shared.inner().signatures.clear();
    }

    /// Takes the registry offline (closes open connections, refuses new ones) or back online on the
    /// same port. Returns when the change has taken effect.
    pub fn set_online(&self, online: bool) {
        self.order
            .send_replace(if online { Order::Serve } else { Order::Refuse });
        self.shared.wait_accepting(online);
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.inner().seen.clone()
    }

    /// Clears the recorded requests and byte counts.
    pub fn forget_seen(&self) {
        let mut inner = self.shared.inner();
        inner.seen.clear();
        inner.sent.clear();
    }

    /// Number of requests so far.
    pub fn requests(&self) -> usize {
        self.shared.inner().seen.len()
    }

    /// Number of bytes of a blob sent to connections so far.
    pub fn bytes_sent(&self, digest: &Digest) -> u64 {
        self.shared.inner().sent.get(digest).copied().unwrap_or(0)
    }

    /// The requested ranges of a blob so far, in order, including rejected requests.
    pub fn ranges(&self, digest: &Digest) -> Vec<Range<u64>> {
        let digest = digest.to_string();
        let inner = self.shared.inner();
        let of_blob = inner
            .seen
            .iter()
            .filter(|seen| seen.path.ends_with(&digest));
        of_blob.filter_map(|seen| seen.range.clone()).collect()
    }

    /// The largest number of concurrent requests.
    pub fn most_in_flight(&self) -> usize {
        self.shared.inner().most_in_flight
    }

    /// Number of accepted connections so far.
    pub fn connections(&self) -> u64 {
        self.shared.inner().connections
    }
}

impl Drop for TestRegistry {
    fn drop(&mut self) {
        self.order.send_replace(Order::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread was already printed. Propagating it would hide the test's own
            // panic.
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
mod tests;
