//! A [`Mounter`] for tests of those who use one: it mounts nothing and remembers what it was asked.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use rustix::io::Errno;

use super::table::MountTable;
use super::{LayerImage, MountError, Mounter, Way, refused};

/// One call, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Call {
    Mount(LayerImage, PathBuf),
    Bind(PathBuf, PathBuf),
    Replace(LayerImage, Vec<PathBuf>),
    Unmount(PathBuf),
}

/// Remembers calls; refuses mounts of the images it is told to refuse.
#[derive(Debug, Default)]
pub(crate) struct RecordingMounter {
    calls: Mutex<Vec<Call>>,
    mounted: Mutex<HashSet<PathBuf>>,
    refused: Mutex<HashSet<PathBuf>>,
}

impl RecordingMounter {
    /// What was asked so far.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Mounts of the image `meta` fail from now on.
    pub(crate) fn refuse(&self, meta: &Path) {
        self.refused
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(meta.to_path_buf());
    }

    fn record(&self, call: Call) {
        self.calls
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(call);
    }

    fn set_mounted(&self, at: &Path) {
        self.mounted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(at.to_path_buf());
    }
}

#[async_trait]
impl Mounter for RecordingMounter {
    fn way(&self) -> Way {
        Way::Erofs
    }

    async fn mount(&self, image: &LayerImage, at: &Path) -> Result<(), MountError> {
        self.record(Call::Mount(image.clone(), at.to_path_buf()));
        let refusals = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refusals.contains(&image.meta) {
            return Err(refused("mounting erofs image", &image.meta)(Errno::INVAL));
        }
        self.set_mounted(at);
        Ok(())
    }

    async fn bind(&self, from: &Path, at: &Path) -> Result<(), MountError> {
        self.record(Call::Bind(from.to_path_buf(), at.to_path_buf()));
        self.set_mounted(at);
        Ok(())
    }

    async fn replace(&self, image: &LayerImage, at: &[PathBuf]) -> Result<(), MountError> {
        self.record(Call::Replace(image.clone(), at.to_vec()));
        Ok(())
    }

    async fn unmount(&self, at: &Path) -> Result<(), MountError> {
        self.record(Call::Unmount(at.to_path_buf()));
        self.mounted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(at);
        Ok(())
    }

    fn is_ours(&self, _table: &MountTable, at: &Path) -> bool {
        self.mounted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::Supply;

    #[tokio::test]
    async fn calls_are_remembered_and_refusals_obeyed() {
        let mounter = RecordingMounter::default();
        let image = LayerImage {
            meta: "/meta".into(),
            device: "/device/2".into(),
            supply: Supply::OnDemand,
        };
        let (a, b) = (Path::new("/a"), Path::new("/b"));
        mounter.mount(&image, a).await.unwrap();
        mounter.bind(a, b).await.unwrap();
        mounter.unmount(a).await.unwrap();
        let table = MountTable::default();
        assert!(mounter.is_ours(&table, b) && !mounter.is_ours(&table, a));
        mounter.refuse(&image.meta);
        assert!(mounter.mount(&image, a).await.is_err());
        let calls = mounter.calls();
        assert_eq!(calls.len(), 4);
        assert_eq!(calls[1], Call::Bind(a.into(), b.into()));
    }
}
