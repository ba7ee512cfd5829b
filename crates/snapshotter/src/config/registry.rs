//! Keys of registry settings that the node shares with containerd.

use std::path::PathBuf;

use super::declare::table;

/// As in containerd's CRI plugin.
const CONFIG_PATH: &str = "/etc/containerd/certs.d:/etc/docker/certs.d";

table! {
    /// Registry settings that the node shares with containerd: [registries.md](registries.md).
    pub struct RegistryTable {
        /// Folders with containerd's `hosts.toml` and Docker's `certs.d`, separated by colons; empty
        /// means none.
        config_path: String = CONFIG_PATH.to_owned(), ours;
    }
}

impl RegistryTable {
    /// The folders, in order of preference.
    #[must_use]
    pub fn folders(&self) -> Vec<PathBuf> {
        let paths = self.config_path.split(':');
        paths
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
            .collect()
    }
}
