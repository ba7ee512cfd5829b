//! Whether layers and directories can be shown with other owners, for containers in user
//! namespaces.

use std::os::unix::fs::MetadataExt as _;

use super::image::OWNER;
use super::{Bench, Chain, ProbeError, detach, overlay};
use crate::mount::mapped::{self, Copy};
use crate::mount::userns::{Owners, Range};
use crate::mount::{MountError, Supply};

/// What the probe's owner 0 becomes.
const FIRST: u32 = 100_000;
/// Number of IDs, more than the probe's image has.
const COUNT: u32 = 1 << 17;

impl Bench {
    /// Shows a layer and a directory of the state directory with other owners, in an overlay.
    pub(super) fn owners(&self) -> Result<(), ProbeError> {
        const LAYER: &str = "showing a layer with the owners of a user namespace";
        const DIRECTORY: &str = "showing an unpacked layer with the owners of a user namespace";
        self.mount("upper", &self.path("data"), Supply::Complete, LAYER)?;
        let step = |step| {
            move |source| ProbeError::Mount {
                step,
                source: Chain(source),
            }
        };
        self.copy("upper", true, "mapped").map_err(step(LAYER))?;
        self.copy("empty", false, "shown")
            .map_err(step(DIRECTORY))?;
        let (merged, mapped) = (self.path("merged"), self.path("mapped"));
        overlay(&self.path("shown"), &mapped, &merged, false).map_err(step(LAYER))?;
        for (name, what, owner) in [
            ("", "the root directory", (0, 0)),
            ("full", "a file", OWNER),
        ] {
            let found = merged.join(name).symlink_metadata();
            let found = found.map_err(|source| ProbeError::Read {
                step: LAYER,
                what,
                source,
            })?;
            let (uid, gid) = (FIRST + owner.0, FIRST + owner.1);
            if (found.uid(), found.gid()) != (uid, gid) {
                return Err(ProbeError::Wrong { step: LAYER, what });
            }
        }
        for at in ["merged", "shown", "mapped", "upper"] {
            detach(&self.path(at)).map_err(step(LAYER))?;
        }
        Ok(())
    }

    fn copy(&self, from: &str, is_layer: bool, at: &str) -> Result<(), MountError> {
        let ranges = vec![Range {
            inside: 0,
            outside: FIRST,
            count: COUNT,
        }];
        let owners = Owners {
            uids: ranges.clone(),
            gids: ranges,
        };
        let copy = Copy {
            from: self.path(from),
            is_layer,
            at: self.path(at),
        };
        mapped::make(&[copy], &owners)
    }
}
