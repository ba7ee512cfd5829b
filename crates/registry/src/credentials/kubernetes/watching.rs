//! Lists one kind of secrets and follows their changes.
//!
//! The first connection begins with a list and then watches until the server ends it. Later ones
//! read the kubeconfig anew and watch on from the last version that was seen. After a failure, or if
//! that version is too old, they begin with a list again. What is known stays in use meanwhile.

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use reqwest::{Client, Response, Url};
use serde::Deserialize;
use tokio::sync::watch;

use super::{
    Name, Store,
    kubeconfig::{self, Access, KubeconfigError, Login},
};
use crate::{
    no_proxy::NoProxy,
    tls::{PemTls, TlsError, pem_config},
};

/// Secrets in one page of a list. Each has at most 1 MiB.
const PAGE: &str = "100";
/// Size limit in bytes for a page.
const MAX_PAGE: usize = 160 << 20;
/// Size limit in bytes for one change.
const MAX_EVENT: usize = 4 << 20;
/// Limit for pages of a list.
const MANY_PAGES: usize = 200;
/// Size limit in bytes for the Docker configurations of a list.
const MAX_LIST: usize = 256 << 20;
/// How long the server may watch before it ends the connection, in seconds.
const WATCH_SEC: u64 = 240;
/// Timeout for the answer to a list, and how much later than announced a watch may end.
const PATIENCE: Duration = Duration::from_secs(30);
/// First pause after a failure. Each is twice as long as the one before, up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_secs(1);
/// As in the reference, a kubeconfig that appears later is noticed within this time.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A type of secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    DockerConfigJson,
    DockerCfg,
}

impl Kind {
    pub(super) const ALL: [Kind; 2] = [Kind::DockerConfigJson, Kind::DockerCfg];

    fn name(self) -> &'static str {
        match self {
            Kind::DockerConfigJson => "kubernetes.io/dockerconfigjson",
            Kind::DockerCfg => "kubernetes.io/dockercfg",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Kind::DockerConfigJson => ".dockerconfigjson",
            Kind::DockerCfg => ".dockercfg",
        }
    }
}

/// A secret as the server sends it.
pub(super) struct Secret {
    pub(super) name: Name,
    /// Base64 of its Docker configuration.
    pub(super) data: Option<String>,
}

#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error(transparent)]
    Kubeconfig(#[from] KubeconfigError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot find the API server: {0}")]
    Address(io::Error),
    #[error("cannot talk to the API server: {}", causes(.0))]
    Http(reqwest::Error),
    #[error(
        "the API server answers {status}{}",
        if matches!(*status, 401 | 403) { ": list and watch of secrets in all namespaces must be allowed" } else { "" }
    )]
    Status { status: u16 },
    #[error("the API server's answer is no list of secrets")]
    Form,
    #[error("the API server's answer is too large")]
    Large,
    #[error("the API server does not answer")]
    Silent,
}

impl From<reqwest::Error> for WatchError {
    fn from(error: reqwest::Error) -> WatchError {
        WatchError::Http(error.without_url())
    }
}

fn causes(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    namespace: String,
    name: String,
    resource_version: String,
    r#continue: String,
}

#[derive(Deserialize)]
struct Object {
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    data: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    metadata: Metadata,
    items: Option<Vec<Object>>,
}

#[derive(Deserialize)]
struct Event {
    r#type: String,
    object: Object,
}

impl Object {
    fn secret(self, kind: Kind) -> Secret {
        let data = self.data.and_then(|mut data| data.remove(kind.key()));
        Secret {
            name: (self.metadata.namespace, self.metadata.name),
            data,
        }
    }
}

/// Follows a kind of secrets for ever. Counts up `done` after the first list.
pub(super) async fn follow(
    kubeconfig: PathBuf,
    kind: Kind,
    store: Store,
    done: Arc<watch::Sender<usize>>,
) {
    let (mut pause, mut reported) = (PAUSE, BTreeSet::new());
    let mut is_listed = false;
    let mut seen = None;
    loop {
        let from = seen.take();
        let followed = async {
            let server = Server::connect(&kubeconfig).await?;
            let version = match from {
                Some(version) => version,
                None => server.list(kind, &store).await?,
            };
            if !is_listed {
                is_listed = true;
                done.send_modify(|count| *count += 1);
            }
            server.watch(kind, &store, version).await
        };
        let next = match followed.await {
            Ok(version) => {
                seen = version;
                pause = PAUSE;
                PAUSE
            }
            Err(error) => {
                let (error, kind) = (error.to_string(), kind.name());
                if reported.len() < 100 && reported.insert(error.clone()) {
                    tracing::warn!(
                        error,
                        kind,
                        "cannot follow the image pull secrets of the cluster, trying again"
                    );
                }
                (pause * 2).min(LONGEST_PAUSE)
            }
        };
        tokio::time::sleep(pause).await;
        pause = next;
    }
}

