//! Programs and daemons: where they are, how they are run, and how they end.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// One run of a program that ends by itself.
#[derive(Debug)]
pub struct Program {
    command: Command,
    shown: String,
}

/// The result of a [`Program`].
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Program {
    /// A program of the package under test (`soci`, `soci-snapshotter-grpc`), from the directory in
    /// `SOCI_TEST_BINARIES` or the build directory of the test.
    pub fn ours(name: &str) -> Result<Self> {
        Ok(Self::at(&binary(name)?))
    }

    /// A tool that `scripts/tools` installs.
    pub fn tool(name: &str) -> Result<Self> {
        Ok(Self::at(&tool(name)?))
    }

    pub fn at(path: &Path) -> Self {
        let shown = path
            .file_name()
            .unwrap_or(path.as_os_str())
            .to_string_lossy()
            .into_owned();
        Self {
            command: Command::new(path),
            shown,
        }
    }

    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        for arg in args {
            self.shown.push(' ');
            self.shown.push_str(&arg.as_ref().to_string_lossy());
            self.command.arg(arg);
        }
        self
    }

    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    #[must_use]
    pub fn folder(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// Changes settings that the fields above do not cover.
    #[must_use]
    pub(crate) fn with(mut self, change: impl FnOnce(&mut Command)) -> Self {
        change(&mut self.command);
        self
    }

    /// Runs it and returns the result, whatever its exit code.
    pub fn finish(mut self) -> Result<Finished> {
        let output = self
            .command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("start {}", self.shown))?;
        Ok(Finished {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs it. An exit code other than 0 is an error that contains the output.
    pub fn succeed(self) -> Result<String> {
        let shown = self.shown.clone();
        let finished = self.finish()?;
        if finished.code != Some(0) {
            bail!(
                "{shown}: code {:?}\n{}{}",
                finished.code,
                finished.stdout,
                finished.stderr
            );
        }
        Ok(finished.stdout)
    }

    /// Starts it as a daemon whose output goes to `log`.
    pub fn spawn(mut self, log: &Path) -> Result<Daemon> {
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("open {}", log.display()))?;
        let child = self
            .command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {}", self.shown))?;
        Ok(Daemon {
            child,
            shown: self.shown,
            log: log.to_path_buf(),
        })
    }
}

/// A running program. It is killed on drop.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    shown: String,
    log: PathBuf,
}

impl Daemon {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its output so far.
    pub fn log(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Whether it has ended by itself.
    pub fn ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }

    /// Waits until `ready` holds. Fails with the log if the daemon ends first or time runs out.
    pub fn wait_until(
        &mut self,
        what: &str,
        limit: Duration,
        mut ready: impl FnMut(&str) -> bool,
    ) -> Result<()> {
        let start = Instant::now();
        loop {
            if ready(&self.log()) {
                return Ok(());
            }
            let ended = self.ended();
            if ended || start.elapsed() > limit {
                let why = if ended { "it has ended" } else { "time is up" };
                bail!(
                    "{}: not {what}: {why}\n{}",
                    self.shown,
                    tail(&self.log(), 40)
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends SIGTERM and returns the exit code. Fails if it does not end within the limit.
    pub fn terminate(&mut self, limit: Duration) -> Result<Option<i32>> {
        signal(self.pid(), rustix::process::Signal::TERM)?;
        self.wait_for_end(limit)
    }

    /// Sends SIGINT and returns the exit code.
    pub fn interrupt(&mut self, limit: Duration) -> Result<Option<i32>> {
        signal(self.pid(), rustix::process::Signal::INT)?;
        self.wait_for_end(limit)
    }

    /// Sends SIGKILL. Fails if it does not end within the limit.
    pub fn kill(&mut self, limit: Duration) -> Result<()> {
        signal(self.pid(), rustix::process::Signal::KILL)?;
        self.wait_for_end(limit).map(|_| ())
    }

    /// Sends SIGKILL to it and to every process that it started.
    pub fn kill_all(&mut self, limit: Duration) -> Result<()> {
        // Stopped first, so that it cannot start processes while its children are listed.
        signal(self.pid(), rustix::process::Signal::STOP)?;
        let below = descendants(self.pid())?;
        for pid in [self.pid()].into_iter().chain(below.iter().copied()) {
            // The process may have ended already.
            drop(signal(pid, rustix::process::Signal::KILL));
        }
        self.wait_for_end(limit)?;
        let start = Instant::now();
        while let Some(pid) = below.iter().find(|&&pid| runs(pid)) {
            if start.elapsed() > limit {
                bail!(
                    "process {pid} of {} does not end within {limit:?}",
                    self.shown
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    pub fn wait_for_end(&mut self, limit: Duration) -> Result<Option<i32>> {
        let start = Instant::now();
        while start.elapsed() < limit {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!(
            "{} (process {}) does not end within {limit:?}",
            self.shown,
            self.pid()
        )
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.ended() && self.child.kill().is_ok() {
            // Not `wait`: a process that cannot be killed must fail its test, not hang the suite.
            if let Err(stuck) = self.wait_for_end(Duration::from_secs(10)) {
                assert!(std::thread::panicking(), "{stuck}");
            }
        }
    }
}

/// The descendants of a process, its own children first.
pub fn descendants(pid: u32) -> Result<Vec<u32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        if let Some(child) = name.to_str().and_then(|name| name.parse::<u32>().ok())
            && let Some((_, parent)) = state(child)
        {
            parents.push((child, parent));
        }
    }
    let (mut found, mut at) = (vec![pid], 0);
    while let Some(&parent) = found.get(at) {
        at += 1;
        found.extend(
            parents
                .iter()
                .filter(|pair| pair.1 == parent)
                .map(|pair| pair.0),
        );
    }
    Ok(found.split_off(1))
}

/// Whether a process runs and is not a zombie.
fn runs(pid: u32) -> bool {
    state(pid).is_some_and(|(state, _)| state != 'Z')
}

/// The state of a process and its parent.
fn state(pid: u32) -> Option<(char, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may contain anything.
    let mut words = stat.rsplit_once(") ")?.1.split(' ');
    Some((words.next()?.chars().next()?, words.next()?.parse().ok()?))
}

fn signal(pid: u32, which: rustix::process::Signal) -> Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .context("a process id")?;
    rustix::process::kill_process(pid, which).context("send a signal")
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The path of a tool that `scripts/tools` installs.
pub fn tool(name: &str) -> Result<PathBuf> {
    let folder = match std::env::var_os("SOCI_TEST_TOOLS") {
        Some(folder) => PathBuf::from(folder),
        None => repository().join("target/tools/bin"),
    };
    existing(folder.join(name), "run `make tools` first")
}

/// The path of one of our programs.
pub fn binary(name: &str) -> Result<PathBuf> {
    let folder = match std::env::var_os("SOCI_TEST_BINARIES") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let test = std::env::current_exe().context("the path of this test")?;
            test.ancestors()
                .nth(2)
                .context("the build folder")?
                .to_path_buf()
        }
    };
    existing(
        folder.join(name),
        "run `cargo build --workspace --bins` first",
    )
}

fn existing(path: PathBuf, hint: &str) -> Result<PathBuf> {
    if !path.exists() {
        bail!("{} does not exist\n{hint}", path.display());
    }
    Ok(path)
}

/// The root directory of the repository.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .map(Path::to_path_buf)
        .unwrap_or_default()
}
