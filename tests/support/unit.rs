//! Our daemon as a service: alone, with its keeper, or as a unit of a simulated systemd.
//!
//! The simulated systemd listens at `NOTIFY_SOCKET`, stores the descriptors of `FDSTORE=1` messages
//! and passes them to the next start as `LISTEN_FDS`, after the socket for clients, which it holds
//! all the time. When the main process ends, it kills the rest of the unit, like
//! `KillMode=control-group`.

// JUSTIFICATION: systemd's interface fixes the descriptor numbers of a child. Only code between
// fork and exec can set them without other children of this process inheriting them.
#![expect(unsafe_code, reason = "passes descriptors to a child: `hand_over`")]

mod store;

use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

pub use self::store::Kept;
use self::store::Store;
use crate::process::{Daemon, Program};

/// What restarts the process that serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeping {
    /// Only the test: a single process, with an interruption when it is killed.
    Alone,
    /// The keeper. Nothing restarts the keeper.
    Keeper,
    /// The keeper, which the simulated systemd restarts.
    Unit,
}

/// How a keeper is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Killed,
    Terminated,
}

/// How to start the service.
#[derive(Debug, Clone)]
pub struct Launch {
    pub binary: PathBuf,
    /// All arguments except `--address`.
    pub arguments: Vec<OsString>,
    pub environment: Vec<(String, OsString)>,
    /// The socket for clients.
    pub socket: PathBuf,
    /// The log file; output is appended.
    pub log: PathBuf,
    /// Text in the command lines of this service's processes only.
    pub mark: String,
    /// The control group of its processes.
    pub group: Option<PathBuf>,
}

/// The running service. On drop it ends with all of its processes.
#[derive(Debug)]
pub struct Service {
    keeping: Keeping,
    launch: Launch,
    main: Option<Daemon>,
    systemd: Option<Systemd>,
}

/// What outlives the main process.
#[derive(Debug)]
struct Systemd {
    listener: UnixListener,
    store: Store,
}

const LIMIT: Duration = Duration::from_secs(30);
/// The first descriptor number of `LISTEN_FDS`.
const FIRST: i32 = 3;

impl Service {
    /// Starts the service and waits until it serves.
    pub fn start(keeping: Keeping, launch: Launch) -> Result<Self> {
        let systemd = match keeping {
            Keeping::Unit => Some(Systemd {
                listener: UnixListener::bind(&launch.socket).context("the unit's socket")?,
                store: Store::start(&launch.socket.with_extension("notify"))?,
            }),
            _ => None,
        };
        let mut service = Self {
            keeping,
            launch,
            main: None,
            systemd,
        };
        service.start_main()?;
        Ok(service)
    }

    pub fn keeping(&self) -> Keeping {
        self.keeping
    }

    /// The descriptors that the simulated systemd stores.
    pub fn kept(&self) -> Vec<Kept> {
        self.systemd
            .as_ref()
            .map(|systemd| systemd.store.kept())
            .unwrap_or_default()
    }

    /// The main process.
    pub fn main(&self) -> Option<u32> {
        self.main.as_ref().map(Daemon::pid)
    }

    /// The process that serves; `None` between two of them.
    pub fn worker(&self) -> Option<u32> {
        let main = self.main()?;
        match self.keeping {
            Keeping::Alone => Some(main),
            _ => children(main).first().copied(),
        }
    }

    /// All processes of the service.
    pub fn processes(&self) -> Vec<u32> {
        marked(&self.launch.mark)
    }

    /// Kills the process that serves. Returns false if there is none at the moment.
    pub fn kill_worker(&mut self) -> Result<bool> {
        if self.keeping == Keeping::Alone {
            self.end_main(End::Killed)?;
            self.start_main()?;
            return Ok(true);
        }
        let Some(worker) = self.worker() else {
            return Ok(false);
        };
        Ok(kill_process(pid(worker)?, Signal::KILL).is_ok())
    }

    /// Restarts the main process, with another binary if given. Returns how long no process served.
    pub fn replace(&mut self, end: End, binary: Option<&Path>) -> Result<Duration> {
        if let Some(binary) = binary {
            self.launch.binary = binary.to_path_buf();
        }
        let start = Instant::now();
        self.end_main(end)?;
        self.start_main()?;
        Ok(start.elapsed())
    }

    /// Ends the service for good. An error names the processes that do not end.
    pub fn end(&mut self) -> Result<()> {
        self.end_main(End::Killed)
    }

