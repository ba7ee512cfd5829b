//! Builds the parts of the daemon from the configuration, in the order of their dependencies.

use std::num::NonZeroUsize;
use std::path::Path;
use std::thread::{self, available_parallelism};
use std::time::Duration;

use anyhow::Context;
use soci_registry::credentials::Credentials;
use soci_registry::retry::RetryPolicy;
use soci_registry::{HostFolders, Hosts, Mirror, Registry, Trace, Traffic};
use soci_store::layout::Layout;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::attempts::{Attempts, complain};
use super::control;
use super::endpoint::Observer;
use super::leftovers;
use super::root::Root;
use super::scrub::{Background, Scrubber};
use super::sources::Sources;
use crate::config::{
    BackgroundFetch, Blob, Cache, Config, ContentStoreKind, FetchMode, Http, LazyUsage, Trust,
};
use crate::cpu::Cpu;
use crate::cri::ImageService;
use crate::device::{self, Device, KeptDevice};
use crate::fetch::{self, Scheduler};
use crate::image::{self, Content, Images, Modes, Mounts, Parallel, Rules};
use crate::layer::{self, Drops, Layers, Paced, drop_scratch};
use crate::metrics::{self, Answer};
use crate::mount::thread::MountThread;
use crate::mount::{self, Way};
use crate::snapshots::{self, Late, Snapshotter};
use crate::store::LayerStore;
use crate::store::space::Limits;
use crate::sync::Arc;

/// The running parts.
#[derive(Debug)]
pub struct Daemon {
    /// Dropped first.
    devices: Devices,
    /// The service for containerd.
    pub snapshotter: Snapshotter,
    /// The service for the kubelet, if it is enabled.
    pub image_service: Option<ImageService>,
    late: Late,
    /// Ended on drop: scrubs, the control socket, and attempts to make layers available.
    _tasks: JoinSet<()>,
    /// Dropped last, because it holds the lock.
    _root: Root,
}

/// The current device. Dropping it leaves a device that is kept for the next process, so it must be
/// dropped before anything that would answer a READ with an error.
#[derive(Debug)]
struct Devices(watch::Receiver<Option<Arc<Device>>>);

impl Devices {
    fn current(&self) -> Option<Arc<Device>> {
        self.0.borrow().clone()
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        if let Some(device) = self.current().filter(|device| device.is_kept()) {
            device.leave();
        }
    }
}

impl Daemon {
    /// Starts all parts on `root`. `kept` is the device of an earlier process, if any.
    pub async fn start(
        root: Root,
        config: &Config,
        kept: Option<KeptDevice>,
    ) -> anyhow::Result<Self> {
        let lock = root;
        let root = lock.path().to_owned();
        let cores = available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let cpu = Cpu::with_idle(cores, drop_scratch).context("cannot start the thread pool")?;
        let thread = MountThread::start().context("cannot start the mount thread")?;
        let sources = Sources::of(config);
        let image_service = sources.image_service(config);
        let mut attempts = Attempts {
            root: root.clone(),
            config: config.clone(),
            credentials: Arc::new(sources),
            cpu: Arc::clone(&cpu),
            thread: thread.clone(),
            kept,
            way: None,
        };
        let (sender, devices) = watch::channel(None);
        // Keeps the layers until `devices` is dropped, even if the start fails or is dropped.
        let first = attempts.images().await;
        sender.send_replace(attempts.device());
        let (late, asked) = Late::new();
        let parts = snapshots::Parts {
            cpu: Arc::clone(&cpu),
            mounts: thread.clone(),
            images: late.clone(),
        };
        let snapshotter = Snapshotter::open(&root, parts, snapshot_options(config))?;
        let mut tasks = JoinSet::new();
        if Snapshotter::is_reference_running(&root) {
            warn!(
                root = root.display().to_string(),
                "the SOCI snapshotter runs on the same root and damages its state: stop it and restart this daemon"
            );
        } else {
            leftovers::detach(&thread, &root).await;
            tasks.spawn(leftovers::remove(cpu, root.clone()));
        }
        let devices = Devices(devices);
        let again = match &first {
            Ok(images) => {
                attempts
                    .serve(images.clone(), &snapshotter, &late, &mut tasks)
                    .await?;
                false
            }
            Err(why) => {
                complain(&root, why);
                why.again
            }
        };
        if let Some(device) = devices.current() {
            device.restored();
        }
        sweep(&thread, &root).await;
        if again {
            let (snapshotter, late) = (snapshotter.clone(), late.clone());
            tasks.spawn(attempts.go_on(asked, snapshotter, late, sender));
        }
        Ok(Self {
            devices,
            snapshotter,
            image_service,
            late,
            _tasks: tasks,
            _root: lock,
        })
    }

