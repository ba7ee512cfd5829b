//! A control group with a memory limit, if the machine allows the test to create one.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

/// Directories of control groups in versions 2 and 1, and the name of the memory limit in each.
const PLACES: &[(&str, &str)] = &[
    ("/sys/fs/cgroup", "memory.max"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
];

/// Removed on drop if its processes have ended.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
    limit: &'static str,
}

impl Group {
    /// Returns `None` if no group with a memory limit can be created.
    pub(crate) fn make() -> Result<Option<Self>> {
        for &(parent, limit) in PLACES {
            let path = Path::new(parent).join(format!("soci-stress-{}", std::process::id()));
            // An earlier test with the same process ID may have left its group; a group with
            // processes stays.
            let _ = fs::remove_dir(&path);
            if fs::create_dir(&path).is_err() {
                continue;
            }
            let group = Self { path, limit };
            if group.path.join(limit).exists() {
                return Ok(Some(group));
            }
        }
        Ok(None)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Sets the limit. Returns false if the kernel rejects it, because it cannot free enough
    /// memory.
    pub(crate) fn limit(&self, bytes: u64) -> bool {
        fs::write(self.path.join(self.limit), bytes.to_string()).is_ok()
    }

    pub(crate) fn unlimited(&self) -> bool {
        let text = if self.limit == "memory.max" {
            "max"
        } else {
            "-1"
        };
        fs::write(self.path.join(self.limit), text).is_ok()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A killed process stays in the group for a moment. Processes of a failed test prevent the
        // removal.
        for _ in 0..50 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
