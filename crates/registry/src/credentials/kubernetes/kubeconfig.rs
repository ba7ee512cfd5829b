//! How to reach the API server: a kubeconfig, or the service account of a pod.
//!
//! Several files are merged as `kubectl` does: the first that names something wins. Everything is
//! read again for each connection, so that new tokens and certificates take effect.

mod exec;

use std::{
    collections::BTreeMap,
    env,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::Url;
use rustls::pki_types::ServerName;
use serde::Deserialize;

use crate::credentials::{Secret, program::ProgramError};
use exec::Exec;

/// Size limit in bytes for a file.
const MAX_FILE: u64 = 1 << 20;
/// Where a pod finds the token and the authority of its service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Why the API server cannot be reached as configured. Does not quote files, which have secrets.
#[derive(Debug, thiserror::Error)]
pub(super) enum KubeconfigError {
    #[error("no kubeconfig: {} does not exist", path.display())]
    Missing { path: PathBuf },
    #[error("read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is no kubeconfig (line {line})", path.display())]
    Syntax { path: PathBuf, line: u64 },
    #[error("the kubeconfig has no {what} {name:?}")]
    Name { what: &'static str, name: String },
    #[error("the kubeconfig has {0:?}, which is no address of a server")]
    Server(String),
    #[error(
        "the kubeconfig has a tls-server-name that is no DNS name, or in addition to a proxy-url: neither is supported"
    )]
    TlsName,
    #[error("the {0} of the kubeconfig is not base64")]
    Base64(&'static str),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error("the exec command of the kubeconfig gives no ExecCredential with a token")]
    Answer,
}

/// How to reach the API server.
pub(super) struct Access {
    pub(super) server: Url,
    /// The DNS name that the server's certificate must have; `None` means that of the address.
    pub(super) tls_name: Option<String>,
    /// PEM text of the only authorities to trust; `None` means the system's.
    pub(super) authorities: Option<Vec<u8>>,
    /// PEM text of the client certificate and its key.
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
    pub(super) skip_verify: bool,
    pub(super) proxy: Option<Url>,
    pub(super) login: Login,
}

/// What proves who we are.
pub(super) enum Login {
    None,
    Token(Secret),
    Password(String, Secret),
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct File {
    current_context: String,
    contexts: Option<Vec<NamedContext>>,
    clusters: Option<Vec<NamedCluster>>,
    users: Option<Vec<NamedUser>>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize, Clone, Default)]
#[serde(default)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct Cluster {
    server: String,
    tls_server_name: String,
    certificate_authority: String,
    certificate_authority_data: String,
    insecure_skip_tls_verify: bool,
    proxy_url: String,
    disable_compression: bool,
    extensions: Option<Vec<NamedExtension>>,
}

#[derive(Deserialize)]
struct NamedExtension {
    name: String,
    extension: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "kebab-case")]
struct User {
    token: String,
    #[serde(rename = "tokenFile")]
    token_file: String,
    client_certificate: String,
    client_certificate_data: String,
    client_key: String,
    client_key_data: String,
    username: String,
    password: String,
    exec: Option<Exec>,
}

/// A value with the folder of its file, to which paths in it are relative.
struct In<T>(T, PathBuf);

/// Everything that the files name.
#[derive(Default)]
struct Merged {
    current: String,
    contexts: BTreeMap<String, Context>,
    clusters: BTreeMap<String, In<Cluster>>,
    users: BTreeMap<String, In<User>>,
}

