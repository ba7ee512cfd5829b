//! Composition root: arguments and configuration become parts; parts serve until a signal.
//!
//! Order of the start: descriptors and limits, configuration, the root (one daemon has it), the socket, the parts,
//! serving, and then systemd is told. From the moment the socket is there a client waits instead of failing; nothing of the start needs
//! a registry or containerd.
//!
//! Ends: no new requests, those under way are given a few seconds, and then an answer that says so. Then SIGINT unmounts
//! the layers; SIGTERM leaves their mounts alone, and the device too where somebody keeps it for the next process: the
//! keeper, or systemd. What is not on disk is synced either way, for some seconds at most. A second signal ends the
//! process at once.

mod attempts;
mod control;
mod parts;
mod reads;
mod root;
mod scrub;
mod way;

pub use self::control::{reads, scrub};
pub use self::parts::Daemon;
pub use self::root::{Claim, Root};

use std::io;
use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
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

/// How the daemon was asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Interrupt,
    Terminate,
}

/// How long requests under way have when the daemon ends.
const DRAIN: Duration = Duration::from_secs(5);
/// How long it may take to tell those that were given up.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Who stands around this process.
#[derive(Debug)]
pub enum Outside {
    /// A keeper: it outlives this process.
    Keeper(Keeping),
    /// Nobody, or systemd: what this process was started with.
    Nobody(Inherited),
}

/// What is outside, once this process has got from there what it serves with.
enum Surroundings {
    Keeper(Keeping),
    Systemd,
    Nobody,
}

impl Surroundings {
    /// Gives a device to who keeps it, if there is somebody.
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

    fn stopping(&self) {
        match self {
            // The keeper tells systemd, if it ends too.
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
    listen::raise_open_files().context("cannot raise the limit of open files")?;
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
        // Small files and names are looked up in a pull, by threads that nobody needs afterwards.
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
    // What is not finished by now is not waited for.
    runtime.shutdown_background();
    done
}

/// What the parts are made of.
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
    let daemon = tokio::select! {
        daemon = Daemon::start(root, config, kept) => daemon?,
        // Nothing has been served yet.
        _ = signals.next() => return Ok(()),
    };
    if let Some(device) = daemon.device() {
        keep(outside, &device);
    }
    let done = serve_parts(args, &daemon, listener, outside, &mut signals).await;
    if let Some(device) = daemon.device().filter(|device| device.is_kept()) {
        // Before anything is dropped that would answer a READ with an error.
        device.leave();
    }
    done
}

fn keep(outside: &Surroundings, device: &Device) {
    if let Err(error) = outside.keep(device) {
        let error: &dyn std::error::Error = &error;
        warn!(
            error,
            "nobody keeps the device: reads will fail when this process ends"
        );
    }
}

/// Serves until a signal, and ends as it asks.
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
    let serving = tonic::transport::Server::builder()
        .add_service(grpc::Drained::new(server, give_up.clone()))
        .serve_with_incoming_shutdown(connections, async {
            // A sender that is gone asks for the same.
            let _ = draining.await;
        });
    let mut serving = std::pin::pin!(serving);
    outside.ready().context("the keeper is gone")?;
    info!(
        address = args.address,
        "soci-snapshotter-grpc successfully started"
    );
    let mut devices = daemon.devices();
    let end = loop {
        tokio::select! {
            failed = &mut serving => {
                failed.context("the listener failed")?;
                anyhow::bail!("the listener ended");
            }
            end = signals.next() => break end,
            // Layers could not be mounted at the start, and can be now.
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
    drop(drain);
    let ending = async {
        if tokio::time::timeout(DRAIN, &mut serving).await.is_err() {
            warn!("requests were still under way and are given up");
            give_up.cancel();
            // A client that does not listen is not waited for.
            let _ = tokio::time::timeout(LAST_WORDS, serving).await;
        }
        let unmounted = match end {
            End::Interrupt => daemon.unmount().await,
            End::Terminate => Ok(()),
        };
        // Whatever became of the mounts.
        daemon.sync().await;
        daemon.end_device();
        unmounted
    };
    tokio::select! {
        ended = ending => ended,
        _ = signals.next() => {
            warn!("asked to end a second time: ending at once");
            Err(at_once(daemon))
        }
    }
}

/// Ends the process without waiting for anything: whoever asks twice means it. What waits may never end.
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
