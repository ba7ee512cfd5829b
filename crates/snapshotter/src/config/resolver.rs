//! Keys of the hosts of registries.

use std::collections::BTreeMap;

use serde::Deserialize;

pub(super) const KEYS: &[&str] = &["host"];

/// `[resolver]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Resolver {
    /// What is known about a registry, by its host as image references name it.
    pub host: BTreeMap<String, Host>,
}

/// `[resolver.host."<registry>"]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Host {
    /// Hosts that are asked before the registry itself, in order.
    pub mirrors: Vec<Mirror>,
}

/// One mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Mirror {
    /// `host[:port][/path]`, with or without a scheme.
    pub host: String,
    /// Plain HTTP.
    pub insecure: bool,
    /// Seconds; 0 is the limit of `[http]`, negative is none.
    pub request_timeout_sec: i64,
}
