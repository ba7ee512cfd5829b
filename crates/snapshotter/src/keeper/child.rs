//! The worker as the keeper sees it: a child process at the other end of a [`Link`].

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::mpsc;

use super::link::{Link, Message};
use super::{RESTARTS, WATCHDOG};
use crate::args::WORKER;
use crate::listen;
use crate::sync::Arc;

/// The running program, even if its file was replaced or removed.
const SELF: &str = "/proc/self/exe";
/// How long to wait for the exit code of a worker whose link has closed.
const REAP: Duration = Duration::from_secs(1);
/// Maximum number of received but unhandled messages. Beyond that, the worker waits.
const MESSAGES: usize = 8;
/// Environment variables from systemd that are meant for the keeper only.
const NOT_INHERITED: [&str; 6] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
];

/// How to start workers.
#[derive(Debug)]
pub(super) struct Program {
    /// Path of the program when the keeper started.
    path: PathBuf,
    /// Run the file at `path` even if it is not the keeper's own program.
    pub(super) upgraded: bool,
    /// `oom_score_adj` for workers. The keeper itself is excluded from OOM kills.
    oom_score: Option<String>,
}

impl Program {
    /// The running program. Excludes this process from OOM kills from now on.
    pub(super) fn running() -> Self {
        let score = fs::read_to_string("/proc/self/oom_score_adj").ok();
        // Without the permission, the process keeps its score.
        let spared = fs::write("/proc/self/oom_score_adj", "-1000").is_ok();
        Self {
            path: std::env::current_exe().unwrap_or_else(|_| SELF.into()),
            upgraded: false,
            oom_score: score.filter(|_| spared),
        }
    }

    /// The file to run: `path` if it is still this program or was upgraded, otherwise the running
    /// program.
    fn file(&self) -> &Path {
        let identity = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
        let same = matches!(
            (identity(&self.path), identity(Path::new(SELF))),
            (Ok(there), Ok(ours)) if there == ours
        );
        if self.upgraded || same {
            &self.path
        } else {
            Path::new(SELF)
        }
    }

    /// Starts a worker with the arguments of this process. `before` is the number of earlier workers.
    pub(super) fn spawn(&self, before: u64) -> io::Result<Worker> {
        let (link, theirs) = Link::pair()?;
        let mut arguments = std::env::args_os();
        let name = arguments.next().unwrap_or_else(|| OsString::from(SELF));
        let mut command = Command::new(self.file());
        command
            .arg0(name)
            .arg(format!("--{WORKER}"))
            .args(arguments)
            .stdin(theirs)
            .env(RESTARTS, before.to_string())
            // Ctrl-C in a terminal reaches only the keeper.
            .process_group(0);
        for name in NOT_INHERITED {
            command.env_remove(name);
        }
        match listen::watchdog() {
            Some(limit) => command.env(WATCHDOG, limit.as_micros().to_string()),
            None => command.env_remove(WATCHDOG),
        };
        let child = command.spawn()?;
        if let Some(score) = &self.oom_score {
            // It may have ended already.
            let _ = fs::write(format!("/proc/{}/oom_score_adj", child.id()), score);
        }
        let link = Arc::new(link);
        let heard = listen_to(Arc::clone(&link))?;
        Ok(Worker { child, link, heard })
    }
}

/// A running worker. It is killed on drop.
#[derive(Debug)]
pub(super) struct Worker {
    child: Child,
    link: Arc<Link>,
    heard: mpsc::Receiver<io::Result<Message>>,
}

/// Starts the thread that receives a worker's messages. It ends with the link.
fn listen_to(link: Arc<Link>) -> io::Result<mpsc::Receiver<io::Result<Message>>> {
    let (say, heard) = mpsc::channel(MESSAGES);
    let hear = move || {
        while let Some(message) = link.receive().transpose() {
            let failed = message.is_err();
            if say.blocking_send(message).is_err() || failed {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("worker-line".to_owned())
        .spawn(hear)
        .map(|_ends_with_the_line| heard)
}

impl Worker {
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// The next message. `None` when the worker and all its descriptors are gone.
    pub(super) async fn receive(&mut self) -> io::Result<Option<Message>> {
        self.heard.recv().await.transpose()
    }

    pub(super) fn signal(&self, signal: Signal) {
        // Not reaped, so the process ID still belongs to this worker.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Returns the exit status after the link has closed. Returns `None` if a killed worker cannot
    /// end because a thread waits for one of its own mounts; the next worker's answer releases it.
    pub(super) async fn end(&mut self) -> Option<ExitStatus> {
        let start = tokio::time::Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if start.elapsed() < REAP => {}
                Ok(None) | Err(_) => {
                    self.signal(Signal::KILL);
                    return None;
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Whether the process has been reaped.
    pub(super) fn is_reaped(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if !self.is_reaped() {
            self.signal(Signal::KILL);
        }
    }
}
