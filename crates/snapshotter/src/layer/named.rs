//! The images that name a layer, and where to download it.

use crate::{
    fetch::Source,
    store::sources::{Origin, Sources},
    sync::{Arc, Mutex},
};

/// Maximum number of sources per layer, newest first. Equals the number of images in its record.
pub(super) const MOST_SOURCES: usize = 64;

/// The sources that can be asked, and the record of images, which is persistent.
#[derive(Debug)]
pub(super) struct Named {
    sources: Mutex<Arc<[Source]>>,
    record: Mutex<Sources>,
}

impl Named {
    /// Starts with the stored record and without sources.
    pub(super) fn new(record: Sources) -> Named {
        Named {
            sources: Mutex::new(Arc::from([])),
            record: Mutex::new(record),
        }
    }

    /// The sources to ask, in this order.
    pub(super) fn sources(&self) -> Arc<[Source]> {
        Arc::clone(&self.sources.lock())
    }

    /// Adds a source before the others and replaces an older one of the same repository.
    pub(super) fn add_source(&self, source: Source) {
        let mut sources = self.sources.lock();
        let others = sources.iter().filter(|known| known.name != source.name);
        let all = std::iter::once(&source).chain(others);
        *sources = all.take(MOST_SOURCES).cloned().collect();
    }

    /// The content of the file `sources`.
    pub(super) fn record(&self) -> Sources {
        self.record.lock().clone()
    }

    /// Adds an image that names the layer. Returns true if the record changed and must be written.
    pub(super) fn add_origin(&self, origin: Origin) -> bool {
        self.record.lock().name(origin)
    }
}
