//! Where requests for an image go: to mirrors first, then to the registry in the image's name.
//!
//! Mirrors of the caller's configuration come before the hosts of `hosts.toml`, each in the order of
//! their file. The last host is the origin. Every kind of request uses the resulting list and tries
//! the next host when one fails. Mirrors never affect how the origin is contacted.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use reqwest::{Url, header::HeaderMap};

use super::host_files::{Capabilities, HostEntry, HostFolders, TlsOverrides};
use crate::url::RedactedUrl;
use soci_oci::reference::ImageRef;

mod mirror;

pub use mirror::Mirror;

/// The host that serves the images of `docker.io`.
const DOCKER_HUB: &str = "registry-1.docker.io";

/// Mirrors and connection settings of registries.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    /// Mirrors by registry name as in references (`docker.io`), in order of preference.
    pub mirrors: BTreeMap<String, Vec<Mirror>>,
    /// Use plain HTTP for every origin, not only for registries on this machine.
    pub plain_http: bool,
    /// Settings of registries in the administrator's files. They come after `mirrors`.
    pub folders: HostFolders,
}

/// The kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Resolve a tag.
    Resolve,
    /// Read by digest.
    Pull,
    /// List what refers to a manifest.
    Referrers,
    Push,
}

/// How a host is contacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    Https,
    Http,
    /// A registry on this machine: HTTP, unless it turns out to require HTTPS.
    Guess,
    /// HTTPS, unless the host turns out to support only HTTP. For hosts that are configured for
    /// HTTP but have TLS settings.
    HttpsFirst,
}

/// One host to ask for an image.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    /// Host with port, in URL form. Credentials are looked up by it.
    pub(crate) authority: String,
    /// Path of the API, without a trailing slash: `/v2`.
    pub(crate) path: String,
    pub(crate) scheme: Scheme,
    /// For a mirror, the registry that it mirrors. Sent as the `ns` parameter, so that one mirror
    /// can serve several registries.
    pub(crate) stands_for: Option<String>,
    /// Timeout for the response headers, in place of the general one.
    pub(crate) timeout: Option<Duration>,
    /// Timeout for connecting, in place of the general one.
    pub(crate) dial_timeout: Option<Duration>,
    pub(crate) tls: TlsOverrides,
    /// Sent with every request to this host.
    pub(crate) headers: HeaderMap,
}

/// A host that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The registry's name is not a valid host.
    #[error("{host:?} is not a registry host")]
    BadHost {
        /// The name in the reference.
        host: String,
    },
    /// The administrator's files list no host for this operation.
    #[error("hosts.toml of {host:?} names no host that may {operation}")]
    NotAllowed {
        /// The registry.
        host: String,
        /// The missing capability.
        operation: &'static str,
    },
    /// The mirror is neither a host nor an HTTP URL.
    #[error("mirror {mirror} of {host:?} is not host[:port][/path] or an http address")]
    BadMirror {
        /// The mirrored registry.
        host: String,
        /// The mirror as configured.
        mirror: RedactedUrl,
    },
}

impl Hosts {
    /// The hosts (with port) of the image's registry: the host in its name, and the hosts for
    /// pushes.
    pub fn own_hosts(&self, image: &ImageRef) -> Result<BTreeSet<String>, HostError> {
        let named = self.named(image)?.authority;
        let pushed = self.of(image, Operation::Push)?.into_iter();
        Ok(pushed.map(|host| host.authority).chain([named]).collect())
    }

    /// The hosts to ask for `image`, in order of preference; the last one is the origin. An invalid
    /// mirror is logged and skipped, because it must not make the registry unreachable.
    pub(crate) fn of(
        &self,
        image: &ImageRef,
        operation: Operation,
    ) -> Result<Vec<Host>, HostError> {
        let named = self.named(image)?;
        let registry = image.host();
        let mut hosts = match operation {
            Operation::Push => Vec::new(),
            _ => self.mirrors_of(registry),
        };
        let Some(entries) = self.folders.entries(registry) else {
            hosts.push(named);
            return Ok(hosts);
        };
        let good = entries
            .iter()
            .filter(|entry| entry.capabilities.allows(operation));
        hosts.extend(good.map(|entry| entry.to_host(&named, registry)));
        match hosts.is_empty() {
            false => Ok(hosts),
            true => Err(HostError::NotAllowed {
                host: registry.to_owned(),
                operation: operation.name(),
            }),
        }
    }

