//! The releases of containerd that a node can have, and how each is configured and asked to pull.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Endpoint;
use tonic_prost::ProstCodec;

use crate::node::{OVERLAYFS, SOCI};

/// A release series.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Series {
    /// 2.1 or later; pulls by its transfer service.
    #[default]
    Current,
    /// 1.7; only its CRI tells snapshotters about images, so pulls go through that.
    V1_7,
}

/// Where a containerd keeps what.
#[derive(Debug)]
pub(crate) struct Places<'a> {
    pub root: PathBuf,
    pub state: PathBuf,
    pub socket: &'a Path,
    pub soci_socket: &'a Path,
    pub soci_root: &'a Path,
}

impl Series {
    /// A program of this series, as [`crate::Program::tool`] takes it.
    pub fn program(self, name: &str) -> String {
        match self {
            Self::Current => name.to_owned(),
            Self::V1_7 => format!("containerd-1.7/{name}"),
        }
    }

    /// The namespace of the images that a pull gives.
    pub fn namespace(self) -> &'static str {
        match self {
            Self::Current => "default",
            Self::V1_7 => "k8s.io",
        }
    }

    pub(crate) fn config(self, places: &Places<'_>, oracle_only: bool) -> String {
        let common = format!(
            "root = \"{}\"\nstate = \"{}\"\ndisabled_plugins = [{}]\n\
             [grpc]\naddress = \"{socket}\"\n[ttrpc]\naddress = \"{socket}.ttrpc\"\n\
             [proxy_plugins.soci]\ntype = \"snapshot\"\naddress = \"{}\"\n",
            places.root.display(),
            places.state.display(),
            self.disabled(),
            places.soci_socket.display(),
            socket = places.socket.display(),
        );
        match self {
            Self::Current => {
                let exports = format!(
                    "[proxy_plugins.soci.exports]\nroot = \"{}\"\nenable_remote_snapshot_annotations = \"true\"\n",
                    places.soci_root.display()
                );
                format!("version = 3\n{common}{exports}{}", unpack(oracle_only))
            }
            Self::V1_7 => format!(
                "version = 2\n{common}[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n\
                 snapshotter = \"{SOCI}\"\ndisable_snapshot_annotations = false\n"
            ),
        }
    }

    fn disabled(self) -> String {
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
            Self::Current => [&cri[..], &snapshotters[..]].concat().join(", "),
            Self::V1_7 => snapshotters.join(", "),
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

#[derive(Clone, PartialEq, prost::Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PullImageRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PullImageResponse {
    #[prost(string, tag = "1")]
    image_ref: String,
}

/// Pulls an image as a kubelet does, with the snapshotter that the CRI is configured for.
pub(crate) fn pull_by_cri(socket: &Path, reference: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let request = PullImageRequest {
        image: Some(ImageSpec {
            image: reference.to_owned(),
        }),
    };
    let pull = async {
        let channel = Endpoint::from_shared(format!("unix://{}", socket.display()))?
            .connect()
            .await?;
        let mut client = Grpc::new(channel);
        client.ready().await?;
        let method = PathAndQuery::from_static("/runtime.v1.ImageService/PullImage");
        let codec = ProstCodec::<PullImageRequest, PullImageResponse>::default();
        client
            .unary(tonic::Request::new(request), method, codec)
            .await?;
        Ok::<(), anyhow::Error>(())
    };
    runtime
        .block_on(async { tokio::time::timeout(Duration::from_secs(120), pull).await })
        .context("the CRI does not answer")?
}