/// Reads this kubeconfig, or where `path` is empty those of `$KUBECONFIG` or of the home directory,
/// or else the service account of the pod.
pub(super) async fn access(path: &Path) -> Result<Access, KubeconfigError> {
    let given = !path.as_os_str().is_empty();
    let paths = match given {
        true => vec![path.to_owned()],
        false => default_paths(),
    };
    let mut merged = Merged::default();
    let mut found = false;
    for path in &paths {
        match read(path) {
            Ok(text) => {
                merged.add(parse(path, &text)?, path);
                found = true;
            }
            Err(KubeconfigError::Read { source, .. })
                if source.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    if found {
        return merged.access().await;
    }
    match (given, env::var("KUBERNETES_SERVICE_HOST")) {
        (false, Ok(host)) => in_pod(&host),
        _ => Err(KubeconfigError::Missing {
            path: paths.into_iter().next().unwrap_or_default(),
        }),
    }
}

fn default_paths() -> Vec<PathBuf> {
    match env::var_os("KUBECONFIG").filter(|paths| !paths.is_empty()) {
        Some(paths) => env::split_paths(&paths).collect(),
        None => {
            let home = env::home_dir().unwrap_or_else(|| PathBuf::from("/root"));
            vec![home.join(".kube/config")]
        }
    }
}

fn in_pod(host: &str) -> Result<Access, KubeconfigError> {
    let port = env::var("KUBERNETES_SERVICE_PORT").unwrap_or_else(|_| "443".to_owned());
    let host = match host.contains(':') {
        true => format!("[{host}]"),
        false => host.to_owned(),
    };
    let folder = Path::new(SERVICE_ACCOUNT);
    let token = text(&read(&folder.join("token"))?);
    Ok(Access {
        tls_name: None,
        server: server(&format!("https://{host}:{port}"))?,
        authorities: Some(read(&folder.join("ca.crt"))?),
        identity: None,
        skip_verify: false,
        proxy: None,
        login: Login::Token(Secret::new(token.trim())),
    })
}

fn read(path: &Path) -> Result<Vec<u8>, KubeconfigError> {
    let read = || {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path)?;
        file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        match bytes.len() as u64 > MAX_FILE {
            true => Err(io::Error::other(format!("larger than {MAX_FILE} bytes"))),
            false => Ok(bytes),
        }
    };
    read().map_err(|source| KubeconfigError::Read {
        path: path.to_owned(),
        source,
    })
}

fn parse(path: &Path, text: &[u8]) -> Result<File, KubeconfigError> {
    let syntax = |line| KubeconfigError::Syntax {
        path: path.to_owned(),
        line,
    };
    if text.trim_ascii_start().starts_with(b"{") {
        return serde_json::from_slice(text).map_err(|error| syntax(error.line() as u64));
    }
    serde_saphyr::from_slice(text)
        .map_err(|error| syntax(error.location().map_or(0, |place| place.line())))
}

impl Merged {
    fn add(&mut self, file: File, path: &Path) {
        let folder = path.parent().unwrap_or(Path::new("/"));
        if self.current.is_empty() {
            self.current = file.current_context;
        }
        for NamedContext { name, context } in file.contexts.unwrap_or_default() {
            self.contexts.entry(name).or_insert(context);
        }
        for NamedCluster { name, cluster } in file.clusters.unwrap_or_default() {
            let value = In(cluster, folder.to_owned());
            self.clusters.entry(name).or_insert(value);
        }
        for NamedUser { name, user } in file.users.unwrap_or_default() {
            let value = In(user, folder.to_owned());
            self.users.entry(name).or_insert(value);
        }
    }

    async fn access(&self) -> Result<Access, KubeconfigError> {
        let context = find(&self.contexts, "context", &self.current)?;
        let In(cluster, folder) = find(&self.clusters, "cluster", &context.cluster)?;
        let data = &cluster.certificate_authority_data;
        let authorities = file_or_data(folder, &cluster.certificate_authority, data)?;
        let proxy = Some(&cluster.proxy_url).filter(|url| !url.is_empty());
        let mut access = Access {
            server: server(&cluster.server)?,
            tls_name: cluster.tls_name()?,
            authorities,
            identity: None,
            skip_verify: cluster.insecure_skip_tls_verify,
            proxy: proxy.map(|url| server(url)).transpose()?,
            login: Login::None,
        };
        if context.user.is_empty() {
            return Ok(access);
        }
        let In(user, folder) = find(&self.users, "user", &context.user)?;
        let certificate = &user.client_certificate_data;
        let certificate = file_or_data(folder, &user.client_certificate, certificate)?;
        let key = file_or_data(folder, &user.client_key, &user.client_key_data)?;
        access.identity = certificate.zip(key);
        if let Some(exec) = &user.exec {
            let info = exec.provide_cluster_info.then(|| cluster.info(&access));
            let status = exec.ask(folder, info).await?;
            if !status.client_certificate_data.is_empty() {
                let certificate = status.client_certificate_data.into_bytes();
                access.identity = Some((certificate, status.client_key_data.into_bytes()));
            }
            if !status.token.is_empty() {
                access.login = Login::Token(Secret::new(status.token));
            }
        } else if !user.token_file.is_empty() {
            let token = text(&read(&folder.join(&user.token_file))?);
            access.login = Login::Token(Secret::new(token.trim()));
        } else if !user.token.is_empty() {
            access.login = Login::Token(Secret::new(&*user.token));
        } else if !user.username.is_empty() {
            let password = Secret::new(&*user.password);
            access.login = Login::Password(user.username.clone(), password);
        }
        Ok(access)
    }
}

impl Cluster {
    /// The DNS name that replaces that of the address in TLS.
    fn tls_name(&self) -> Result<Option<String>, KubeconfigError> {
        let name = &self.tls_server_name;
        if name.is_empty() {
            return Ok(None);
        }
        let parsed = ServerName::try_from(name.as_str());
        let is_dns_name = matches!(parsed, Ok(ServerName::DnsName(_)));
        match is_dns_name && self.proxy_url.is_empty() {
            true => Ok(Some(name.clone())),
            false => Err(KubeconfigError::TlsName),
        }
    }
}

fn find<'a, T>(
    map: &'a BTreeMap<String, T>,
    what: &'static str,
    name: &str,
) -> Result<&'a T, KubeconfigError> {
    map.get(name).ok_or_else(|| KubeconfigError::Name {
        what,
        name: name.to_owned(),
    })
}

