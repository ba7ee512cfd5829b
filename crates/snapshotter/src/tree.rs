//! The tree that unpacking a layer would leave, made from its table of contents alone.
//!
//! The oracle is containerd's own unpacking; `docs/compatibility.md` says where other lazy mounts
//! differ. Two things decide about a tree: the entries of the archive, in order, and a small
//! [`Patch`], what the layers below change in it.
//!
//! ```text
//!   entries ──▶ Tree::build(plain patch) ──▶ tree.implied() ── asked below ──▶ Patch
//!                        │                                                      │ not plain
//!                        ▼ plain: as it is                                      ▼
//!                      image ◀───────────────────────────────────── Tree::build(that patch)
//! ```
//!
//! * A **base layer** is unpacked into a plain directory: whiteouts are executed and leave nothing.
//!   A **layer above** others is unpacked beside them: whiteouts become devices 0:0, opaque markers
//!   an attribute. [`Rules`] says which.
//! * A directory that entries only *imply* takes its attributes from the nearest layer below that
//!   has it. Since what is made in it inherits from it (default ACL, setgid group), they must be known
//!   when it is made: [`Tree::build`] gets them in the patch, and [`Tree::settle`] finds them.
//! * What unpacking would refuse is a [`TreeError`] that names the entry and the rule. The caller then
//!   leaves the layer to containerd, whose error the user sees.
//!
//! Nothing here reads a file's content or waits for anything. The work is bounded: names that lead
//! through links in circles, or markers that clean the same directory again and again, end in
//! [`Refusal::TooMuchWork`].

mod acl;
#[cfg(test)]
#[path = "../tests/support/archive.rs"]
mod archive;
mod attributes;
mod build;
mod lower;
mod resolve;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};
use soci_erofs::{Attributes, Image, ImageError};
use soci_ztoc::Entry;

pub use lower::{Below, Directory, Lower, LowerError, lookup_in_directory, lookup_in_image};

/// Grows whenever the same entries and patch give another tree: images of older rules are not used.
const RULES_VERSION: u8 = 1;

/// How a layer is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Rules {
    /// The layer has no parent: whiteouts are executed.
    pub base: bool,
    /// In a user namespace: no devices, `user.overlay.opaque` instead of `trusted.overlay.opaque`,
    /// and no `user.overlay.*` from the archive.
    pub user_namespace: bool,
}

impl Rules {
    /// The attribute that hides a directory's lower layers; its value is `y`.
    #[must_use]
    pub fn opaque_xattr(self) -> &'static [u8] {
        if self.user_namespace {
            b"user.overlay.opaque"
        } else {
            b"trusted.overlay.opaque"
        }
    }
}

/// What a mount changes in a layer's tree: how it is applied, and the attributes of the directories
/// that are only implied and that a lower layer has. Equal patches of a layer give equal images.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Patch {
    rules: Rules,
    implied: BTreeMap<Vec<u8>, Directory>,
}

impl Patch {
    /// A patch that settles nothing.
    #[must_use]
    pub fn plain(rules: Rules) -> Self {
        Self {
            rules,
            implied: BTreeMap::new(),
        }
    }

    /// How the layer is applied.
    #[must_use]
    pub fn rules(&self) -> Rules {
        self.rules
    }

