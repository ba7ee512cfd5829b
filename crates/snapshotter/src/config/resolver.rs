//! Keys of registry hosts.

use std::collections::BTreeMap;

use super::declare::{TABLE, Value, table};

table! {
    /// Registry hosts and the sharing of tokens.
    pub struct Resolver {
        /// Seconds for which a client of a registry is kept; negative means for ever.
        auth_client_ttl_sec: i64 = 3_600, zero_is_default, unused;
        /// Shares clients between images of a registry.
        enable_auth_client_sharing: bool = false, unused;
        /// Settings per registry, by host name as in image references.
        host: BTreeMap<String, Host> = BTreeMap::new();
    }
}

table! {
    /// Settings of one registry.
    pub struct Host {
        /// Hosts to ask before the registry itself, in order.
        mirrors: Vec<Mirror> = Vec::new();
    }
}

table! {
    /// One mirror.
    pub struct Mirror {
        /// `host[:port][/path]`, with or without a scheme.
        host: String = String::new();
        /// Uses plain HTTP for this mirror.
        insecure: bool = false;
        /// Time limit in seconds for the headers of an answer; 0 or negative means that of `[http]`.
        request_timeout_sec: i64 = 0;
    }
}

impl Value for BTreeMap<String, Host> {
    const KIND: &'static str = TABLE;

    fn toml(&self) -> String {
        String::new()
    }
}

impl Value for Vec<Mirror> {
    const KIND: &'static str = TABLE;

    fn toml(&self) -> String {
        String::new()
    }
}
