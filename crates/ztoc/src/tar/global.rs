//! Global PAX headers, whose names unpacking takes for those of entries.
//!
//! containerd creates nothing for such a header, but what it does before it knows that, it does: missing parents are
//! made, `.wh.` in front removes a name, whatever has the name goes. Nothing of it happens for a plain name at the root
//! that nothing before it can have made, as writers of such headers use one; all others are refused.

#![warn(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects
)]

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use crate::toc::{Entry, FileKind};

const WHITEOUT: &[u8] = b".wh.";
/// Names at the root that are told apart. Archives with more of them and a global header behind are rare.
const MOST: usize = 4096;

/// Names that may be at the root.
#[derive(Debug, Default)]
pub(super) struct Roots {
    names: HashSet<u64>,
    hasher: RandomState,
    /// There were more: any name may be one.
    any: bool,
}

impl Roots {
    /// An entry may make its first part, the one that it whites out, and what a link that others go through names.
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

    /// Whether unpacking changes something for a global header of this name.
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

/// The parts of a name, cleaned as text and held below the root.
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
