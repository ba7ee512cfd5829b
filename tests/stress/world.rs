//! The environment of the readers: a registry behind a relay, a disk, a containerd, and our daemon
//! as a service.
//!
//! Drop ends the containers first, then aborts every FUSE connection of its mounts, so that no
//! process waits for an answer that does not come, then ends the daemons.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use soci_tests::disk::Disk;
use soci_tests::process::{Finished, Program, binary, tool};
use soci_tests::registry::HOST;
use soci_tests::unit::{Launch, Service, end, marked};
use soci_tests::{Image, Node, NodeOptions, Relay, Shape, TlsRegistry, Tokens, image};
use tempfile::TempDir;

use crate::Plan;
use crate::events::Events;
use crate::group::Group;
use crate::slots::Slot;
use crate::watch::{self, Connections};

/// Normal rate of the link in bytes per second: slow enough that layers stay incomplete for
/// seconds.
pub(crate) const RATE: u64 = 3_000_000;
/// How long the registry accepts a token: several expire during the pull and reads of one image.
pub(crate) const TOKEN_LIFE: Duration = Duration::from_secs(10);
const DISK_MEGABYTES: u64 = 400;
/// During a series of kills, a call of several steps may need many attempts.
pub(crate) const ATTEMPTS: Duration = Duration::from_secs(240);
/// Longer than any wait that a fault of this test causes.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// The registry and the link to it.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) server: Mutex<TlsRegistry>,
    pub(crate) relay: Relay,
    folder: PathBuf,
}

/// The directory of a running container, to which its reader writes.
#[derive(Debug, Clone)]
pub(crate) struct Out {
    pub(crate) folder: PathBuf,
    pub(crate) paths: Vec<String>,
}

/// The parts and the results so far. Fields are dropped in this order.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) node: Node,
    pub(crate) service: Mutex<Service>,
    pub(crate) registry: Registry,
    pub(crate) disk: Disk,
    pub(crate) events: Events,
    pub(crate) group: Option<Group>,
    pub(crate) connections: Connections,
    /// Number of calls that failed so often that kills pause until they succeed.
    spared: AtomicU64,
    /// Running containers.
    pub(crate) outs: Mutex<Vec<Out>>,
    /// Counters of readers that have ended.
    pub(crate) counted: Mutex<Slot>,
    pub(crate) over: AtomicBool,
    /// The test has aborted its FUSE connections, so reads that fail from now on are expected to.
    pub(crate) aborted: AtomicBool,
    troubles: Mutex<Vec<String>>,
    memory: PathBuf,
    folder: TempDir,
}

impl World {
    pub(crate) fn start(plan: &Plan) -> Result<Self> {
        watch::see_connections()?;
        let folder = tempfile::tempdir().context("a folder for the test")?;
        let registry = Registry::start(folder.path())?;
        let disk = Disk::make(folder.path(), DISK_MEGABYTES)?;
        let authority = {
            let server = lock(&registry.server);
            server.authority().to_path_buf()
        };
        let options = NodeOptions {
            root: Some(disk.path().join("soci")),
            authority: Some(authority.clone()),
            service_apart: true,
            ..NodeOptions::default()
        };
        let node = Node::start(&folder.path().join("node"), options)?;
        let group = Group::make()?;
        let build = plan.builds.first().context("a build of the daemon")?;
        let launch = Launch {
            binary: build.binary.clone(),
            arguments: node.snapshotter_arguments()?,
            environment: vec![("SSL_CERT_FILE".into(), authority.into())],
            socket: node.snapshotter_socket(),
            log: node.folder().join("soci.log"),
            mark: node.root().display().to_string(),
            group: group.as_ref().map(|group| group.path().to_path_buf()),
        };
        let memory = node.snapshotter_socket().with_extension("readers");
        prepare_reader(&memory.join("lib"))?;
        let service = Service::start(plan.keeping, launch)?;
        build.started.fetch_add(1, Ordering::SeqCst);
        Ok(Self {
            node,
            service: Mutex::new(service),
            registry,
            disk,
            events: Events::new(&plan.folder)?,
            group,
            connections: Connections::default(),
            spared: AtomicU64::new(0),
            outs: Mutex::default(),
            counted: Mutex::default(),
            over: AtomicBool::new(false),
            aborted: AtomicBool::new(false),
            troubles: Mutex::default(),
            memory,
            folder,
        })
    }

