//! The keeper: a small process that outlives its workers.
//!
//! A worker is the same program and does all the work ([`crate::daemon`]). The keeper holds what
//! must survive it: the listening socket, the node's device and its journal. It passes copies to
//! each worker and starts a new worker when one ends; clients and readers just wait. It reads no
//! configuration, network or image data, so little can make it fail.
//!
//! They use a socket on the worker's standard input. The worker sends `hello` once it has read its
//! configuration, and gets `hand` with the descriptors. It sends `keep` with those of a new device,
//! `ready` when it serves, and `alive` whenever it has answered a call if systemd has a watchdog. The
//! end of the stream means that the other process has ended.

mod child;
mod link;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::Context;
use rustix::process::Signal;
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};
use tokio::time::Instant;
use tracing::{error, info, warn};

use crate::args::Args;
use crate::daemon::Claim;
use crate::device::KeptDevice;
use crate::listen::{self, Address, Inherited, Listener};
use child::{Program, Worker};
use link::{Link, Message};

/// Version of the protocol between keeper and worker. Other versions of the worker may use another.
const HELLO: &str = "hello-1";
const HAND: &str = "hand";
const KEEP: &str = "keep";
const READY: &str = "ready";
const ALIVE: &str = "alive";

/// Names of the descriptors. systemd keeps those of the device under the same names.
const SOCKET: &str = "socket";
const FUSE: &str = "fuse";
const JOURNAL: &str = "journal";
const KEPT: [&str; 2] = [FUSE, JOURNAL];

/// Environment variable with the number of earlier workers. An argument would end a worker of an
/// older version.
const RESTARTS: &str = "SOCI_WORKER_RESTARTS";
/// Environment variable with systemd's `WATCHDOG_USEC`. A keeper that does not set it does not know
/// `alive`.
const WATCHDOG: &str = "SOCI_WATCHDOG_USEC";

/// Time limit for a worker to end. It gives requests in progress 5 s, then syncs or unmounts.
const PATIENCE: Duration = Duration::from_secs(60);
/// A worker that lived this long resets the failure count.
const GOOD_LIFE: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Runs workers until a signal arrives. `inherited` is what this process was started with.
pub fn run(args: &Args, inherited: Inherited) -> anyhow::Result<ExitCode> {
    let address = args.address.parse()?;
    let claim = Claim::take(&args.root)?;
    let program = Program::running();
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime
        .enable_all()
        .build()
        .context("cannot start the keeper")?;
    let mut keeper = Keeper {
        address,
        kept: inherited.others.into_iter().collect(),
        inherited: Inherited {
            listeners: inherited.listeners,
            others: BTreeMap::new(),
        },
        listener: None,
        program,
        served: false,
        started: 0,
        lingering: Vec::new(),
        _claim: claim,
    };
    keeper.kept.retain(|name, _| KEPT.contains(&name.as_str()));
    runtime.block_on(keeper.work())
}

