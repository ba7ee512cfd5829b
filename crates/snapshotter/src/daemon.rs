//! Composition root: arguments and configuration become parts; parts serve until a signal.
//!
//! Order of the start: descriptors and limits, configuration, the root (one daemon has it), the socket, the parts,
//! serving, and then systemd is told. From the moment the socket is there a client waits instead of failing; nothing of the start needs
//! a registry or containerd.
//!
//! Ends: SIGINT unmounts the layers, SIGTERM leaves their mounts alone: those on `data` go on without us. The node's
//! device goes with the process either way. Neither drains requests.

mod parts;
mod root;
mod way;

pub use self::parts::Daemon;
pub use self::root::Root;

use std::io;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tracing::info;

use crate::args::{Args, REVISION, VERSION};
use crate::config::Config;
use crate::grpc;
use crate::listen::{self, Inherited, Listener};

/// How the daemon was asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Interrupt,
    Terminate,
}

/// Serves until a signal. `inherited` is what this process was started with.
pub fn run(args: &Args, mut inherited: Inherited) -> anyhow::Result<()> {
    info!(
        version = VERSION,
        revision = REVISION,
        "starting soci-snapshotter-grpc"
    );
    let config = Config::load(&args.config)?;
    listen::raise_open_files().context("cannot raise the limit of open files")?;
    let root = Root::take(&args.root)?;
    let listener = Listener::open(&args.address.parse()?, &mut inherited)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("soci-net")
        .build()
        .context("cannot start the network threads")?;
    let done = runtime.block_on(serve(args, root, &config, &listener));
    listen::notify_stopping();
    info!("Exiting");
    // Requests in flight are not waited for.
    runtime.shutdown_background();
    done
}

async fn serve(
    args: &Args,
    root: Root,
    config: &Config,
    listener: &Listener,
) -> anyhow::Result<()> {
    let mut signals = Signals::new().context("cannot wait for signals")?;
    let daemon = tokio::select! {
        daemon = Daemon::start(root, config) => daemon?,
        // Nothing has been served yet, and nothing mounted.
        _ = signals.next() => return Ok(()),
    };
    let connections = UnixListenerStream::new(listener.for_runtime()?);
    let serving = tonic::transport::Server::builder()
        .add_service(grpc::server(daemon.snapshotter.clone()))
        .serve_with_incoming(connections);
    listen::notify_ready();
    info!(
        address = args.address,
        "soci-snapshotter-grpc successfully started"
    );
    let end = tokio::select! {
        failed = serving => {
            failed.context("the listener failed")?;
            anyhow::bail!("the listener ended");
        }
        end = signals.next() => end,
    };
    match end {
        End::Interrupt => {
            info!("Got interrupt");
            daemon.unmount().await?;
        }
        End::Terminate => info!("Got terminated"),
    }
    daemon.sync().await;
    Ok(())
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
