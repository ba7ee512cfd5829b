//! A log of events next to the report, and counters of faults.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::Result;

use crate::slots::now;
use crate::world::lock;

/// Counters of what was done to the daemon and its environment.
#[derive(Debug)]
pub(crate) struct Events {
    file: Mutex<File>,
    pub(crate) kills: AtomicU64,
    pub(crate) replaced: AtomicU64,
    pub(crate) cuts: AtomicU64,
    pub(crate) slowed: AtomicU64,
    pub(crate) restarts: AtomicU64,
    pub(crate) tokenless_times: AtomicU64,
    pub(crate) filled: AtomicU64,
    pub(crate) squeezed: AtomicU64,
    pub(crate) lives: AtomicU64,
    pub(crate) calls_again: AtomicU64,
    /// Milliseconds of the longest removal of an image and of the longest restart of a keeper.
    pub(crate) longest_removal: AtomicU64,
    pub(crate) longest_replacement: AtomicU64,
    pub(crate) full: Spell,
    pub(crate) tokenless: Spell,
}

/// A condition that starts and ends: a full disk, no new tokens.
#[derive(Debug, Default)]
pub(crate) struct Spell {
    lasts: AtomicBool,
    until: AtomicU64,
}

impl Spell {
    fn set(&self, lasts: bool) {
        self.lasts.store(lasts, Ordering::SeqCst);
        self.until.store(now(), Ordering::SeqCst);
    }

    /// Whether it lasts, or ended so recently that a running call may have been affected.
    pub(crate) fn was(&self) -> bool {
        const CALL_MS: u64 = 10_000;
        let until = self.until.load(Ordering::SeqCst);
        self.lasts.load(Ordering::SeqCst) || now().saturating_sub(until) < CALL_MS
    }
}

impl Events {
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        Ok(Self {
            file: Mutex::new(File::create(folder.join("soak-events.txt"))?),
            kills: AtomicU64::new(0),
            replaced: AtomicU64::new(0),
            cuts: AtomicU64::new(0),
            slowed: AtomicU64::new(0),
            restarts: AtomicU64::new(0),
            tokenless_times: AtomicU64::new(0),
            filled: AtomicU64::new(0),
            squeezed: AtomicU64::new(0),
            lives: AtomicU64::new(0),
            calls_again: AtomicU64::new(0),
            longest_removal: AtomicU64::new(0),
            longest_replacement: AtomicU64::new(0),
            full: Spell::default(),
            tokenless: Spell::default(),
        })
    }

    pub(crate) fn say(&self, what: &str) {
        // Written next to the report, which does not depend on it.
        let _ = writeln!(lock(&self.file), "{} {what}", now());
    }

    pub(crate) fn count(&self, which: &AtomicU64, what: &str) {
        which.fetch_add(1, Ordering::SeqCst);
        self.say(what);
    }

    pub(crate) fn set_full(&self, full: bool) {
        self.full.set(full);
        self.say(if full { "disk full" } else { "disk freed" });
    }

    pub(crate) fn set_tokenless(&self, tokenless: bool) {
        self.tokenless.set(tokenless);
        self.say(if tokenless {
            "no new tokens"
        } else {
            "tokens as usual"
        });
    }
}
