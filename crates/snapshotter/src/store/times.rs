//! When each layer was last compared with its checksums, and when it was last used. Stored in
//! extended attributes of `data`, so that both are removed with the layer.

use std::time::{Duration, SystemTime};

use rustix::fs::{XattrFlags, getxattr, setxattr};

use super::{LayerNumber, LayerStore};

const SCRUBBED: &str = "user.soci.scrubbed";
const USED: &str = "user.soci.used";

impl LayerStore {
    /// How long ago the last scrub was. `None` if unknown.
    pub fn since_scrub(&self, layer: LayerNumber) -> Option<Duration> {
        let at = self.time(layer, SCRUBBED)?;
        Some(Duration::from_secs(now().saturating_sub(at)))
    }

    /// Records a scrub at the current time. If that fails, the layer is scrubbed again too early.
    pub fn note_scrub(&self, layer: LayerNumber) {
        self.set_time(layer, SCRUBBED);
    }

    /// When the layer was last used, in seconds since the epoch. `None` if unknown.
    pub fn last_used(&self, layer: LayerNumber) -> Option<u64> {
        self.time(layer, USED)
    }

    /// Records a use at the current time. If that fails, the layer may be evicted too early.
    pub fn note_used(&self, layer: LayerNumber) {
        self.set_time(layer, USED);
    }

    fn time(&self, layer: LayerNumber, name: &str) -> Option<u64> {
        let mut text = [0; 32];
        let length = getxattr(self.data_of(layer), name, &mut text).ok()?;
        let text = std::str::from_utf8(text.get(..length)?).ok()?;
        // Ignore the time of a clock that was wrong.
        text.parse().ok().filter(|at| *at <= now())
    }

    fn set_time(&self, layer: LayerNumber, name: &str) {
        let text = now().to_string();
        let path = self.data_of(layer);
        if let Err(error) = setxattr(&path, name, text.as_bytes(), XattrFlags::empty()) {
            tracing::debug!(path = %path.display(), name, error = %error, "cannot record a time of a layer");
        }
    }

    fn data_of(&self, layer: LayerNumber) -> std::path::PathBuf {
        self.layer_folder(layer).file("data")
    }
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}
