//! `soci prefetch record --run`: starts a container of an image with a snapshotter of its own, and
//! records what it reads.

use anyhow::{Result, bail};
use soci_index::starts::StartRecord;

use super::node::Node;
use crate::args::PrefetchRecord;
use crate::status::client;

/// Records one start.
pub(super) async fn run(args: &PrefetchRecord) -> Result<StartRecord> {
    if !rustix::process::geteuid().is_root() {
        bail!("--run needs root, because it mounts file systems and runs a container");
    }
    // Listen before anything is started, so that signals leave nothing behind.
    let signals = crate::signals::Signals::listen_patiently()?;
    let node = Node::start().await?;
    let recorded = signals.unless(start(&node, args)).await;
    node.end().await;
    recorded
}

async fn start(node: &Node, args: &PrefetchRecord) -> Result<StartRecord> {
    node.pull(&args.image).await?;
    let status = client::ask(&node.socket()).await?;
    let Some(image) = status.images.iter().find(|it| it.verdict == "lazy") else {
        let why = status.images.first().map_or("", |image| &image.why);
        bail!(
            "{} is not loaded lazily: {why}; convert it with `soci convert` first",
            args.image
        );
    };
    node.run(&args.image, &args.command, args.within).await?;
    client::starts(&node.socket(), &image.manifest).await
}
