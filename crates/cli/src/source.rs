//! Opens images on disk, as the flags ask for.

use std::io;
use std::path::Path;

use soci_index::standalone::{LocalImage, SourceError};

/// Opens a folder or an archive. Without `follow_links`, blobs of a folder must not be links out of
/// it.
pub(crate) fn open(path: &Path, follow_links: bool) -> Result<LocalImage, SourceError> {
    let image = LocalImage::open(path)?;
    Ok(if follow_links {
        image.following_links()
    } else {
        image
    })
}

/// Opens the image with this name in a folder or an archive.
pub(crate) fn tagged(
    path: &Path,
    tag: Option<&str>,
    follow_links: bool,
) -> Result<LocalImage, SourceError> {
    let image = open(path, follow_links)?;
    Ok(match tag {
        Some(tag) => image.named(tag),
        None => image,
    })
}

/// Reads an archive from standard input and keeps it in `folder`.
pub(crate) async fn piped(folder: &Path) -> Result<LocalImage, SourceError> {
    LocalImage::spooled(io::stdin(), Path::new("standard input"), folder).await
}
