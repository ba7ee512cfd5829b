//! Reads one `hosts.toml`.

use std::{collections::BTreeMap, path::Path, time::Duration};

use reqwest::{
    Url,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use serde::Deserialize;
use toml::de::DeTable;

use super::{Capabilities, HostEntry, TlsOverrides, only};
use crate::{hosts::Scheme, tls::Identity};

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    server: String,
    #[serde(default)]
    host: BTreeMap<String, Settings>,
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
    dial_timeout: Option<String>,
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

pub(super) fn parse(folder: &Path, text: &str) -> Result<Vec<HostEntry>, String> {
    let wrong = |error| unquoted(text, &error);
    let File { server, mut host } = toml::from_str(text).map_err(wrong)?;
    // Not flattened into the file, because an error in it would have no line then.
    let own: Settings = toml::from_str(text).map_err(wrong)?;
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

/// Where the file is wrong. The error's own message quotes values, which may be secret.
fn unquoted(text: &str, error: &toml::de::Error) -> String {
    let start = error.span().map(|span| span.start);
    match start.and_then(|start| text.get(..start)) {
        Some(before) => {
            let line = before.matches('\n').count() + 1;
            format!("line {line} cannot be understood")
        }
        None => "it cannot be understood".to_owned(),
    }
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
        dial_timeout: settings
            .dial_timeout
            .map(|text| dial_timeout(&text))
            .transpose()?,
    })
}

/// A duration as Go writes it: `200ms`, `1.5s`, `1m30s`.
fn dial_timeout(text: &str) -> Result<Duration, String> {
    let bad = || format!("dial_timeout {text:?} is no duration such as \"200ms\" or \"3s\"");
    let (mut rest, mut seconds) = (text, 0.0);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, after) = rest.split_at(digits.ok_or_else(bad)?);
        let end = after.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, next) = after.split_at(end.unwrap_or(after.len()));
        let unit = match unit {
            "ns" => 1e-9,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(bad()),
        };
        seconds += number.parse::<f64>().map_err(|_| bad())? * unit;
        rest = next;
    }
    match Duration::try_from_secs_f64(seconds) {
        Ok(timeout) if !timeout.is_zero() => Ok(timeout),
        _ => Err(bad()),
    }
}

fn address(server: &str, override_path: bool) -> Result<Option<(Scheme, String, String)>, String> {
    if server.is_empty() {
        return Ok(None);
    }
    let bad = || match server.contains(['@', '?']) {
        // It may have a password or a token.
        true => "an address has a user or a query, or is none of a registry".to_owned(),
        false => format!("{server:?} is no address of a registry"),
    };
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
            "referrers" => capabilities.referrers = true,
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
        // A whole header may have been written as the name.
        let is_end = |c: char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_');
        let shown = name.split(is_end).next().unwrap_or_default();
        let bad = || format!("header {shown:?} cannot be sent");
        let key = HeaderName::try_from(&name).map_err(|_| bad())?;
        for value in values.into_vec() {
            let mut value = HeaderValue::try_from(value).map_err(|_| bad())?;
            value.set_sensitive(true);
            headers.append(key.clone(), value);
        }
    }
    Ok(headers)
}
