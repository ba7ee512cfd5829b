//! Probes whether a mount mode works in the state directory.
//!
//! A tiny image is mounted twice, over a file of the FUSE mount and over a plain file. Each time it
//! is read directly, through overlayfs as a container would, and through an overlay on that
//! overlay. Nothing of a new mount is cached, so every compared byte comes from the device. In
//! mount mode *loop*, the probe also switches the device under a mount, reads with `O_DIRECT`,
//! reads while another READ waits, and kills the waiting reader. What containers in user namespaces
//! need is probed last, and is no condition.

mod image;
mod owners;
mod waiting;

use std::ffi::CString;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::Advice;
use rustix::mount::MountFlags;
use thiserror::Error;

use super::place::Made;
use super::thread::{MountThread, Unfinished};
use super::{LayerImage, LayerSource, MountError, Supply, Way, detach, file, looped, refused};
use crate::device::Device;
use image::{BLOCK, OPAQUE, check, content, lower_image, upper_image};
use waiting::ProbeFile;

/// File number of the probe on the FUSE mount. Layer numbers start at 2 and never reach it.
const PROBE_NUMBER: u64 = u64::MAX / 2;

/// Time limit of the probe. It takes milliseconds unless it hangs.
const LIMIT: Duration = Duration::from_secs(30);

/// Mount points and empty directories of the probe. What is mounted later comes first.
const FOLDERS: [&str; 7] = [
    "second", "merged", "upper", "lower", "empty", "mapped", "shown",
];

/// Name prefix of the probe's directory.
const PREFIX: &str = "probe-";

