//! Starts the node's device and chooses the mount mode.
//!
//! It never detaches existing mounts, except the FUSE mount of a closed connection. The choice is
//! stored for the next process that adopts the same connection, which does not probe again.

use std::fs;
use std::io;
use std::path::Path;

use tracing::{info, warn};

use crate::config::MountChoice;
use crate::device::{Device, KeptDevice};
use crate::mount::thread::MountThread;
use crate::mount::{self, Allowed, Chosen, Mounter, Way};
use crate::sync::Arc;

/// Threads of the device. They never wait. One can take the next request while the other uses a
/// core.
const DEVICE_THREADS: usize = 2;
/// Directory of the device in the state directory.
const DEVICE: &str = "device";
/// File with the choice in the state directory.
const CHOICE: &str = "mount.json";
/// Disk space for a probe in bytes, with a wide margin.
const ROOM: u64 = 4 << 20;

/// Layers can be mounted.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) device: Arc<Device>,
    pub(super) mounter: Arc<dyn Mounter>,
    pub(super) chosen: Chosen,
    /// Whether the device is a new connection, so that mounted layers must switch to it.
    pub(super) moved: bool,
}

/// Layers cannot be mounted now.
#[derive(Debug)]
pub(super) struct NotNow {
    pub(super) reason: String,
    /// Whether to try again later, because the disk is full.
    pub(super) again: bool,
}

/// Starts the device and chooses the mount mode.
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
    let Chosen {
        way,
        xino,
        owners,
        reason,
    } = &taken.chosen;
    info!(way = way.to_string(), xino, reason, "layers are mounted");
    if let Some(reason) = owners {
        warn!(reason, "containers in user namespaces are refused");
    }
    Ok(taken)
}

/// Whether the disk has too little space for a probe.
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
        // The text of the reason, as for all other failures.
        return Err("the configuration sets mount = \"none\"".to_owned());
    }
    let device = Device::start(&at, DEVICE_THREADS)
        .map_err(|error| format!("{:#}", anyhow::Error::new(error)))?;
    let chosen = match mount::choose(allowed, root, &device, thread).await {
        Ok(chosen) => chosen,
        Err(reason) => match untried(root, allowed) {
            Some(chosen) => {
                warn!(
                    reason,
                    "the disk is full, mounting layers as before without probing"
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
        warn!(%error, "cannot store the mount mode, the next start will probe again");
    }
    Ok(Taken {
        mounter: chosen.mounter(root, thread),
        device,
        chosen,
        moved: true,
    })
}

/// Adopts the connection of an earlier process and its mount mode, if both are still there.
fn go_on(root: &Path, at: &Path, kept: KeptDevice) -> Option<(Arc<Device>, Chosen)> {
    let chosen = fs::read(root.join(CHOICE))
        .and_then(|bytes| Ok(serde_json::from_slice(&bytes)?))
        .inspect_err(|error| warn!(%error, "cannot read the stored mount mode"))
        .ok()?;
    // Dropping `kept` does not end the connection, because other processes hold it. The caller ends
    // it.
    let device = Device::adopt(kept, at, DEVICE_THREADS)
        .inspect_err(|error| {
            let error: &dyn std::error::Error = error;
            warn!(error, "cannot adopt the device of the earlier process");
        })
        .ok()?;
    info!("adopted the device of the earlier process");
    Some((device, chosen))
}

/// The stored mount mode, if the disk has no space for a probe. Mounted layers need it.
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
