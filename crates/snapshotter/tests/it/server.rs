//! A real server on a private socket and state directory, and a client.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, mount_bind_recursive, mount_remount, move_mount, unmount,
};
use soci_snapshotter::config::Config;
use soci_snapshotter::cpu::Cpu;
use soci_snapshotter::daemon::{Daemon, Root};
use soci_snapshotter::device::Device;
use soci_snapshotter::grpc;
use soci_snapshotter::grpc::proto::containerd::services::snapshots::v1 as api;
use soci_snapshotter::grpc::proto::containerd::types::Mount;
use soci_snapshotter::mount::thread::MountThread;
use soci_snapshotter::snapshots::metadata::OpenError;
use soci_snapshotter::snapshots::{Late, Options, Parts, Snapshotter, StartError};
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};

use crate::process::LONG;

pub(crate) type Labels = BTreeMap<String, String>;
pub(crate) type Client = api::snapshots_client::SnapshotsClient<Channel>;

pub(crate) fn labels(of: &[(&str, &str)]) -> Labels {
    of.iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

/// A connection to the socket at `path`.
pub(crate) async fn channel(path: PathBuf) -> Channel {
    let connect = tower::service(path);
    let endpoint = Endpoint::from_static("http://socket");
    endpoint.connect_with_connector(connect).await.unwrap()
}

/// A client of the socket at `path`.
pub(crate) async fn connect(path: PathBuf) -> Client {
    Client::new(channel(path).await)
}

/// A Prepare request in a namespace of containerd.
pub(crate) fn prepare_request(
    namespace: &'static str,
    key: &str,
    parent: &str,
    labels: Labels,
) -> Request<api::PrepareSnapshotRequest> {
    let (key, parent) = (key.to_owned(), parent.to_owned());
    let message = api::PrepareSnapshotRequest {
        key,
        parent,
        labels,
        ..Default::default()
    };
    let mut request = Request::new(message);
    let namespace = namespace.parse().unwrap();
    request
        .metadata_mut()
        .insert("containerd-namespace", namespace);
    request
}

/// The service of a daemon with its own state directory.
pub(crate) struct Server {
    pub(crate) client: Client,
    serving: JoinSet<()>,
    daemon: Option<Daemon>,
    pub(crate) root: TempDir,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_on(TempDir::new().unwrap()).await
    }

    /// Starts a server without layers, on a state directory that may have been used before.
    pub(crate) async fn start_on(root: TempDir) -> Self {
        let parts = || Parts {
            cpu: Cpu::new(NonZeroUsize::MIN).unwrap(),
            mounts: MountThread::start().unwrap(),
            images: Late::never(),
        };
        let at = root.path().canonicalize().unwrap();
        let begun = Instant::now();
        let snapshotter = loop {
            match Snapshotter::open(&at, parts(), Options::default()) {
                // A connection of the server before holds the records for a moment longer.
                Err(StartError::Records(OpenError::Locked { .. })) if begun.elapsed() < LONG => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                opened => break opened.unwrap(),
            }
        };
        Self::serve(root, snapshotter, None).await
    }

    /// Starts all parts of the daemon.
    pub(crate) async fn daemon_on(root: TempDir, config: &Config) -> Self {
        let taken = Root::take(root.path()).unwrap();
        let daemon = Daemon::start(taken, config, None).await.unwrap();
        Self::serve(root, daemon.snapshotter.clone(), Some(daemon)).await
    }

    async fn serve(root: TempDir, snapshotter: Snapshotter, daemon: Option<Daemon>) -> Self {
        let path = root.path().join("s.sock");
        drop(std::fs::remove_file(&path));
        let connections = UnixListenerStream::new(UnixListener::bind(&path).unwrap());
        let serving = tonic::transport::Server::builder()
            .add_service(grpc::server(snapshotter))
            .serve_with_incoming(connections);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { serving.await.unwrap() });
        let serving = tasks;
        let client = connect(path).await;
        Self {
            client,
            serving,
            daemon,
            root,
        }
    }

    /// Unmounts the layers, as on SIGINT.
    pub(crate) async fn interrupt(mut self) {
        self.serving.shutdown().await;
        if let Some(daemon) = self.daemon.take() {
            daemon.unmount().await.unwrap();
        }
    }

    /// Unmounts the layers, ends the server and returns its state directory.
    pub(crate) async fn stop_unmounted(self) -> TempDir {
        if let Some(daemon) = &self.daemon {
            daemon.unmount().await.unwrap();
        }
        self.stop().await
    }

    /// Ends the server, as on SIGTERM, and returns its state directory. Layers stay mounted.
    pub(crate) async fn stop(self) -> TempDir {
        let Self {
            client,
            mut serving,
            daemon,
            root,
        } = self;
        // Wait until all parts are dropped: each part and connection holds the lock on the records,
        // and the last one unmounts the device.
        drop(client);
        serving.shutdown().await;
        drop(daemon);
        let device = root.path().join("device").display().to_string();
        let mounted = || {
            std::fs::read_to_string("/proc/self/mountinfo")
                .unwrap()
                .contains(&device)
        };
        for _ in 0..1000 {
            if !mounted() {
                return root;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("the device is still mounted");
    }

    /// The device of the daemon.
    pub(crate) fn device(&self) -> Arc<Device> {
        let daemon = self.daemon.as_ref().expect("a daemon");
        daemon.device().expect("layers can be mounted")
    }

    /// Ends the server as on SIGTERM, and leaves its device to the next process.
    pub(crate) async fn leave(mut self) -> TempDir {
        self.serving.shutdown().await;
        self.root
    }

    pub(crate) fn directories(&self) -> PathBuf {
        self.root.path().join("snapshotter/snapshots")
    }

    pub(crate) async fn prepare(&self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        self.prepare_with(key, parent, Labels::new()).await
    }

    pub(crate) async fn prepare_with(
        &self,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>, Status> {
        let (key, parent) = (key.to_owned(), parent.to_owned());
        let request = api::PrepareSnapshotRequest {
            key,
            parent,
            labels,
            ..Default::default()
        };
        Ok(self
            .client
            .clone()
            .prepare(request)
            .await?
            .into_inner()
            .mounts)
    }

    /// A Prepare request in a namespace of containerd.
    pub(crate) async fn prepare_in(
        &self,
        namespace: &'static str,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>, Status> {
        let request = prepare_request(namespace, key, parent, labels);
        Ok(self
            .client
            .clone()
            .prepare(request)
            .await?
            .into_inner()
            .mounts)
    }

    pub(crate) async fn view(&self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        self.view_with(key, parent, Labels::new()).await
    }

    pub(crate) async fn view_with(
        &self,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>, Status> {
        let (key, parent) = (key.to_owned(), parent.to_owned());
        let request = api::ViewSnapshotRequest {
            key,
            parent,
            labels,
            ..Default::default()
        };
        Ok(self.client.clone().view(request).await?.into_inner().mounts)
    }

    pub(crate) async fn mounts(&self, key: &str) -> Result<Vec<Mount>, Status> {
        let request = api::MountsRequest {
            key: key.to_owned(),
            ..Default::default()
        };
        Ok(self
            .client
            .clone()
            .mounts(request)
            .await?
            .into_inner()
            .mounts)
    }

    pub(crate) async fn commit(&self, name: &str, key: &str) -> Result<(), Status> {
        self.commit_with(name, key, Labels::new(), "").await
    }

    pub(crate) async fn commit_with(
        &self,
        name: &str,
        key: &str,
        labels: Labels,
        parent: &str,
    ) -> Result<(), Status> {
        let (name, key, parent) = (name.to_owned(), key.to_owned(), parent.to_owned());
        let request = api::CommitSnapshotRequest {
            name,
            key,
            labels,
            parent,
            ..Default::default()
        };
        self.client.clone().commit(request).await?;
        Ok(())
    }

    pub(crate) async fn remove(&self, key: &str) -> Result<(), Status> {
        let request = api::RemoveSnapshotRequest {
            key: key.to_owned(),
            ..Default::default()
        };
        self.client.clone().remove(request).await?;
        Ok(())
    }

    pub(crate) async fn stat(&self, key: &str) -> Result<api::Info, Status> {
        let request = api::StatSnapshotRequest {
            key: key.to_owned(),
            ..Default::default()
        };
        Ok(self
            .client
            .clone()
            .stat(request)
            .await?
            .into_inner()
            .info
            .unwrap())
    }

    pub(crate) async fn update(
        &self,
        info: api::Info,
        paths: &[&str],
    ) -> Result<api::Info, Status> {
        let paths = paths.iter().map(|&path| path.to_owned()).collect();
        let request = api::UpdateSnapshotRequest {
            info: Some(info),
            update_mask: Some(prost_types::FieldMask { paths }),
            ..Default::default()
        };
        Ok(self
            .client
            .clone()
            .update(request)
            .await?
            .into_inner()
            .info
            .unwrap())
    }

    /// The blocks of a list.
    pub(crate) async fn blocks(&self, filters: &[&str]) -> Result<Vec<Vec<api::Info>>, Status> {
        let filters = filters.iter().map(|&filter| filter.to_owned()).collect();
        let request = api::ListSnapshotsRequest {
            filters,
            ..Default::default()
        };
        let mut stream = self.client.clone().list(request).await?.into_inner();
        let mut blocks = Vec::new();
        while let Some(block) = stream.next().await {
            blocks.push(block?.info);
        }
        Ok(blocks)
    }

    pub(crate) async fn names(&self, filters: &[&str]) -> Vec<String> {
        let blocks = self.blocks(filters).await.unwrap();
        blocks.into_iter().flatten().map(|info| info.name).collect()
    }

    pub(crate) async fn usage(&self, key: &str) -> Result<api::UsageResponse, Status> {
        let request = api::UsageRequest {
            key: key.to_owned(),
            ..Default::default()
        };
        Ok(self.client.clone().usage(request).await?.into_inner())
    }

    pub(crate) async fn cleanup(&self) -> Result<(), Status> {
        self.client
            .clone()
            .cleanup(api::CleanupRequest::default())
            .await?;
        Ok(())
    }

    /// Prepares a snapshot, calls `change` with its mount, and commits it.
    pub(crate) async fn layer(&self, name: &str, parent: &str, change: impl FnOnce(&Path)) {
        let key = format!("{name}-key");
        let mounted = Mounted::new(&self.prepare(&key, parent).await.unwrap());
        change(mounted.path());
        drop(mounted);
        self.commit(name, &key).await.unwrap();
    }

    /// Mounts a view of a committed snapshot.
    pub(crate) async fn viewed(&self, name: &str) -> Mounted {
        Mounted::new(&self.view(&format!("{name}-view"), name).await.unwrap())
    }
}

/// The mounts of a snapshot, made like a runtime does, until dropped.
pub(crate) struct Mounted {
    at: TempDir,
}

impl Mounted {
    pub(crate) fn new(mounts: &[Mount]) -> Self {
        let [mount] = mounts else {
            panic!("expected one mount: {mounts:?}")
        };
        let at = TempDir::new().unwrap();
        match mount.r#type.as_str() {
            "bind" => bind(mount, at.path()),
            "overlay" => overlay(mount, at.path()),
            other => panic!("{other}"),
        }
        Self { at }
    }

    pub(crate) fn path(&self) -> &Path {
        self.at.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(self.at.path(), UnmountFlags::DETACH).unwrap();
    }
}

fn bind(mount: &Mount, at: &Path) {
    mount_bind_recursive(mount.source.as_str(), at).unwrap();
    if mount.options.iter().any(|option| option == "ro") {
        let flags = rustix::mount::MountFlags::RDONLY | rustix::mount::MountFlags::BIND;
        mount_remount(at, flags, "").unwrap();
    }
}

/// Uses the descriptor-based mount API, because the options of a hundred layers exceed a page.
fn overlay(mount: &Mount, at: &Path) {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    for option in &mount.options {
        let (key, value) = option.split_once('=').unwrap();
        if key == "lowerdir" {
            for lower in value.split(':') {
                fsconfig_set_string(&context, "lowerdir+", lower).unwrap();
            }
        } else {
            fsconfig_set_string(&context, key, value).unwrap();
        }
    }
    fsconfig_create(&context).unwrap();
    let mounted = fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .unwrap();
    let nothing = CString::default();
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&mounted, nothing.as_c_str(), rustix::fs::CWD, at, flags).unwrap();
}

mod tower {
    //! The connector of a client on a socket.

    use std::future::Future;
    use std::path::PathBuf;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use super::{UnixStream, Uri};

    pub(super) struct Connect(PathBuf);

    pub(super) fn service(path: PathBuf) -> Connect {
        Connect(path)
    }

    impl tower_service::Service<Uri> for Connect {
        type Response = hyper_util::rt::TokioIo<UnixStream>;
        type Error = std::io::Error;
        type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Uri) -> Self::Future {
            let path = self.0.clone();
            Box::pin(async move {
                Ok(hyper_util::rt::TokioIo::new(
                    UnixStream::connect(path).await?,
                ))
            })
        }
    }
}
