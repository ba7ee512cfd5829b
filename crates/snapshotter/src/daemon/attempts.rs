//! Makes layers available at the start, or, if the disk was full then, every minute and on request.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use soci_registry::credentials::Credentials;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, error, info, warn};

use super::parts;
use super::way::{self, NotNow, Taken};
use crate::config::Config;
use crate::cpu::Cpu;
use crate::device::{Device, KeptDevice};
use crate::image::{Images, Mounts};
use crate::mount::thread::MountThread;
use crate::snapshots::late::{Asked, Ready};
use crate::snapshots::{Late, Snapshotter};
use crate::sync::Arc;

/// How often to try without a request.
const EVERY: Duration = Duration::from_secs(60);
/// Minimum pause between attempts.
const PAUSE: Duration = Duration::from_secs(1);

/// What is needed to make layers available.
pub(super) struct Attempts {
    pub(super) root: PathBuf,
    pub(super) config: Config,
    pub(super) credentials: Arc<dyn Credentials>,
    pub(super) cpu: Arc<Cpu>,
    pub(super) thread: MountThread,
    /// The device of an earlier process, for the first attempt.
    pub(super) kept: Option<KeptDevice>,
    /// Already started; only the images are missing.
    pub(super) way: Option<Taken>,
}

impl Attempts {
    /// Tries once.
    pub(super) async fn images(&mut self) -> Result<Images, NotNow> {
        let way = match self.way.take() {
            Some(way) => way,
            None => {
                let choice = self.config.snapshotter.mount;
                way::take(&self.root, choice, &self.thread, self.kept.take()).await?
            }
        };
        let mounts = Mounts::new(Arc::clone(&way.mounter), Arc::clone(&way.device));
        let credentials = Arc::clone(&self.credentials);
        let images = parts::images(
            &self.root,
            &self.config,
            credentials,
            &self.cpu,
            mounts,
            way.chosen.way,
        );
        self.way = Some(way);
        images.map_err(|error| NotNow {
            reason: format!("cannot store layers: {error:#}"),
            again: true,
        })
    }

    /// Restores mounted layers and accepts requests for layers from now on.
    pub(super) async fn serve(
        &self,
        images: Images,
        snapshotter: &Snapshotter,
        late: &Late,
        tasks: &mut JoinSet<()>,
    ) -> anyhow::Result<()> {
        let used = snapshotter.used_layers().await?;
        let way = self.way.as_ref();
        images.adopt(&used, way.is_some_and(|way| way.moved)).await;
        images.let_go().await;
        parts::scrubs(&self.root, &self.config, &images, tasks);
        let xino = way.is_some_and(|way| way.chosen.xino);
        late.set(Ready { images, xino });
        tasks.spawn(snapshotter.clone().follow_verdicts());
        tasks.spawn(snapshotter.clone().keep_room());
        Ok(())
    }

    /// The device, if it has been started.
    pub(super) fn device(&self) -> Option<Arc<Device>> {
        self.way.as_ref().map(|way| Arc::clone(&way.device))
    }

    /// Tries until it succeeds, then runs the background tasks of layers.
    pub(super) async fn go_on(
        mut self,
        mut asked: Asked,
        snapshotter: Snapshotter,
        late: Late,
        devices: watch::Sender<Option<Arc<Device>>>,
    ) {
        let mut tasks = JoinSet::new();
        let mut last: Option<Instant> = None;
        loop {
            let who = tokio::time::timeout(EVERY, asked.recv()).await;
            let who = match who {
                Ok(Some(who)) => Some(who),
                // All senders are gone: the daemon ends.
                Ok(None) => return,
                Err(_) => None,
            };
            if last.is_none_or(|last| last.elapsed() >= PAUSE) {
                let served = match self.images().await {
                    Ok(images) => self.serve(images, &snapshotter, &late, &mut tasks).await,
                    Err(NotNow { reason, .. }) => Err(anyhow::anyhow!(reason)),
                };
                devices.send_replace(self.device());
                match served {
                    Ok(()) => break,
                    Err(error) => debug!(
                        error = format!("{error:#}"),
                        "layers are still not available"
                    ),
                }
                last = Some(Instant::now());
            }
            // Dropping it has the same effect as an answer.
            drop(who);
        }
        if let Some(device) = self.device() {
            device.restored();
        }
        info!("layers can be mounted from now on");
        drop(asked);
        // Dropping the set ends its tasks.
        while tasks.join_next().await.is_some() {}
    }
}

/// Logs why layers are not available.
pub(super) fn complain(root: &Path, why: &NotNow) {
    let reason = why.reason.as_str();
    if why.again {
        warn!(
            reason,
            root = root.display().to_string(),
            "the disk is full, leaving layers to containerd until there is space (retried every minute and on each request for a layer)"
        );
    } else {
        error!(
            reason,
            "this machine cannot mount layers, leaving every layer to containerd"
        );
    }
}
