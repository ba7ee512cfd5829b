//! A control group with a limit of memory, where the machine lets the test make one.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

/// Where version 2 and version 1 keep groups, and the name of the limit there.
const PLACES: &[(&str, &str)] = &[
    ("/sys/fs/cgroup", "memory.max"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
];

/// Removed when dropped, if its processes have ended.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
    limit: &'static str,
}

impl Group {
    /// `None` where no group with a limit of memory can be made.
    pub(crate) fn make() -> Result<Option<Self>> {
        for &(parent, limit) in PLACES {
            let path = Path::new(parent).join(format!("soci-stress-{}", std::process::id()));
            // An earlier test of the same number may have left its own; one with processes in it stays.
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

    /// Whether the kernel took the limit: it refuses one that it cannot reach by giving back caches.
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
        // Who was killed is in it for a moment; left where processes of a failed test stay.
        for _ in 0..50 {
            if fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
