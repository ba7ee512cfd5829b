//! `NO_PROXY`: which addresses are asked without a proxy, by Go's rules.
//!
//! The HTTP library has rules of its own, without ports and without `*` for addresses. This list
//! comes first, so that a setting that works for containerd works here.

use std::net::IpAddr;

use ipnet::IpNet;
use reqwest::Url;

use crate::hosts::is_this_machine;

/// The addresses that are asked directly.
#[derive(Debug, Default)]
pub(crate) struct NoProxy(Vec<Entry>);

#[derive(Debug)]
struct Entry {
    hosts: Hosts,
    port: Option<u16>,
}

#[derive(Debug, PartialEq, Eq)]
enum Hosts {
    All,
    Network(IpNet),
    Address(IpAddr),
    /// With a leading dot. `below_only` excludes the domain itself.
    Domain {
        suffix: String,
        below_only: bool,
    },
}

impl NoProxy {
    /// Reads the list from the environment.
    pub(crate) fn from_env() -> NoProxy {
        let lists = ["NO_PROXY", "no_proxy"].map(|name| std::env::var(name).unwrap_or_default());
        let list = lists.iter().find(|list| !list.is_empty());
        NoProxy::parse(list.map_or("", String::as_str))
    }

    fn parse(list: &str) -> NoProxy {
        let entries = list.split(',').map(str::trim);
        let entries = entries.filter(|entry| !entry.is_empty());
        NoProxy(entries.map(|it| Entry::parse(&it.to_lowercase())).collect())
    }

    /// Whether to ask this address without a proxy. True for `localhost` and loopback addresses.
    pub(crate) fn includes(&self, url: &Url) -> bool {
        if is_this_machine(url) {
            return true;
        }
        let host = url.host_str().unwrap_or_default().to_lowercase();
        let host = host.trim_start_matches('[').trim_end_matches([']', '.']);
        let port = url.port_or_known_default();
        self.0.iter().any(|entry| entry.includes(host, port))
    }
}

impl Entry {
    fn parse(text: &str) -> Entry {
        if text == "*" {
            let hosts = Hosts::All;
            return Entry { hosts, port: None };
        }
        if let Ok(network) = text.parse() {
            let hosts = Hosts::Network(network);
            return Entry { hosts, port: None };
        }
        let (host, port) = match text.rsplit_once(':') {
            // More colons belong to an address, unless it is in brackets.
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                (host, port.parse().ok())
            }
            _ => (text, None),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let hosts = match host.parse() {
            Ok(address) => Hosts::Address(address),
            Err(_) => {
                let domain = host.strip_prefix('*').unwrap_or(host);
                let below_only = domain.starts_with('.');
                let domain = domain.trim_start_matches('.');
                Hosts::Domain {
                    suffix: format!(".{domain}"),
                    below_only,
                }
            }
        };
        Entry { hosts, port }
    }

    fn includes(&self, host: &str, port: Option<u16>) -> bool {
        let address = || host.parse::<IpAddr>().ok();
        let is_host = match &self.hosts {
            Hosts::All => true,
            Hosts::Network(network) => address().is_some_and(|it| network.contains(&it)),
            Hosts::Address(one) => address().is_some_and(|it| it == *one),
            Hosts::Domain { suffix, below_only } => {
                host.ends_with(suffix) || !below_only && *host == suffix[1..]
            }
        };
        is_host && self.port.is_none_or(|wanted| port == Some(wanted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_excluded_by_gos_rules() {
        for (list, address, excluded) in [
            ("", "http://r.example", false),
            ("", "http://localhost:5000", true),
            ("", "https://127.8.9.1", true),
            ("", "http://[::1]:5000", true),
            ("*", "http://r.example", true),
            ("*", "http://192.0.2.1:5000", true),
            ("r.example", "https://r.example:5000", true),
            ("r.example", "https://a.r.example", true),
            ("r.example", "https://other.example", false),
            ("r.example", "https://bar.example", false),
            ("ar.example", "https://bar.example", false),
            (".r.example", "https://a.r.example", true),
            (".r.example", "https://r.example", false),
            ("*.r.example", "https://a.r.example", true),
            ("*.r.example", "https://r.example", false),
            ("R.Example", "https://r.EXAMPLE", true),
            ("r.example:5000", "http://r.example:5000", true),
            ("r.example:5000", "http://r.example", false),
            ("r.example:443", "https://r.example", true),
            ("x, 10.0.0.0/8", "http://10.1.2.3:5000", true),
            ("10.0.0.0/8", "http://11.1.2.3", false),
            ("192.0.2.1", "http://192.0.2.1:5000", true),
            ("192.0.2.1:80", "http://192.0.2.1:5000", false),
            ("2001:db8::1", "http://[2001:db8::1]:5000", true),
            ("[2001:db8::1]:5000", "http://[2001:db8::1]:5000", true),
            ("[2001:db8::1]:5000", "http://[2001:db8::1]", false),
            ("2001:db8::/32", "https://[2001:db8::9]", true),
            (",, ,", "http://r.example", false),
        ] {
            let url = Url::parse(address).expect(address);
            assert_eq!(
                NoProxy::parse(list).includes(&url),
                excluded,
                "{list} {address}"
            );
        }
    }
}
