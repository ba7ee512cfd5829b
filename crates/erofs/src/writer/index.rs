//! From (directory, name) to a link: an open-addressed table of hashes and link numbers.
//!
//! The keys are the links themselves, in their arena, so that a name costs eight to sixteen bytes
//! here. Links are never taken out: a removed name keeps its link.

use std::hash::{BuildHasher, RandomState};

/// An empty slot: no link has this number.
const EMPTY: u64 = u64::MAX;

/// The table. A slot is the hash in its high half and the link in its low half.
#[derive(Debug, Clone, Default)]
pub(super) struct LinkIndex {
    slots: Vec<u64>,
    used: usize,
    /// Keyed by chance: names come from strangers.
    hasher: RandomState,
}

impl LinkIndex {
    #[expect(clippy::cast_possible_truncation, reason = "half of a hash is a hash")]
    pub(super) fn hash(&self, dir: u32, name: &[u8]) -> u32 {
        self.hasher.hash_one((dir, name)) as u32
    }

    /// The link with this hash that `is_it` accepts.
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

/// Puts a slot at the first free place behind its hash's own.
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
