//! Where requests for an image go: to mirrors first, then to the registry in the image's name.
//!
//! [`Hosts`] is plain data that the caller fills in from its configuration. Every kind of request
//! uses the resulting list and tries the next host when one fails. Mirrors never affect how the
//! origin is contacted.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    time::Duration,
};

use reqwest::{Url, header::HeaderMap};

use super::host_files::{self, Capabilities, HostEntry, TlsOverrides};
use crate::url::RedactedUrl;
use soci_oci::reference::ImageRef;

/// Mirrors and connection settings of registries.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    /// Mirrors by registry name as in references (`docker.io`), in order of preference.
    pub mirrors: BTreeMap<String, Vec<Mirror>>,
    /// Use plain HTTP for every origin, not only for registries on this machine.
    pub plain_http: bool,
    /// Settings of registries from the administrator's files. They replace `mirrors` for those
    /// registries.
    pub configured: Configured,
}

/// The settings that [`Hosts::read_folders`] found.
#[derive(Clone, Debug, Default)]
pub struct Configured(BTreeMap<String, Vec<HostEntry>>);

/// The kind of operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Resolve a tag.
    Resolve,
    /// Read by digest.
    Pull,
    Push,
}

/// One mirror.
#[derive(Clone, Debug, Default)]
pub struct Mirror {
    /// `host[:port][/path]`, or a URL with a scheme. The default path is `/v2`.
    pub host: String,
    /// Use plain HTTP if `host` has no scheme.
    pub insecure: bool,
    /// Timeout until the response headers arrive, in place of the general one. Does not apply to
    /// the body.
    pub timeout: Option<Duration>,
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
    pub(crate) timeout: Option<Duration>,
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
    /// Reads the settings of a registry from containerd's `hosts.toml` and Docker's `certs.d` in
    /// these folders. A missing folder is not an error.
    pub fn read_folders(&mut self, folders: &[PathBuf], registry: &str) {
        if let Some(entries) = host_files::load(folders, registry) {
            self.configured.0.insert(registry.to_owned(), entries);
        }
    }

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
        if let Some(entries) = self.configured.0.get(image.host()) {
            let good = entries
                .iter()
                .filter(|entry| entry.capabilities.allows(operation));
            let hosts: Vec<Host> = good
                .map(|entry| entry.to_host(&named, image.host()))
                .collect();
            return match hosts.is_empty() {
                false => Ok(hosts),
                true => Err(HostError::NotAllowed {
                    host: image.host().to_owned(),
                    operation: operation.name(),
                }),
            };
        }
        if operation == Operation::Push {
            return Ok(vec![named]);
        }
        let mut hosts = Vec::new();
        for mirror in self.mirrors.get(image.host()).into_iter().flatten() {
            match mirror.to_host(image.host()) {
                Ok(host) => hosts.push(host),
                Err(error) => tracing::warn!(%error, "mirror left out"),
            }
        }
        hosts.push(named);
        Ok(hosts)
    }

    /// The registry itself, where pushes go.
    pub(crate) fn origin(&self, image: &ImageRef) -> Result<Host, HostError> {
        let first = self.of(image, Operation::Push)?.into_iter().next();
        first.map_or_else(|| self.named(image), Ok)
    }

    /// The registry at the address in its name.
    fn named(&self, image: &ImageRef) -> Result<Host, HostError> {
        let name = match image.host() {
            "docker.io" | "index.docker.io" => "registry-1.docker.io",
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
            Operation::Push => "push",
        }
    }
}

impl Capabilities {
    fn allows(self, operation: Operation) -> bool {
        match operation {
            Operation::Resolve => self.resolve,
            Operation::Pull => self.pull,
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
                stands_for: (*authority != named.authority).then(|| registry.to_owned()),
                authority: authority.clone(),
                path: path.clone(),
                scheme: *scheme,
                ..named.clone()
            },
        };
        host.tls = tls;
        host.headers = self.headers.clone();
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

impl Mirror {
    fn to_host(&self, registry: &str) -> Result<Host, HostError> {
        let bad = || HostError::BadMirror {
            host: registry.to_owned(),
            mirror: RedactedUrl::new(&self.host),
        };
        let text = self.host.trim();
        let (explicit, rest) = match text.split_once("://") {
            Some(("https", rest)) => (Some(Scheme::Https), rest),
            Some(("http", rest)) => (Some(Scheme::Http), rest),
            Some(_) => return Err(bad()),
            // "//host" is a URL without a scheme.
            None => (None, text.strip_prefix("//").unwrap_or(text)),
        };
        // Parsed only for validation and for the path. The authority is taken from the text, so
        // that an explicit port is kept.
        let url = Url::parse(&format!("https://{rest}")).map_err(|_| bad())?;
        let credentials = !url.username().is_empty() || url.password().is_some();
        if credentials || url.query().is_some() || url.fragment().is_some() {
            return Err(bad());
        }
        let authority = rest
            .split('/')
            .next()
            .filter(|a| !a.is_empty())
            .ok_or_else(bad)?;
        let path = url.path().trim_end_matches('/');
        let scheme = explicit.unwrap_or(match () {
            () if self.insecure => Scheme::Http,
            () if is_this_machine(&url) => Scheme::Guess,
            () => Scheme::Https,
        });
        Ok(Host {
            authority: authority.to_owned(),
            path: if path.is_empty() {
                "/v2".to_owned()
            } else {
                path.to_owned()
            },
            scheme,
            stands_for: Some(registry.to_owned()),
            timeout: self.timeout,
            tls: TlsOverrides::default(),
            headers: HeaderMap::new(),
        })
    }
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
mod tests {
    use super::*;
    use crate::Tls;

