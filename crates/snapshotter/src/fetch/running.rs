//! Requests at once, by class, host and image; what others know of each.

use std::collections::HashMap;

use soci_oci::Digest;
use tokio::time::Instant;

use super::{
    Class, Options, Source, Waiter,
    queue::{Piece, Request},
    share::Share,
};
use crate::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// What is running now, counted against the limits.
pub(super) struct Running {
    now: Share,
    next: Share,
    all: Share,
    all_of_image: HashMap<Arc<str>, usize>,
}

impl Running {
    pub(super) fn new(options: &Options) -> Running {
        Running {
            now: Share::new(options.now_requests),
            next: Share::new(options.next_requests),
            all: Share::new(options.all_requests),
            all_of_image: HashMap::new(),
        }
    }

    fn share(&mut self, class: Class) -> &mut Share {
        match class {
            Class::Now => &mut self.now,
            Class::Next => &mut self.next,
            Class::All => &mut self.all,
        }
    }

    pub(super) fn has_room(&mut self, class: Class, host: &str) -> bool {
        self.share(class).fits(host, 1)
    }

    /// Whether a piece may be taken, as far as is known of the source that it will ask. `ahead` is what the background may
    /// ask for.
    pub(super) fn fit(
        &self,
        options: &Options,
        piece: &Piece<Waiter>,
        source: Option<&Source>,
        ahead: u64,
    ) -> bool {
        let share = match piece.class {
            Class::Now => &self.now,
            Class::Next => &self.next,
            Class::All => &self.all,
        };
        let of_image = || self.all_of_image.get(&piece.image).copied().unwrap_or(0);
        let full = source.is_some_and(|source| !share.fits(&source.host, 1));
        let length = piece.key.end - piece.key.start;
        let background = || of_image() < options.all_requests_per_image && length <= ahead;
        !full && (piece.class != Class::All || background())
    }

    pub(super) fn start(&mut self, class: Class, image: &Arc<str>, host: &Arc<str>) {
        self.share(class).start(host, 1);
        if class == Class::All {
            *self.all_of_image.entry(Arc::clone(image)).or_default() += 1;
        }
    }

    pub(super) fn end(&mut self, class: Class, image: &Arc<str>, host: &Arc<str>) {
        self.share(class).end(host, 1);
        if class == Class::All
            && let Some(running) = self.all_of_image.get_mut(image)
        {
            *running -= 1;
            if *running == 0 {
                self.all_of_image.remove(image);
            }
        }
    }
}

/// What others know of a running request.
pub(super) struct Aloft {
    pub(super) host: Arc<str>,
    pub(super) blob: Digest,
    /// When it began to wait for its first byte, a pause of ours not counted.
    pub(super) begun: Instant,
    /// It is not read now, as readers go first.
    pub(super) paused: bool,
    /// When it last got bytes; `None` before its first.
    pub(super) last: Option<Instant>,
    /// First byte that has not come, and the end.
    position: Arc<AtomicU64>,
    end: u64,
}

impl Aloft {
    pub(super) fn new(request: &Request, source: &Source, now: Instant) -> Aloft {
        Aloft {
            host: Arc::clone(&source.host),
            blob: request.blob,
            begun: now,
            paused: false,
            last: None,
            position: Arc::clone(&request.position),
            end: request.range().end,
        }
    }

    /// Bytes that it has asked for and not got.
    pub(super) fn rest(&self) -> u64 {
        self.end
            .saturating_sub(self.position.load(Ordering::Relaxed))
    }
}
