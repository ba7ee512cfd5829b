//! One machine: containerd with our daemon as its snapshotter `soci`.

use std::ffi::OsString;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::containerd::{Places, Series};
use crate::cri::Cri;
use crate::network::Network;
use crate::process::{Daemon, Finished, Program};

/// The name of our snapshotter in containerd.
pub const SOCI: &str = "soci";
/// containerd's own snapshotter, which unpacks layers; the oracle.
pub const OVERLAYFS: &str = "overlayfs";

const START: Duration = Duration::from_secs(30);

/// Options of a node.
#[derive(Debug, Clone, Default)]
pub struct NodeOptions {
    /// The daemon's configuration file; `@containerd@` stands for containerd's socket.
    pub config: String,
    /// An additional certificate authority that both daemons trust.
    pub authority: Option<PathBuf>,
    /// The daemon's state directory, if it is not in the node's directory.
    pub root: Option<PathBuf>,
    /// The socket of containerd's content store for our daemon, if it is not containerd's own.
    pub content: Option<PathBuf>,
    /// Whether to start only containerd, with its own snapshotters.
    pub oracle_only: bool,
    /// Whether the test itself starts our daemon, see [`crate::unit`].
    pub service_apart: bool,
    /// Whether containerd leaves ID mapping in user namespaces to our snapshotter.
    pub remaps: bool,
    /// Whether containerd's configuration lacks our snapshotter until `check --fix` adds it.
    pub fixed: bool,
    /// The release series of containerd.
    pub series: Series,
    /// The sandbox image of pods. If set, containerd has its CRI, with our snapshotter.
    pub sandbox: Option<String>,
}

/// A containerd and a snapshotter with their own directories and sockets.
#[derive(Debug)]
pub struct Node {
    folder: PathBuf,
    sockets: PathBuf,
    root: PathBuf,
    options: NodeOptions,
    // Dropped in this order: containerd first, so that its snapshotter never disappears.
    containerd: Option<Daemon>,
    snapshotter: Option<Daemon>,
}

impl Node {
    /// Starts both daemons, with directories under `folder` and sockets under `/run/containerd`.
    pub fn start(folder: &Path, options: NodeOptions) -> Result<Self> {
        if std::env::var_os("SOCI_SANDBOX").is_none() {
            bail!(
                "containers and mounts are made in namespaces of their own only\nrun `make e2e` or `make test`"
            );
        }
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let sockets = PathBuf::from(format!(
            "/run/containerd/node-{}-{number}",
            std::process::id()
        ));
        fs::create_dir_all(folder)?;
        fs::create_dir_all(&sockets)?;
        let root = options.root.clone().unwrap_or_else(|| folder.join("soci"));
        let folder = folder.to_path_buf();
        let mut node = Self {
            folder,
            sockets,
            root,
            options,
            containerd: None,
            snapshotter: None,
        };
        if !node.options.oracle_only && !node.options.service_apart {
            node.start_snapshotter()?;
        }
        node.start_containerd()?;
        Ok(node)
    }

    /// Starts our daemon and waits until it serves.
    pub fn start_snapshotter(&mut self) -> Result<()> {
        self.start_snapshotter_with(&[])
    }

    /// The same with additional environment variables.
    pub fn start_snapshotter_with(&mut self, environment: &[(&str, &str)]) -> Result<()> {
        let mut program = Program::ours("soci-snapshotter-grpc")?;
        for (key, value) in environment {
            program = program.env(key, value);
        }
        self.start_snapshotter_as(program)
    }

    /// The same in a separate mount namespace. Only mounts below the state directory are visible
    /// outside, and only if it is a shared mount.
    pub fn start_snapshotter_apart(&mut self) -> Result<()> {
        let apart = ["--mount", "--propagation", "unchanged", "--"].map(OsString::from);
        let service = crate::process::binary("soci-snapshotter-grpc")?;
        let program = Program::at(Path::new("unshare")).args(apart);
        self.start_snapshotter_as(program.args([service]))
    }

    fn start_snapshotter_as(&mut self, program: Program) -> Result<()> {
        let socket = self.snapshotter_socket();
        let program = program
            .args([Path::new("--address"), &socket])
            .args(self.snapshotter_arguments()?);
        let program = self.trusting(program);
        let before = self.snapshotter_log().len();
        let mut daemon = program.spawn(&self.folder.join("soci.log"))?;
        daemon.wait_until("listening", START, |log| {
            log.get(before..)
                .is_some_and(|new| new.contains("successfully started"))
                && UnixStream::connect(&socket).is_ok()
        })?;
        self.snapshotter = Some(daemon);
        Ok(())
    }

