//! A CNI plugin for pods that must have a network of their own, which no test uses: it reports an
//! address and changes nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Result;

const CONFIG: &str = r#"{"cniVersion":"1.0.0","name":"unused","plugins":[{"type":"unused"}]}"#;
const PLUGIN: &str = r#"#!/bin/sh
case $CNI_COMMAND in
ADD) printf '{"cniVersion":"1.0.0","interfaces":[{"name":"%s","sandbox":"%s"}],"ips":[{"address":"192.0.2.1/24","interface":0}]}' "$CNI_IFNAME" "$CNI_NETNS" ;;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0","1.0.0"]}' ;;
esac
"#;

/// Directories of a CNI configuration.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) config: PathBuf,
    pub(crate) plugins: PathBuf,
}

impl Network {
    /// The directories below a directory of a node.
    pub(crate) fn below(folder: &Path) -> Self {
        let folder = folder.join("cni");
        Self {
            config: folder.join("net.d"),
            plugins: folder.join("bin"),
        }
    }

    /// Writes the configuration and the plugins. containerd asks for `loopback` too.
    pub(crate) fn write(&self) -> Result<()> {
        fs::create_dir_all(&self.config)?;
        fs::create_dir_all(&self.plugins)?;
        fs::write(self.config.join("10-unused.conflist"), CONFIG)?;
        for name in ["unused", "loopback"] {
            let path = self.plugins.join(name);
            fs::write(&path, PLUGIN)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    }
}
