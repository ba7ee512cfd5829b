//! A containerd and a snapshotter of our own, in a temporary folder, to start one container with.
//!
//! Nothing of the machine's containerd is used. [`Node::end`] stops the programs and removes what they
//! made; dropping the node kills them.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::status::client;

/// How long a program may take to start, or to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often a program is asked whether it has started.
const EVERY: Duration = Duration::from_millis(50);
/// Where the node is unless `TMPDIR` says otherwise: layers need a file system with sparse files and
/// extended attributes, which `/tmp` may not be.
const FOLDER: &str = "/var/tmp";
/// The name of the container.
const CONTAINER: &str = "recorded";
/// The folders with `hosts.toml`, as for the snapshotter.
const HOSTS: &str = "/etc/containerd/certs.d";

/// The running programs.
#[derive(Debug)]
pub(super) struct Node {
    folder: TempDir,
    snapshotter: Child,
    containerd: Child,
}

impl Node {
    /// Starts the programs and waits until they answer.
    pub(super) async fn start() -> Result<Self> {
        let base = std::env::var_os("TMPDIR").filter(|base| !base.is_empty());
        let base = base.map_or_else(|| PathBuf::from(FOLDER), PathBuf::from);
        let folder = tempfile::Builder::new()
            .prefix("soci-record-")
            .tempdir_in(&base)
            .with_context(|| format!("make a folder in {}", base.display()))?;
        let at = folder.path();
        write_configuration(at)?;
        let mut command = Command::new("soci-snapshotter-grpc");
        command.arg("--address").arg(at.join("soci.sock"));
        command.arg("--root").arg(at.join("soci"));
        command.arg("--config").arg(at.join("soci.toml"));
        let snapshotter = spawn(command, &at.join("soci.log"))?;
        let mut command = Command::new("containerd");
        command.arg("--config").arg(at.join("containerd.toml"));
        let containerd = spawn(command, &at.join("containerd.log"))?;
        let mut node = Self {
            folder,
            snapshotter,
            containerd,
        };
        if let Err(error) = node.until_ready().await {
            node.end().await;
            return Err(error);
        }
        Ok(node)
    }

    async fn until_ready(&mut self) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        while client::ask(&self.socket()).await.is_err() {
            self.check(until, "soci-snapshotter-grpc", "soci.log")?;
            sleep(EVERY).await;
        }
        loop {
            let mut version = self.ctr();
            version
                .arg("version")
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            if let Ok(asked) = timeout_at(until, version.status()).await
                && asked.map_err(not_started("ctr"))?.success()
            {
                return Ok(());
            }
            self.check(until, "containerd", "containerd.log")?;
            sleep(EVERY).await;
        }
    }

    /// Fails if a program has ended, or takes too long.
    fn check(&mut self, until: Instant, name: &str, log: &str) -> Result<()> {
        let program = match name {
            "containerd" => &mut self.containerd,
            _ => &mut self.snapshotter,
        };
        let ended = program.try_wait()?;
        if ended.is_none() && Instant::now() < until {
            return Ok(());
        }
        let log = fs::read_to_string(self.folder.path().join(log)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(5)..].join("\n");
        bail!("{name} does not start; the end of its log:\n{last}")
    }

    /// The status socket of the snapshotter.
    pub(super) fn socket(&self) -> PathBuf {
        self.folder.path().join(soci_status::SOCKET)
    }

    fn ctr(&self) -> Command {
        let mut command = Command::new("ctr");
        command
            .arg("--address")
            .arg(self.folder.path().join("containerd.sock"));
        command.kill_on_drop(true).stdin(Stdio::null());
        command
    }

    /// Pulls an image.
    pub(super) async fn pull(&self, image: &str) -> Result<()> {
        let mut command = self.ctr();
        command.args(["images", "pull", "--snapshotter", "soci"]);
        if Path::new(HOSTS).is_dir() {
            command.args(["--hosts-dir", HOSTS]);
        }
        let output = command.arg(image).stdout(Stdio::null()).output();
        let output = output.await.map_err(not_started("ctr"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("cannot pull {image}: {}", said.trim());
        }
        Ok(())
    }

    /// Runs a container until it ends, or this long. Its output goes to standard error.
    pub(super) async fn run(&self, image: &str, words: &[String], limit: Duration) -> Result<()> {
        let mut command = self.ctr();
        command.args([
            "run",
            "--rm",
            "--cgroup",
            "",
            "--net-host",
            "--snapshotter",
            "soci",
        ]);
        command.arg(image).arg(CONTAINER).args(words);
        command.stdout(std::io::stderr());
        let mut running = command.spawn().map_err(not_started("ctr"))?;
        let ended = match timeout(limit, running.wait()).await {
            Err(_) => {
                self.kill(&mut running).await;
                return Ok(());
            }
            Ok(ended) => ended?,
        };
        if !ended.success() {
            tracing::warn!("the container ended with {ended}; what it read until then is recorded");
        }
        Ok(())
    }

    /// Kills the container, if it runs.
    async fn kill_container(&self) {
        let mut kill = self.ctr();
        kill.args(["tasks", "kill", "--all", "--signal", "SIGKILL", CONTAINER]);
        // It may have ended.
        drop(timeout(PATIENCE, kill.output()).await);
    }

    async fn kill(&self, running: &mut Child) {
        self.kill_container().await;
        if timeout(PATIENCE, running.wait()).await.is_err() {
            tracing::warn!("the container does not end");
        }
    }

    /// Stops everything and removes the folder.
    pub(super) async fn end(mut self) {
        self.kill_container().await;
        let mut delete = self.ctr();
        delete.args(["tasks", "delete", "--force", CONTAINER]);
        drop(timeout(PATIENCE, delete.output()).await);
        stop(&mut self.containerd, Signal::TERM).await;
        // This signal unmounts the layers.
        stop(&mut self.snapshotter, Signal::INT).await;
        for point in mounts_below(self.folder.path()) {
            if let Err(error) = unmount(&point, UnmountFlags::DETACH) {
                tracing::warn!(%error, "{} is not unmounted", point.display());
            }
        }
        let at = self.folder.path().to_owned();
        if let Err(error) = self.folder.close() {
            tracing::warn!(%error, "{} is not removed; remove it", at.display());
        }
    }
}