    /// A directory in memory with the reader for the containers.
    pub(crate) fn memory(&self) -> &Path {
        &self.memory
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Whether the threads of the test must end.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Reports a failure and ends the test.
    pub(crate) fn trouble(&self, what: String) {
        self.events.say(&format!("TROUBLE {what}"));
        lock(&self.troubles).push(what);
        self.over.store(true, Ordering::SeqCst);
    }

    pub(crate) fn troubles(&self) -> Vec<String> {
        lock(&self.troubles).clone()
    }

    /// Sleeps until the end of the test at most.
    pub(crate) fn sleep(&self, time: Duration) {
        let start = Instant::now();
        while !self.is_over() && start.elapsed() < time {
            std::thread::sleep(Duration::from_millis(20).min(time.saturating_sub(start.elapsed())));
        }
    }

    /// Whether the daemon must not be killed at the moment.
    pub(crate) fn is_spared(&self) -> bool {
        self.spared.load(Ordering::SeqCst) > 0
    }

    /// Runs a program with a time limit. After the limit it is killed, and this returns an error.
    pub(crate) fn finish(&self, program: Program) -> Result<Finished> {
        let log = tempfile::NamedTempFile::new_in(self.folder())?;
        let mut running = program.spawn(log.path())?;
        let code = running.wait_for_end(LIMIT)?;
        Ok(Finished {
            code,
            stdout: running.log(),
            stderr: String::new(),
        })
    }

    /// Runs `ctr` until it succeeds. A failure because the daemon was killed during the call, or
    /// (`full`) because the disk is full, is repeated. Returns the number of failures.
    pub(crate) fn ctr(&self, arguments: &[&str]) -> Result<u64> {
        let start = Instant::now();
        let mut failures = 0;
        let mut mercy = Mercy::new(self);
        loop {
            let said = self.finish(self.node.ctr(arguments)?)?;
            if said.code == Some(0) {
                return Ok(failures);
            }
            self.excused(arguments, &said.stdout)?;
            failures += 1;
            mercy.broken();
            self.events.say(&format!(
                "again: ctr {}: {}",
                arguments.join(" "),
                last_line(&said.stdout)
            ));
            if self.is_over() {
                bail!("the test is over");
            }
            ensure!(
                start.elapsed() < ATTEMPTS,
                "ctr {arguments:?}: {}",
                last_line(&said.stdout)
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Accepts an error that the faults of this test explain. Returns any other error.
    pub(crate) fn excused(&self, what: &[&str], said: &str) -> Result<()> {
        const CALL_BROKE: &[&str] = &[
            "Unavailable",
            "unavailable",
            "error reading from server",
            "transport is closing",
            "connection refused",
            "connection reset",
            "connection error",
            "EOF",
            "broken pipe",
            "is being stopped or replaced",
        ];
        // If overlayfs cannot create its work directory on a full disk, it mounts read-only and
        // reports that only in the kernel log ("errno: 28; mounting read-only").
        const NO_SPACE: &[&str] = &[
            "o space left on device",
            "rootfs/reader: read-only file system",
        ];
        // containerd does not repeat its own requests for a token.
        const NO_TOKEN: &[&str] = &["failed to fetch anonymous token"];
        let holds = |texts: &[&str]| texts.iter().any(|text| said.contains(text));
        let excused = holds(CALL_BROKE)
            || (holds(NO_SPACE) && self.events.full.was())
            || (holds(NO_TOKEN) && self.events.tokenless.was());
        ensure!(excused, "{what:?}: {}", last_line(said));
        Ok(())
    }
}

/// A call of several steps that is repeated. On a busy machine, a series of kills could prevent it
/// from ever succeeding, so kills pause after some failures.
#[derive(Debug)]
pub(crate) struct Mercy<'a> {
    world: &'a World,
    broken: u32,
}

impl<'a> Mercy<'a> {
    const ATTEMPTS: u32 = 5;

    pub(crate) fn new(world: &'a World) -> Self {
        Self { world, broken: 0 }
    }

    /// Records another failure.
    pub(crate) fn broken(&mut self) {
        self.broken += 1;
        if self.broken == Self::ATTEMPTS {
            self.world.spared.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Drop for Mercy<'_> {
    fn drop(&mut self) {
        if self.broken >= Self::ATTEMPTS {
            self.world.spared.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        for reader in marked(&self.memory.display().to_string()) {
            end(reader);
        }
        self.connections.abort(&self.node);
        let _ = fs::remove_dir_all(&self.memory);
    }
}

impl Registry {
    fn start(folder: &Path) -> Result<Self> {
        let server = TlsRegistry::with_tokens(&folder.join("registry"), TOKEN_LIFE)?;
        let shape = Shape {
            rate: Some(RATE),
            ..Shape::default()
        };
        let relay = Relay::start(([127, 0, 0, 1], 0).into(), server.address(), shape)?;
        Ok(Self {
            server: Mutex::new(server),
            relay,
            folder: folder.join("layouts"),
        })
    }

    /// Makes the token service answer with this status, or issue tokens.
    pub(crate) fn refuse_tokens(&self, status: Option<u16>) {
        if let Some(tokens) = lock(&self.server).tokens() {
            tokens.refuse(status);
        }
    }

    /// Number of issued tokens, and of those the registry refused because they had expired.
    pub(crate) fn tokens(&self) -> (u64, usize) {
        let server = lock(&self.server);
        let given = server.tokens().map_or(0, Tokens::given);
        (given, server.log().matches("invalid token").count())
    }

    /// Converts an image and pushes it. Returns the reference under which the node pulls it.
    pub(crate) fn publish(&self, made: &Image, name: &str, arguments: &[&str]) -> Result<String> {
        let folder = self.folder.join(name.replace(':', "-"));
        fs::create_dir_all(&folder)?;
        let (_, converted) = image::layouts(made, &folder, arguments)?;
        lock(&self.server).push(&converted, name)?;
        fs::remove_dir_all(&folder)?;
        Ok(format!("{HOST}:{}/{name}", self.relay.address().port()))
    }
}

/// A directory with the reader, the libraries it needs, and the shell at the start of programs.
fn prepare_reader(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let reader = binary("soci-test-reader")?;
    fs::copy(tool("busybox")?, folder.join("busybox"))?;
    let listed = Program::at(Path::new("ldd")).args([&reader]).succeed()?;
    for word in listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        let name = Path::new(word).file_name().context("a library")?;
        fs::copy(word, folder.join(name))?;
    }
    fs::copy(reader, folder.join("soci-test-reader"))?;
    Ok(())
}

pub(crate) fn last_line(text: &str) -> &str {
    text.trim_end().rsplit('\n').next().unwrap_or_default()
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
