//! The mount mode **file**: the kernel mounts `meta` from the file, without a loop device (Linux
//! 6.12).
//!
//! It is for machines without loop devices. When a layer is complete, its mount points get a new
//! mount on `data`. Running containers keep the old mount and need this program as long as they
//! run.
//!
//! *Readahead*: each of these mounts has its own bdi, `erofs-N`. The number is found by comparing
//! the list of bdis before and after the mount. Within this process the result is unambiguous,
//! because there is only one mount thread.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;

use super::place::{self, Made, Pair};
use super::table::MountTable;
use super::thread::MountThread;
use super::{LayerImage, LayerSource, MountError, Mounter, Supply, Way, plain};

/// Readahead in KiB. It is lower for a FUSE file, because a mapping fetches this much around each
/// fault and each span may have to be downloaded. Sequential reads of present bytes in GB/s for
/// 128, 256 and 1024 KiB: 4.3, 5.2, 7.1 (FUSE file); 8.1, 9.1, 9.8 (`data`); Linux 6.18, two cores.
const READ_AHEAD_ON_DEMAND_KB: u32 = 256;
const READ_AHEAD_COMPLETE_KB: u32 = 1024;

const BDI_FOLDER: &str = "/sys/class/bdi";

/// Mounts layers from files.
#[derive(Debug)]
pub(super) struct FileMounter {
    thread: MountThread,
    made: Arc<Made>,
}

impl FileMounter {
    pub(super) fn new(thread: MountThread) -> FileMounter {
        FileMounter {
            thread,
            made: Arc::default(),
        }
    }

    async fn on_thread(
        &self,
        step: impl FnOnce(&Made) -> Result<(), MountError> + Send + 'static,
    ) -> Result<(), MountError> {
        let made = Arc::clone(&self.made);
        self.thread.run(move || step(&made)).await?
    }
}

#[async_trait]
impl Mounter for FileMounter {
    fn way(&self) -> Way {
        Way::File
    }

    async fn mount(&self, image: &LayerImage, at: &Path) -> Result<(), MountError> {
        let (image, at) = (image.checked()?, plain(at)?.to_path_buf());
        self.on_thread(move |made| mount_now(made, &image, &at))
            .await
    }

    async fn bind(&self, from: &Path, at: &Path) -> Result<(), MountError> {
        let (from, at) = (plain(from)?.to_path_buf(), plain(at)?.to_path_buf());
        self.on_thread(move |made| place::bind(made, &from, &at))
            .await
    }

    async fn supply(
        &self,
        source: &LayerSource,
        shown: &[(PathBuf, Vec<PathBuf>)],
    ) -> Result<(), MountError> {
        // A reader of `data` would read zeros where spans are evicted.
        if source.supply == Supply::OnDemand {
            return Err(MountError::Fixed);
        }
        for (meta, places) in shown {
            let image = LayerImage {
                meta: meta.clone(),
                patch: String::new(),
                copy: 0,
                source: source.clone(),
            };
            let (image, places) = (image.checked()?, places.clone());
            self.on_thread(move |made| {
                with_readahead(image.source.supply, || {
                    place::replace(made, image.pair(), &places)
                })
            })
            .await?;
        }
        Ok(())
    }

    async fn unmount(&self, at: &Path) -> Result<(), MountError> {
        let at = plain(at)?.to_path_buf();
        self.on_thread(move |made| place::unmount(made, &at)).await
    }

    fn is_ours(&self, table: &MountTable, at: &Path) -> bool {
        self.made.is_top(table, at)
    }
}

/// Mounts an image at `at`. Runs on the mount thread.
pub(super) fn mount_now(made: &Made, image: &LayerImage, at: &Path) -> Result<(), MountError> {
    with_readahead(image.source.supply, || place::put(made, image.pair(), at))
}

impl LayerImage {
    fn pair(&self) -> Pair<'_> {
        Pair {
            source: &self.meta,
            device: &self.source.file,
        }
    }
}

/// Creates a mount with `make` and sets the readahead of the new bdi.
fn with_readahead(
    supply: Supply,
    make: impl FnOnce() -> Result<(), MountError>,
) -> Result<(), MountError> {
    let before = bdis();
    make()?;
    let new: Vec<_> = bdis().difference(&before).cloned().collect();
    let kib = match supply {
        Supply::OnDemand => READ_AHEAD_ON_DEMAND_KB,
        Supply::Complete => READ_AHEAD_COMPLETE_KB,
    };
    // Failures are only logged: readahead affects speed, not correctness.
    match new.as_slice() {
        [bdi] => {
            let setting = Path::new(BDI_FOLDER).join(bdi).join("read_ahead_kb");
            if let Err(error) = std::fs::write(&setting, kib.to_string()) {
                tracing::debug!(path = %setting.display(), %error, "cannot set readahead, using the default");
            }
        }
        // Another process mounted at the same time, or sysfs is not mounted.
        several => tracing::debug!(
            found = several.len(),
            "cannot identify the bdi of the new mount"
        ),
    }
    Ok(())
}

/// The bdis of EROFS mounts in mount mode *file*.
fn bdis() -> BTreeSet<OsString> {
    let names = std::fs::read_dir(BDI_FOLDER)
        .into_iter()
        .flatten()
        .flatten();
    names
        .map(|entry| entry.file_name())
        .filter(|name| name.as_bytes().starts_with(b"erofs-"))
        .collect()
}
