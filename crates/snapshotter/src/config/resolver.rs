//! Keys of registry hosts.

use std::collections::BTreeMap;

use serde::Deserialize;

pub(super) const KEYS: &[&str] = &["host"];

/// `[resolver]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Resolver {
    /// Settings per registry, by host name as in image references.
    pub host: BTreeMap<String, Host>,
}

/// `[resolver.host."<registry>"]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Host {
    /// Hosts to try before the registry itself, in order.
    pub mirrors: Vec<Mirror>,
}

/// One mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Mirror {
    /// `host[:port][/path]`, with or without a scheme.
    pub host: String,
    /// Whether to use plain HTTP.
    pub insecure: bool,
    /// Timeout in seconds; 0 means that of `[http]`, negative means none.
    pub request_timeout_sec: i64,
}
