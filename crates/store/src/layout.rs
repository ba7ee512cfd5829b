//! An OCI image layout in a directory: `blobs/<algorithm>/<hex>`, `index.json`, `oci-layout`.
//!
//! New blobs are written to `ingest/` and renamed into place after their digest has been verified,
//! so other processes never see a partial blob.

mod keep;
#[cfg(test)]
mod tests;

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Blob, Content, ContentStore, Labels, Put, StoreError, blocking, is_blob};
use soci_oci::descriptor::Descriptor;
use soci_oci::digest::{Digest, Verifier};

pub use keep::Keeping;

/// The content of the file `oci-layout`.
pub const LAYOUT_FILE: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// The name of the file `oci-layout`.
pub const LAYOUT_NAME: &str = "oci-layout";
/// The name of a layout's index.
pub const INDEX_NAME: &str = "index.json";

/// A layout in a directory.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
    sync: bool,
    is_contained: bool,
}

impl Layout {
    /// Returns the layout at this path, whether or not it exists. Does not access the disk.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            sync: true,
            is_contained: false,
        }
    }

    /// Refuses to read files that are links to files outside of the layout. Use this for layouts of
    /// others: a link could name any file that this user may read.
    #[must_use]
    pub fn contained(self) -> Self {
        Self {
            is_contained: true,
            ..self
        }
    }

    /// Disables syncing. Use this for temporary layouts.
    #[must_use]
    pub fn unsynced(self) -> Self {
        Self {
            sync: false,
            ..self
        }
    }

    /// Creates the directories and the marker file if they are missing.
    pub fn create(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let layout = Self::at(root);
        for folder in [layout.root.join("blobs/sha256"), layout.root.join("ingest")] {
            fs::create_dir_all(&folder).map_err(StoreError::io("mkdir", &folder))?;
        }
        let marker = layout.root.join(LAYOUT_NAME);
        if !marker.exists() {
            layout.replace(LAYOUT_NAME, LAYOUT_FILE, 0o444)?;
        }
        Ok(layout)
    }

    /// The directory of the layout.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The path of a blob, whether or not it exists.
    #[must_use]
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root
            .join("blobs")
            .join(digest.algorithm().name())
            .join(digest.hex())
    }

    /// Writes the layout's index.
    pub fn write_index(&self, bytes: &[u8]) -> Result<(), StoreError> {
        self.replace(INDEX_NAME, bytes, 0o644)
    }

    /// Atomically replaces a file in the layout's root.
    fn replace(&self, name: &str, bytes: &[u8], mode: u32) -> Result<(), StoreError> {
        let path = self.root.join(name);
        let mut file = self.ingest(name)?;
        file.write_all(bytes)
            .map_err(StoreError::io("write", &path))?;
        self.persist(file, &path, mode)
    }

    fn ingest(&self, prefix: &str) -> Result<tempfile::NamedTempFile, StoreError> {
        let folder = self.root.join("ingest");
        fs::create_dir_all(&folder).map_err(StoreError::io("mkdir", &folder))?;
        tempfile::Builder::new()
            .prefix(&format!("{prefix}_"))
            .tempfile_in(&folder)
            .map_err(StoreError::io("open", &folder))
    }

    /// The path to read a file of the layout from. Fails if it leads out of the layout and must
    /// not.
    fn readable(&self, path: PathBuf) -> Result<PathBuf, StoreError> {
        if !self.is_contained {
            return Ok(path);
        }
        // A path that cannot be resolved cannot be opened either.
        let (Ok(target), Ok(root)) = (fs::canonicalize(&path), fs::canonicalize(&self.root)) else {
            return Ok(path);
        };
        if target.starts_with(root) {
            Ok(target)
        } else {
            Err(StoreError::Outside { path, target })
        }
    }

    /// Reads a file in the layout's root, up to a limit in bytes.
    pub fn read_root(&self, name: &str, limit: u64) -> Result<Bytes, StoreError> {
        self.readable(self.root.join(name))?;
        read_root_file(&self.root, name, limit)
    }

    fn stored_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let path = self.readable(self.blob_path(digest))?;
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => Ok(Some(metadata.len())),
            Ok(_) => Ok(None),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(StoreError::io("stat", &path)(error)),
        }
    }

    /// Whether the blob is present and intact. Reads the whole blob, so use it on plain threads.
    ///
    /// # Errors
    /// [`StoreError::Io`] or [`StoreError::Outside`] if the file cannot be opened.
    pub fn has(&self, blob: &Descriptor) -> Result<bool, StoreError> {
        if self.stored_size(&blob.digest)? != Some(blob.size) {
            return Ok(false);
        }
        Ok(is_blob(self.open_file(&blob.digest)?, blob))
    }

    /// Opens a blob as a file.
    pub fn open_file(&self, digest: &Digest) -> Result<File, StoreError> {
        let path = self.readable(self.blob_path(digest))?;
        open_regular(&path).map_err(|error| {
            if is_absent(&error) {
                StoreError::NotFound(*digest)
            } else {
                StoreError::io("open", &path)(error)
            }
        })
    }

    fn part(&self, digest: &Digest, range: Range<u64>) -> Result<Bytes, StoreError> {
        let file = self.open_file(digest)?;
        let path = self.blob_path(digest);
        let actual = file
            .metadata()
            .map_err(StoreError::io("stat", &path))?
            .len();
        if range.start > range.end || range.end > actual {
            return Err(StoreError::Size {
                digest: *digest,
                expected: range.end,
                actual,
            });
        }
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut part = vec![0; length];
        file.read_exact_at(&mut part, range.start)
            .map_err(StoreError::io("read", &path))?;
        Ok(part.into())
    }

    /// Lists every file under `blobs` whose path is that of a blob, with its size in bytes.
    fn blobs(&self) -> Result<Vec<(Digest, u64)>, StoreError> {
        let mut found = Vec::new();
        for (algorithm, folder) in entries(&self.root.join("blobs"))? {
            for (hex, _) in entries(&folder)? {
                let Ok(digest) = format!("{algorithm}:{hex}").parse() else {
                    continue;
                };
                if let Some(size) = self.stored_size(&digest)? {
                    found.push((digest, size));
                }
            }
        }
        Ok(found)
    }

    /// Blocking version of [`ContentStore::put`], for plain threads.
    pub fn store(&self, descriptor: &Descriptor, content: Content) -> Result<Put, StoreError> {
        let path = self.blob_path(&descriptor.digest);
        let reader = content.into_reader();
        let reader = reader.map_err(StoreError::io("read", &path))?;
        self.receive(descriptor, reader, &|_| {})
    }

    /// Stores a blob that is read from another source. For plain threads.
    pub fn receive(
        &self,
        descriptor: &Descriptor,
        mut reader: impl Read,
        progress: &dyn Fn(u64),
    ) -> Result<Put, StoreError> {
        let Descriptor { digest, size, .. } = descriptor;
        // A blob that was modified on disk is stored again.
        if self.has(descriptor)? {
            return Ok(Put::AlreadyThere);
        }
        let path = self.blob_path(digest);
        create_parent(&path)?;
        let mut file = self.ingest(&digest.hex())?;
        let mut verifier = Verifier::new(*digest);
        let mut buffer = vec![0; 256 << 10];
        loop {
            let read = reader
                .read(&mut buffer)
                .map_err(|error| StoreError::io("read", Path::new(&digest.to_string()))(error))?;
            if read == 0 {
                break;
            }
            verifier.update(&buffer[..read]);
            file.write_all(&buffer[..read])
                .map_err(StoreError::io("write", file.path()))?;
            progress(read as u64);
        }
        let actual = verifier.length();
        if actual != *size {
            return Err(StoreError::Size {
                digest: *digest,
                expected: *size,
                actual,
            });
        }
        verifier.finish()?;
        self.persist(file, &path, 0o444)?;
        Ok(Put::Stored)
    }

    /// Moves a finished file into place. The file is synced first, so that the name never refers to
    /// an empty file after a power loss.
    fn persist(
        &self,
        file: tempfile::NamedTempFile,
        path: &Path,
        mode: u32,
    ) -> Result<(), StoreError> {
        file.as_file()
            .set_permissions(Permissions::from_mode(mode))
            .map_err(StoreError::io("chmod", path))?;
        if self.sync {
            file.as_file()
                .sync_all()
                .map_err(StoreError::io("sync", path))?;
        }
        file.persist(path)
            .map_err(|error| StoreError::io("rename", path)(error.error))?;
        Ok(())
    }
}

