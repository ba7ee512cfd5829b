//! The content of Docker's configuration file: which entry is for which repository.
//!
//! An entry that cannot be used is left out and reported; the others stay valid.

use std::collections::HashMap;

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde_json::{Map, Value};

use crate::credentials::{Credential, Secret, helper};

/// The key under which `docker login` stores Docker Hub credentials.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// `auth` values occur with and without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The parts of the file that concern credentials.
#[derive(Default)]
pub(in crate::credentials) struct ConfigFile {
    auths: HashMap<String, AuthEntry>,
    helpers: HashMap<String, String>,
    store: String,
}

#[derive(Default)]
struct AuthEntry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

/// An `auth` value that cannot be decoded.
pub(in crate::credentials) struct BadAuth;

impl ConfigFile {
    /// Reads the document as docker does: the case of names does not matter, and null means absent.
    /// A value of another type is left out and returned as a problem.
    pub(in crate::credentials) fn of(object: &Map<String, Value>) -> (ConfigFile, Vec<String>) {
        let (mut file, mut problems) = (ConfigFile::default(), Vec::new());
        for (host, entry) in entries(object, "auths", &mut problems) {
            match AuthEntry::of(entry) {
                Ok(entry) => drop(file.auths.insert(host.clone(), entry)),
                Err(WrongType) => problems.push(format!("the entry of {host} in auths is invalid")),
            }
        }
        for (host, name) in entries(object, "credHelpers", &mut problems) {
            match name.as_str() {
                Some(name) => drop(file.helpers.insert(host.clone(), name.to_owned())),
                None => problems.push(format!("the entry of {host} in credHelpers is invalid")),
            }
        }
        match text(object, "credsStore") {
            Ok(name) => file.store = name,
            Err(WrongType) => problems.push("credsStore is not a string".to_owned()),
        }
        (file, problems)
    }

    /// Reads the older form, which has nothing but entries. Those that are invalid are left out.
    pub(in crate::credentials) fn of_auths(object: &Map<String, Value>) -> ConfigFile {
        let entries = object.iter().filter_map(|(host, entry)| {
            let entry = AuthEntry::of(entry).ok()?;
            Some((host.clone(), entry))
        });
        ConfigFile {
            auths: entries.collect(),
            ..ConfigFile::default()
        }
    }

    /// The same without helper programs, for a file whose author may run none.
    pub(in crate::credentials) fn without_programs(self) -> ConfigFile {
        ConfigFile {
            auths: self.auths,
            ..ConfigFile::default()
        }
    }

    /// The credential for a repository of a host.
    pub(super) async fn look_up(
        &self,
        host: &str,
        repository: &str,
    ) -> Option<Result<Credential, BadAuth>> {
        let key = key_of(host);
        let own = entry_of(&self.helpers, key, repository);
        let own = own.filter(|(_, name)| !name.is_empty());
        let general = Some((key, &self.store)).filter(|(_, name)| !name.is_empty());
        if let Some((server, name)) = own.or(general) {
            match helper::ask(name, server).await {
                Ok(Some(found)) => return Some(Ok(found)),
                Ok(None) => {}
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    let cause = cause.unwrap_or_default();
                    tracing::warn!(host, %error, cause, "credential helper left out");
                }
            }
        }
        self.entry(host, repository)
    }

    /// The credential that the file itself has.
    pub(in crate::credentials) fn entry(
        &self,
        host: &str,
        repository: &str,
    ) -> Option<Result<Credential, BadAuth>> {
        let (_, entry) = entry_of(&self.auths, key_of(host), repository)?;
        entry.credential().transpose()
    }
}

/// The name of a host in the file.
fn key_of(host: &str) -> &str {
    match host {
        "docker.io" | "registry-1.docker.io" | "index.docker.io" => DOCKER_HUB_KEY,
        host => host,
    }
}

/// A value does not have the expected type.
struct WrongType;

/// The value of a name. An exact match comes before one that differs in letter case.
fn value<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    let found = object.get(name).or_else(|| {
        let mut others = object.iter();
        let found = others.find(|(other, _)| other.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value)
    });
    found.filter(|value| !value.is_null())
}

/// A string, or an empty one if it is absent.
fn text(object: &Map<String, Value>, name: &str) -> Result<String, WrongType> {
    match value(object, name) {
        None => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(WrongType),
    }
}

/// The entries of a map that are not null.
fn entries<'a>(
    object: &'a Map<String, Value>,
    name: &str,
    problems: &mut Vec<String>,
) -> impl Iterator<Item = (&'a String, &'a Value)> + use<'a> {
    let map = value(object, name).and_then(|found| {
        if !found.is_object() {
            problems.push(format!("{name} is not an object"));
        }
        found.as_object()
    });
    let entries = map.into_iter().flatten();
    entries.filter(|(_, entry)| !entry.is_null())
}

/// The entry for a repository of the host `key`, with its name: the one with the longest path that
/// contains the repository. Among several spellings the exact key wins.
fn entry_of<'a, T>(
    entries: &'a HashMap<String, T>,
    key: &'a str,
    repository: &str,
) -> Option<(&'a str, &'a T)> {
    let (host, _) = host_and_path(key);
    let candidates = entries.iter().filter_map(|(name, entry)| {
        let (other, path) = host_and_path(name);
        let contains = path.is_empty()
            || repository == path
            || repository
                .strip_prefix(path)
                .is_some_and(|rest| rest.starts_with('/'));
        (other == host && contains).then_some((path.len(), name.as_str(), entry))
    });
    let best = candidates.max_by(|(depth, name, _), (other_depth, other, _)| {
        let is_key = |name: &str| name == key;
        depth
            .cmp(other_depth)
            .then(is_key(name).cmp(&is_key(other)))
            .then(other.cmp(name))
    })?;
    let (depth, name, entry) = best;
    // A helper for a whole host is asked by the name under which docker stores it.
    Some((if depth == 0 { key } else { name }, entry))
}

/// Splits a key into its host and the path of a repository. Keys may be URLs:
/// `https://r.example/v1/` means `r.example`.
fn host_and_path(key: &str) -> (&str, &str) {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let path = path.trim_matches('/');
    let is_api = matches!(path, "v1" | "v2");
    (host, if is_api { "" } else { path })
}

impl AuthEntry {
    fn of(entry: &Value) -> Result<AuthEntry, WrongType> {
        let object = entry.as_object().ok_or(WrongType)?;
        Ok(AuthEntry {
            auth: text(object, "auth")?,
            username: text(object, "username")?,
            password: text(object, "password")?,
            identitytoken: text(object, "identitytoken")?,
            registrytoken: text(object, "registrytoken")?,
        })
    }

    fn credential(&self) -> Result<Option<Credential>, BadAuth> {
        if !self.identitytoken.is_empty() {
            let token = Secret::new(&*self.identitytoken);
            return Ok(Some(Credential::Identity(token)));
        }
        if !self.registrytoken.is_empty() {
            let token = Secret::new(&*self.registrytoken);
            return Ok(Some(Credential::Bearer(token)));
        }
        if !self.auth.is_empty() {
            let decoded = BASE64.decode(&self.auth).map_err(|_| BadAuth)?;
            let decoded = String::from_utf8(decoded).map_err(|_| BadAuth)?;
            let (user, password) = decoded.split_once(':').ok_or(BadAuth)?;
            let password = password.trim_end_matches('\0');
            return Ok((!user.is_empty()).then(|| Credential::new(user, password)));
        }
        let named = !self.username.is_empty();
        Ok(named.then(|| Credential::new(&self.username, &self.password)))
    }
}