    fn hosts(mirrors: &[(&str, bool)]) -> Hosts {
        let mirror = |(host, insecure): &(&str, bool)| Mirror {
            host: (*host).to_owned(),
            insecure: *insecure,
            timeout: None,
        };
        let mirrors = mirrors.iter().map(mirror).collect();
        Hosts {
            mirrors: [("docker.io".to_owned(), mirrors)].into(),
            ..Hosts::default()
        }
    }

    #[test]
    fn this_machine_is_asked_as_containerd_does_where_its_files_say_nothing() {
        let reached = |name: &str| {
            let image = ImageRef::parse(&format!("{name}/app")).expect(name);
            let entry = HostEntry {
                address: None,
                capabilities: Capabilities::ALL,
                tls: TlsOverrides::default(),
                headers: HeaderMap::new(),
            };
            let mut hosts = Hosts::default();
            hosts
                .configured
                .0
                .insert(image.host().to_owned(), vec![entry]);
            let host = hosts.origin(&image).expect(name);
            let tls = host.tls.of(&Tls::default()).unwrap_or_default();
            (host.scheme, tls.skip_verify)
        };
        for (name, expected) in [
            ("localhost:5000", (Scheme::HttpsFirst, true)),
            ("[::1]:5000", (Scheme::HttpsFirst, true)),
            ("localhost:443", (Scheme::Https, true)),
            ("localhost", (Scheme::Https, true)),
            ("localhost:80", (Scheme::Guess, false)),
            ("r.example:5000", (Scheme::Https, false)),
        ] {
            assert_eq!(reached(name), expected, "{name}");
        }
    }

    fn shown(hosts: &[Host]) -> Vec<String> {
        let show = |h: &Host| format!("{:?} {}{}", h.scheme, h.authority, h.path);
        hosts.iter().map(show).collect()
    }

    #[test]
    fn mirrors_come_first_in_any_way_people_write_them() {
        let hosts = hosts(&[
            ("mirror.example", false),
            ("mirror.example:5000", true),
            ("10.0.0.1:5000/hub/v2/", false),
            ("http://mirror.example/v2", false),
            ("https://mirror.example", true),
            ("//mirror.example/x", false),
            ("localhost:5000", false),
        ]);
        let image = ImageRef::parse("ubuntu").expect("a name");
        assert_eq!(
            shown(&hosts.of(&image, Operation::Pull).expect("all fine")),
            [
                "Https mirror.example/v2",
                "Http mirror.example:5000/v2",
                "Https 10.0.0.1:5000/hub/v2",
                "Http mirror.example/v2",
                "Https mirror.example/v2",
                "Https mirror.example/x",
                "Guess localhost:5000/v2",
                "Https registry-1.docker.io/v2",
            ]
        );
    }

    #[test]
    fn a_mirror_nobody_understands_is_left_out() {
        let hosts = hosts(&[
            ("", false),
            ("ftp://x", false),
            ("u:hunter2@x", false),
            ("a b", false),
        ]);
        let image = ImageRef::parse("ubuntu").expect("a name");
        assert_eq!(
            hosts
                .of(&image, Operation::Pull)
                .expect("the origin is fine")
                .len(),
            1
        );
        let mirror = Mirror {
            host: "u:hunter2@x".to_owned(),
            ..Mirror::default()
        };
        let error = mirror
            .to_host("docker.io")
            .expect_err("credentials do not belong there");
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }

    #[test]
    fn this_machine_is_asked_without_tls_first() {
        let scheme = |name: &str| {
            let image = ImageRef::parse(&format!("{name}/app")).expect(name);
            Hosts::default().origin(&image).expect(name).scheme
        };
        for name in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "127.8.9.1",
            "[::1]:5000",
        ] {
            assert_eq!(scheme(name), Scheme::Guess, "{name}");
        }
        for name in ["r.example", "localhost.example", "10.0.0.1:5000"] {
            assert_eq!(scheme(name), Scheme::Https, "{name}");
        }
    }

    #[test]
    fn only_a_plain_host_is_an_origin() {
        for name in ["u@h/app:t", "h%20x/app:t", "h:99999/app:t"] {
            if let Ok(image) = ImageRef::from_containerd(name) {
                let origin = Hosts::default().origin(&image);
                assert!(origin.is_err() || image.host() == "h", "{name}");
            }
        }
    }
}
