//! Signals that end a command early: it stops its work, removes what it began, and exits.
//!
//! A second signal ends the process at once, because removing may wait for a registry. A command
//! that has mounted something takes its time instead: [`Signals::listen_patiently`].

use std::fs;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A signal interrupted the command.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub(crate) struct Interrupted {
    pub(crate) signal: u8,
}

/// The exit code that a shell reports for a process ended by a signal.
pub(crate) fn exit_code(signal: u8) -> u8 {
    128 + signal
}

/// Runs work that needs cleanup after an interrupt: on a signal the work is dropped and the caller
/// continues.
pub(crate) async fn unless_interrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    Signals::listen()?.unless(work).await
}

/// Receives signals from the moment it is created.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// `None` if the process ignores it, as under `nohup`.
    hangup: Option<Signal>,
}

impl Signals {
    /// Installs the signal handlers. From now on, the first signal does not end the process, and
    /// the second one does.
    pub(crate) fn listen() -> Result<Self> {
        let was_sent = Arc::new(AtomicBool::new(false));
        for number in listened() {
            // In this order, because the first signal must not see its own flag.
            let code = 128 + number;
            flag::register_conditional_shutdown(number, code, Arc::clone(&was_sent))?;
            flag::register(number, Arc::clone(&was_sent))?;
        }
        Self::listen_patiently()
    }

    /// Like [`Self::listen`], but no signal ends the process.
    pub(crate) fn listen_patiently() -> Result<Self> {
        let hangup = listened().any(|number| number == SIGHUP);
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: hangup.then(|| signal(SignalKind::hangup())).transpose()?,
        })
    }

    /// Runs the work until it ends or a signal arrives. Signals received since [`Signals::listen`]
    /// count.
    pub(crate) async fn unless<T>(mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let Self {
            interrupt,
            terminate,
            hangup,
        } = &mut self;
        let hangup = async {
            match hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            result = work => result,
            _ = hangup => Err(Interrupted { signal: 1 }.into()),
            _ = interrupt.recv() => Err(Interrupted { signal: 2 }.into()),
            _ = terminate.recv() => Err(Interrupted { signal: 15 }.into()),
        }
    }
}

/// The signals to handle. A hangup that the process ignores stays ignored.
fn listened() -> impl Iterator<Item = i32> {
    let hangup = (!ignores_hangup()).then_some(SIGHUP);
    [SIGINT, SIGTERM].into_iter().chain(hangup)
}

/// Whether the process was started with hangups ignored.
fn ignores_hangup() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & (1 << (SIGHUP - 1)) != 0)
}