    /// The node's device, if layers can be mounted.
    #[must_use]
    pub fn device(&self) -> Option<Arc<Device>> {
        self.devices.current()
    }

    /// The current device and later changes of it.
    pub(super) fn devices(&self) -> watch::Receiver<Option<Arc<Device>>> {
        self.devices.0.clone()
    }

    /// What a scrape of the metrics reports.
    pub(super) fn observer(&self) -> Observer {
        Observer {
            late: self.late.clone(),
            devices: self.devices(),
        }
    }

    /// Unmounts all layers and the device.
    pub async fn unmount(&self) -> anyhow::Result<()> {
        // First, because an unmount waits for unanswered READs.
        if let Some(device) = self.device() {
            device.stop();
        }
        self.snapshotter.unmount_all().await?;
        Ok(())
    }

    /// Ends the device, unless it is kept for the next process. Dropping `self` is not enough:
    /// cancelled requests still own the device, and its mount would outlive the process.
    pub fn end_device(&self) {
        if let Some(device) = self.device().filter(|device| !device.is_kept()) {
            device.stop();
        }
    }

    /// Writes pending data and records to disk. Waits for a limited time only.
    pub async fn sync(&self) {
        self.snapshotter.sync().await;
        if let Some(images) = self.late.get() {
            images.sync().await;
        }
    }
}

/// Settings of the snapshots.
fn snapshot_options(config: &Config) -> snapshots::Options {
    snapshots::Options {
        userxattr: snapshots::needs_userxattr(),
        skip_support_check: config.service.skip_check_snapshotter_supported,
        rules: Rules {
            parallel: parallel(config),
            min_layer_size: u64::try_from(config.snapshotter.min_layer_size).unwrap_or(0),
            strict: config.snapshotter.strict,
        },
        zero_usage: config.snapshotter.lazy_usage == LazyUsage::Zero,
        verified_only: config.snapshotter.trust == Trust::Verified,
    }
}

/// Starts the background scrub and the control socket.
pub(super) fn scrubs(root: &Path, config: &Config, images: &Images, tasks: &mut JoinSet<()>) {
    let scrubber = Scrubber {
        layers: Arc::clone(images.layers()),
        repairs: Arc::new(images.clone()),
    };
    if let Err(error) = control::serve(root, scrubber.clone(), tasks) {
        warn!(error = %error, "cannot create the control socket, scrubs on demand are not available");
    }
    if let Some(background) = Background::of(&config.snapshotter) {
        tasks.spawn(scrubber.keep_going(background));
    }
}

/// Removes the remains of killed probes. The device must be served, because an unmount waits for
/// READs.
async fn sweep(thread: &MountThread, root: &Path) {
    match mount::sweep_probes(thread, root).await {
        Ok(0) => {}
        Ok(count) => info!(count, "detached the mounts of a killed probe"),
        Err(error) => warn!(
            error = &error as &dyn std::error::Error,
            "cannot detach the mounts of a killed probe"
        ),
    }
}

