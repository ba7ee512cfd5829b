//! Decides whether the name of a global PAX header has an effect when a layer is unpacked.
//!
//! containerd creates nothing for such a header, but processes its name first: it creates missing
//! parents, removes a name after a `.wh.` prefix, and removes whatever has the name. A plain name
//! at the root has no effect if no earlier entry can have created it. Writers of global headers use
//! such names; all others are rejected.

#![warn(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects
)]

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use crate::toc::{Entry, FileKind};

const WHITEOUT: &[u8] = b".wh.";
/// Most root names that are tracked. Archives with more names and a later global header are rare.
const MOST: usize = 4096;

/// Names that may exist at the root.
#[derive(Debug, Default)]
pub(super) struct Roots {
    names: HashSet<u64>,
    hasher: RandomState,
    /// There were more names than the limit, so any name may exist.
    any: bool,
}

impl Roots {
    /// Records the root names that an entry may create or remove: the first part of its name, the
    /// name that it whites out, and every part of a symlink target, because later names may go
    /// through the link.
    pub(super) fn note(&mut self, entry: &Entry<'_>) {
        if let Some(&first) = parts(entry.name).first() {
            self.add(first);
            if let Some(hidden) = first.strip_prefix(WHITEOUT) {
                self.add(hidden);
            }
        }
        if entry.kind == FileKind::Symlink {
            for part in entry.link.split(|&byte| byte == b'/') {
                self.add(part);
            }
        }
    }

    fn add(&mut self, name: &[u8]) {
        if self.names.len() >= MOST {
            self.any = true;
            return;
        }
        self.names.insert(self.hasher.hash_one(name));
    }

    /// Whether unpacking a global header with this name has an effect.
    pub(super) fn is_changed_by(&self, name: &[u8]) -> bool {
        match parts(name)[..] {
            // The root itself.
            [] => false,
            [name] => {
                let is_there = self.any || self.names.contains(&self.hasher.hash_one(name));
                is_there || name.starts_with(WHITEOUT)
            }
            _ => true,
        }
    }
}

/// The parts of a name, cleaned lexically and confined to the root.
fn parts(name: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts
}
