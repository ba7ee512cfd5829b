//! Builds the daemon from arguments and configuration, and serves until a signal.
//!
//! Start: descriptors and limits, configuration, the state directory (locked by one daemon), the
//! socket, the parts, serving, and then a notification to systemd. Once the socket exists, clients
//! wait instead of failing. The start needs neither a registry nor containerd.
//!
//! End: no new requests; running requests get a few seconds, then an error that says why. SIGINT
//! then unmounts the layers. SIGTERM leaves their mounts, and also the device if the keeper or
//! systemd holds it for the next process. Both sync pending changes for a limited time. A second
//! signal ends the process immediately.

mod attempts;
mod control;
mod endpoint;
mod health;
mod http;
mod leftovers;
mod parts;
mod reads;
mod root;
mod scrub;
mod sources;
mod status;
mod watchdog;
mod way;

pub use self::control::{reads, scrub};
use self::health::Health;
pub use self::parts::{Daemon, registry};
pub use self::root::{Claim, Root};

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::args::{Args, REVISION, VERSION};
use crate::config::Config;
use crate::device::{Device, KeptDevice};
use crate::grpc;
use crate::keeper::{self, Keeping};
use crate::listen::{self, Inherited, Listener};
use crate::logging;
use crate::metrics;

/// The signal that ended the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Interrupt,
    Terminate,
}

/// How long running requests may take when the daemon ends.
const DRAIN: Duration = Duration::from_secs(5);
/// How long it may take to answer the requests that were cancelled.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How this process was started.
#[derive(Debug)]
pub enum Outside {
    /// By a keeper, which outlives this process.
    Keeper(Keeping),
    /// Directly or by systemd, with these descriptors.
    Nobody(Inherited),
}

/// Who holds the device for the next process.
enum Surroundings {
    Keeper(Keeping),
    Systemd,
    Nobody,
}

impl Surroundings {
    /// Passes a device to the keeper or systemd, if there is one.
    fn keep(&self, device: &Device) -> io::Result<()> {
        if device.is_adopted() {
            return Ok(());
        }
        match self {
            Self::Keeper(keeping) => keeping.keep(&device.keep()?),
            Self::Systemd => {
                keeper::store_device(&device.keep()?);
                Ok(())
            }
            Self::Nobody => Ok(()),
        }
    }

    fn ready(&self) -> io::Result<()> {
        match self {
            Self::Keeper(keeping) => return keeping.ready(),
            Self::Systemd | Self::Nobody => listen::notify_ready(),
        }
        Ok(())
    }

    /// How often someone must hear that this process answers, if at all.
    fn watchdog(&self) -> Option<Duration> {
        match self {
            Self::Keeper(_) => keeper::watchdog(),
            Self::Systemd => listen::watchdog(),
            Self::Nobody => None,
        }
    }

    fn alive(&self) {
        match self {
            // If it has ended, this process ends too.
            Self::Keeper(keeping) => drop(keeping.alive()),
            Self::Systemd | Self::Nobody => listen::notify_alive(),
        }
    }

    fn stopping(&self) {
        match self {
            // The keeper notifies systemd if it ends too.
            Self::Keeper(_) => {}
            Self::Systemd | Self::Nobody => listen::notify_stopping(),
        }
    }
}

