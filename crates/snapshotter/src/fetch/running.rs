//! Counts running requests by class, host, and image, and publishes the state of each.

use std::{collections::HashMap, time::Duration};

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

/// The running requests, counted against the limits.
pub(super) struct Running {
    now: Share,
    next: Share,
    pull: Share,
    all: Share,
    /// Requests of classes that are limited per image.
    of_image: HashMap<(Class, Arc<str>), usize>,
}

impl Running {
    pub(super) fn new(options: &Options) -> Running {
        Running {
            now: Share::new(options.now_requests),
            next: Share::new(options.next_requests),
            pull: Share::new(options.pull_requests),
            all: Share::new(options.all_requests),
            of_image: HashMap::new(),
        }
    }

    fn share(&mut self, class: Class) -> &mut Share {
        match class {
            Class::Now => &mut self.now,
            Class::Next => &mut self.next,
            Class::Pull => &mut self.pull,
            Class::All => &mut self.all,
        }
    }

    pub(super) fn has_room(&mut self, class: Class, host: &str) -> bool {
        self.share(class).fits(host, 1)
    }

    /// Whether a piece may be taken, given the source that it will probably ask. `ahead` is the
    /// number of bytes that the background may still request.
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
            Class::Pull => &self.pull,
            Class::All => &self.all,
        };
        let key = || (piece.class, Arc::clone(&piece.image));
        let of_image = || self.of_image.get(&key()).copied().unwrap_or(0);
        let full = source.is_some_and(|source| !share.fits(&source.host, 1));
        let length = piece.key.end - piece.key.start;
        !full
            && match piece.class {
                Class::Now | Class::Next => true,
                Class::Pull => {
                    share.used() < options.pull_requests_most
                        && of_image() < options.pull_requests_per_image
                }
                Class::All => of_image() < options.all_requests_per_image && length <= ahead,
            }
    }

    pub(super) fn start(&mut self, class: Class, image: &Arc<str>, host: &Arc<str>) {
        self.share(class).start(host, 1);
        if is_limited_per_image(class) {
            *self.of_image.entry((class, Arc::clone(image))).or_default() += 1;
        }
    }

    pub(super) fn end(&mut self, class: Class, image: &Arc<str>, host: &Arc<str>) {
        self.share(class).end(host, 1);
        if !is_limited_per_image(class) {
            return;
        }
        let key = (class, Arc::clone(image));
        if let Some(running) = self.of_image.get_mut(&key) {
            *running -= 1;
            if *running == 0 {
                self.of_image.remove(&key);
            }
        }
    }
}

fn is_limited_per_image(class: Class) -> bool {
    matches!(class, Class::Pull | Class::All)
}

/// The state of a running request, as other requests see it.
pub(super) struct Aloft {
    pub(super) host: Arc<str>,
    pub(super) blob: Digest,
    /// When the request began to wait for its first byte, excluding pauses.
    pub(super) begun: Instant,
    /// Not read at present, because readers have priority.
    pub(super) paused: bool,
    /// When bytes last arrived. `None` before the first byte.
    pub(super) last: Option<Instant>,
    /// The first byte that has not arrived, and the end of the range.
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

    /// How long the request has waited for its next bytes.
    pub(super) fn silent_for(&self, now: Instant) -> Duration {
        let since = self.last.map_or(self.begun, |last| last.max(self.begun));
        now.saturating_duration_since(since)
    }

    /// Bytes requested and not yet received.
    pub(super) fn rest(&self) -> u64 {
        self.end
            .saturating_sub(self.position.load(Ordering::Relaxed))
    }
}