/// The addresses of a server.
async fn addresses(server: &Url) -> Result<Vec<SocketAddr>, WatchError> {
    let port = server.port_or_known_default().unwrap_or(443);
    let host = server.host_str().unwrap_or_default();
    let host = host.trim_matches(['[', ']']);
    let found = tokio::net::lookup_host((host, port)).await;
    Ok(found.map_err(WatchError::Address)?.collect())
}

/// A connection to the API server.
struct Server {
    client: Client,
    url: Url,
    login: Login,
}

impl Server {
    async fn connect(kubeconfig: &Path) -> Result<Server, WatchError> {
        let access = kubeconfig::access(kubeconfig).await?;
        let Access {
            server,
            tls_name,
            authorities,
            identity,
            skip_verify,
            proxy,
            login,
        } = access;
        let tls = PemTls {
            authorities: authorities.as_deref(),
            identity: (identity.as_ref()).map(|(certificate, key)| (&**certificate, &**key)),
            skip_verify,
        };
        let mut builder = Client::builder()
            .tls_backend_preconfigured(pem_config(&tls, kubeconfig)?)
            .user_agent("soci-snapshotter")
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(PATIENCE)
            .http1_only();
        builder = match proxy {
            Some(proxy) => builder.proxy(reqwest::Proxy::all(proxy)?),
            // The HTTP library would ask the environment's proxy even for this machine.
            None if NoProxy::from_env().includes(&server) => builder.no_proxy(),
            None => builder,
        };
        let mut url = server;
        if let Some(name) = tls_name.filter(|_| url.scheme() == "https") {
            // The name stands in the URL, so that TLS uses it, and stands for the server's addresses.
            let addresses = addresses(&url).await?;
            builder = builder.resolve_to_addrs(&name, &addresses).no_proxy();
            url.set_host(Some(&name))
                .map_err(|_| KubeconfigError::TlsName)?;
        }
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(["api", "v1", "secrets"]);
        }
        Ok(Server {
            client: builder.build()?,
            url,
            login,
        })
    }

    /// Asks for secrets of a kind.
    async fn get(&self, kind: Kind, query: &[(&str, &str)]) -> Result<Response, WatchError> {
        let selector = format!("type={}", kind.name());
        let mut url = self.url.clone();
        url.query_pairs_mut()
            .append_pair("fieldSelector", &selector)
            .extend_pairs(query);
        let mut request = self.client.get(url);
        match &self.login {
            Login::None => {}
            Login::Token(token) => request = request.bearer_auth(token.reveal()),
            Login::Password(user, password) => {
                request = request.basic_auth(user, Some(password.reveal()));
            }
        }
        let answer = tokio::time::timeout(PATIENCE, request.send()).await;
        let answer = answer.map_err(|_| WatchError::Silent)??;
        match answer.status().as_u16() {
            200 => Ok(answer),
            status => Err(WatchError::Status { status }),
        }
    }

    /// Lists all secrets of a kind. Returns the version from which to watch.
    async fn list(&self, kind: Kind, store: &Store) -> Result<String, WatchError> {
        let (mut secrets, mut next) = (Vec::new(), String::new());
        let mut size = 0;
        for _ in 0..MANY_PAGES {
            let mut query = vec![("limit", PAGE)];
            if !next.is_empty() {
                query.push(("continue", &next));
            }
            let answer = self.get(kind, &query).await?;
            let page = tokio::time::timeout(PATIENCE, whole_page(answer)).await;
            let page = page.map_err(|_| WatchError::Silent)??;
            let list: List = serde_json::from_slice(&page).map_err(|_| WatchError::Form)?;
            for item in list.items.unwrap_or_default() {
                let secret = item.secret(kind);
                size += secret.data.as_ref().map_or(0, String::len);
                secrets.push(secret);
            }
            if size > MAX_LIST {
                return Err(WatchError::Large);
            }
            next = list.metadata.r#continue;
            if next.is_empty() {
                store.replace(kind, secrets);
                return Ok(list.metadata.resource_version);
            }
        }
        Err(WatchError::Large)
    }

    /// Applies changes until the server ends the connection. Returns the version from which to watch
    /// on, or `None` if it is too old.
    async fn watch(
        &self,
        kind: Kind,
        store: &Store,
        mut version: String,
    ) -> Result<Option<String>, WatchError> {
        let limit = WATCH_SEC.to_string();
        let query = [
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", &version),
            ("timeoutSeconds", &limit),
        ];
        let mut answer = match self.get(kind, &query).await {
            Err(WatchError::Status { status: 410 }) => return Ok(None),
            answer => answer?,
        };
        let longest = Duration::from_secs(WATCH_SEC) + PATIENCE;
        let mut line = Vec::new();
        loop {
            let chunk = tokio::time::timeout(longest, answer.chunk()).await;
            let Some(chunk) = chunk.map_err(|_| WatchError::Silent)?? else {
                // Without a version, the server would begin with all secrets as added ones.
                return Ok(Some(version).filter(|version| !version.is_empty()));
            };
            let mut parts = chunk.split(|&byte| byte == b'\n').peekable();
            while let Some(part) = parts.next() {
                if line.len() + part.len() > MAX_EVENT {
                    return Err(WatchError::Large);
                }
                line.extend_from_slice(part);
                if parts.peek().is_none() {
                    continue;
                }
                match apply(kind, store, &std::mem::take(&mut line))? {
                    Applied::Nothing => {}
                    Applied::Version(seen) => version = seen,
                    Applied::TooOld => return Ok(None),
                }
            }
        }
    }
}

