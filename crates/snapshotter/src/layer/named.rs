//! Who names a layer, and where it can be had.

use crate::{
    fetch::Source,
    store::sources::{Origin, Sources},
    sync::{Arc, Mutex},
};

/// Places that a layer is fetched from, the newest first: as many as its record remembers.
pub(super) const MOST_SOURCES: usize = 64;

/// Sources that can be asked, and the record of the images, which outlives them.
#[derive(Debug)]
pub(super) struct Named {
    sources: Mutex<Arc<[Source]>>,
    record: Mutex<Sources>,
}

impl Named {
    /// As the record has it; nobody can be asked yet.
    pub(super) fn new(record: Sources) -> Named {
        Named {
            sources: Mutex::new(Arc::from([])),
            record: Mutex::new(record),
        }
    }

    /// Whom to ask, in this order.
    pub(super) fn sources(&self) -> Arc<[Source]> {
        Arc::clone(&self.sources.lock())
    }

    /// One more source, before the others; what was known of the same repository is replaced.
    pub(super) fn add_source(&self, source: Source) {
        let mut sources = self.sources.lock();
        let others = sources.iter().filter(|known| known.name != source.name);
        let all = std::iter::once(&source).chain(others);
        *sources = all.take(MOST_SOURCES).cloned().collect();
    }

    /// What the store knows about it.
    pub(super) fn record(&self) -> Sources {
        self.record.lock().clone()
    }

    /// One more image names it. True if that is news, and to be written.
    pub(super) fn add_origin(&self, origin: Origin) -> bool {
        self.record.lock().name(origin)
    }
}
