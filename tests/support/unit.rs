//! Our daemon as a service: alone, below its keeper, or as a unit of a systemd that this module plays.
//!
//! The played systemd listens at `NOTIFY_SOCKET`, keeps the descriptors that come with `FDSTORE=1` and hands them to the
//! next start as `LISTEN_FDS`, behind the socket that clients connect to, which it holds all the time. When the main
//! process ends, what else belongs to the unit is killed, as `KillMode=control-group` does.

// JUSTIFICATION: a child gets descriptors under numbers that the interface of systemd fixes; only code that runs between
// fork and exec can put them there without another child of this process inheriting them too.
#![expect(unsafe_code, reason = "descriptors are handed to a child: `hand_over`")]

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

/// Who starts the process that serves again when it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeping {
    /// Nobody but the test: one process, and a gap when it is killed.
    Alone,
    /// The keeper, which nothing replaces.
    Keeper,
    /// The keeper, and the played systemd replaces it.
    Unit,
}

/// How a keeper goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Killed,
    Terminated,
}

/// What is started, and how.
#[derive(Debug, Clone)]
pub struct Launch {
    pub binary: PathBuf,
    /// All but `--address`.
    pub arguments: Vec<OsString>,
    pub environment: Vec<(String, OsString)>,
    /// Where clients connect.
    pub socket: PathBuf,
    /// What the processes write is appended here.
    pub log: PathBuf,
    /// Text of the command line that only processes of this service have.
    pub mark: String,
    /// A control group that its processes are put into.
    pub group: Option<PathBuf>,
}

/// The running service. Dropped, it ends with all its processes.
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
/// The first number of `LISTEN_FDS`.
const FIRST: i32 = 3;

impl Service {
    /// Starts it and waits until it says that it serves.
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

    /// What the played systemd keeps.
    pub fn kept(&self) -> Vec<Kept> {
        self.systemd
            .as_ref()
            .map(|systemd| systemd.store.kept())
            .unwrap_or_default()
    }

    /// The process that was started.
    pub fn main(&self) -> Option<u32> {
        self.main.as_ref().map(Daemon::pid)
    }

    /// The process that serves; none between two of them.
    pub fn worker(&self) -> Option<u32> {
        let main = self.main()?;
        match self.keeping {
            Keeping::Alone => Some(main),
            _ => children(main).first().copied(),
        }
    }

    /// Every process of the service.
    pub fn processes(&self) -> Vec<u32> {
        marked(&self.launch.mark)
    }

    /// Kills the process that serves; false when there is none at the moment.
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

    /// Ends the main process and starts it again, from this binary if one is given. How long nobody served.
    pub fn replace(&mut self, end: End, binary: Option<&Path>) -> Result<Duration> {
        if let Some(binary) = binary {
            self.launch.binary = binary.to_path_buf();
        }
        let start = Instant::now();
        self.end_main(end)?;
        self.start_main()?;
        Ok(start.elapsed())
    }

    /// Ends it for good; an error names what does not go.
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
        // Kept also when it does not serve: then its drop ends it.
        self.main = Some(main);
        served
    }

    /// The program with the socket and everything that is kept.
    fn activated(&self, systemd: &Systemd) -> Result<Program> {
        let mut names = vec!["soci.socket".to_owned()];
        let mut handed = vec![store::copy(&systemd.listener)?];
        for (name, descriptor) in systemd.store.hand_out()? {
            names.push(name);
            handed.push(descriptor);
        }
        // LISTEN_PID is the process itself: a shell knows it, and it stays the same through exec.
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

/// Gives a child these descriptors under the numbers from 3 on.
fn hand_over(command: &mut Command, descriptors: Vec<OwnedFd>) {
    let place = move || -> std::io::Result<()> {
        for (number, descriptor) in (FIRST..).zip(&descriptors) {
            // JUSTIFICATION: see above. SAFETY: only a system call that may be made after fork; the numbers from 3 on
            // are the child's own copies, and those it is to get lie above them (`store::copy`).
            if unsafe { libc::dup2(descriptor.as_raw_fd(), number) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure makes system calls only and allocates nothing.
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

/// Kills a process; gone meanwhile is as good.
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

/// Processes with this text in their command line, but the one that asks.
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
