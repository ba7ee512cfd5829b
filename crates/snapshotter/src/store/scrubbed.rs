//! When each layer was held against its sums last: an extended attribute of its `data`, so that it goes with the layer.

use std::time::{Duration, SystemTime};

use rustix::fs::{XattrFlags, getxattr, setxattr};

use super::{LayerNumber, LayerStore};

const NAME: &str = "user.soci.scrubbed";

impl LayerStore {
    /// How long ago it was; none if that is not known.
    pub fn since_scrub(&self, layer: LayerNumber) -> Option<Duration> {
        let mut text = [0; 32];
        let length = getxattr(self.data_of(layer), NAME, &mut text).ok()?;
        let text = std::str::from_utf8(text.get(..length)?).ok()?;
        let at = Duration::from_secs(text.parse().ok()?);
        Some(now().saturating_sub(at))
    }

    /// It was now. Costs a scrub too many if it cannot be noted.
    pub fn note_scrub(&self, layer: LayerNumber) {
        let text = now().as_secs().to_string();
        let path = self.data_of(layer);
        if let Err(error) = setxattr(&path, NAME, text.as_bytes(), XattrFlags::empty()) {
            tracing::debug!(path = %path.display(), error = %error, "a scrub is not noted");
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
