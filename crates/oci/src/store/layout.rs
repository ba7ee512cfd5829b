//! An OCI image layout in a folder: `blobs/<algorithm>/<hex>`, `index.json`, `oci-layout`.
//!
//! New blobs are written under `ingest/` and renamed into place when their digest is right, so that
//! another process sees a whole blob or none.

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
use crate::descriptor::Descriptor;
use crate::digest::{Digest, Verifier};

/// The content of the file `oci-layout`.
pub const LAYOUT_FILE: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// The name of that file.
pub const LAYOUT_NAME: &str = "oci-layout";
/// The name of the index of a layout.
pub const INDEX_NAME: &str = "index.json";

/// A layout in a folder.
#[derive(Debug, Clone)]
pub struct Layout {
    root: PathBuf,
    sync: bool,
}

impl Layout {
    /// A layout that may exist or not; nothing is touched.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            sync: true,
        }
    }

    /// Does not wait for the disk: for a layout that is only a step on the way to something else.
    #[must_use]
    pub fn unsynced(self) -> Self {
        Self {
            sync: false,
            ..self
        }
    }

    /// Makes the folders and the marker file, as far as they are missing.
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

    /// The folder.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a blob is, or would be.
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

    /// Replaces a file of the layout's root at once.
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

    fn stored_size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let path = self.blob_path(digest);
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => Ok(Some(metadata.len())),
            Ok(_) => Ok(None),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(StoreError::io("stat", &path)(error)),
        }
    }

    /// Whether a blob is there and right. One that changed on the disk is not, and is stored again.
    fn has(&self, blob: &Descriptor) -> Result<bool, StoreError> {
        if self.stored_size(&blob.digest)? != Some(blob.size) {
            return Ok(false);
        }
        Ok(is_blob(self.open_file(&blob.digest)?, blob))
    }

    /// Opens a blob as a file.
    pub fn open_file(&self, digest: &Digest) -> Result<File, StoreError> {
        let path = self.blob_path(digest);
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

    /// Every file under `blobs` whose place is that of a blob, and its bytes.
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

    /// [`ContentStore::put`] for plain threads.
    pub fn store(&self, descriptor: &Descriptor, content: Content) -> Result<Put, StoreError> {
        let path = self.blob_path(&descriptor.digest);
        let reader = content.into_reader();
        let reader = reader.map_err(StoreError::io("read", &path))?;
        self.receive(descriptor, reader, &|_| {})
    }

    /// Stores a blob that is read from somewhere else; for plain threads.
    pub fn receive(
        &self,
        descriptor: &Descriptor,
        mut reader: impl Read,
        progress: &dyn Fn(u64),
    ) -> Result<Put, StoreError> {
        let Descriptor { digest, size, .. } = descriptor;
        if self.has(descriptor)? {
            return Ok(Put::AlreadyThere);
        }
        let path = self.blob_path(digest);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(StoreError::io("mkdir", folder))?;
        }
        let mut file = self.ingest(&digest.hex())?;
        let mut verifier = Verifier::new(*digest);
        let mut buffer = vec![0; 256 << 10];
        loop {
            let read = reader
                .read(&mut buffer)
                .map_err(StoreError::io("read", file.path()))?;
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

    /// Gives a finished file its place. It is synced first: a name that survives a power loss must
    /// not lead to an empty file.
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

/// Names in a folder that are text, and where they are; none if it is no folder.
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

/// Opens what is a file; nothing else counts as there. Opening a pipe would wait for its other end.
fn open_regular(path: &Path) -> io::Result<File> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    File::open(path)
}

/// Reads a file of a layout's root, with a limit in bytes.
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
