//! Maps (directory, name) to a link: an open-addressing table of hashes and link numbers.
//!
//! The keys are the links in their arena, so each name costs only 8 to 16 bytes here. Links are
//! never removed: a removed name keeps its link.
//!
//! `hashbrown` reads two cache lines per new name where this table reads one. With it, a tree of a
//! million files took 0.40 s to build instead of 0.22 s (`examples/scale.rs`).

use std::hash::{BuildHasher, RandomState};

/// An empty slot; no link has this number.
const EMPTY: u64 = u64::MAX;

/// The table. A slot contains the hash in its high half and the link in its low half.
#[derive(Debug, Clone, Default)]
pub(super) struct LinkIndex {
    slots: Vec<u64>,
    used: usize,
    /// Randomly keyed, because names are untrusted.
    hasher: RandomState,
}

impl LinkIndex {
    #[expect(clippy::cast_possible_truncation, reason = "half of a hash is a hash")]
    pub(super) fn hash(&self, dir: u32, name: &[u8]) -> u32 {
        self.hasher.hash_one((dir, name)) as u32
    }

    /// The link with this hash for which `is_it` returns true.
    pub(super) fn find(&self, hash: u32, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let mask = self.slots.len().checked_sub(1)?;
        let mut at = hash as usize & mask;
        loop {
            let slot = self.slots[at];
            if slot == EMPTY {
                return None;
            }
            let (slot_hash, link) = halves(slot);
            if slot_hash == hash && is_it(link) {
                return Some(link);
            }
            at = (at + 1) & mask;
        }
    }

    /// Adds a link that is not in the table.
    pub(super) fn insert(&mut self, hash: u32, link: u32) {
        if (self.used + 1) * 8 > self.slots.len() * 7 {
            self.grow();
        }
        self.used += 1;
        put(&mut self.slots, (u64::from(hash) << 32) | u64::from(link));
    }

    fn grow(&mut self) {
        let size = (self.slots.len() * 2).max(16);
        let old = std::mem::replace(&mut self.slots, vec![EMPTY; size]);
        for slot in old.into_iter().filter(|&slot| slot != EMPTY) {
            put(&mut self.slots, slot);
        }
    }
}

/// Stores a slot in the first free place at or after its hash's position.
fn put(slots: &mut [u64], slot: u64) {
    let mask = slots.len() - 1;
    let mut at = halves(slot).0 as usize & mask;
    while slots[at] != EMPTY {
        at = (at + 1) & mask;
    }
    slots[at] = slot;
}

#[expect(clippy::cast_possible_truncation, reason = "each half has 32 bits")]
fn halves(slot: u64) -> (u32, u32) {
    ((slot >> 32) as u32, slot as u32)
}