    fn mirrors_of(&self, registry: &str) -> Vec<Host> {
        let mut hosts = Vec::new();
        for mirror in self.mirrors.get(registry).into_iter().flatten() {
            match mirror.to_host(registry) {
                Ok(host) => hosts.push(host),
                Err(error) => tracing::warn!(%error, "mirror left out"),
            }
        }
        hosts
    }

    /// The registry itself, where pushes go.
    pub(crate) fn origin(&self, image: &ImageRef) -> Result<Host, HostError> {
        let first = self.of(image, Operation::Push)?.into_iter().next();
        first.map_or_else(|| self.named(image), Ok)
    }

    /// The registry at the address in its name.
    fn named(&self, image: &ImageRef) -> Result<Host, HostError> {
        let name = match image.host() {
            "docker.io" | "index.docker.io" => DOCKER_HUB,
            host => host,
        };
        let bad = || HostError::BadHost {
            host: image.host().to_owned(),
        };
        let url = Url::parse(&format!("https://{name}/")).map_err(|_| bad())?;
        let plain_name = url.username().is_empty() && url.password().is_none() && url.path() == "/";
        if !plain_name || url.query().is_some() || url.fragment().is_some() {
            return Err(bad());
        }
        let scheme = if self.plain_http {
            Scheme::Http
        } else if is_this_machine(&url) {
            Scheme::Guess
        } else {
            Scheme::Https
        };
        Ok(Host {
            authority: name.to_owned(),
            path: "/v2".to_owned(),
            scheme,
            stands_for: None,
            timeout: None,
            dial_timeout: None,
            tls: TlsOverrides::default(),
            headers: HeaderMap::new(),
        })
    }
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Resolve => "resolve",
            Operation::Pull => "pull",
            Operation::Referrers => "list referrers",
            Operation::Push => "push",
        }
    }
}

impl Capabilities {
    fn allows(self, operation: Operation) -> bool {
        match operation {
            Operation::Resolve => self.resolve,
            Operation::Pull => self.pull,
            // A list of referrers changes like a tag. Files of before this capability name `resolve`.
            Operation::Referrers => self.referrers || self.resolve,
            Operation::Push => self.push,
        }
    }
}

impl HostEntry {
    /// The host of this entry. If the file does not set an address and the registry is on this
    /// machine, containerd's rule applies: HTTPS first (only, for port 443), with any certificate.
    fn to_host(&self, named: &Host, registry: &str) -> Host {
        let mut tls = self.tls.clone();
        let mut host = match &self.address {
            None if named.scheme == Scheme::Guess && !named.authority.ends_with(":80") => {
                tls = tls.unverified();
                let only_https = named.port().is_none_or(|port| port == "443");
                let scheme = if only_https {
                    Scheme::Https
                } else {
                    Scheme::HttpsFirst
                };
                Host {
                    scheme,
                    ..named.clone()
                }
            }
            None => named.clone(),
            Some((scheme, authority, path)) => Host {
                stands_for: stands_for(authority, registry),
                authority: authority.clone(),
                path: path.clone(),
                scheme: *scheme,
                ..named.clone()
            },
        };
        host.tls = tls;
        host.headers = self.headers.clone();
        host.dial_timeout = self.dial_timeout;
        host
    }
}

impl Host {
    /// The port, if it is explicit.
    fn port(&self) -> Option<&str> {
        let (_, port) = self.authority.rsplit_once(':')?;
        port.bytes()
            .all(|byte| byte.is_ascii_digit())
            .then_some(port)
    }
}

/// The registry that a host is asked for, unless the host is that registry. Same rule as
/// containerd's: other hosts learn it from the `ns` parameter.
fn stands_for(authority: &str, registry: &str) -> Option<String> {
    let is_origin = authority == registry
        || authority == DOCKER_HUB && matches!(registry, "docker.io" | "index.docker.io");
    (!is_origin).then(|| registry.to_owned())
}

/// Whether the host is `localhost` or a loopback address.
pub(crate) fn is_this_machine(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests;
