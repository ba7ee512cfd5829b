//! Stores a blob of another source in a layout while it is read.

use std::io::{self, Read, Write as _};
use std::path::PathBuf;

use soci_oci::descriptor::Descriptor;
use soci_oci::digest::VerifyingReader;

use super::{Layout, create_parent};
use crate::StoreError;

/// Reads a blob and stores it: see [`Layout::keeping`].
#[derive(Debug)]
pub struct Keeping<R> {
    reader: VerifyingReader<R>,
    layout: Layout,
    path: PathBuf,
    /// Bytes that have not been read yet.
    left: u64,
    /// `None` after the end of the blob, or after an error.
    file: Option<tempfile::NamedTempFile>,
}

impl Layout {
    /// Returns a reader of the same blob that also stores it, for plain threads. The layout has the
    /// blob when the last byte is returned, which happens only if size and digest are right. If the
    /// reader is dropped earlier, or an error occurs, nothing is stored.
    ///
    /// # Errors
    /// [`StoreError::Io`] if there is no place for the file.
    pub fn keeping<R: Read>(&self, blob: &Descriptor, reader: R) -> Result<Keeping<R>, StoreError> {
        let path = self.blob_path(&blob.digest);
        create_parent(&path)?;
        Ok(Keeping {
            reader: VerifyingReader::new(reader, blob.digest, blob.size),
            layout: self.clone(),
            path,
            left: blob.size,
            file: Some(self.ingest(&blob.digest.hex())?),
        })
    }
}

impl<R> Keeping<R> {
    fn keep(&mut self, mut file: tempfile::NamedTempFile, bytes: &[u8]) -> Result<(), StoreError> {
        file.write_all(bytes)
            .map_err(StoreError::io("write", file.path()))?;
        self.left -= bytes.len() as u64;
        if self.left > 0 {
            self.file = Some(file);
            return Ok(());
        }
        self.layout.persist(file, &self.path, 0o444)
    }
}

impl<R: Read> Read for Keeping<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let read = self.reader.read(buffer)?;
        if let Some(file) = self.file.take() {
            self.keep(file, &buffer[..read]).map_err(io_error)?;
        }
        Ok(read)
    }
}

fn io_error(error: StoreError) -> io::Error {
    let kind = match &error {
        StoreError::Io { cause, .. } => cause.kind(),
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    struct Site {
        folder: tempfile::TempDir,
        layout: Layout,
    }

    impl Site {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let layout = Layout::create(folder.path().join("layout")).unwrap();
            Self { folder, layout }
        }

        fn has(&self, blob: &Descriptor) -> bool {
            self.layout.has(blob).unwrap()
        }

        fn unfinished(&self) -> usize {
            let ingest = self.folder.path().join("layout/ingest");
            fs::read_dir(ingest).unwrap().count()
        }
    }

    #[test]
    fn a_blob_is_there_as_soon_as_its_last_byte_has_been_read() {
        let site = Site::new();
        for bytes in [b"hello".as_slice(), b""] {
            let blob = Descriptor::of("t", bytes);
            let mut reader = site.layout.keeping(&blob, bytes).unwrap();
            let mut read = vec![0; bytes.len()];
            reader.read_exact(&mut read).unwrap();
            // An empty blob ends with the first read.
            assert!(bytes.is_empty() || site.has(&blob));
            assert_eq!(reader.read(&mut [0]).unwrap(), 0);
            assert!(site.has(&blob));
            assert_eq!(read, bytes);
        }
        assert_eq!(site.unfinished(), 0);
    }

    #[test]
    fn nothing_is_kept_of_wrong_or_unfinished_bytes() {
        let site = Site::new();
        let blob = Descriptor::of("t", b"hello");
        for wrong in [b"hellO".as_slice(), b"hell", b"hello!"] {
            let mut reader = site.layout.keeping(&blob, wrong).unwrap();
            let error = io::copy(&mut reader, &mut io::sink()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        let mut unfinished = site.layout.keeping(&blob, b"hello".as_slice()).unwrap();
        unfinished.read_exact(&mut [0; 4]).unwrap();
        assert_eq!(site.unfinished(), 1);
        drop(unfinished);
        assert!(!site.has(&blob));
        assert_eq!(site.unfinished(), 0);
    }

    #[test]
    fn a_blob_that_cannot_be_written_is_an_error_that_says_so() {
        let site = Site::new();
        let blob = Descriptor::of("t", b"hello");
        let mut reader = site.layout.keeping(&blob, b"hello".as_slice()).unwrap();
        fs::remove_dir_all(site.layout.root()).unwrap();
        let error = reader.read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().starts_with("rename "), "{error}");
    }
}