/// The images of this node, on top of the mounter.
pub(super) fn images(
    root: &Path,
    config: &Config,
    credentials: Arc<dyn Credentials>,
    cpu: &Arc<Cpu>,
    mounts: Mounts,
    way: Way,
) -> anyhow::Result<Images> {
    let registry = Registry::new(registry_options(config), credentials)?;
    let runtime = Handle::current();
    let parallel = &config.pull_modes.parallel_pull_unpack;
    let scheduler = Scheduler::start(
        fetch::Options {
            read_budget: read_budget(&config.blob),
            first_byte: first_byte(&registry_options(config)),
            ..pulls::fetch_options(parallel)?
        },
        &runtime,
    );
    let store = LayerStore::open(root, None).context("cannot open the layer store")?;
    let retries = u32::try_from(config.blob.max_span_verification_retries).unwrap_or(u32::MAX);
    let options = layer::Options {
        trust_headers: config.service.disable_verification,
        // At least one repetition: damage in transit is transient and must not cause an error.
        span_fetches: retries.saturating_add(1).max(2),
        drops_copies: way == Way::File,
        limits: limits(&config.cache),
        pace: pace(&config.background_fetch),
        whole: pulls::whole_options(&config.pull_modes)?,
        notes_starts: config.prefetch.record,
        ..layer::Options::default()
    };
    let layers = Layers::new(
        Arc::new(store),
        Arc::clone(cpu),
        scheduler,
        options,
        &runtime,
    );
    if config.content_store.kind() == ContentStoreKind::Containerd {
        info!("reading indexes and zTOCs from containerd if it has them");
    }
    let own = Layout::create(root.join("content")).context("cannot open the content store")?;
    let containerd = config.content_store.containerd_address.clone().into();
    let mut content = Content::new(own, registry.clone(), containerd);
    if pulls::keeps_layers(config) {
        content = content.keeping_layers();
    }
    let cpu = Arc::clone(cpu);
    let parts = image::Parts {
        layers,
        mounts,
        content,
        registry,
        cpu,
    };
    if config.background_fetch.disable {
        info!("background fetch is disabled");
        if config.snapshotter.trust == Trust::Verified {
            warn!(
                "[snapshotter] trust = \"verified\" requires complete layers: downloading them in the background although background fetch is disabled"
            );
        }
    } else {
        info!("constructing background fetcher");
    }
    Ok(Images::new(parts, image_options(config)))
}

/// The registry client, with the hosts and credentials of this configuration. Must be called within
/// a tokio runtime.
pub fn registry(config: &Config) -> anyhow::Result<Registry> {
    let credentials = Arc::new(Sources::of(config));
    // Does not delay the start. A failure only makes the first connection slower.
    drop(
        thread::Builder::new()
            .name("soci-tls".into())
            .spawn(soci_registry::warm_up),
    );
    Ok(Registry::new(registry_options(config), credentials)?)
}

/// Which images are pulled whole.
fn parallel(config: &Config) -> Parallel {
    let keys = &config.pull_modes.parallel_pull_unpack;
    match keys.enable {
        Some(true) => Parallel::Always,
        Some(false) if !keys.experimental_parallel_pull_as_fallback => Parallel::Never,
        Some(false) | None => Parallel::WithoutIndex,
    }
}

/// The pace of background downloads, if it is configured.
fn pace(background: &BackgroundFetch) -> Option<Paced> {
    (background.mode == FetchMode::Paced).then(|| Paced {
        period: millis(background.fetch_period_msec),
        silence: millis(background.silence_period_msec),
        // Negative means no limit.
        queue: usize::try_from(background.max_queue_size).ok(),
        drops: match background.drops_oldest() {
            false => Drops::Newest,
            true => Drops::Oldest,
        },
    })
}

fn limits(cache: &Cache) -> Limits {
    let bytes = |count| u64::try_from(count).unwrap_or(0);
    Limits {
        min_free: (cache.min_free_bytes != 0).then(|| bytes(cache.min_free_bytes)),
        max_bytes: (cache.max_bytes > 0).then(|| bytes(cache.max_bytes)),
    }
}

fn image_options(config: &Config) -> image::Options {
    image::Options {
        modes: Modes {
            v1: config.pull_modes.soci_v1.enable,
            v2: config.pull_modes.soci_v2.enable,
        },
        // A negative time means no wait.
        patience: seconds(config.service.mount_timeout_sec),
        ahead: config.service.ahead(),
        background: !config.background_fetch.disable || config.snapshotter.trust == Trust::Verified,
        prefetch: config.prefetch.enable,
        replay: config.prefetch.replay,
        user_namespace: snapshots::needs_userxattr(),
        proves_at_once: config.snapshotter.trust == Trust::Verified,
    }
}

