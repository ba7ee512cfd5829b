//! Builds the file tree that unpacking a layer would produce, from its table of contents alone.
//!
//! The reference is containerd's own unpacking. Two inputs determine a tree: the entries of the
//! archive in order, and a small [`Patch`], which contains what the layers below contribute.
//!
//! ```text
//!   entries ──▶ Tree::build(plain patch) ──▶ tree.implied() ── lower layers ──▶ Patch
//!                        │                                                      │ not plain
//!                        ▼ plain: final                                         ▼
//!                      image ◀───────────────────────────────────── Tree::build(that patch)
//! ```
//!
//! * A **base layer** is unpacked into a plain directory, so whiteouts are executed. In an **upper
//!   layer**, whiteouts become devices 0:0 and opaque markers an attribute. [`Rules`] selects one.
//! * A directory that entries only *imply* takes its attributes from the nearest layer below that
//!   has it. They must be known when it is created, because new nodes in it inherit from it.
//! * A [`TreeError`] means that unpacking would fail. The caller leaves such a layer to containerd.
//!
//! Nothing here reads file content or waits, and the work is bounded ([`Refusal::TooMuchWork`]).
//! `docs/compatibility.md` lists differences to other lazy mounts.

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

/// Increment when the same entries and patch produce a different tree, so that old images are not
/// used.
const RULES_VERSION: u8 = 1;

/// How a layer is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Rules {
    /// The layer has no parent, so whiteouts are executed.
    pub base: bool,
    /// Unpacking in a user namespace: no devices, `user.overlay.opaque` instead of
    /// `trusted.overlay.opaque`, and no `user.overlay.*` from the archive.
    pub user_namespace: bool,
}

impl Rules {
    /// The attribute that hides the lower layers of a directory. Its value is `y`.
    #[must_use]
    pub fn opaque_xattr(self) -> &'static [u8] {
        if self.user_namespace {
            b"user.overlay.opaque"
        } else {
            b"trusted.overlay.opaque"
        }
    }
}

/// What a mount changes in the tree of a layer: how it is applied, and the attributes of implied
/// directories that exist in a lower layer. Equal patches of a layer give equal images.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Patch {
    rules: Rules,
    implied: BTreeMap<Vec<u8>, Directory>,
}

impl Patch {
    /// A patch without attributes from lower layers.
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

    /// Whether no implied directory takes attributes from a lower layer.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.implied.is_empty()
    }

    /// A name for the image of this patch: 32 hexadecimal digits. Equal patches have equal names on
    /// all machines.
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
    /// Index of the entry, counted from 0.
    pub ordinal: usize,
    /// Name of the entry as in the archive.
    pub name: Vec<u8>,
    /// The reason.
    #[source]
    pub refusal: Refusal,
}

/// The rule that an entry breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A parent of the entry exists in this layer and is not a directory.
    #[error("a parent of it is not a directory")]
    ParentNotADirectory,
    /// The path is longer than unpacking can be sure to reach below its own root.
    #[error("a path of {0} bytes")]
    PathTooLong(usize),
    /// Links in the layer form a cycle.
    #[error("its path contains too many symbolic links")]
    TooManyLinks,
    /// The target of a chain of links depends on the machine that unpacks the layer.
    #[error("its path contains a symbolic link that leaves the layer")]
    LinkOutside,
    /// A whiteout of an empty name, `.`, or `..`.
    #[error("a whiteout without a name")]
    WhiteoutName,
    /// A whiteout of a name that the same layer contains.
    #[error("a whiteout of a name that the same layer contains")]
    WhiteoutOfOwn,
    /// The target of a hard link is not in the layer, or not yet.
    #[error("a hard link to {:?}, which is not in the layer", String::from_utf8_lossy(.0))]
    HardlinkTarget(Vec<u8>),
    /// The target of a hard link is a directory.
    #[error("a hard link to the directory {:?}", String::from_utf8_lossy(.0))]
    HardlinkToDirectory(Vec<u8>),
    /// A sparse file. Its map is stored inside its data.
    #[error("a sparse file is not supported")]
    Sparse,
    /// The caller has no place for the content.
    #[error("its content has no place in the layer's data")]
    NoData,
    /// The kernel rejects the name or the value of the attribute.
    #[error("the kernel rejects the extended attribute {:?}", String::from_utf8_lossy(.0))]
    Xattr(Vec<u8>),
    /// The times of directories are set last, by path, and nothing exists at this path any longer.
    #[error("a directory that no longer exists when its time is set")]
    Vanished,
    /// More steps than any reasonable archive needs.
    #[error("the layer needs too many steps to unpack")]
    TooMuchWork,
    /// An EROFS image cannot represent it. In most cases, no file system of the kernel can.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// The tree that unpacking would produce.
#[derive(Debug)]
pub struct Tree {
    image: Image,
    implied: Vec<Vec<u8>>,
    has_markers: bool,
    rules: Rules,
}

impl Tree {
    /// Applies the entries of an archive in order. `blocks` is the size of the layer's data in 4
    /// KiB blocks. `block_of` returns the first block of the content of an entry, by its index from
    /// 0. It is called for nonempty regular files.
    ///
    /// # Errors
    /// Entries on which unpacking would fail, or whose outcome is unpredictable.
    pub fn build<'a>(
        entries: impl IntoIterator<Item = Entry<'a>>,
        blocks: u64,
        block_of: impl FnMut(usize) -> Option<u64>,
        patch: &Patch,
    ) -> Result<Self, TreeError> {
        build::build(entries, blocks, block_of, patch)
    }

    /// The paths of implied directories, without a leading slash, in the order of their creation.
    pub fn implied(&self) -> impl Iterator<Item = &[u8]> {
        self.implied.iter().map(Vec::as_slice)
    }

    /// Finds the attributes of implied directories in the layers below. `below` looks up one path,
    /// like [`Lower::nearest`].
    ///
    /// # Errors
    /// Those of `below`.
    pub fn settle<E>(&self, mut below: impl FnMut(&[u8]) -> Result<Lower, E>) -> Result<Patch, E> {
        let mut patch = Patch::plain(self.rules);
        if self.rules.base {
            // Without markers, the tree does not depend on the position of the layer.
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

    /// Sets the UUID of the image, for example to the first bytes of the layer digest.
    pub fn set_uuid(&mut self, uuid: [u8; 16]) {
        self.image.set_uuid(uuid);
    }
}