fn write_configuration(at: &Path) -> Result<()> {
    let write = |name: &str, text: String| {
        let path = at.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    };
    let socket = at.join("containerd.sock");
    let socket = socket.display();
    // Everything that is read is seen, because nothing else is downloaded.
    write(
        "soci.toml",
        format!(
            "[background_fetch]\ndisable = true\n[prefetch]\nrecord = true\nreplay = false\n[content_store]\ncontainerd_address = \"{socket}\"\n"
        ),
    )?;
    let folder = at.display();
    let platform = soci_oci::Platform::host();
    write(
        "containerd.toml",
        format!(
            r#"version = 3
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri", "io.containerd.nri.v1.nri"]
[grpc]
address = "{socket}"
[ttrpc]
address = "{socket}.ttrpc"
[proxy_plugins.soci]
type = "snapshot"
address = "{folder}/soci.sock"
[proxy_plugins.soci.exports]
root = "{folder}/soci"
enable_remote_snapshot_annotations = "true"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "{platform}"
snapshotter = "soci"
"#
        ),
    )
}

fn spawn(mut command: Command, log: &Path) -> Result<Child> {
    let name = command
        .as_std()
        .get_program()
        .to_string_lossy()
        .into_owned();
    let mut log = File::create(log)?;
    log.flush()?;
    command.stdin(Stdio::null()).kill_on_drop(true);
    command.stdout(log.try_clone()?).stderr(log);
    // A signal from the terminal must not end it before the container.
    command.process_group(0);
    command.spawn().map_err(not_started(&name))
}

fn not_started(name: &str) -> impl FnOnce(std::io::Error) -> anyhow::Error + use<> {
    let name = name.to_owned();
    move |error| match error.kind() {
        std::io::ErrorKind::NotFound => anyhow!(
            "{name} is not in the PATH; --run needs containerd, ctr, containerd-shim-runc-v2, runc and soci-snapshotter-grpc"
        ),
        _ => anyhow!("cannot start {name}: {error}"),
    }
}

/// Asks a program to end, and kills it if it does not.
async fn stop(program: &mut Child, signal: Signal) {
    let pid = program.id().and_then(|id| i32::try_from(id).ok());
    if let Some(pid) = pid.and_then(Pid::from_raw) {
        // It may have ended.
        let _ = kill_process(pid, signal);
    }
    if timeout(PATIENCE, program.wait()).await.is_err() {
        drop(program.kill().await);
    }
}

/// The mount points below a folder, the uppermost first.
fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let mut points: Vec<PathBuf> = points.map(PathBuf::from).collect();
    points.retain(|point| point.starts_with(folder));
    points.reverse();
    points
}