/// The read budget, limited to less than half of the kernel's FUSE request timeout, after which the
/// kernel aborts the whole device.
fn read_budget(blob: &Blob) -> Duration {
    let wanted = seconds(blob.read_budget_sec);
    let Some(limit) = device::request_timeout().map(|limit| limit / 2) else {
        return wanted;
    };
    if wanted >= limit {
        let (wanted, limit) = (wanted.as_secs(), limit.as_secs());
        warn!(
            wanted,
            limit,
            "read_budget_sec exceeds half of the kernel's FUSE request timeout, using a lower value"
        );
    }
    // Strictly less, so that the answer arrives first.
    wanted.min(limit.saturating_sub(Duration::from_secs(1)))
}

/// Time to the first byte: enough for all attempts of a source, including the last one's timeouts.
fn first_byte(options: &soci_registry::Options) -> Duration {
    let attempt = options.connect_timeout.saturating_add(options.head_timeout);
    let second = Duration::from_secs(1);
    let attempts = fetch::ATTEMPTS
        .saturating_add(attempt)
        .saturating_add(second);
    attempts.max(fetch::Options::default().first_byte)
}

fn registry_options(config: &Config) -> soci_registry::Options {
    let Http {
        dial_timeout_msec,
        response_header_timeout_msec,
        request_timeout_msec,
        ..
    } = config.http;
    let defaults = soci_registry::Options::default();
    soci_registry::Options {
        connect_timeout: millis(dial_timeout_msec),
        head_timeout: millis(response_header_timeout_msec),
        // In the reference these keys limit whole bodies, which is too short for large layers. Here
        // they limit the time without data, and can only lower the default.
        idle_timeout: defaults
            .idle_timeout
            .min(seconds(config.blob.fetching_timeout_sec))
            .min(millis(request_timeout_msec)),
        retry: retry(
            config.http.max_retries,
            config.http.min_wait_msec,
            config.http.max_wait_msec,
        ),
        blob_retry: retry(
            config.blob.max_retries,
            config.blob.min_wait_msec,
            config.blob.max_wait_msec,
        ),
        blob_patience: fetch::ATTEMPTS,
        hosts: hosts(config),
        trace: Some(Trace::new(count)),
        ..defaults
    }
}

/// Counts the answers of registries.
fn count(traffic: &Traffic<'_>) {
    let answer = match traffic {
        Traffic::Request { .. } => return,
        Traffic::Answer { status } => Answer::of(*status),
        Traffic::Failed { .. } => Answer::Silence,
    };
    metrics::global().requests.inc(answer);
}

fn retry(retries: i64, first_wait: i64, longest_wait: i64) -> RetryPolicy {
    RetryPolicy {
        max_retries: u32::try_from(retries).unwrap_or(0),
        min_wait: millis(first_wait),
        max_wait: millis(longest_wait),
        max_asked: millis(longest_wait),
    }
}

fn hosts(config: &Config) -> Hosts {
    let mirrors = config.resolver.host.iter().map(|(registry, host)| {
        let mirrors = host.mirrors.iter().map(|mirror| Mirror {
            host: mirror.host.clone(),
            insecure: mirror.insecure,
            timeout: (mirror.request_timeout_sec > 0).then(|| seconds(mirror.request_timeout_sec)),
        });
        (registry.clone(), mirrors.collect())
    });
    Hosts {
        mirrors: mirrors.collect(),
        folders: HostFolders::new(config.registry.folders()),
        ..Hosts::default()
    }
}

fn seconds(count: i64) -> Duration {
    Duration::from_secs(u64::try_from(count).unwrap_or(0))
}

fn millis(count: i64) -> Duration {
    Duration::from_millis(u64::try_from(count).unwrap_or(0))
}

mod pulls;
#[cfg(test)]
mod tests;
