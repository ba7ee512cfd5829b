//! containerd's `hosts.toml` and Docker's `certs.d`: the administrator's settings for each
//! registry.
//!
//! In each configured folder, the settings of registry `r.example:5000` are in a subfolder named
//! `r.example_5000_`, `r.example:5000` or, for all other registries, `_default`. The first existing
//! subfolder applies. A `hosts.toml` in it lists the hosts in order of preference, followed by the
//! registry itself (`server`). Without `hosts.toml`, `*.crt` are authorities, and `*.cert` with
//! `*.key` are the client certificate. As in containerd, an invalid file is logged and ignored.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use reqwest::{
    Url,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use serde::Deserialize;
use toml::de::DeTable;

use super::{
    hosts::Scheme,
    tls::{Identity, Tls},
};

/// The file that lists the hosts of a registry.
const FILE: &str = "hosts.toml";
/// The folder for registries without their own folder.
const DEFAULT: &str = "_default";
/// Size limit in bytes for a file.
const MAX_FILE: u64 = 1 << 20;

/// One host that the administrator configured.
#[derive(Clone, Debug)]
pub(crate) struct HostEntry {
    /// Scheme, host with port, and path of the API. `None` for the registry itself, under its own
    /// name.
    pub(crate) address: Option<(Scheme, String, String)>,
    pub(crate) capabilities: Capabilities,
    pub(crate) tls: TlsOverrides,
    pub(crate) headers: HeaderMap,
}

/// The operations that a host supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capabilities {
    pub(crate) pull: bool,
    pub(crate) resolve: bool,
    pub(crate) push: bool,
}

impl Capabilities {
    pub(crate) const ALL: Capabilities = Capabilities {
        pull: true,
        resolve: true,
        push: true,
    };
    /// Default for a `host` table without `capabilities`. Unlike containerd, it excludes pushes,
    /// because a push would send the registry's password to a host that is usually a mirror.
    const READ: Capabilities = Capabilities {
        push: false,
        ..Capabilities::ALL
    };
    const NOTHING: Capabilities = Capabilities {
        pull: false,
        resolve: false,
        push: false,
    };
}

/// TLS settings of one host that differ from the general ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TlsOverrides {
    authorities: Vec<PathBuf>,
    identity: Option<Identity>,
    skip_verify: Option<bool>,
}

impl TlsOverrides {
    /// A copy that skips certificate verification unless `skip_verify` is set explicitly.
    pub(crate) fn unverified(&self) -> TlsOverrides {
        TlsOverrides {
            skip_verify: self.skip_verify.or(Some(true)),
            ..self.clone()
        }
    }

    /// Applies the changes to `base`; `None` if there are no changes.
    pub(crate) fn of(&self, base: &Tls) -> Option<Tls> {
        if *self == TlsOverrides::default() {
            return None;
        }
        let mut tls = base.clone();
        tls.authorities.extend(self.authorities.iter().cloned());
        tls.identity = self.identity.clone().or(tls.identity);
        tls.skip_verify = self.skip_verify.unwrap_or(tls.skip_verify);
        Some(tls)
    }
}

/// The hosts for a registry in order of preference, from the first folder with settings for it;
/// `None` if there are no settings.
pub(crate) fn load(folders: &[PathBuf], registry: &str) -> Option<Vec<HostEntry>> {
    let folder = folders
        .iter()
        .flat_map(|root| names_of(registry).map(|name| root.join(name)))
        .find(|folder| folder.is_dir())?;
    let path = folder.join(FILE);
    let entries = match read(&path) {
        Ok(text) if text.is_empty() => Ok(None),
        Ok(text) => parse(&folder, &text).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
    };
    match entries {
        Ok(Some(entries)) => return Some(entries),
        Ok(None) => {}
        Err(problem) => tracing::warn!(path = %path.display(), problem, "file left out"),
    }
    match certificates(&folder) {
        Ok(tls) => Some(vec![HostEntry {
            address: None,
            capabilities: Capabilities::ALL,
            tls,
            headers: HeaderMap::new(),
        }]),
        Err(error) => {
            tracing::warn!(path = %folder.display(), %error, "folder left out");
            None
        }
    }
}

fn read(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > MAX_FILE {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    fs::read_to_string(path)
}

/// Names of a registry's folder. A registry name that would act as a path, such as `..`, is
/// ignored, and only the default folder remains.
fn names_of(registry: &str) -> impl Iterator<Item = String> {
    let usable = !registry.is_empty() && !registry.contains('/') && !registry.starts_with('.');
    let own = usable.then(|| registry.to_owned());
    let spelt = registry
        .rsplit_once(':')
        .filter(|(host, _)| usable && !host.is_empty());
    let spelt = spelt.map(|(host, port)| format!("{host}_{port}_"));
    spelt.into_iter().chain(own).chain([DEFAULT.to_owned()])
}

/// The certificate files of Docker's layout, in the order of their names.
fn certificates(folder: &Path) -> io::Result<TlsOverrides> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.push(entry?.path());
    }
    names.sort();
    let with = |extension: &str| {
        let has = |path: &&PathBuf| path.extension().is_some_and(|it| it == extension);
        names.iter().filter(has).cloned().collect::<Vec<_>>()
    };
    let identity = with("cert").into_iter().map(|certificate| Identity {
        key: Some(certificate.with_extension("key")),
        certificate,
    });
    Ok(TlsOverrides {
        authorities: with("crt"),
        identity: only(identity, folder),
        skip_verify: None,
    })
}

