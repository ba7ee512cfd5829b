//! How this machine takes layers: the node's device, and the way that was found to work on it.
//!
//! What an earlier process left is never detached here, except the FUSE mount of a connection that is gone. The
//! choice is remembered for the next process that goes on with the same connection: it does not probe again.

use std::fs;
use std::io;
use std::path::Path;

use tracing::{info, warn};

use crate::config::MountChoice;
use crate::device::{Device, KeptDevice};
use crate::mount::thread::MountThread;
use crate::mount::{self, Allowed, Chosen, Mounter, Way};
use crate::sync::Arc;

/// Threads of the node's device. They never wait; two keep a core busy while the other takes the next request.
const DEVICE_THREADS: usize = 2;
/// Folder of the node's device below the root.
const DEVICE: &str = "device";
/// File of the choice below the root.
const CHOICE: &str = "mount.json";
/// What trying out a way may take of the disk, with much to spare.
const ROOM: u64 = 4 << 20;

/// Layers can be mounted.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) device: Arc<Device>,
    pub(super) mounter: Arc<dyn Mounter>,
    pub(super) chosen: Chosen,
    /// The device is a new connection: layers that are mounted move to it.
    pub(super) moved: bool,
}

/// Layers cannot be mounted now.
#[derive(Debug)]
pub(super) struct NotNow {
    pub(super) reason: String,
    /// It may be otherwise later: the disk is full.
    pub(super) again: bool,
}

/// Starts the device and finds the way.
pub(super) async fn take(
    root: &Path,
    choice: MountChoice,
    thread: &MountThread,
    kept: Option<KeptDevice>,
) -> Result<Taken, NotNow> {
    let taken = try_to_take(root, choice, thread, kept).await;
    let taken = taken.map_err(|reason| NotNow {
        reason,
        again: choice != MountChoice::None && is_full(root),
    })?;
    let Chosen { way, xino, reason } = &taken.chosen;
    info!(way = way.to_string(), xino, reason, "layers are mounted");
    Ok(taken)
}

/// Whether there is no room to try a way out.
fn is_full(root: &Path) -> bool {
    rustix::fs::statvfs(root).is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < ROOM)
}

async fn try_to_take(
    root: &Path,
    choice: MountChoice,
    thread: &MountThread,
    kept: Option<KeptDevice>,
) -> Result<Taken, String> {
    let allowed = match choice {
        MountChoice::Auto => Allowed::Auto,
        MountChoice::Loop => Allowed::Only(Way::Loop),
        MountChoice::File => Allowed::Only(Way::File),
        MountChoice::None => Allowed::None,
    };
    let at = root.join(DEVICE);
    if let Some(kept) = kept.filter(|_| allowed != Allowed::None)
        && let Some((device, chosen)) = go_on(root, &at, kept)
    {
        return Ok(Taken {
            mounter: chosen.mounter(root, thread),
            device,
            chosen,
            moved: false,
        });
    }
    mount::end_connection(thread, &at)
        .await
        .map_err(|error| format!("{:#}", anyhow::Error::new(error)))?;
    if allowed == Allowed::None {
        // Says why, in the words of all refusals.
        return Err("the configuration says mount = \"none\"".to_owned());
    }
    let device = Device::start(&at, DEVICE_THREADS)
        .map_err(|error| format!("{:#}", anyhow::Error::new(error)))?;
    let chosen = match mount::choose(allowed, root, &device, thread).await {
        Ok(chosen) => chosen,
        Err(reason) => match untried(root, allowed) {
            Some(chosen) => {
                warn!(
                    reason,
                    "the disk is full: layers are mounted as before, untried"
                );
                chosen
            }
            None => {
                device.stop();
                return Err(reason);
            }
        },
    };
    if let Err(error) = remember(root, &chosen) {
        warn!(%error, "the way to mount layers is not remembered: the next start tries the ways out again");
    }
    Ok(Taken {
        mounter: chosen.mounter(root, thread),
        device,
        chosen,
        moved: true,
    })
}

/// Goes on with the connection of an earlier process and the way that it had chosen, if both are still there.
fn go_on(root: &Path, at: &Path, kept: KeptDevice) -> Option<(Arc<Device>, Chosen)> {
    let chosen = fs::read(root.join(CHOICE))
        .and_then(|bytes| Ok(serde_json::from_slice(&bytes)?))
        .inspect_err(|error| warn!(%error, "the way to mount layers is not remembered"))
        .ok()?;
    // Dropping what was kept instead is no end of it: other processes have it too. The caller ends the connection.
    let device = Device::adopt(kept, at, DEVICE_THREADS)
        .inspect_err(|error| {
            let error: &dyn std::error::Error = error;
            warn!(
                error,
                "the device of the earlier process cannot be gone on with"
            );
        })
        .ok()?;
    info!("went on with the device of the earlier process");
    Some((device, chosen))
}

/// The way that was chosen before, where the disk has no room to try out any: layers that are mounted need it.
fn untried(root: &Path, allowed: Allowed) -> Option<Chosen> {
    let chosen: Chosen = serde_json::from_slice(&fs::read(root.join(CHOICE)).ok()?).ok()?;
    let allowed = match allowed {
        Allowed::Auto => true,
        Allowed::Only(way) => way == chosen.way,
        Allowed::None => false,
    };
    (allowed && is_full(root)).then_some(chosen)
}

fn remember(root: &Path, chosen: &Chosen) -> io::Result<()> {
    let bytes = serde_json::to_vec(chosen)?;
    if fs::read(root.join(CHOICE)).is_ok_and(|known| known == bytes) {
        return Ok(());
    }
    let new = root.join(format!("{CHOICE}.new"));
    fs::write(&new, bytes)?;
    fs::rename(new, root.join(CHOICE))
}
