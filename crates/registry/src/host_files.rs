//! containerd's `hosts.toml` and Docker's `certs.d`: the administrator's settings for each
//! registry.
//!
//! In each configured folder, the settings of registry `r.example:5000` are in a subfolder named
//! `r.example_5000_`, `r.example:5000` or, for all other registries, `_default`. The first existing
//! subfolder applies. A `hosts.toml` in it lists the hosts in order of preference, followed by the
//! registry itself (`server`). Without `hosts.toml`, `*.crt` are authorities, and `*.cert` with
//! `*.key` are the client certificate. As in containerd, an invalid file is logged and ignored.
//! [`HostFolders`] finds and keeps the settings, `parse` reads a file.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::header::HeaderMap;

use super::{
    hosts::Scheme,
    tls::{Identity, Tls},
};

mod folders;
mod parse;

pub use folders::HostFolders;

/// One host that the administrator configured.
#[derive(Clone, Debug)]
pub(crate) struct HostEntry {
    /// Scheme, host with port, and path of the API. `None` for the registry itself, under its own
    /// name.
    pub(crate) address: Option<(Scheme, String, String)>,
    pub(crate) capabilities: Capabilities,
    pub(crate) tls: TlsOverrides,
    pub(crate) headers: HeaderMap,
    /// Timeout for connecting, in place of the general one.
    pub(crate) dial_timeout: Option<Duration>,
}

impl HostEntry {
    /// The registry itself, under its own name.
    fn itself(tls: TlsOverrides) -> HostEntry {
        HostEntry {
            address: None,
            capabilities: Capabilities::ALL,
            tls,
            headers: HeaderMap::new(),
            dial_timeout: None,
        }
    }
}

/// The operations that a host supports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capabilities {
    pub(crate) pull: bool,
    pub(crate) resolve: bool,
    pub(crate) referrers: bool,
    pub(crate) push: bool,
}

impl Capabilities {
    pub(crate) const ALL: Capabilities = Capabilities {
        pull: true,
        resolve: true,
        referrers: true,
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
        referrers: false,
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

/// The first of several identities, because a connection can use only one.
fn only(mut identities: impl Iterator<Item = Identity>, folder: &Path) -> Option<Identity> {
    let first = identities.next();
    if identities.next().is_some() {
        tracing::warn!(folder = %folder.display(), "several client certificates; the first is used");
    }
    first
}

#[cfg(test)]
mod tests;
