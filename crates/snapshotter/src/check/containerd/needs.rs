//! Judges containerd's settings.
//!
//! Three things must be true. containerd knows the snapshotter (`proxy_plugins.soci`). The CRI uses
//! it. And the labels that name the image reach it: the CRI passes them if
//! `disable_snapshot_annotations` is off, the transfer service (containerd 2.1 or later) if the
//! proxy plugin asks for them and `unpack_config` lists the snapshotter.

use toml::{Table, Value};

use super::super::row::Level;
use super::setting::Setting;

/// The oldest version of the configuration with the sections below.
pub(super) const OLDEST_VERSION: i64 = 2;

/// The name of the snapshotter in containerd.
const SOCI: &str = "soci";
const PROXY: &[&str] = &["proxy_plugins", SOCI];
const EXPORTS: &[&str] = &["proxy_plugins", SOCI, "exports"];
const TRANSFER: &[&str] = &[
    "plugins",
    "io.containerd.transfer.v1.local",
    "unpack_config",
];
/// containerd's snapshotter when nothing is configured.
const DEFAULT_SNAPSHOTTER: &str = "overlayfs";

/// What the settings must agree with.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// Path of the daemon's socket.
    pub(super) address: String,
    /// The daemon's state directory, without a slash at its end.
    pub(super) root: String,
    /// Whether this machine is a node of a cluster. Otherwise pods do not matter.
    pub(super) kubelet: bool,
}

/// A judgement on some settings.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Finding {
    pub(super) name: &'static str,
    pub(super) level: Level,
    pub(super) found: String,
    /// The settings to add, if it is not ok.
    pub(super) missing: Vec<Setting>,
}

impl Finding {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            level: Level::Ok,
            found: found.into(),
            missing: Vec::new(),
        }
    }
}

/// Judges a configuration of version 2 or later.
pub(super) fn findings(version: i64, config: &Table, wanted: &Wanted) -> Vec<Finding> {
    let cri = Cri::of(version);
    let mut findings = vec![plugin(version, config, wanted), cri.finding(config, wanted)];
    if version >= 3 {
        findings.push(transfer(config, cri.passes_labels(config)));
    }
    findings
}

/// The value at a path.
fn at<'a>(config: &'a Table, path: &[&str], key: &str) -> Option<&'a Value> {
    let mut table = config;
    for name in path {
        table = table.get(*name)?.as_table()?;
    }
    table.get(key)
}

fn text<'a>(config: &'a Table, path: &[&str], key: &str) -> Option<&'a str> {
    at(config, path, key)?.as_str()
}

fn plugin(version: i64, config: &Table, wanted: &Wanted) -> Finding {
    const NAME: &str = "containerd plugin";
    let labels =
        (version >= 3).then(|| Setting::key(EXPORTS, "enable_remote_snapshot_annotations", "true"));
    let (kind, address) = (text(config, PROXY, "type"), text(config, PROXY, "address"));
    let bare = address.map(|address| address.trim_start_matches("unix://"));
    if kind != Some("snapshot") || bare != Some(wanted.address.as_str()) {
        let found = match address {
            None => "containerd has no proxy plugin \"soci\"".to_owned(),
            Some(address) => format!(
                "proxy plugin \"soci\" has address {address:?}, the daemon listens at {:?}",
                wanted.address
            ),
        };
        let settings = [
            Setting::key(PROXY, "type", "snapshot"),
            Setting::key(PROXY, "address", wanted.address.as_str()),
            // For pods with `hostUsers: false`, see `snapshots::ids`.
            Setting::key(PROXY, "capabilities", vec!["remap-ids"]),
            Setting::key(EXPORTS, "root", wanted.root.as_str()),
        ];
        return Finding {
            name: NAME,
            level: Level::Problem,
            found,
            missing: settings.into_iter().chain(labels).collect(),
        };
    }
    let root = text(config, EXPORTS, "root").map(|root| root.trim_end_matches('/'));
    if root != Some(wanted.root.as_str()) {
        return Finding {
            name: NAME,
            level: Level::Warning,
            found: format!(
                "exports.root is {}: the kubelet does not see how much disk the images use",
                root.map_or_else(|| "not set".to_owned(), |root| format!("{root:?}"))
            ),
            missing: vec![Setting::key(EXPORTS, "root", wanted.root.as_str())],
        };
    }
    Finding::ok(NAME, format!("proxy plugin \"soci\" at {}", wanted.address))
}

/// Where the settings of the CRI are in a version of the configuration.
struct Cri {
    table: &'static [&'static str],
    /// Plugins of which each, if disabled, means that there is no CRI.
    plugins: &'static [&'static str],
    transfers: bool,
}