/// Lists the UTF-8 names in a directory with their paths. Empty if it is not a directory.
fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>, StoreError> {
    let failed = || StoreError::io("open", folder);
    let entries = match fs::read_dir(folder) {
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        other => other.map_err(failed())?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed())?;
        if let Ok(name) = entry.file_name().into_string() {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}

/// Creates the folder of a blob.
fn create_parent(blob: &Path) -> Result<(), StoreError> {
    match blob.parent() {
        Some(folder) => fs::create_dir_all(folder).map_err(StoreError::io("mkdir", folder)),
        None => Ok(()),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

#[async_trait]
impl ContentStore for Layout {
    async fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        self.stored_size(digest)
    }

    async fn open(&self, digest: &Digest) -> Result<Blob, StoreError> {
        let file = self.open_file(digest)?;
        let path = self.blob_path(digest);
        let size = file
            .metadata()
            .map_err(StoreError::io("stat", &path))?
            .len();
        Ok(Blob {
            size,
            reader: Box::new(file),
        })
    }

    async fn put(&self, descriptor: &Descriptor, content: Content) -> Result<Put, StoreError> {
        let (layout, descriptor) = (self.clone(), descriptor.clone());
        blocking(move || layout.store(&descriptor, content)).await
    }

    async fn label(&self, _: &Digest, _: &Labels) -> Result<(), StoreError> {
        Ok(())
    }

    async fn list(&self) -> Result<Vec<(Digest, u64)>, StoreError> {
        let layout = self.clone();
        blocking(move || layout.blobs()).await
    }

    async fn read_range(&self, digest: &Digest, range: Range<u64>) -> Result<Bytes, StoreError> {
        let (layout, digest) = (self.clone(), *digest);
        blocking(move || layout.part(&digest, range)).await
    }
}

/// Opens a regular file; anything else counts as missing. Opening a pipe would block until its
/// other end is opened.
fn open_regular(path: &Path) -> io::Result<File> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    File::open(path)
}

/// Reads a file in a layout's root, up to a limit in bytes.
pub fn read_root_file(root: &Path, name: &str, limit: u64) -> Result<Bytes, StoreError> {
    let path = root.join(name);
    let file = open_regular(&path).map_err(StoreError::io("open", &path))?;
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(StoreError::io("read", &path))?;
    if bytes.len() as u64 > limit {
        let cause = io::Error::from(io::ErrorKind::FileTooLarge);
        return Err(StoreError::Io {
            action: "read",
            path,
            cause,
        });
    }
    Ok(bytes.into())
}
