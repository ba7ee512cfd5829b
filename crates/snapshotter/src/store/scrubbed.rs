//! When each layer was last compared with its checksums. Stored in an extended attribute of `data`,
//! so that it is removed with the layer.

use std::time::{Duration, SystemTime};

use rustix::fs::{XattrFlags, getxattr, setxattr};

use super::{LayerNumber, LayerStore};

const NAME: &str = "user.soci.scrubbed";

impl LayerStore {
    /// How long ago the last scrub was. `None` if unknown.
    pub fn since_scrub(&self, layer: LayerNumber) -> Option<Duration> {
        let mut text = [0; 32];
        let length = getxattr(self.data_of(layer), NAME, &mut text).ok()?;
        let text = std::str::from_utf8(text.get(..length)?).ok()?;
        let at = Duration::from_secs(text.parse().ok()?);
        Some(now().saturating_sub(at))
    }

    /// Records a scrub at the current time. If that fails, the layer is scrubbed again too early.
    pub fn note_scrub(&self, layer: LayerNumber) {
        let text = now().as_secs().to_string();
        let path = self.data_of(layer);
        if let Err(error) = setxattr(&path, NAME, text.as_bytes(), XattrFlags::empty()) {
            tracing::debug!(path = %path.display(), error = %error, "cannot record the time of a scrub");
        }
    }

    fn data_of(&self, layer: LayerNumber) -> std::path::PathBuf {
        self.layer_folder(layer).file("data")
    }
}

fn now() -> Duration {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default()
}