/// The content of a file, or data in the kubeconfig itself, which comes first.
fn file_or_data(folder: &Path, file: &str, data: &str) -> Result<Option<Vec<u8>>, KubeconfigError> {
    if !data.is_empty() {
        let decoded = STANDARD.decode(data.trim());
        let decoded = decoded.map_err(|_| KubeconfigError::Base64("certificate or key"))?;
        return Ok(Some(decoded));
    }
    match file.is_empty() {
        true => Ok(None),
        false => read(&folder.join(file)).map(Some),
    }
}

fn server(text: &str) -> Result<Url, KubeconfigError> {
    let url = match text.contains("://") {
        true => Url::parse(text),
        false => Url::parse(&format!("https://{text}")),
    };
    let url = url.ok().filter(|url| url.has_host());
    // The text may have a password in it.
    url.ok_or_else(|| KubeconfigError::Server(text.chars().take(8).collect()))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) async fn of(text: &str) -> Result<Access, KubeconfigError> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("token"), "from a file\n").expect("write");
        let path = folder.path().join("config");
        std::fs::write(&path, text).expect("write");
        access(&path).await
    }

    pub(super) fn config(user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n\
             clusters: [{{name: k, cluster: {{server: 'https://api.example:6443', certificate-authority-data: aGk=}}}}]\n\
             users: [{{name: u, user: {user}}}]\n"
        )
    }

    #[tokio::test]
    async fn every_kind_of_login_is_read() {
        let exec = r#"{exec: {apiVersion: client.authentication.k8s.io/v1, command: /bin/sh, args: [-c, 'echo "{\"status\":{\"token\":\"$WHO\"}}"'], env: [{name: WHO, value: me}]}}"#;
        for (user, expected) in [
            ("{token: t}", "t"),
            ("{token: t, tokenFile: token}", "from a file"),
            (exec, "me"),
        ] {
            let access = of(&config(user))
                .await
                .unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(access.server.as_str(), "https://api.example:6443/");
            assert_eq!(access.authorities.as_deref(), Some(&b"hi"[..]));
            match access.login {
                Login::Token(token) => assert_eq!(token.reveal(), expected, "{user}"),
                _ => panic!("{user}"),
            }
        }
        let access = of(&config("{username: u, password: p}")).await;
        let login = access.map(|access| access.login);
        assert!(matches!(login, Ok(Login::Password(user, _)) if user == "u"));
        let text = config("{client-certificate-data: YQ==, client-key-data: Yg==}");
        let access = of(&text).await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(access.identity, Some((b"a".to_vec(), b"b".to_vec())));
    }

    #[tokio::test]
    async fn a_bad_kubeconfig_is_refused_without_quoting_it() {
        for text in [
            "users: hunter2".to_owned(),
            "{\"users\": \"hunter2\"}".to_owned(),
            "hunter2: [".to_owned(),
            String::new(),
            config("{exec: {command: /bin/false}}"),
            config("{exec: {command: /bin/echo, args: [hunter2]}}"),
            config("{client-key-data: hunter2hunter2!}"),
            config("{token: t}").replace("https://api.example:6443", "https://"),
            config("{token: t}").replace("user: u", "user: other"),
            config("{token: t}").replace("server:", "tls-server-name: 10.0.0.1, server:"),
        ] {
            let Err(error) = of(&text).await else {
                panic!("{text}");
            };
            assert!(!format!("{error:?} {error}").contains("hunter2"), "{error}");
        }
        let missing = access(Path::new("/nowhere/config")).await;
        assert!(matches!(missing, Err(KubeconfigError::Missing { .. })));
    }
}
