//! A registry, a relay in front of it, and a node that pulls through the relay.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::containerd::Series;
use crate::image::{self, Image};
use crate::node::{Node, NodeOptions, SOCI, View};
use crate::process::Program;
use crate::registry::{HOST, TlsRegistry};
use crate::relay::{Relay, Shape};

/// Everything one test needs. Fields are dropped in this order: mounts first, while their bytes can
/// still arrive.
#[derive(Debug)]
pub struct Site {
    pub node: Node,
    pub relay: Relay,
    pub registry: TlsRegistry,
    folder: TempDir,
}

/// A configuration without background downloads, so that the test controls which bytes are fetched.
pub const NOTHING_BEHIND: &str = "[background_fetch]\ndisable = true\n";

impl Site {
    /// A node with this daemon configuration, and a link without delay.
    pub fn new(config: &str) -> Result<Self> {
        Self::with(
            NodeOptions {
                config: config.to_owned(),
                ..NodeOptions::default()
            },
            Shape::default(),
        )
    }

    /// Only containerd, with its own snapshotters.
    pub fn oracle_only() -> Result<Self> {
        Self::with(
            NodeOptions {
                oracle_only: true,
                ..NodeOptions::default()
            },
            Shape::default(),
        )
    }

    /// A node for pods: containerd has its CRI, and the registry a sandbox image.
    pub fn for_pods(config: &str) -> Result<Self> {
        Self::for_pods_of(Series::Current, config)
    }

    /// The same with this series of containerd.
    pub fn for_pods_of(series: Series, config: &str) -> Result<Self> {
        Self::for_pods_with(NodeOptions {
            config: config.to_owned(),
            series,
            ..NodeOptions::default()
        })
    }

    /// The same with these options.
    pub fn for_pods_with(options: NodeOptions) -> Result<Self> {
        let folder = tempfile::tempdir().context("a folder for the test")?;
        let (pause, layout) = ("pause:1", folder.path().join("pause"));
        Image::pause()?.write_layout(&layout)?;
        Self::made(folder, Shape::default(), |registry, relay| {
            registry.push(&layout, pause)?;
            let sandbox = format!("{HOST}:{}/{pause}", relay.address().port());
            Ok(NodeOptions {
                sandbox: Some(sandbox),
                ..options
            })
        })
    }

    pub fn with(options: NodeOptions, shape: Shape) -> Result<Self> {
        let folder = tempfile::tempdir().context("a folder for the test")?;
        Self::made(folder, shape, |_, _| Ok(options))
    }

    fn made(
        folder: TempDir,
        shape: Shape,
        options: impl FnOnce(&TlsRegistry, &Relay) -> Result<NodeOptions>,
    ) -> Result<Self> {
        let registry = TlsRegistry::start(&folder.path().join("registry"))?;
        let relay = Relay::start(([127, 0, 0, 1], 0).into(), registry.address(), shape)?;
        let options = options(&registry, &relay)?;
        let options = NodeOptions {
            authority: Some(registry.authority().to_path_buf()),
            ..options
        };
        let node = Node::start(&folder.path().join("node"), options)?;
        Ok(Self {
            node,
            relay,
            registry,
            folder,
        })
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The reference under which the node pulls what was pushed as `name`.
    pub fn reference(&self, name: &str) -> String {
        format!("{HOST}:{}/{name}", self.relay.address().port())
    }

    /// Pushes the image without converting it.
    pub fn publish_plain(&self, image: &Image, name: &str) -> Result<String> {
        let layout = self.layout(name)?;
        image.write_layout(&layout)?;
        self.publish_layout(&layout, name)
    }

    /// Converts the image with small spans and pushes the result.
    pub fn publish(&self, image: &Image, name: &str) -> Result<String> {
        self.publish_with(image, name, &[])
    }

    /// The same with these arguments of `soci convert`.
    pub fn publish_with(&self, image: &Image, name: &str, arguments: &[&str]) -> Result<String> {
        let converted = self.converted(image, name, arguments)?;
        self.publish_layout(&converted, name)
    }

    /// The converted layout of an image, without pushing it.
    pub fn converted(&self, image: &Image, name: &str, arguments: &[&str]) -> Result<PathBuf> {
        image::layouts(image, &self.layout(name)?, arguments).map(|(_, converted)| converted)
    }

    /// Imports an image for these platforms into containerd without a registry.
    pub fn import(&self, name: &str, images: &[(&str, &Image)]) -> Result<()> {
        let layout = self.layout(name)?;
        image::write_platforms(&layout, name, images)?;
        let archive = layout.with_extension("tar");
        Program::at(Path::new("/bin/tar"))
            .args([Path::new("-cf"), &archive, Path::new("-C"), &layout])
            .args(["."])
            .succeed()?;
        self.node
            .ctr(["images", "import", "--all-platforms", "--no-unpack"])?
            .args([&archive])
            .succeed()
            .map(drop)
    }

    pub fn publish_layout(&self, layout: &Path, name: &str) -> Result<String> {
        self.registry.push(layout, name)?;
        Ok(self.reference(name))
    }

    /// A view, once containerd has reconnected to the restarted daemon, which can take some
    /// seconds.
    pub fn view_when_connected(&self, reference: &str) -> Result<View> {
        let start = Instant::now();
        loop {
            match self.node.view(reference, SOCI) {
                Ok(view) => return Ok(view),
                Err(error) if start.elapsed() > Duration::from_secs(30) => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(200)),
            }
        }
    }

    /// Runs something that must end within a time limit. If it does not, restores the registry, so
    /// that READs are answered and no process waits indefinitely, and returns an error.
    pub fn within<T>(
        &self,
        limit: Duration,
        what: &str,
        act: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let (done, waits) = std::sync::mpsc::channel::<()>();
        let start = Instant::now();
        let made = std::thread::scope(|scope| {
            scope.spawn(move || {
                if waits.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                    self.relay.restore();
                }
            });
            let made = act();
            drop(done);
            made
        })
        .with_context(|| what.to_owned())?;
        let took = start.elapsed();
        ensure!(took < limit, "{what} took {took:?}");
        Ok(made)
    }

    fn layout(&self, name: &str) -> Result<PathBuf> {
        let folder = self
            .folder
            .path()
            .join("layouts")
            .join(name.replace([':', '/'], "-"));
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }
}