    /// The arguments of our daemon except its address. Writes the configuration file that they
    /// name.
    pub fn snapshotter_arguments(&self) -> Result<Vec<OsString>> {
        let config = self.folder.join("soci.toml");
        let content = self.options.content.clone();
        let content = content.unwrap_or_else(|| self.containerd_socket());
        let socket = self.containerd_socket().display().to_string();
        let own = self.options.config.replace("@containerd@", &socket);
        // A test that sets other keys of the table writes it last.
        let table = match own.contains("[content_store]") {
            true => "",
            false => "[content_store]\n",
        };
        let content = content.display();
        let containerd = match own.contains("containerd_address") {
            true => String::new(),
            false => format!("{table}containerd_address = \"{content}\"\n"),
        };
        fs::write(&config, format!("{own}{containerd}"))?;
        Ok(vec![
            "--log-level".into(),
            "debug".into(),
            "--root".into(),
            self.root.clone().into(),
            "--config".into(),
            config.into(),
        ])
    }

    /// Starts containerd and waits until it answers.
    pub fn start_containerd(&mut self) -> Result<()> {
        Network::below(&self.folder).write()?;
        let config = self.folder.join("containerd.toml");
        fs::write(&config, self.containerd_config()?)?;
        if self.options.fixed {
            self.fix(&config)?;
        }
        let containerd = self.options.series.program("containerd");
        let program = Program::tool(&containerd)?.args([Path::new("--config"), &config]);
        let tools = crate::process::tool(&containerd)?;
        let path = format!(
            "{}:{}",
            tools.parent().unwrap_or(Path::new("/")).display(),
            std::env::var("PATH").unwrap_or_default()
        );
        let mut daemon = self
            .trusting(program)
            .env("PATH", path)
            .spawn(&self.folder.join("containerd.log"))?;
        let socket = self.containerd_socket();
        daemon.wait_until("answering", START, |_| UnixStream::connect(&socket).is_ok())?;
        self.containerd = Some(daemon);
        Ok(())
    }

    /// Lets our program add its settings to containerd's configuration.
    fn fix(&self, config: &Path) -> Result<()> {
        let fixed = Program::ours("soci-snapshotter-grpc")?
            .args([Path::new("--address"), &self.snapshotter_socket()])
            .args([Path::new("--root"), &self.root])
            .args(["check", "--only", "containerd", "--fix"])
            .args([Path::new("--containerd-config"), config])
            .finish()?;
        if fixed.code != Some(0) {
            bail!("{}{}", fixed.stdout, fixed.stderr);
        }
        Ok(())
    }

    fn trusting(&self, program: Program) -> Program {
        match &self.options.authority {
            Some(authority) => program.env("SSL_CERT_FILE", authority),
            None => program,
        }
    }

    fn containerd_config(&self) -> Result<String> {
        let places = Places {
            root: self.folder.join("containerd"),
            state: self.sockets.join("state"),
            socket: &self.containerd_socket(),
            soci_socket: &self.snapshotter_socket(),
            soci_root: &self.root,
            network: &Network::below(&self.folder),
        };
        self.options.series.config(&places, &self.options)
    }

    pub fn containerd_socket(&self) -> PathBuf {
        self.sockets.join("containerd.sock")
    }

    pub fn snapshotter_socket(&self) -> PathBuf {
        self.sockets.join("soci.sock")
    }

    /// The state directory of our daemon.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Our daemon; an error if it is stopped.
    pub fn snapshotter(&mut self) -> Result<&mut Daemon> {
        self.snapshotter
            .as_mut()
            .context("the snapshotter is not running")
    }

    pub fn containerd(&mut self) -> Result<&mut Daemon> {
        self.containerd
            .as_mut()
            .context("containerd is not running")
    }

