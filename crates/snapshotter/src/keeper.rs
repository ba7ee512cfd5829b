//! The keeper: a small process that outlives its workers.
//!
//! A worker is this same program and does everything: [`crate::daemon`]. The keeper holds what must not end with it, the
//! listening socket, the descriptor of the node's device and its journal; it hands copies of them to each worker and
//! starts the next one when a worker ends. Clients and readers meanwhile wait and notice nothing. It reads no
//! configuration, no network and no bytes of anybody, so that it has no reason to end itself.
//!
//! The two speak over a socket that is the worker's standard input. The worker says `hello` when it has read its
//! configuration and gets `hand` with the descriptors; it gives those of a device that it made by `keep`, and says
//! `ready` when it serves. The socket's end tells that the worker is gone with all that it held.

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

/// What keeper and worker speak; a worker of another version may speak another.
const HELLO: &str = "hello-1";
const HAND: &str = "hand";
const KEEP: &str = "keep";
const READY: &str = "ready";

/// Names of what is handed over; systemd keeps the device's under the same.
const SOCKET: &str = "socket";
const FUSE: &str = "fuse";
const JOURNAL: &str = "journal";
const KEPT: [&str; 2] = [FUSE, JOURNAL];

/// For how long a worker that was asked to end may take: it gives requests under way 5 s, then syncs or unmounts.
const PATIENCE: Duration = Duration::from_secs(60);
/// A worker that lived for so long was a good one.
const GOOD_LIFE: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Runs workers until a signal. `inherited` is what this process was started with.
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
        lingering: Vec::new(),
        _claim: claim,
    };
    keeper.kept.retain(|name, _| KEPT.contains(&name.as_str()));
    runtime.block_on(keeper.work())
}

/// What must not end with a worker.
#[derive(Debug)]
struct Keeper {
    address: Address,
    inherited: Inherited,
    /// Open from the first `hello` on: not for a configuration that cannot be read.
    listener: Option<Listener>,
    /// The device's descriptors, by name.
    kept: BTreeMap<String, OwnedFd>,
    program: Program,
    /// Whether any worker ever served.
    served: bool,
    /// Workers that are gone and cannot end before the next one serves.
    lingering: Vec<Worker>,
    _claim: Claim,
}

/// Why a worker's time was over.
enum Ended {
    /// By itself; whether it had served.
    ByItself(Option<ExitStatus>, bool),
    /// The keeper was asked to end, and has asked it.
    Asked(Option<ExitStatus>),
    /// To make room for the next.
    Replaced,
}

/// What the keeper is told by signals.
struct Orders {
    terminate: Signals,
    interrupt: Signals,
    hangup: Signals,
}

/// What a signal asks for.
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
    /// One worker after the other.
    async fn work(&mut self) -> anyhow::Result<ExitCode> {
        let mut orders = Orders::new().context("cannot wait for signals")?;
        let mut pause = Pause::default();
        loop {
            let started = Instant::now();
            self.lingering.retain_mut(|worker| !worker.is_reaped());
            let mut worker = match self.program.spawn() {
                Ok(worker) => worker,
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
                // It has said why.
                return Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from));
            }
            let how = status.map_or_else(|| "killed".to_owned(), |status| status.to_string());
            warn!(how, "the worker ended: the next one goes on");
            if !ready && std::mem::take(&mut self.program.upgraded) {
                error!("the new program did not serve: going back to the one before");
            }
            // Somebody's kill says nothing about the worker.
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

    /// Does what a worker asks for until it is gone.
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
                        error!(error = &error as &dyn std::error::Error, "cannot hear the worker");
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
                            info!("the worker is replaced");
                            self.program.upgraded = true;
                            worker.signal(Signal::TERM);
                            asked = Some(Signal::HUP);
                        }
                        Order::Replace => {}
                    }
                }
                () = tokio::time::sleep_until(deadline) => {
                    warn!(pid = worker.pid(), "the worker does not end: killed");
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

    /// Does what a message asks for; whether it said that the worker serves.
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
            word => {
                error!(
                    word,
                    "the worker speaks another language: a restart of the whole daemon is due"
                );
                worker.signal(Signal::KILL);
            }
        }
        Ok(false)
    }

    /// Gives the worker a copy of everything.
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
            // Then it is gone, and the end of the line says so too.
            warn!(
                error = &error as &dyn std::error::Error,
                "cannot hand over to the worker"
            );
        }
        Ok(())
    }

    /// Keeps a device's descriptors instead of those before, and lets systemd keep them as well.
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

/// The exit code of a worker that was asked to end. A signal that found it before it could heed signals is an end as
/// good as any; one that was killed because it did not end is none.
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

/// What a worker's end says about the next one's chances.
#[derive(Debug, Clone, Copy)]
enum End {
    /// Nothing: somebody killed it.
    Killed,
    /// Little: it was killed before it served.
    KilledEarly,
    OwnFault,
}

/// How long to wait before the next worker: after ends by their own fault not at all at first, then longer each time.
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

    /// Waits after a worker that began to live at `started`; true when a signal asked for the end meanwhile.
    async fn wait(&mut self, end: End, started: Instant, orders: &mut Orders) -> bool {
        let pause = self.after(end, started.elapsed());
        tokio::select! {
            order = orders.next() => matches!(order, Order::End(_)),
            () = tokio::time::sleep(pause) => false,
        }
    }
}

/// The worker's side of the line.
#[derive(Debug)]
pub struct Keeping(Link);

/// What a worker starts with.
#[derive(Debug)]
pub struct Handed {
    /// The socket to serve on.
    pub socket: OwnedFd,
    /// The device of the worker before.
    pub device: Option<KeptDevice>,
}

impl Keeping {
    /// The line of this process, which its keeper started. From now on it ends when the keeper does.
    pub fn of_this_process() -> anyhow::Result<Self> {
        let link = Link::of_stdin().context("this process has no keeper")?;
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        Ok(Self(link))
    }

    /// Says that the configuration is good, and waits for what to serve with.
    pub fn hello(&self) -> anyhow::Result<Handed> {
        self.0.send(HELLO, &[]).context("the keeper is gone")?;
        let message = self.0.receive()?.context("the keeper is gone")?;
        let mut descriptors = message.descriptors;
        let socket = descriptors
            .remove(SOCKET)
            .context("the keeper has no socket")?;
        Ok(Handed {
            socket,
            device: kept_device(&mut descriptors),
        })
    }

    /// Gives the keeper the descriptors of a new device.
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

    /// Says that requests are served.
    pub fn ready(&self) -> std::io::Result<()> {
        self.0.send(READY, &[])
    }
}

/// The device among descriptors that were kept, by the keeper or by systemd.
pub fn kept_device(named: &mut BTreeMap<String, OwnedFd>) -> Option<KeptDevice> {
    Some(KeptDevice {
        fuse: named.remove(FUSE)?,
        journal: named.remove(JOURNAL),
    })
}

/// Lets systemd keep a device's descriptors.
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
    fn pauses_grow_with_failures_and_kills_have_none() {
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
            "not forgotten"
        );
        assert_eq!(pause.after(End::OwnFault, GOOD_LIFE), Duration::ZERO);
        assert_eq!(pause.after(End::OwnFault, short), FIRST_PAUSE);
    }
}
