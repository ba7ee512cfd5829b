//! Which images of layers this process has mounted, and where.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use crate::store::LayerKey;

/// One image of a layer. All mounts of it share a file system.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shown {
    pub(super) layer: LayerKey,
    pub(super) patch: String,
    pub(super) copy: usize,
}

#[derive(Debug)]
pub(super) struct Places {
    pub(super) at: BTreeSet<PathBuf>,
    pub(super) meta: PathBuf,
}

#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) shown: HashMap<Shown, Places>,
    pub(super) by_path: HashMap<PathBuf, Shown>,
}

impl Known {
    pub(super) fn add(&mut self, shown: Shown, meta: PathBuf, at: &Path) {
        self.forget(at);
        self.by_path.insert(at.to_owned(), shown.clone());
        let places = self.shown.entry(shown).or_insert_with(|| Places {
            at: BTreeSet::new(),
            meta,
        });
        places.at.insert(at.to_owned());
    }

    pub(super) fn forget(&mut self, at: &Path) {
        if let Some(shown) = self.by_path.remove(at)
            && let Some(places) = self.shown.get_mut(&shown)
        {
            places.at.remove(at);
            if places.at.is_empty() {
                self.shown.remove(&shown);
            }
        }
    }

    /// Whether only the mount at `at` shows its layer.
    pub(super) fn is_last(&self, at: &Path) -> Option<LayerKey> {
        let layer = self.by_path.get(at)?.layer;
        let mut others = self.by_path.iter().filter(|(other, _)| *other != at);
        (!others.any(|(_, shown)| shown.layer == layer)).then_some(layer)
    }

    /// The images of a layer, with their mount points.
    pub(super) fn of(&self, layer: LayerKey) -> Vec<(PathBuf, Vec<PathBuf>)> {
        let of_layer = self.shown.iter().filter(|(shown, _)| shown.layer == layer);
        of_layer
            .map(|(_, places)| (places.meta.clone(), places.at.iter().cloned().collect()))
            .collect()
    }
}
