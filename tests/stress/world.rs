//! Everything around the readers: a registry behind a relay, a disk, a containerd, our daemon as a service.
//!
//! Dropped, it ends: containers first, then every FUSE connection of its mounts is aborted, so that nothing waits for an
//! answer that does not come, then the daemons.

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

/// Bytes a second of the link on an ordinary day: slow enough that layers are incomplete for seconds.
pub(crate) const RATE: u64 = 3_000_000;
/// How long the registry takes a token: several run out while one image is pulled and read.
pub(crate) const TOKEN_LIFE: Duration = Duration::from_secs(10);
const DISK_MEGABYTES: u64 = 400;
/// In a storm of kills a call of several steps may need many attempts.
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

/// A running container's folder, where its reader writes.
#[derive(Debug, Clone)]
pub(crate) struct Out {
    pub(crate) folder: PathBuf,
    pub(crate) paths: Vec<String>,
}

/// The parts, and what was seen so far. Fields are dropped in this order.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) node: Node,
    pub(crate) service: Mutex<Service>,
    pub(crate) registry: Registry,
    pub(crate) disk: Disk,
    pub(crate) events: Events,
    pub(crate) group: Option<Group>,
    pub(crate) connections: Connections,
    /// Calls that were broken so often that nobody is killed until they are through.
    spared: AtomicU64,
    /// Containers that run.
    pub(crate) outs: Mutex<Vec<Out>>,
    /// What readers that have ended had counted.
    pub(crate) counted: Mutex<Slot>,
    pub(crate) over: AtomicBool,
    /// Reads that fail from now on fail because this test ended their connection.
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

    /// Where containers find their reader; a folder in memory.
    pub(crate) fn memory(&self) -> &Path {
        &self.memory
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Whether the threads of the test are to end.
    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Something that must not be: it is reported, and the test ends.
    pub(crate) fn trouble(&self, what: String) {
        self.events.say(&format!("TROUBLE {what}"));
        lock(&self.troubles).push(what);
        self.over.store(true, Ordering::SeqCst);
    }

    pub(crate) fn troubles(&self) -> Vec<String> {
        lock(&self.troubles).clone()
    }

    /// Sleeps, but not past the end of the test.
    pub(crate) fn sleep(&self, time: Duration) {
        let start = Instant::now();
        while !self.is_over() && start.elapsed() < time {
            std::thread::sleep(Duration::from_millis(20).min(time.saturating_sub(start.elapsed())));
        }
    }

    /// Whether the daemon is left alone for the moment.
    pub(crate) fn is_spared(&self) -> bool {
        self.spared.load(Ordering::SeqCst) > 0
    }

    /// Runs a program to its end; one that does not end in time is killed and an error.
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

    /// Runs `ctr` until it succeeds. It may fail when the daemon is killed under its call, or (`full`) without space;
    /// then it is tried again. How often it failed.
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

    /// An error that the faults of this test explain; anything else is given back.
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
        // overlayfs that cannot make its work folder on a full disk mounts read-only, and says so to nobody but the
        // kernel's log ("errno: 28; mounting read-only").
        const NO_SPACE: &[&str] = &[
            "o space left on device",
            "rootfs/reader: read-only file system",
        ];
        // containerd's own requests for a token are made once.
        const NO_TOKEN: &[&str] = &["failed to fetch anonymous token"];
        let holds = |texts: &[&str]| texts.iter().any(|text| said.contains(text));
        let excused = holds(CALL_BROKE)
            || (holds(NO_SPACE) && self.events.full.was())
            || (holds(NO_TOKEN) && self.events.tokenless.was());
        ensure!(excused, "{what:?}: {}", last_line(said));
        Ok(())
    }
}

/// A call of several steps that is made again and again. In a storm of kills on a busy machine it would never come to its
/// end, and nothing would be read.
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

    /// The call was broken once more.
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

    /// Lets the token service answer with this status, or give tokens.
    pub(crate) fn refuse_tokens(&self, status: Option<u16>) {
        if let Some(tokens) = lock(&self.server).tokens() {
            tokens.refuse(status);
        }
    }

    /// How many tokens were given, and how many the registry refused because they had run out.
    pub(crate) fn tokens(&self) -> (u64, usize) {
        let server = lock(&self.server);
        let given = server.tokens().map_or(0, Tokens::given);
        (given, server.log().matches("invalid token").count())
    }

    /// Converts an image and pushes it; the reference under which the node knows it.
    pub(crate) fn publish(&self, made: &Image, name: &str, arguments: &[&str]) -> Result<String> {
        let folder = self.folder.join(name.replace(':', "-"));
        fs::create_dir_all(&folder)?;
        let (_, converted) = image::layouts(made, &folder, arguments)?;
        lock(&self.server).push(&converted, name)?;
        fs::remove_dir_all(&folder)?;
        Ok(format!("{HOST}:{}/{name}", self.relay.address().port()))
    }
}

/// A folder with the reader, the libraries it needs and the shell that programs begin with.
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
