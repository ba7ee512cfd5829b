//! Builds the image of an open layer: its entries and the layers below become a tree, and the tree
//! becomes `meta`.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use soci_erofs::Reader;

use super::Parent;
use crate::cpu::Lost;
use crate::layer::{Layer, Layers, OpenError};
use crate::mount::MountError;
use crate::store::sealed::Mapped;
use crate::sync::Arc;
use crate::tree::{Below, Lower, LowerError, Patch, Rules, Tree, TreeError};

/// Size of a block of `data`, in bytes.
const BLOCK: u64 = 4096;
/// Length of an image's UUID, in bytes.
const UUID: usize = 16;

/// Why the image of a layer could not be made or mounted.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// Unpacking would fail, or its result cannot be determined.
    #[error("the layer cannot be unpacked")]
    Tree(#[from] TreeError),
    /// A lookup in the layers below failed.
    #[error(transparent)]
    Lower(#[from] LowerError),
    /// A layer below cannot be opened.
    #[error("a layer below")]
    Below(#[from] OpenError),
    /// A layer below is not in the store.
    #[error("a layer below is not in the store")]
    BelowGone,
    /// The store cannot be read or written.
    #[error("the store")]
    Io(#[from] io::Error),
    /// The mount failed.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The job was lost. This is a bug.
    #[error(transparent)]
    Lost(#[from] Lost),
}

/// A parent, before its image is opened.
pub(super) enum Lying {
    Image(Arc<Layer>, String),
    Directory(PathBuf),
}

/// Opens the parents, nearest first: layers of the store, and directories of containerd.
pub(super) async fn images_below(
    layers: &Layers,
    parents: &[Parent],
) -> Result<Vec<Lying>, ShowError> {
    let mut below = Vec::with_capacity(parents.len());
    for parent in parents {
        below.push(match parent {
            Parent::Directory(path) => Lying::Directory(path.clone()),
            Parent::Layer(used) => {
                let layer = layers.open_present(&used.layer).await?;
                Lying::Image(layer.ok_or(ShowError::BelowGone)?, used.patch.clone())
            }
        });
    }
    Ok(below)
}

/// Makes or finds the image of a layer on these parents. Returns its patch and file. Blocks on disk
/// I/O.
pub(super) fn make_meta(
    layer: &Arc<Layer>,
    below: &[Lying],
    user_namespace: bool,
) -> Result<(String, PathBuf), ShowError> {
    let rules = Rules {
        base: below.is_empty(),
        user_namespace,
    };
    let tree = build(layer, &Patch::plain(rules))?;
    let patch = settle(&tree, below)?;
    write_meta(layer, &patch, &tree)
}

/// Writes the image of a layer for a patch, unless it exists. `tree` is the layer's tree without a
/// patch.
fn write_meta(
    layer: &Arc<Layer>,
    patch: &Patch,
    tree: &Tree,
) -> Result<(String, PathBuf), ShowError> {
    let key = patch.key();
    if let Some(meta) = layer.meta(&key)? {
        layer.release_entries();
        return Ok((key, meta));
    }
    let patched = if patch.is_plain() {
        None
    } else {
        Some(build(layer, patch)?)
    };
    let image = patched.as_ref().unwrap_or(tree).image();
    let meta = layer.write_meta(&key, |to| {
        image.write(to).map(drop).map_err(io::Error::other)
    })?;
    layer.release_entries();
    Ok((key, meta))
}

/// Makes the image of a layer before its parents are known, unless it depends on them. Blocks on
/// disk I/O.
pub(super) fn make_meta_ahead(
    layer: &Arc<Layer>,
    lowest: bool,
    user_namespace: bool,
) -> Result<(), ShowError> {
    let rules = Rules {
        base: lowest,
        user_namespace,
    };
    let tree = build(layer, &Patch::plain(rules))?;
    if lowest || tree.implied().next().is_none() {
        let patch = settle(&tree, &[])?;
        write_meta(layer, &patch, &tree)?;
    }
    Ok(())
}

fn build(layer: &Arc<Layer>, patch: &Patch) -> Result<Tree, ShowError> {
    let entries = layer.entries()?;
    let places = layer.places();
    let block_of = |ordinal: usize| {
        let place = places.data_of(u32::try_from(ordinal).ok()?)?;
        Some(place / BLOCK)
    };
    let mut tree = Tree::build(entries.iter(), layer.data_size() / BLOCK, block_of, patch)?;
    let mut uuid = [0; UUID];
    for (to, from) in uuid.iter_mut().zip(layer.digest().as_bytes()) {
        *to = *from;
    }
    tree.set_uuid(uuid);
    Ok(tree)
}

/// Looks up the directories that entries only imply in the layers below. Opens none of them if
/// there are no such directories.
fn settle(tree: &Tree, below: &[Lying]) -> Result<Patch, ShowError> {
    if tree.implied().next().is_none() {
        return tree.settle(|_| Ok(Lower::Absent));
    }
    let mut images = Vec::new();
    for lying in below {
        if let Lying::Image(layer, patch) = lying {
            let meta = layer.meta(patch)?.ok_or(ShowError::BelowGone)?;
            images.push(Mapped::open(&meta)?);
        }
    }
    let mut mapped = images.iter();
    let mut layers = Vec::with_capacity(below.len());
    for lying in below {
        layers.push(match lying {
            Lying::Directory(path) => Below::Directory(OwnedFd::from(File::open(path)?)),
            // One image was mapped for each of these.
            Lying::Image(..) => {
                let image = mapped.next().ok_or(ShowError::BelowGone)?;
                Below::Image(Reader::open(image.as_ref()).map_err(LowerError::from)?)
            }
        });
    }
    tree.settle(|path| Ok(Lower::nearest(&layers, path)?))
}