/// Why a mount mode does not work.
#[derive(Debug, Error)]
pub(super) enum ProbeError {
    #[error("cannot create the probe files in {}: {source}", folder.display())]
    Prepare {
        folder: PathBuf,
        source: std::io::Error,
    },
    #[error("{step}: {source}")]
    Mount { step: &'static str, source: Chain },
    #[error("{step}: cannot read {what}: {source}")]
    Read {
        step: &'static str,
        what: &'static str,
        source: std::io::Error,
    },
    #[error("{step}: {what} does not match the image")]
    Wrong {
        step: &'static str,
        what: &'static str,
    },
    #[error("{step}: {what}")]
    Blocked {
        step: &'static str,
        what: &'static str,
    },
    #[error("the probe did not finish within {} s", LIMIT.as_secs())]
    Hangs,
    #[error(transparent)]
    Unfinished(#[from] Unfinished),
}

/// A mount error and its cause on one line.
#[derive(Debug, Error)]
#[error("{0}: {cause}", cause = std::error::Error::source(.0).map_or_else(String::new, ToString::to_string))]
pub(super) struct Chain(MountError);

/// What the probe found.
#[derive(Debug)]
pub(super) struct Found {
    /// Whether overlays support `xino=on`, so that a root file system has a single device number.
    pub(super) xino: bool,
    /// Why containers in user namespaces cannot start; `None` if they can.
    pub(super) owners: Option<String>,
    pub(super) reason: String,
}

/// Probes a mount mode in a directory below `state_root`.
pub(super) async fn probe(
    way: Way,
    state_root: &Path,
    device: &Arc<Device>,
    thread: &MountThread,
) -> Result<Found, ProbeError> {
    let bench = Bench::prepare(way, state_root).map_err(|source| ProbeError::Prepare {
        folder: state_root.to_path_buf(),
        source,
    })?;
    let file = ProbeFile::serve(content()).map_err(|source| ProbeError::Prepare {
        folder: state_root.to_path_buf(),
        source,
    })?;
    device.add(Arc::clone(&file) as _);
    let on_demand = device.path(PROBE_NUMBER);
    let served = Arc::clone(&file);
    let tried = thread.run(move || {
        let result = bench.try_out(&on_demand, &served);
        // Mounts are removed before their directory, on this thread.
        drop(bench);
        result
    });
    let result = tokio::time::timeout(LIMIT, tried).await;
    file.close();
    device.remove(PROBE_NUMBER);
    let (xino, owners) = result.map_err(|_elapsed| ProbeError::Hangs)???;
    let what = match way {
        Way::Loop => "on loop devices",
        Way::File => "from files",
    };
    let reason = format!("mounting an EROFS image {what} works, over FUSE and over plain data");
    Ok(Found {
        xino,
        owners,
        reason,
    })
}

/// Removes what killed probes left in `root`. Returns the number of mounts.
pub(super) fn sweep(root: &Path) -> Result<usize, MountError> {
    let mut count = 0;
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        if entry.file_name().as_bytes().starts_with(PREFIX.as_bytes()) {
            count += super::detach_below(&entry.path(), |_| true)?;
            if let Err(error) = std::fs::remove_dir_all(entry.path()) {
                tracing::debug!(path = %entry.path().display(), %error, "cannot remove a directory of an earlier probe");
            }
        }
    }
    Ok(count)
}

/// The probe's files and directories. Dropped on the mount thread, it removes everything.
struct Bench {
    folder: PathBuf,
    way: Way,
    made: Made,
    loops: looped::State,
    /// Removed last.
    _guard: tempfile::TempDir,
}

impl Bench {
    fn prepare(way: Way, state_root: &Path) -> std::io::Result<Bench> {
        let guard = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir_in(state_root)?;
        let folder = guard.path().canonicalize()?;
        for name in FOLDERS {
            std::fs::create_dir(folder.join(name))?;
        }
        let write = |name: &str, bytes: &[u8]| {
            let mut file = File::create(folder.join(name))?;
            file.write_all(bytes)?;
            // Only clean pages can be dropped. The first read then comes from the disk.
            file.sync_all()?;
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).map_err(std::io::Error::from)
        };
        write("data", &content())?;
        write("upper.meta", &upper_image().map_err(std::io::Error::other)?)?;
        write("lower.meta", &lower_image().map_err(std::io::Error::other)?)?;
        Ok(Bench {
            loops: looped::State::new(&folder),
            folder,
            way,
            made: Made::default(),
            _guard: guard,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Returns whether overlays support `xino=on`, and why containers in user namespaces cannot
    /// start.
    fn try_out(
        &self,
        on_demand: &Path,
        file: &ProbeFile,
    ) -> Result<(bool, Option<String>), ProbeError> {
        let plain = self.path("data");
        self.mount(
            "lower",
            &plain,
            Supply::Complete,
            "mounting over plain data",
        )?;
        self.round(
            (on_demand, Supply::OnDemand),
            "mount over a FUSE file",
            "overlay on the mount over a FUSE file",
        )?;
        if self.way == Way::Loop {
            self.wait_beside(on_demand, file)?;
            self.change_hands(on_demand, &plain)?;
        }
        self.round(
            (&plain, Supply::Complete),
            "mount over plain data",
            "overlay on the mount over plain data",
        )?;
        let xino = self.xino().unwrap_or_else(|error| {
            tracing::info!(%error, "mounting overlays without xino");
            false
        });
        Ok((xino, self.owners().err().map(|error| error.to_string())))
    }

    /// Mounts one device, reads it directly, through an overlay and through an overlay on that, and
    /// unmounts.
    fn round(
        &self,
        (device, supply): (&Path, Supply),
        direct: &'static str,
        overlaid: &'static str,
    ) -> Result<(), ProbeError> {
        let (upper, lower) = (self.path("upper"), self.path("lower"));
        self.mount("upper", device, supply, direct)?;
        check(&upper, direct, Some(OPAQUE), &["full", "opaque", "tail"])?;
        let mount = |source| ProbeError::Mount {
            step: overlaid,
            source: Chain(source),
        };
        // Mount again, so that nothing is cached from the first check.
        detach(&upper).map_err(mount)?;
        self.mount("upper", device, supply, direct)?;
        let (merged, second) = (self.path("merged"), self.path("second"));
        let names = ["full", "lower-only", "opaque", "tail"];
        overlay(&upper, &lower, &merged, false).map_err(mount)?;
        check(&merged, overlaid, None, &names)?;
        overlay(&merged, &self.path("empty"), &second, false).map_err(|source| {
            ProbeError::Mount {
                step: "overlay on an overlay, as for containers in containers",
                source: Chain(source),
            }
        })?;
        check(&second, "overlay on an overlay", None, &names)?;
        for at in [&second, &merged, &upper] {
            detach(at).map_err(mount)?;
        }
        Ok(())
    }

    /// Checks that a READ that waits for the network blocks neither other reads nor the end of its
    /// reader.
    fn wait_beside(&self, on_demand: &Path, file: &ProbeFile) -> Result<(), ProbeError> {
        const STEP: &str = "reading while another read waits";
        self.mount("upper", on_demand, Supply::OnDemand, STEP)?;
        let upper = self.path("upper");
        let looked = waiting::look(&upper.join("full"), &upper.join("tail"), file, STEP);
        // No READ waits any more, so the unmount cannot block.
        detach(&upper).map_err(|source| ProbeError::Mount {
            step: STEP,
            source: Chain(source),
        })?;
        looked
    }

    /// Switches the device of a mount from the FUSE file to plain data and reads what was not read
    /// before.
    fn change_hands(&self, on_demand: &Path, plain: &Path) -> Result<(), ProbeError> {
        const STEP: &str = "switching a loop device from a FUSE file to plain data";
        self.mount("upper", on_demand, Supply::OnDemand, STEP)?;
        let upper = self.path("upper");
        let read = |what| {
            move |source| ProbeError::Read {
                step: STEP,
                what,
                source,
            }
        };
        let expected = content();
        let direct = read_direct(&upper.join("full")).map_err(read("a file with O_DIRECT"))?;
        let agree = Some(&direct[..]) == expected.get(2 * BLOCK..);
        agree.then_some(()).ok_or(ProbeError::Wrong {
            step: STEP,
            what: "a file with O_DIRECT",
        })?;
        let moved = self.loops.supply(&source(plain, Supply::Complete));
        moved.map_err(|source| ProbeError::Mount {
            step: STEP,
            source: Chain(source),
        })?;
        check(&upper, STEP, Some(OPAQUE), &["full", "opaque", "tail"])?;
        detach(&upper).map_err(|source| ProbeError::Mount {
            step: STEP,
            source: Chain(source),
        })
    }

    /// Whether `xino=on` gives the directories and files of an overlay one device number.
    fn xino(&self) -> Result<bool, ProbeError> {
        const STEP: &str = "overlay with xino=on";
        let mount = |source| ProbeError::Mount {
            step: STEP,
            source: Chain(source),
        };
        let read = |source| ProbeError::Read {
            step: STEP,
            what: "attributes",
            source,
        };
        let (upper, lower) = (self.path("upper"), self.path("lower"));
        self.mount("upper", &self.path("data"), Supply::Complete, STEP)?;
        let merged = self.path("merged");
        overlay(&upper, &lower, &merged, true).map_err(mount)?;
        let device =
            |name: &str| std::fs::symlink_metadata(merged.join(name)).map(|found| found.dev());
        let root = device("").map_err(read)?;
        let mut one = true;
        for name in ["full", "lower-only", "opaque"] {
            one &= device(name).map_err(read)? == root;
        }
        detach(&merged).map_err(mount)?;
        detach(&upper).map_err(mount)?;
        Ok(one)
    }

    fn mount(
        &self,
        name: &str,
        device: &Path,
        supply: Supply,
        step: &'static str,
    ) -> Result<(), ProbeError> {
        let mut source = source(device, supply);
        // The two images have separate data devices, like two layers.
        source.number -= u64::from(name == "lower");
        let image = LayerImage {
            meta: self.path(&format!("{name}.meta")),
            patch: name.to_owned(),
            copy: 0,
            source,
        };
        let at = self.path(name);
        match self.way {
            Way::Loop => self.loops.mount(&image, &at),
            Way::File => file::mount_now(&self.made, &image, &at),
        }
        .map_err(|source| ProbeError::Mount {
            step,
            source: Chain(source),
        })
    }
}

fn source(file: &Path, supply: Supply) -> LayerSource {
    LayerSource {
        number: PROBE_NUMBER,
        file: file.to_path_buf(),
        supply,
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for name in FOLDERS {
            if let Err(error) = detach(&self.path(name)) {
                tracing::warn!(%error, "cannot remove a mount of the probe");
            }
        }
    }
}

/// Mounts a read-only overlay.
fn overlay(upper: &Path, lower: &Path, at: &Path, xino: bool) -> Result<(), MountError> {
    // Colons and commas are separators; a backslash escapes them.
    let escaped = |path: &Path| {
        let mut text = Vec::new();
        for &byte in path.as_os_str().as_bytes() {
            if matches!(byte, b':' | b',' | b'\\') {
                text.push(b'\\');
            }
            text.push(byte);
        }
        text
    };
    let mut options = [b"lowerdir=", &escaped(upper)[..], b":", &escaped(lower)[..]].concat();
    if xino {
        options.extend_from_slice(b",xino=on");
    }
    let options = CString::new(options).map_err(|_| MountError::Path(upper.to_path_buf()))?;
    let flags = MountFlags::RDONLY;
    rustix::mount::mount("overlay", at, "overlay", flags, options.as_c_str())
        .map_err(refused("cannot mount an overlay at", at))
}

/// Reads a file of one block, bypassing the page cache.
fn read_direct(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)?;
    let mut buffer = vec![0; 2 * BLOCK];
    let start = buffer.as_ptr().align_offset(BLOCK);
    let block = buffer.get_mut(start..start + BLOCK).unwrap_or_default();
    let len = file.read_at(block, 0)?;
    Ok(block.get(..len).unwrap_or_default().to_vec())
}
