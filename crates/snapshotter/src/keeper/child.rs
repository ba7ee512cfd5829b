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
use crate::args::WORKER;
use crate::sync::Arc;

/// The running program, whatever has become of its file.
const SELF: &str = "/proc/self/exe";
/// For how long a worker that is gone is waited for, for its exit code.
const REAP: Duration = Duration::from_secs(1);
/// Messages that were heard and not heeded yet; then the worker waits.
const MESSAGES: usize = 8;
/// What the keeper was told by systemd is its own.
const NOT_INHERITED: [&str; 6] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
];

/// What workers are started from.
#[derive(Debug)]
pub(super) struct Program {
    /// Where the program's file was when the keeper started.
    path: PathBuf,
    /// The file there counts, also when it is another one than the keeper's.
    pub(super) upgraded: bool,
    /// How likely the system is to kill a worker for memory; the keeper itself it never does.
    oom_score: Option<String>,
}

impl Program {
    /// The running program. From now on the system does not kill this process for memory.
    pub(super) fn running() -> Self {
        let score = fs::read_to_string("/proc/self/oom_score_adj").ok();
        // Without the right to do so things are as for everybody.
        let spared = fs::write("/proc/self/oom_score_adj", "-1000").is_ok();
        Self {
            path: std::env::current_exe().unwrap_or_else(|_| SELF.into()),
            upgraded: false,
            oom_score: score.filter(|_| spared),
        }
    }

    /// The file to run: by its name where that is still this program, or is meant to be another.
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

    /// Starts a worker with the arguments of this process.
    pub(super) fn spawn(&self) -> io::Result<Worker> {
        let (link, theirs) = Link::pair()?;
        let mut arguments = std::env::args_os();
        let name = arguments.next().unwrap_or_else(|| OsString::from(SELF));
        let mut command = Command::new(self.file());
        command
            .arg0(name)
            .arg(format!("--{WORKER}"))
            .args(arguments)
            .stdin(theirs)
            // Ctrl-C of a terminal reaches the keeper alone.
            .process_group(0);
        for name in NOT_INHERITED {
            command.env_remove(name);
        }
        let child = command.spawn()?;
        if let Some(score) = &self.oom_score {
            // It may be gone already.
            let _ = fs::write(format!("/proc/{}/oom_score_adj", child.id()), score);
        }
        let link = Arc::new(link);
        let heard = listen_to(Arc::clone(&link))?;
        Ok(Worker { child, link, heard })
    }
}

/// A running worker. Dropped, it is killed.
#[derive(Debug)]
pub(super) struct Worker {
    child: Child,
    link: Arc<Link>,
    heard: mpsc::Receiver<io::Result<Message>>,
}

/// Starts the thread that hears what a worker says; it ends with the line.
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

    /// The worker's next message; none when the worker is gone and with it all its descriptors.
    pub(super) async fn receive(&mut self) -> io::Result<Option<Message>> {
        self.heard.recv().await.transpose()
    }

    pub(super) fn signal(&self, signal: Signal) {
        // Not reaped: the number is still this worker's, dead or alive.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// How it ended, after its end of the line was closed. A thread that waits for an answer to one of its own mounts
    /// keeps a killed worker from ending, until the next worker gives the answer: none, then.
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

    /// Whether it is gone for good and needs no more care.
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