/// The number of earlier workers, in a worker.
pub(crate) fn restarts() -> u64 {
    let count = std::env::var(RESTARTS).ok();
    count.and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// How often the keeper must hear that this worker is alive, if at all.
pub(crate) fn watchdog() -> Option<Duration> {
    let micros = std::env::var(WATCHDOG).ok()?.parse().ok()?;
    Some(Duration::from_micros(micros))
}

/// What must survive a worker.
#[derive(Debug)]
struct Keeper {
    address: Address,
    inherited: Inherited,
    /// Opened at the first `hello`, so not if the configuration is invalid.
    listener: Option<Listener>,
    /// The descriptors of the device, by name.
    kept: BTreeMap<String, OwnedFd>,
    program: Program,
    /// Whether any worker has ever served.
    served: bool,
    /// Number of started workers.
    started: u64,
    /// Workers that were killed but cannot end before the next one serves.
    lingering: Vec<Worker>,
    _claim: Claim,
}

/// Why a worker ended.
enum Ended {
    /// On its own. The flag says whether it had served.
    ByItself(Option<ExitStatus>, bool),
    /// The keeper was asked to end and has asked the worker to end.
    Asked(Option<ExitStatus>),
    /// It was replaced by a new worker.
    Replaced,
}

/// The signals that the keeper handles.
struct Orders {
    terminate: Signals,
    interrupt: Signals,
    hangup: Signals,
}

/// What a signal requests.
enum Order {
    End(Signal),
    Replace,
}

impl Orders {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Order {
        tokio::select! {
            _ = self.terminate.recv() => Order::End(Signal::TERM),
            _ = self.interrupt.recv() => Order::End(Signal::INT),
            _ = self.hangup.recv() => Order::Replace,
        }
    }
}

impl Keeper {
    /// Runs one worker after another.
    async fn work(&mut self) -> anyhow::Result<ExitCode> {
        let mut orders = Orders::new().context("cannot wait for signals")?;
        let mut pause = Pause::default();
        loop {
            let started = Instant::now();
            self.lingering.retain_mut(|worker| !worker.is_reaped());
            let mut worker = match self.program.spawn(self.started) {
                Ok(worker) => {
                    self.started += 1;
                    worker
                }
                Err(error) if self.served => {
                    error!(
                        error = &error as &dyn std::error::Error,
                        "cannot start a worker"
                    );
                    if pause.wait(End::OwnFault, started, &mut orders).await {
                        return Ok(ExitCode::SUCCESS);
                    }
                    self.program.upgraded = false;
                    continue;
                }
                Err(error) => return Err(error).context("cannot start a worker"),
            };
            let ended = self.attend(&mut worker, &mut orders).await?;
            if !worker.is_reaped() {
                self.lingering.push(worker);
            }
            let (status, ready) = match ended {
                Ended::Asked(status) => return Ok(exit_code(status)),
                Ended::Replaced => continue,
                Ended::ByItself(status, ready) => (status, ready),
            };
            if let Some(code) = status.and_then(|status| status.code())
                && code != 0
                && !self.served
            {
                // The worker has already logged the reason.
                return Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from));
            }
            let how = status.map_or_else(|| "killed".to_owned(), |status| status.to_string());
            warn!(how, "the worker ended, starting a new one");
            if !ready && std::mem::take(&mut self.program.upgraded) {
                error!("the new program did not start serving, reverting to the previous one");
            }
            // A kill by another process says nothing about the worker.
            let killed = status.is_none_or(|status| status.signal() == Some(libc::SIGKILL));
            let end = match (killed, ready) {
                (true, true) => End::Killed,
                (true, false) => End::KilledEarly,
                (false, _) => End::OwnFault,
            };
            if pause.wait(end, started, &mut orders).await {
                return Ok(ExitCode::SUCCESS);
            }
        }
    }

    /// Handles the messages of a worker until it ends.
    async fn attend(&mut self, worker: &mut Worker, orders: &mut Orders) -> anyhow::Result<Ended> {
        let mut ready = false;
        let mut asked = None;
        let mut deadline = Instant::now() + Duration::from_secs(u64::from(u32::MAX));
        loop {
            tokio::select! {
                message = worker.receive() => match message {
                    Ok(Some(message)) => ready |= self.take(message, worker)?,
                    Ok(None) => break,
                    Err(error) => {
                        error!(error = &error as &dyn std::error::Error, "cannot receive from the worker");
                        worker.signal(Signal::KILL);
                        break;
                    }
                },
                order = orders.next() => {
                    deadline = Instant::now() + PATIENCE;
                    match order {
                        Order::End(signal) => {
                            listen::notify_stopping();
                            worker.signal(signal);
                            asked = Some(signal);
                        }
                        Order::Replace if asked.is_none() => {
                            info!("replacing the worker");
                            self.program.upgraded = true;
                            worker.signal(Signal::TERM);
                            asked = Some(Signal::HUP);
                        }
                        Order::Replace => {}
                    }
                }
                () = tokio::time::sleep_until(deadline) => {
                    warn!(pid = worker.pid(), "the worker does not end, killing it");
                    worker.signal(Signal::KILL);
                    deadline = Instant::now() + PATIENCE;
                }
            }
        }
        let status = worker.end().await;
        Ok(match asked {
            None => Ended::ByItself(status, ready),
            Some(Signal::HUP) => Ended::Replaced,
            Some(_) => Ended::Asked(status),
        })
    }

    /// Handles a message. Returns whether the message says that the worker serves.
    fn take(&mut self, message: Message, worker: &Worker) -> anyhow::Result<bool> {
        match message.word.as_str() {
            HELLO => self.hand(worker.link())?,
            KEEP => self.keep(message.descriptors),
            READY => {
                if !std::mem::replace(&mut self.served, true) {
                    listen::notify_ready();
                }
                return Ok(true);
            }
            ALIVE => listen::notify_alive(),
            word => {
                error!(
                    word,
                    "the worker uses another protocol version, restart the daemon"
                );
                worker.signal(Signal::KILL);
            }
        }
        Ok(false)
    }

    /// Passes copies of all descriptors to the worker.
    fn hand(&mut self, link: &Link) -> anyhow::Result<()> {
        if self.listener.is_none() {
            self.listener = Some(Listener::open(&self.address, &mut self.inherited)?);
        }
        let socket = self
            .listener
            .iter()
            .map(|listener| (SOCKET, listener.as_fd()));
        let kept = self
            .kept
            .iter()
            .map(|(name, fd)| (name.as_str(), fd.as_fd()));
        let named: Vec<(&str, BorrowedFd<'_>)> = socket.chain(kept).collect();
        if let Err(error) = link.send(HAND, &named) {
            // The worker has ended, which the end of the stream reports too.
            warn!(
                error = &error as &dyn std::error::Error,
                "cannot pass the descriptors to the worker"
            );
        }
        Ok(())
    }

    /// Replaces the kept descriptors of the device, and stores them in systemd as well.
    fn keep(&mut self, descriptors: BTreeMap<String, OwnedFd>) {
        for name in self.kept.keys() {
            listen::unstore(name);
        }
        self.kept = descriptors;
        self.kept.retain(|name, _| KEPT.contains(&name.as_str()));
        for (name, descriptor) in &self.kept {
            listen::store(name, descriptor.as_fd());
        }
    }
}

