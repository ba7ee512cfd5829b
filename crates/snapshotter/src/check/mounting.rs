//! A real mount of a tiny image, by the daemon's own probe.

use std::io;
use std::path::Path;

use anyhow::Context as _;

use super::disk;
use super::row::Row;
use crate::args::Part;
use crate::config::MountChoice;
use crate::device::Device;
use crate::mount::thread::MountThread;
use crate::mount::{self, Allowed, Chosen, Way};

const NAME: &str = "mount";
const OWNERS: &str = "user namespaces";
/// Like the directories of the daemon's probes, so that the daemon removes one that was left.
const PREFIX: &str = "probe-check-";
/// One request at a time is enough for a probe.
const DEVICE_THREADS: usize = 2;

/// Mounts, reads and unmounts a tiny image in the state directory, beside a running daemon.
pub(super) async fn rows(root: &Path, choice: MountChoice) -> Vec<Row> {
    let allowed = match choice {
        MountChoice::Auto => Allowed::Auto,
        MountChoice::Loop => Allowed::Only(Way::Loop),
        MountChoice::File => Allowed::Only(Way::File),
        MountChoice::None => {
            return vec![Row::warning(
                Part::Mount,
                NAME,
                "the configuration sets mount = \"none\": containerd unpacks every layer",
                "set [snapshotter] mount = \"auto\" for lazy layers",
            )];
        }
    };
    if !rustix::process::geteuid().is_root() {
        return vec![Row::problem(
            Part::Mount,
            NAME,
            "only root can mount",
            "run this command as root",
        )];
    }
    let problem = |found: String, remedy| vec![Row::problem(Part::Mount, NAME, found, remedy)];
    match probed(root, allowed).await {
        Ok(Ok(chosen)) => {
            let owners = owners(chosen.owners);
            vec![mount(chosen.way, chosen.reason), owners]
        }
        Ok(Err(reason)) => problem(
            reason,
            "see docs/kernels.md; until then, containerd unpacks every layer",
        ),
        Err(error) => problem(
            format!("{error:#}"),
            "see the rows about the kernel and the state directory",
        ),
    }
}

fn mount(way: Way, reason: String) -> Row {
    match way {
        Way::Loop => Row::ok(Part::Mount, NAME, reason),
        Way::File => Row::warning(
            Part::Mount,
            NAME,
            reason,
            "containers depend on the daemon until they end: make loop devices available",
        ),
    }
}

/// Whether containers in user namespaces can start.
fn owners(refusal: Option<String>) -> Row {
    match refusal {
        None => Row::ok(
            Part::Mount,
            OWNERS,
            "ID-mapped mounts work for layers and for the file system of the state directory",
        ),
        Some(reason) => Row::warning(
            Part::Mount,
            OWNERS,
            reason,
            "pods with hostUsers: false are refused; they need Linux 5.19 and a state directory on ext4, xfs or btrfs",
        ),
    }
}

async fn probed(root: &Path, allowed: Allowed) -> anyhow::Result<Result<Chosen, String>> {
    let folder = tempfile::Builder::new()
        .prefix(PREFIX)
        .tempdir_in(disk::existing(root))
        .with_context(|| format!("cannot create a directory in {}", root.display()))?;
    let path = folder.path().canonicalize()?;
    let at = path.join("device");
    std::fs::create_dir(&at)?;
    let device = Device::start(&at, DEVICE_THREADS)?;
    let thread = MountThread::start().context("cannot start the mount thread")?;
    let chosen = mount::choose(allowed, &path, &device, &thread).await;
    device.stop();
    removed(folder)?;
    Ok(chosen)
}

/// Removes the directory. A mount that is still there must not be hidden.
fn removed(folder: tempfile::TempDir) -> io::Result<()> {
    folder.close()
}