async fn whole_page(mut answer: Response) -> Result<Vec<u8>, WatchError> {
    let mut page = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        if page.len() + chunk.len() > MAX_PAGE {
            return Err(WatchError::Large);
        }
        page.extend_from_slice(&chunk);
    }
    Ok(page)
}

/// What became of a line of a watch.
enum Applied {
    Nothing,
    /// The version after it.
    Version(String),
    /// The server no longer knows the version.
    TooOld,
}

/// Applies one change.
fn apply(kind: Kind, store: &Store, line: &[u8]) -> Result<Applied, WatchError> {
    if line.trim_ascii().is_empty() {
        return Ok(Applied::Nothing);
    }
    let event: Event = serde_json::from_slice(line).map_err(|_| WatchError::Form)?;
    let version = event.object.metadata.resource_version.clone();
    match event.r#type.as_str() {
        "ADDED" | "MODIFIED" => store.put(kind, event.object.secret(kind)),
        "DELETED" => store.remove(&event.object.secret(kind)),
        "ERROR" => return Ok(Applied::TooOld),
        _ => {}
    }
    Ok(match version.is_empty() {
        true => Applied::Nothing,
        false => Applied::Version(version),
    })
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::testing::{Setup, TestRegistry};

    #[tokio::test]
    async fn the_certificate_must_have_the_name_that_the_kubeconfig_gives() {
        // Any server with a certificate for `localhost` and 127.0.0.1 will do.
        let server = TestRegistry::with(Setup {
            tls: true,
            ..Setup::default()
        });
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (path, ca) = (folder.path().join("config"), folder.path().join("ca.crt"));
        std::fs::write(&ca, TestRegistry::ca_pem()).expect("write");
        for (name, is_right) in [
            ("", true),
            ("localhost", true),
            ("kubernetes.example", false),
        ] {
            let text = format!(
                "current-context: c\ncontexts: [{{name: c, context: {{cluster: k}}}}]\n\
                 clusters: [{{name: k, cluster: {{server: 'https://{}', tls-server-name: '{name}', certificate-authority: ca.crt}}}}]\n",
                server.host()
            );
            std::fs::write(&path, text).expect("write");
            let connected = Server::connect(&path).await.expect("a client");
            let answer = connected.get(Kind::DockerCfg, &[]).await;
            match answer {
                // It is no API server.
                Err(WatchError::Status { status: 404 }) => assert!(is_right, "{name}"),
                Err(WatchError::Http(_)) => assert!(!is_right, "{name}"),
                other => panic!("{name}: {other:?}"),
            }
        }
    }
}