/// The first of several identities, because a connection can use only one.
fn only(mut identities: impl Iterator<Item = Identity>, folder: &Path) -> Option<Identity> {
    let first = identities.next();
    if identities.next().is_some() {
        tracing::warn!(folder = %folder.display(), "several client certificates; the first is used");
    }
    first
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    server: String,
    #[serde(default)]
    host: BTreeMap<String, Settings>,
    #[serde(flatten)]
    own: Settings,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Settings {
    capabilities: Vec<String>,
    ca: Texts,
    client: Clients,
    skip_verify: Option<bool>,
    header: BTreeMap<String, Texts>,
    override_path: bool,
}

/// One string or a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum Texts {
    One(String),
    Several(Vec<String>),
}

impl Default for Texts {
    fn default() -> Texts {
        Texts::Several(Vec::new())
    }
}

impl Texts {
    fn into_vec(self) -> Vec<String> {
        match self {
            Texts::One(text) => vec![text],
            Texts::Several(texts) => texts,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Clients {
    One(String),
    Several(Vec<Pair>),
}

impl Default for Clients {
    fn default() -> Clients {
        Clients::Several(Vec::new())
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Pair {
    Together(String),
    Apart(String, String),
}

fn parse(folder: &Path, text: &str) -> Result<Vec<HostEntry>, String> {
    let File {
        server,
        mut host,
        own,
    } = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    let mut entries = Vec::new();
    for name in in_order(text) {
        if let Some(settings) = host.remove(&name) {
            entries.push(entry(&name, settings, folder, Capabilities::READ)?);
        }
    }
    let mut last = entry(&server, own, folder, Capabilities::ALL)?;
    if last.address.is_none() {
        // As in containerd, the file's own capabilities apply only to a `server` that it names.
        last.capabilities = Capabilities::ALL;
    }
    entries.push(last);
    Ok(entries)
}

/// The names of the hosts in the order of the file, which is the order of preference.
fn in_order(text: &str) -> Vec<String> {
    let Ok(table) = DeTable::parse(text) else {
        return Vec::new();
    };
    let hosts = table
        .get_ref()
        .get("host")
        .and_then(|hosts| hosts.get_ref().as_table());
    let mut names: Vec<_> = hosts
        .into_iter()
        .flat_map(|hosts| hosts.keys())
        .map(|name| (name.span().start, name.get_ref().to_string()))
        .collect();
    names.sort();
    names.into_iter().map(|(_, name)| name).collect()
}

fn entry(
    server: &str,
    settings: Settings,
    folder: &Path,
    default: Capabilities,
) -> Result<HostEntry, String> {
    let identity = |pair| match pair {
        Pair::Together(file) => Identity {
            certificate: folder.join(file),
            key: None,
        },
        Pair::Apart(certificate, key) => Identity {
            certificate: folder.join(certificate),
            key: (!key.is_empty()).then(|| folder.join(&key)),
        },
    };
    let pairs = match settings.client {
        Clients::One(file) => vec![Pair::Together(file)],
        Clients::Several(pairs) => pairs,
    };
    let authorities = settings.ca.into_vec().into_iter();
    let tls = TlsOverrides {
        authorities: authorities.map(|file| folder.join(file)).collect(),
        identity: only(pairs.into_iter().map(identity), folder),
        skip_verify: settings.skip_verify,
    };
    let mut address = address(server, settings.override_path)?;
    if let Some((scheme, authority, _)) = &mut address
        && *scheme == Scheme::Http
        && tls != TlsOverrides::default()
        && !authority.ends_with(":80")
    {
        *scheme = Scheme::HttpsFirst;
    }
    Ok(HostEntry {
        address,
        capabilities: capabilities(&settings.capabilities, default)?,
        tls,
        headers: headers(settings.header)?,
    })
}

fn address(server: &str, override_path: bool) -> Result<Option<(Scheme, String, String)>, String> {
    if server.is_empty() {
        return Ok(None);
    }
    let bad = || format!("{server:?} is no address of a registry");
    let (scheme, rest) = match server.split_once("://") {
        Some(("https", rest)) => (Scheme::Https, rest),
        Some(("http", rest)) => (Scheme::Http, rest),
        Some(_) => return Err(bad()),
        None => (Scheme::Https, server),
    };
    // Parsed only for validation and for the path. The authority is taken from the text, so that an
    // explicit port is kept.
    let url = Url::parse(&format!("https://{rest}")).map_err(|_| bad())?;
    let authority = rest.split('/').next().unwrap_or_default();
    if !url.username().is_empty()
        || url.password().is_some()
        || url.query().is_some()
        || authority.is_empty()
    {
        return Err("an address has a user, a password or a query".to_owned());
    }
    let path = url.path().trim_end_matches('/');
    let path = if override_path || path.ends_with("/v2") {
        path.to_owned()
    } else {
        format!("{path}/v2")
    };
    Ok(Some((scheme, authority.to_owned(), path)))
}

fn capabilities(names: &[String], unless_named: Capabilities) -> Result<Capabilities, String> {
    if names.is_empty() {
        return Ok(unless_named);
    }
    let mut capabilities = Capabilities::NOTHING;
    for name in names {
        match name.to_lowercase().as_str() {
            "pull" => capabilities.pull = true,
            "resolve" => capabilities.resolve = true,
            "push" => capabilities.push = true,
            _ => return Err(format!("unknown capability {name:?}")),
        }
    }
    Ok(capabilities)
}

/// Values are marked as sensitive, because some are tokens.
fn headers(texts: BTreeMap<String, Texts>) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, values) in texts {
        let bad = || format!("header {name:?} cannot be sent");
        let key = HeaderName::try_from(&name).map_err(|_| bad())?;
        for value in values.into_vec() {
            let mut value = HeaderValue::try_from(value).map_err(|_| bad())?;
            value.set_sensitive(true);
            headers.append(key.clone(), value);
        }
    }
    Ok(headers)
}

#[cfg(test)]
mod tests;