/// The exit code after a worker that was asked to end. A signal that killed it before it could
/// handle signals counts as success; a kill because it did not end counts as failure.
fn exit_code(status: Option<ExitStatus>) -> ExitCode {
    let Some(status) = status else {
        return ExitCode::FAILURE;
    };
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from),
        (None, Some(libc::SIGTERM | libc::SIGINT)) => ExitCode::SUCCESS,
        (None, _) => ExitCode::FAILURE,
    }
}

/// How a worker ended, to decide when to start the next one.
#[derive(Debug, Clone, Copy)]
enum End {
    /// Killed after it served.
    Killed,
    /// Killed before it served.
    KilledEarly,
    OwnFault,
}

/// How long to wait before the next worker. The first own failure causes no wait, then waits grow.
#[derive(Debug, Default)]
struct Pause {
    failures: u32,
}

impl Pause {
    fn after(&mut self, end: End, lived: Duration) -> Duration {
        if lived >= GOOD_LIFE {
            self.failures = 0;
        }
        match end {
            End::Killed => Duration::ZERO,
            End::KilledEarly => FIRST_PAUSE,
            End::OwnFault => {
                let before = self.failures;
                self.failures = before.saturating_add(1);
                match before.checked_sub(1) {
                    None => Duration::ZERO,
                    Some(more) => FIRST_PAUSE
                        .saturating_mul(1 << more.min(16))
                        .min(LONGEST_PAUSE),
                }
            }
        }
    }

    /// Waits after a worker that started at `started`. Returns true if a signal asked for the end.
    async fn wait(&mut self, end: End, started: Instant, orders: &mut Orders) -> bool {
        let pause = self.after(end, started.elapsed());
        tokio::select! {
            order = orders.next() => matches!(order, Order::End(_)),
            () = tokio::time::sleep(pause) => false,
        }
    }
}

/// The worker's end of the link.
#[derive(Debug)]
pub struct Keeping(Link);

/// What a worker starts with.
#[derive(Debug)]
pub struct Handed {
    /// The socket to serve on.
    pub socket: OwnedFd,
    /// The device of the previous worker.
    pub device: Option<KeptDevice>,
}

impl Keeping {
    /// The link of this process to its keeper. From now on, this process ends when its keeper ends.
    pub fn of_this_process() -> anyhow::Result<Self> {
        let link = Link::of_stdin().context("no link to a keeper on standard input")?;
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        Ok(Self(link))
    }

    /// Reports that the configuration is valid, and waits for the descriptors.
    pub fn hello(&self) -> anyhow::Result<Handed> {
        self.0.send(HELLO, &[]).context("the keeper has ended")?;
        let message = self.0.receive()?.context("the keeper has ended")?;
        let mut descriptors = message.descriptors;
        let socket = descriptors
            .remove(SOCKET)
            .context("the keeper did not send a listening socket")?;
        Ok(Handed {
            socket,
            device: kept_device(&mut descriptors),
        })
    }

    /// Passes the descriptors of a new device to the keeper.
    pub fn keep(&self, device: &KeptDevice) -> std::io::Result<()> {
        let journal = device
            .journal
            .iter()
            .map(|journal| (JOURNAL, journal.as_fd()));
        let named: Vec<_> = [(FUSE, device.fuse.as_fd())]
            .into_iter()
            .chain(journal)
            .collect();
        self.0.send(KEEP, &named)
    }

    /// Reports that a call was answered.
    pub fn alive(&self) -> std::io::Result<()> {
        self.0.send(ALIVE, &[])
    }

    /// Reports that requests are served.
    pub fn ready(&self) -> std::io::Result<()> {
        self.0.send(READY, &[])
    }
}

/// Takes the device out of descriptors that the keeper or systemd kept.
pub fn kept_device(named: &mut BTreeMap<String, OwnedFd>) -> Option<KeptDevice> {
    Some(KeptDevice {
        fuse: named.remove(FUSE)?,
        journal: named.remove(JOURNAL),
    })
}

/// Stores the descriptors of a device in systemd.
pub fn store_device(device: &KeptDevice) {
    for name in KEPT {
        listen::unstore(name);
    }
    listen::store(FUSE, device.fuse.as_fd());
    if let Some(journal) = &device.journal {
        listen::store(JOURNAL, journal.as_fd());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_with_failures_but_not_with_kills() {
        let mut pause = Pause::default();
        let short = Duration::from_millis(50);
        let pauses: Vec<u128> = (0..9)
            .map(|_| pause.after(End::OwnFault, short).as_millis())
            .collect();
        assert_eq!(pauses, [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(pause.after(End::Killed, short), Duration::ZERO);
        assert_eq!(pause.after(End::KilledEarly, short), FIRST_PAUSE);
        assert_eq!(
            pause.after(End::OwnFault, short),
            LONGEST_PAUSE,
            "failures are not forgotten"
        );
        assert_eq!(pause.after(End::OwnFault, GOOD_LIFE), Duration::ZERO);
        assert_eq!(pause.after(End::OwnFault, short), FIRST_PAUSE);
    }
}