/// Serves until a signal.
pub fn run(args: &Args, outside: Outside) -> anyhow::Result<()> {
    info!(
        version = VERSION,
        revision = REVISION,
        "starting soci-snapshotter-grpc"
    );
    let config = Config::load(&args.config)?;
    if config.service.serves_metrics() {
        metrics::global().serve();
    }
    if args.worker {
        metrics::global().restarts.inc_by(keeper::restarts());
    }
    listen::raise_open_files().context("cannot raise the limit on open files")?;
    let (root, listener, kept, outside) = match outside {
        Outside::Keeper(keeping) => {
            let handed = keeping.hello()?;
            let listener = Listener::adopt(handed.socket)?;
            let root = Root::take_claimed(&args.root)?;
            let outside = Surroundings::Keeper(keeping);
            (root, listener, handed.device, outside)
        }
        Outside::Nobody(mut inherited) => {
            let root = Root::take(&args.root)?;
            let listener = Listener::open(&args.address.parse()?, &mut inherited)?;
            let outside = match listen::has_systemd() {
                true => Surroundings::Systemd,
                false => Surroundings::Nobody,
            };
            let kept = keeper::kept_device(&mut inherited.others);
            (root, listener, kept, outside)
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("soci-net")
        // Pulls need these threads for file operations and name resolution only briefly.
        .thread_keep_alive(Duration::from_millis(500))
        .build()
        .context("cannot start the network threads")?;
    let starting = Starting {
        root,
        config: &config,
        kept,
    };
    let done = runtime.block_on(serve(args, starting, &listener, &outside));
    outside.stopping();
    info!("Exiting");
    // Do not wait for unfinished work.
    runtime.shutdown_background();
    done
}

/// What the parts are built from.
struct Starting<'a> {
    root: Root,
    config: &'a Config,
    kept: Option<KeptDevice>,
}

async fn serve(
    args: &Args,
    starting: Starting<'_>,
    listener: &Listener,
    outside: &Surroundings,
) -> anyhow::Result<()> {
    let mut signals = Signals::new().context("cannot wait for signals")?;
    let Starting { root, config, kept } = starting;
    // Readers of an earlier process wait, so a later worker starts without the address.
    let must = metrics::global().restarts.get() == 0 && kept.is_none();
    let endpoint = endpoint::open(&config.service, must).await?;
    let daemon = tokio::select! {
        daemon = Daemon::start(root, config, kept) => daemon?,
        // No request has been served yet, and READs wait for the next process.
        _ = signals.next() => return Ok(()),
    };
    if let Some(device) = daemon.device() {
        keep(outside, &device);
    }
    let mut tasks = JoinSet::new();
    if let Some(endpoint) = endpoint {
        tasks.spawn(endpoint.serve(daemon.observer()));
    }
    let described = status::Described(daemon.snapshotter.clone());
    tasks.spawn(status::open(listener).await?.serve(described));
    let served = serve_parts(args, &daemon, listener, outside, &mut signals).await;
    // A task must not keep the device, because the device ends when it is dropped.
    tasks.shutdown().await;
    served
}

fn keep(outside: &Surroundings, device: &Device) {
    if let Err(error) = outside.keep(device) {
        let error: &dyn std::error::Error = &error;
        warn!(
            error,
            "cannot pass the device to the keeper or systemd: reads will fail when this process ends"
        );
    }
}

/// Serves until a signal, and ends as the signal requests.
async fn serve_parts(
    args: &Args,
    daemon: &Daemon,
    listener: &Listener,
    outside: &Surroundings,
    signals: &mut Signals,
) -> anyhow::Result<()> {
    let connections = UnixListenerStream::new(listener.for_runtime()?);
    let (drain, draining) = oneshot::channel::<()>();
    let give_up = CancellationToken::new();
    let server = grpc::server(daemon.snapshotter.clone());
    let images = daemon.image_service.clone();
    let images = images.map(|images| grpc::Drained::new(images, give_up.clone()));
    let (health, health_server) = Health::new().await;
    let mut following = JoinSet::new();
    following.spawn(health.clone().follow(daemon.snapshotter.clone()));
    let serving = tonic::transport::Server::builder()
        .add_service(grpc::Drained::new(server, give_up.clone()))
        .add_optional_service(images)
        .add_service(health_server)
        .serve_with_incoming_shutdown(connections, async {
            // A dropped sender requests the same.
            let _ = draining.await;
        });
    let mut serving = std::pin::pin!(serving);
    outside.ready().context("the keeper has ended")?;
    info!(
        address = args.address,
        "soci-snapshotter-grpc successfully started"
    );
    let mut watching = std::pin::pin!(report_alive(listener, outside));
    let mut devices = daemon.devices();
    let end = loop {
        tokio::select! {
            failed = &mut serving => {
                failed.context("the listener failed")?;
                anyhow::bail!("the listener ended unexpectedly");
            }
            never = &mut watching => match never {},
            end = signals.next() => break end,
            // Layers could not be mounted at the start, but now they can.
            Ok(()) = devices.changed() => {
                if let Some(device) = daemon.device() {
                    keep(outside, &device);
                }
            }
        }
    };
    match end {
        End::Interrupt => info!("Got interrupt"),
        End::Terminate => info!("Got terminated"),
    }
    // Before the end waits for streams.
    following.shutdown().await;
    health.end().await;
    drop(drain);
    let ending = async {
        if tokio::time::timeout(DRAIN, &mut serving).await.is_err() {
            warn!("cancelling requests that are still running");
            give_up.cancel();
            // A client may not read its answer, so wait for a limited time.
            let _ = tokio::time::timeout(LAST_WORDS, serving).await;
        }
        leave(daemon, end).await
    };
    tokio::select! {
        ended = ending => ended,
        _ = signals.next() => {
            warn!("received a second signal, ending immediately");
            Err(at_once(daemon))
        }
    }
}

/// Unmounts layers if the signal asks for it, and puts everything on disk.
async fn leave(daemon: &Daemon, end: End) -> anyhow::Result<()> {
    let unmounted = match end {
        End::Interrupt => daemon.unmount().await,
        End::Terminate => Ok(()),
    };
    // Sync even if the unmount failed.
    daemon.sync().await;
    daemon.end_device();
    unmounted
}

/// Tells systemd or the keeper that the daemon answers, for as long as it does.
async fn report_alive(listener: &Listener, outside: &Surroundings) -> Infallible {
    match (outside.watchdog(), listener.path()) {
        (Some(limit), Some(socket)) => watchdog::watch(socket, limit, || outside.alive()).await,
        (Some(_), None) => {
            warn!(
                "the socket has no path: systemd's watchdog will end the daemon, remove WatchdogSec= from the unit"
            );
            std::future::pending().await
        }
        (None, _) => std::future::pending().await,
    }
}

/// Ends the process without waiting, because pending work may never finish.
fn at_once(daemon: &Daemon) -> anyhow::Error {
    if let Some(device) = daemon.device().filter(|device| device.is_kept()) {
        device.leave();
    }
    logging::finish();
    let killed =
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    anyhow::Error::new(std::io::Error::from(
        killed.err().unwrap_or(rustix::io::Errno::INTR),
    ))
}

/// The signals that end the daemon.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let interrupt = signal(SignalKind::interrupt())?;
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self {
            interrupt,
            terminate,
        })
    }

    async fn next(&mut self) -> End {
        tokio::select! {
            _ = self.interrupt.recv() => End::Interrupt,
            _ = self.terminate.recv() => End::Terminate,
        }
    }
}