    /// The complete log of our daemon, over all of its runs.
    pub fn snapshotter_log(&self) -> String {
        fs::read(self.folder.join("soci.log"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// `ctr` with the address of this containerd.
    pub fn ctr<S: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Program> {
        let socket = self.containerd_socket();
        let series = self.options.series;
        // An older ctr contacts registries itself.
        Ok(self
            .trusting(Program::tool(&series.program("ctr"))?)
            .args([Path::new("--address"), &socket])
            .args(["--namespace", self.namespace()])
            .args(arguments))
    }

    /// The namespace of this node's images.
    fn namespace(&self) -> &'static str {
        self.options
            .series
            .namespace(self.options.sandbox.is_some())
    }

    /// A client of the CRI.
    pub fn cri(&self) -> Result<Cri> {
        Cri::connect(&self.containerd_socket())
    }

    /// `soci` with the address of this containerd and its own state directory.
    pub fn soci<S: AsRef<std::ffi::OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Program> {
        let (socket, root) = (self.containerd_socket(), self.folder.join("soci-cli"));
        Ok(Program::ours("soci")?
            .args([Path::new("--address"), &socket, Path::new("--root"), &root])
            .args(["--namespace", self.namespace()])
            .args(arguments))
    }

    /// Pulls an image as containerd does for a user. An error contains the last lines of both
    /// daemons.
    pub fn pull(&self, reference: &str, snapshotter: &str) -> Result<()> {
        let by_cri = self.options.series == Series::V1_7 || self.options.sandbox.is_some();
        if by_cri && snapshotter == SOCI {
            return self.cri()?.pull(reference);
        }
        let pulled = self
            .ctr(["images", "pull", "--snapshotter", snapshotter, reference])?
            .finish()?;
        if pulled.code != Some(0) {
            // Not standard output, which is a progress bar.
            let log = last_lines(&self.snapshotter_log(), 8);
            bail!(
                "pull {reference}: {}\nthe snapshotter's last lines:\n{log}",
                pulled.stderr
            );
        }
        Ok(())
    }

    /// Removes an image and waits for the garbage collection.
    pub fn remove_image(&self, reference: &str) -> Result<()> {
        self.ctr(["images", "rm", "--sync", reference])?
            .succeed()
            .map(|_| ())
    }

    /// Runs a command in a container of the image and waits for its end.
    pub fn run(
        &self,
        reference: &str,
        snapshotter: &str,
        id: &str,
        command: &[&str],
    ) -> Result<Finished> {
        let id = self.container(id);
        self.ctr(["run", "--rm", "--snapshotter", snapshotter, reference, &id])?
            .args(command)
            .finish()
    }

    /// A read-only view of the whole image, mounted until dropped.
    pub fn view(&self, reference: &str, snapshotter: &str) -> Result<View> {
        self.mounted(reference, snapshotter, &[])
    }

    /// The same with a writable layer on top.
    pub fn writable(&self, reference: &str, snapshotter: &str) -> Result<View> {
        self.mounted(reference, snapshotter, &["--rw"])
    }

    fn mounted(&self, reference: &str, snapshotter: &str, how: &[&str]) -> Result<View> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "view-{snapshotter}-{}",
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let target = self.folder.join(name);
        fs::create_dir_all(&target)?;
        self.ctr(["images", "mount", "--snapshotter", snapshotter])?
            .args(how)
            .args([Path::new(reference), &target])
            .succeed()?;
        Ok(View {
            target,
            socket: self.containerd_socket(),
            series: self.options.series,
            namespace: self.namespace(),
            snapshotter: snapshotter.to_owned(),
            mounted: true,
        })
    }

    /// The container's ID outside containerd, unique across nodes for runc and control groups.
    fn container(&self, id: &str) -> String {
        let node = self.sockets.file_name().unwrap_or_default();
        format!("{id}-{}", node.to_string_lossy())
    }

    /// The root file system of a running container, as a path on the host.
    pub fn root_of(&self, container: &str) -> Result<PathBuf> {
        let tasks = self.ctr(["tasks", "ls"])?.succeed()?;
        let mut words = tasks
            .lines()
            .map(str::split_ascii_whitespace)
            .find_map(|mut words| (words.next() == Some(container)).then_some(words))
            .with_context(|| format!("{container} does not run:\n{tasks}"))?;
        let pid = words.next().context("a process id")?;
        Ok(Path::new("/proc").join(pid).join("root"))
    }

    /// The mount point of our daemon's FUSE mount.
    pub fn served(&self) -> Result<PathBuf> {
        let mounts = self.mounts()?;
        let line = mounts
            .iter()
            .find(|line| line.contains(" - fuse"))
            .with_context(|| format!("no FUSE mount: {mounts:#?}"))?;
        line.split(' ').nth(4).map(PathBuf::from).context("a path")
    }

    /// Waits until this many layers are logged as complete.
    pub fn wait_complete(&self, layers: usize) -> Result<()> {
        let start = Instant::now();
        while self.snapshotter_log().matches("layer is complete").count() < layers {
            if start.elapsed() > Duration::from_secs(60) {
                bail!("not complete:\n{}", self.snapshotter_log());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Lines of the mount table below our daemon's state directory.
    pub fn mounts(&self) -> Result<Vec<String>> {
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        let below = format!(" {}/", self.root.display());
        Ok(table
            .lines()
            .filter(|line| line.contains(&below))
            .map(str::to_owned)
            .collect())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.containerd.take());
        drop(self.snapshotter.take());
        // Views and layers that a failed test left are detached, topmost first.
        let below = [
            format!("{}/", self.folder.display()),
            format!("{}/", self.root.display()),
        ];
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in table.lines().rev() {
            let Some(point) = line.split(' ').nth(4) else {
                continue;
            };
            if below.iter().any(|folder| point.starts_with(folder)) {
                // It may have been unmounted already.
                let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
            }
        }
    }
}

/// A mounted view of an image. On drop it is unmounted and its snapshot is removed.
#[derive(Debug)]
pub struct View {
    target: PathBuf,
    socket: PathBuf,
    series: Series,
    namespace: &'static str,
    snapshotter: String,
    mounted: bool,
}

impl View {
    pub fn path(&self) -> &Path {
        &self.target
    }

    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.target.join(path)
    }

    /// Unmounts the view and reports errors. Drop does the same but ignores errors.
    pub fn close(mut self) -> Result<()> {
        self.mounted = false;
        self.unmount()
    }

    fn unmount(&self) -> Result<()> {
        Program::tool(&self.series.program("ctr"))?
            .args([Path::new("--address"), &self.socket])
            .args(["--namespace", self.namespace])
            .args([
                "images",
                "unmount",
                "--rm",
                "--snapshotter",
                &self.snapshotter,
            ])
            .args([&self.target])
            .succeed()
            .map(|_| ())
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if self.mounted {
            // The node's own guard detaches what this cannot.
            drop(self.unmount());
        }
    }
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