    fn end_main(&mut self, how: End) -> Result<()> {
        let Some(mut main) = self.main.take() else {
            return Ok(());
        };
        match how {
            _ if main.ended() => {}
            End::Killed => main.kill(LIMIT)?,
            End::Terminated => drop(main.terminate(LIMIT)?),
        }
        let start = Instant::now();
        loop {
            let left = self.processes();
            if left.is_empty() {
                return Ok(());
            }
            ensure!(start.elapsed() < LIMIT, "processes {left:?} do not end");
            left.into_iter().for_each(end);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn start_main(&mut self) -> Result<()> {
        let launch = &self.launch;
        let before = fs::metadata(&launch.log).map_or(0, |log| log.len());
        let (ready, mut program) = match &self.systemd {
            Some(systemd) => (systemd.store.ready(), self.activated(systemd)?),
            None => (0, Program::at(&launch.binary)),
        };
        program = match self.keeping {
            Keeping::Alone => program.args(["--no-keeper"]),
            _ => program,
        };
        program = match self.keeping {
            Keeping::Unit => program.args(["--address", "fd://"]),
            _ => program.args([Path::new("--address"), &launch.socket]),
        };
        program = program.args(&launch.arguments);
        for (key, value) in &launch.environment {
            program = program.env(key, value);
        }
        let mut main = program.spawn(&launch.log)?;
        if let Some(group) = &launch.group {
            fs::write(group.join("cgroup.procs"), main.pid().to_string())
                .context("put the service into its control group")?;
        }
        let log = launch.log.clone();
        let (socket, systemd) = (&launch.socket, &self.systemd);
        let served = main.wait_until("serving", LIMIT, |_| match systemd {
            Some(systemd) => systemd.store.ready() > ready,
            None => says_started(&log, before) && UnixStream::connect(socket).is_ok(),
        });
        // Stored even if it does not serve, so that drop ends it.
        self.main = Some(main);
        served
    }

    /// Starts the program with the socket and all stored descriptors.
    fn activated(&self, systemd: &Systemd) -> Result<Program> {
        let mut names = vec!["soci.socket".to_owned()];
        let mut handed = vec![store::copy(&systemd.listener)?];
        for (name, descriptor) in systemd.store.hand_out()? {
            names.push(name);
            handed.push(descriptor);
        }
        // LISTEN_PID must be the process itself. A shell knows its process ID, and exec keeps it.
        let script = "LISTEN_PID=$$ exec \"$0\" \"$@\"";
        Ok(Program::at(Path::new("/bin/sh"))
            .args(["-c", script])
            .args([&self.launch.binary])
            .env("LISTEN_FDS", handed.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"))
            .env("NOTIFY_SOCKET", systemd.store.path())
            .with(|command| hand_over(command, handed)))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Err(stuck) = self.end() {
            assert!(std::thread::panicking(), "{stuck:#}");
        }
    }
}

/// Gives a child these descriptors, with numbers starting at 3.
fn hand_over(command: &mut Command, descriptors: Vec<OwnedFd>) {
    let place = move || -> std::io::Result<()> {
        for (number, descriptor) in (FIRST..).zip(&descriptors) {
            // JUSTIFICATION: see above.
            // SAFETY: only a system call that is allowed after fork. The numbers from 3 on are the
            // child's own copies, and those to pass have higher numbers (`store::copy`).
            if unsafe { libc::dup2(descriptor.as_raw_fd(), number) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure only makes system calls and does not allocate.
    unsafe { command.pre_exec(place) };
}

fn says_started(log: &Path, before: u64) -> bool {
    let text = fs::read(log).unwrap_or_default();
    let from = usize::try_from(before).unwrap_or(usize::MAX);
    text.get(from..)
        .is_some_and(|new| String::from_utf8_lossy(new).contains("successfully started"))
}

fn pid(number: u32) -> Result<Pid> {
    i32::try_from(number)
        .ok()
        .and_then(Pid::from_raw)
        .context("a process id")
}

/// Kills a process, which may have ended already.
pub fn end(process: u32) {
    if let Ok(process) = pid(process) {
        let _ = kill_process(process, Signal::KILL);
    }
}

/// The children of all threads of a process.
pub fn children(of: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{of}/task"));
    let lists = tasks
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| {
            list.split_whitespace()
                .filter_map(|word| word.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect()
}

/// The processes with this text in their command line, except this one.
pub fn marked(mark: &str) -> Vec<u32> {
    let own = std::process::id();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|&process| process != own)
        .filter(|process| {
            fs::read(format!("/proc/{process}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(mark))
        })
        .collect()
}
