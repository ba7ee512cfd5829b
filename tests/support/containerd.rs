//! The supported releases of containerd, their configuration, and how they pull.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::network::Network;
use crate::node::{NodeOptions, OVERLAYFS, SOCI};

/// The namespace of the CRI.
const PODS: &str = "k8s.io";

/// A release series.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Series {
    /// 2.1 or later; pulls with its transfer service.
    #[default]
    Current,
    /// 1.7; only its CRI passes image labels to snapshotters, so pulls use the CRI.
    V1_7,
}

/// Paths of a containerd.
#[derive(Debug)]
pub(crate) struct Places<'a> {
    pub root: PathBuf,
    pub state: PathBuf,
    pub socket: &'a Path,
    pub soci_socket: &'a Path,
    pub soci_root: &'a Path,
    pub network: &'a Network,
}

impl Series {
    /// A program of this series, see [`crate::Program::tool`].
    pub fn program(self, name: &str) -> String {
        match self {
            Self::Current => name.to_owned(),
            Self::V1_7 => format!("containerd-1.7/{name}"),
        }
    }

    /// The namespace of pulled images.
    pub(crate) fn namespace(self, pods: bool) -> &'static str {
        match self {
            Self::Current if !pods => "default",
            Self::Current | Self::V1_7 => PODS,
        }
    }

    pub(crate) fn config(self, places: &Places<'_>, options: &NodeOptions) -> Result<String> {
        let mut text = format!(
            "version = {}\nroot = \"{}\"\nstate = \"{}\"\ndisabled_plugins = [{}]\n\
             [grpc]\naddress = \"{socket}\"\n[ttrpc]\naddress = \"{socket}.ttrpc\"\n",
            match self {
                Self::Current => 3,
                Self::V1_7 => 2,
            },
            places.root.display(),
            places.state.display(),
            self.disabled(options.sandbox.is_some()),
            socket = places.socket.display(),
        );
        if !options.fixed {
            text += &self.snapshotter(places, options);
        }
        if let Some(image) = options.sandbox.as_deref() {
            text += &match self {
                Self::Current => pods(image, places.network),
                Self::V1_7 => pods_1_7(image),
            };
        }
        if options.remaps && self == Self::Current {
            text += &runtime_with_mapped_mounts()?;
        }
        Ok(text)
    }

    /// Registers our snapshotter, and lets pods use it.
    fn snapshotter(self, places: &Places<'_>, options: &NodeOptions) -> String {
        let remaps = match options.remaps {
            true => "capabilities = [\"remap-ids\"]\n",
            false => "",
        };
        let plugin = format!(
            "[proxy_plugins.soci]\ntype = \"snapshot\"\naddress = \"{}\"\n{remaps}",
            places.soci_socket.display(),
        );
        match self {
            Self::Current => format!(
                "{plugin}[proxy_plugins.soci.exports]\nroot = \"{}\"\n\
                 enable_remote_snapshot_annotations = \"true\"\n{}\
                 [plugins.\"io.containerd.cri.v1.images\"]\nsnapshotter = \"{SOCI}\"\n",
                places.soci_root.display(),
                unpack(options.oracle_only),
            ),
            Self::V1_7 => format!(
                "{plugin}[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n\
                 snapshotter = \"{SOCI}\"\ndisable_snapshot_annotations = false\n"
            ),
        }
    }

    fn disabled(self, pods: bool) -> String {
        let snapshotters = ["blockfile", "btrfs", "devmapper", "erofs", "zfs"]
            .map(|name| format!("\"io.containerd.snapshotter.v1.{name}\""));
        let cri = [
            "cri.v1.images",
            "cri.v1.runtime",
            "grpc.v1.cri",
            "nri.v1.nri",
        ]
        .map(|name| format!("\"io.containerd.{name}\""));
        match self {
            Self::Current if !pods => [&cri[..], &snapshotters[..]].concat().join(", "),
            Self::Current | Self::V1_7 => snapshotters.join(", "),
        }
    }
}

fn unpack(oracle_only: bool) -> String {
    let snapshotters = if oracle_only {
        &[OVERLAYFS][..]
    } else {
        &[OVERLAYFS, SOCI]
    };
    let entry = |snapshotter: &&str| {
        format!(
            "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n\
             platform = \"linux/amd64\"\nsnapshotter = \"{snapshotter}\"\n"
        )
    };
    snapshotters.iter().map(entry).collect()
}

/// Configures the CRI, as on a Kubernetes node. It does not request an OOM score below its own,
/// which requires a capability that root in a container lacks.
fn pods(sandbox: &str, network: &Network) -> String {
    let (plugins, config) = (network.plugins.display(), network.config.display());
    format!(
        "[plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = \"{sandbox}\"\n\
         [plugins.\"io.containerd.cri.v1.runtime\"]\nrestrict_oom_score_adj = true\n\
         [plugins.\"io.containerd.cri.v1.runtime\".cni]\n\
         bin_dir = \"{plugins}\"\nconf_dir = \"{config}\"\n"
    )
}

/// A pod in a user namespace needs a runc that maps the IDs of mounts: 1.2 or later.
fn runtime_with_mapped_mounts() -> Result<String> {
    let runc = crate::process::tool("runc-1.3/runc")?;
    Ok(format!(
        "[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc]\n\
         runtime_type = \"io.containerd.runc.v2\"\n\
         [plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc.options]\n\
         BinaryName = \"{}\"\nSystemdCgroup = false\n",
        runc.display()
    ))
}

/// The same for containerd 1.7.
fn pods_1_7(sandbox: &str) -> String {
    format!(
        "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{sandbox}\"\n\
         restrict_oom_score_adj = true\n"
    )
}