impl Cri {
    fn of(version: i64) -> Self {
        match version {
            ..=2 => Self {
                table: &["plugins", "io.containerd.grpc.v1.cri", "containerd"],
                plugins: &["io.containerd.grpc.v1.cri", "cri"],
                transfers: false,
            },
            3.. => Self {
                table: &["plugins", "io.containerd.cri.v1.images"],
                plugins: &["io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri"],
                transfers: true,
            },
        }
    }

    fn is_disabled(&self, config: &Table) -> bool {
        let disabled = config.get("disabled_plugins").and_then(Value::as_array);
        let mut names = disabled.into_iter().flatten().filter_map(Value::as_str);
        names.any(|name| self.plugins.contains(&name))
    }

    fn flag(&self, config: &Table, key: &str) -> Option<bool> {
        at(config, self.table, key)?.as_bool()
    }

    /// Whether the CRI itself passes the labels.
    fn passes_labels(&self, config: &Table) -> bool {
        self.flag(config, "disable_snapshot_annotations") == Some(false)
    }

    fn finding(&self, config: &Table, wanted: &Wanted) -> Finding {
        const NAME: &str = "containerd cri";
        if self.is_disabled(config) {
            return Finding::ok(NAME, "the CRI is disabled: no pods on this machine");
        }
        let level = match wanted.kubelet {
            true => Level::Problem,
            false => Level::Warning,
        };
        let labels = Setting::key(self.table, "disable_snapshot_annotations", false);
        let snapshotter = text(config, self.table, "snapshotter");
        if snapshotter != Some(SOCI) {
            return Finding {
                name: NAME,
                level,
                found: format!(
                    "images of pods use snapshotter {:?}",
                    snapshotter.unwrap_or(DEFAULT_SNAPSHOTTER)
                ),
                missing: vec![Setting::key(self.table, "snapshotter", SOCI), labels],
            };
        }
        if self.passes_labels(config) {
            return Finding::ok(NAME, "images of pods use snapshotter \"soci\"");
        }
        let local = self.flag(config, "use_local_image_pull") == Some(true);
        if self.transfers && !local && transfers(config) {
            return Finding::ok(
                NAME,
                "images of pods use snapshotter \"soci\" and, with containerd 2.1 or later, the transfer service",
            );
        }
        Finding {
            name: NAME,
            level: Level::Problem,
            found: "images of pods use snapshotter \"soci\", but it does not learn their names"
                .to_owned(),
            missing: vec![labels],
        }
    }
}

/// Whether the transfer service is set up.
fn transfers(config: &Table) -> bool {
    asks_for_labels(config) && unpacks(config)
}

fn asks_for_labels(config: &Table) -> bool {
    text(config, EXPORTS, "enable_remote_snapshot_annotations") == Some("true")
}

/// The elements of `unpack_config`.
fn unpack_config(config: &Table) -> Option<&Vec<Value>> {
    let (key, table) = TRANSFER.split_last()?;
    at(config, table, key)?.as_array()
}

fn unpacks(config: &Table) -> bool {
    let elements = unpack_config(config).into_iter().flatten();
    let mut tables = elements.filter_map(Value::as_table);
    tables.any(|element| element.get("snapshotter").and_then(Value::as_str) == Some(SOCI))
}

fn transfer(config: &Table, cri_passes_labels: bool) -> Finding {
    const NAME: &str = "containerd transfer";
    if transfers(config) {
        return Finding::ok(
            NAME,
            "the transfer service (ctr, nerdctl) can use the snapshotter",
        );
    }
    let mut missing = Vec::new();
    if !asks_for_labels(config) {
        missing.push(Setting::key(
            EXPORTS,
            "enable_remote_snapshot_annotations",
            "true",
        ));
    }
    if !unpacks(config) {
        // A list replaces containerd's default, which other users may rely on.
        if unpack_config(config).is_none() {
            missing.push(unpack(DEFAULT_SNAPSHOTTER));
        }
        missing.push(unpack(SOCI));
    }
    let found = match cri_passes_labels {
        true => "`ctr` and nerdctl cannot pull lazily",
        false => "the transfer service does not use the snapshotter",
    };
    Finding {
        name: NAME,
        level: Level::Warning,
        found: found.to_owned(),
        missing,
    }
}

fn unpack(snapshotter: &str) -> Setting {
    let element = [("platform", "linux"), ("snapshotter", snapshotter)];
    let element = element.map(|(key, value)| (key.to_owned(), Value::from(value)));
    Setting::Element {
        array: TRANSFER.to_vec(),
        element: Table::from_iter(element),
    }
}

#[cfg(test)]
mod tests;