    /// Whether no implied directory takes attributes from below.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.implied.is_empty()
    }

    /// A name for the image of this patch, 32 hexadecimal digits: the same for equal patches, over
    /// restarts and machines.
    #[must_use]
    pub fn key(&self) -> String {
        let mut hash = Sha256::new();
        let mut put = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        put(&[
            RULES_VERSION,
            u8::from(self.rules.base),
            u8::from(self.rules.user_namespace),
        ]);
        for (path, Directory { attributes, xattrs }) in &self.implied {
            let Attributes {
                mode,
                uid,
                gid,
                mtime,
            } = attributes;
            put(path);
            put(&mode.to_le_bytes());
            put(&uid.to_le_bytes());
            put(&gid.to_le_bytes());
            put(&mtime.secs.to_le_bytes());
            put(&mtime.nanos.to_le_bytes());
            put(&(xattrs.len() as u64).to_le_bytes());
            for (name, value) in xattrs {
                put(name);
                put(value);
            }
        }
        hash.finalize()[..16]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

/// The entry at which unpacking the layer would fail.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("entry {ordinal} {:?}", String::from_utf8_lossy(.name))]
pub struct TreeError {
    /// Which entry, counted from 0.
    pub ordinal: usize,
    /// Its name as it stands in the archive.
    pub name: Vec<u8>,
    /// Why.
    #[source]
    pub refusal: Refusal,
}

/// The rule that an entry breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A parent exists in this layer and is no directory.
    #[error("a parent of it is not a directory")]
    ParentNotADirectory,
    /// Longer than unpacking can be sure to reach below its own root.
    #[error("a path of {0} bytes")]
    PathTooLong(usize),
    /// Links of the layer lead in a circle.
    #[error("its path leads through too many links")]
    TooManyLinks,
    /// Where a chain of links ends depends on the machine that unpacks.
    #[error("its path leads through a link out of the layer")]
    LinkOutside,
    /// A whiteout of nothing, `.` or `..`.
    #[error("a whiteout without a name")]
    WhiteoutName,
    /// A whiteout of what the same layer has.
    #[error("a whiteout of a name that the same layer has")]
    WhiteoutOfOwn,
    /// The target of a hard link is not there (yet).
    #[error("a hard link to {:?}, which is not in the layer", String::from_utf8_lossy(.0))]
    HardlinkTarget(Vec<u8>),
    /// The target of a hard link is a directory.
    #[error("a hard link to the directory {:?}", String::from_utf8_lossy(.0))]
    HardlinkToDirectory(Vec<u8>),
    /// The map of a sparse file lies in its data.
    #[error("a sparse file")]
    Sparse,
    /// The caller knows no place for the content.
    #[error("content without a place in the layer's data")]
    NoData,
    /// The kernel refuses the attribute's name or value.
    #[error("extended attribute {:?}", String::from_utf8_lossy(.0))]
    Xattr(Vec<u8>),
    /// Directory times are set last, by path, and nothing is at this one any more.
    #[error("a directory that is gone when its time is set")]
    Vanished,
    /// More steps than an archive made in good faith needs.
    #[error("too much work")]
    TooMuchWork,
    /// An image cannot say it; no file system of the kernel can, in most cases.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// What unpacking would leave.
#[derive(Debug)]
pub struct Tree {
    image: Image,
    implied: Vec<Vec<u8>>,
    has_markers: bool,
    rules: Rules,
}

impl Tree {
    /// Applies the entries of an archive in order. `blocks` is the size of the layer's data in 4 KiB
    /// blocks; `block_of` gives the first block of the content of the entry with an ordinal, counted
    /// from 0, and is asked for regular files that are not empty.
    ///
    /// # Errors
    /// Where unpacking would fail, and where it cannot be known what it would do.
    pub fn build<'a>(
        entries: impl IntoIterator<Item = Entry<'a>>,
        blocks: u64,
        block_of: impl FnMut(usize) -> Option<u64>,
        patch: &Patch,
    ) -> Result<Self, TreeError> {
        build::build(entries, blocks, block_of, patch)
    }

    /// Paths of the directories that entries only imply, without a slash in front, as they came.
    pub fn implied(&self) -> impl Iterator<Item = &[u8]> {
        self.implied.iter().map(Vec::as_slice)
    }

    /// Finds out what the layers below make of the implied directories. `below` answers for one path
    /// as [`Lower::nearest`] does, from the nearest layer on.
    ///
    /// # Errors
    /// Those of `below`.
    pub fn settle<E>(&self, mut below: impl FnMut(&[u8]) -> Result<Lower, E>) -> Result<Patch, E> {
        let mut patch = Patch::plain(self.rules);
        if self.rules.base {
            // Without markers it is the same tree wherever the layer lies.
            patch.rules.base = self.has_markers;
            return Ok(patch);
        }
        for path in &self.implied {
            if patch.implied.contains_key(path) {
                continue;
            }
            if let Lower::Directory(directory) = below(path)? {
                patch.implied.insert(path.clone(), directory);
            }
        }
        Ok(patch)
    }

    /// The tree as an image that can be written.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Gives the image an identity of its own, for instance the first bytes of the layer's digest.
    pub fn set_uuid(&mut self, uuid: [u8; 16]) {
        self.image.set_uuid(uuid);
    }
}
