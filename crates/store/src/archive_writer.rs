//! Writes an OCI image layout as a reproducible tar archive: sorted names, no timestamps, no owners
//! and a fixed header format.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write};
use std::path::Path;

use bytes::Bytes;

use super::archive::{BLOCK, TRUNCATED, blob_name};
use super::layout::{INDEX_NAME, LAYOUT_FILE, LAYOUT_NAME};
use super::{Blob, ContentStore, StoreError, blocking};
use soci_oci::digest::{Algorithm, Digest};

/// Writes an archive of these blobs (digest name to size in bytes) and this index. The blobs are
/// read from a store. Returns the writer without flushing it.
pub async fn write_archive<W>(
    out: W,
    store: &dyn ContentStore,
    blobs: &BTreeMap<Digest, u64>,
    index: &[u8],
    progress: impl Fn(u64) + Clone + Send + 'static,
) -> Result<W, StoreError>
where
    W: Write + Send + 'static,
{
    let mut tar = Writer { out };
    tar.folder("blobs/")?;
    let mut algorithm: Option<Algorithm> = None;
    for (digest, &size) in blobs {
        if algorithm.replace(digest.algorithm()) != Some(digest.algorithm()) {
            tar.folder(&format!("blobs/{}/", digest.algorithm().name()))?;
        }
        let blob = store.open(digest).await?;
        if blob.size != size {
            return Err(StoreError::Size {
                digest: *digest,
                expected: size,
                actual: blob.size,
            });
        }
        let (name, progress) = (blob_name(digest), progress.clone());
        tar = blocking(move || {
            tar.file(&name, 0o444, blob, progress)?;
            Ok::<_, StoreError>(tar)
        })
        .await?;
    }
    for (name, bytes, mode) in [
        (INDEX_NAME, index, 0o644),
        (LAYOUT_NAME, LAYOUT_FILE, 0o444),
    ] {
        let reader = Box::new(io::Cursor::new(Bytes::copy_from_slice(bytes)));
        tar.file(
            name,
            mode,
            Blob {
                size: bytes.len() as u64,
                reader,
            },
            |_| {},
        )?;
    }
    tar.write(&[0; 2 * BLOCK])?;
    Ok(tar.out)
}

/// Writes members in the format of Go's library: USTAR, with extended headers only for values that
/// do not fit.
pub(super) struct Writer<W> {
    pub(super) out: W,
}

impl<W: Write> Writer<W> {
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.out
            .write_all(bytes)
            .map_err(StoreError::io("write", Path::new("archive")))
    }

    fn folder(&mut self, name: &str) -> Result<(), StoreError> {
        self.write(&header(name, b'5', 0o755, 0))
    }

    fn file(
        &mut self,
        name: &str,
        mode: u64,
        mut blob: Blob,
        progress: impl Fn(u64),
    ) -> Result<(), StoreError> {
        self.extended(name, blob.size)?;
        self.write(&header(name, b'0', mode, blob.size))?;
        let path = Path::new(name);
        let mut buffer = vec![0; 1 << 20];
        let mut left = blob.size;
        while left > 0 {
            let room = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            let read = blob
                .reader
                .read(&mut buffer[..room])
                .map_err(StoreError::io("read", path))?;
            if read == 0 {
                return Err(TRUNCATED);
            }
            self.write(&buffer[..read])?;
            left -= read as u64;
            progress(read as u64);
        }
        // Verifying readers report a mismatch only at the end, so read past the last byte.
        let more = blob.reader.read(&mut buffer[..1]);
        if more.map_err(StoreError::io("read", path))? != 0 {
            return Err(StoreError::Archive("a blob grew while it was read"));
        }
        let padding = blob.size.next_multiple_of(BLOCK as u64) - blob.size;
        self.write(&[0; BLOCK][..usize::try_from(padding).unwrap_or_default()])
    }

    /// Writes an extended header if the name or the size does not fit into the main header.
    pub(super) fn extended(&mut self, name: &str, size: u64) -> Result<(), StoreError> {
        let mut records = Vec::new();
        if name.len() > 100 {
            records.extend(pax_line("path", name));
        }
        if size >= 1 << 33 {
            records.extend(pax_line("size", &size.to_string()));
        }
        if records.is_empty() {
            return Ok(());
        }
        let (folder, base) = name.rsplit_once('/').unwrap_or(("", name));
        let own_name = format!("{folder}/PaxHeaders.0/{base}");
        self.write(&header(&own_name, b'x', 0, records.len() as u64))?;
        records.resize(records.len().next_multiple_of(BLOCK), 0);
        self.write(&records)
    }
}

/// Builds a header block. A name that does not fit is truncated and a size that does not fit is
/// zero; the extended header has the full value.
pub(super) fn header(name: &str, kind: u8, mode: u64, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let name = &name.as_bytes()[..name.len().min(100)];
    block[..name.len()].copy_from_slice(name);
    octal(&mut block[100..108], mode);
    octal(&mut block[108..116], 0);
    octal(&mut block[116..124], 0);
    octal(&mut block[124..136], if size < 1 << 33 { size } else { 0 });
    octal(&mut block[136..148], 0);
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    if kind != b'x' {
        octal(&mut block[329..337], 0);
        octal(&mut block[337..345], 0);
    }
    block[148..156].fill(b' ');
    let sum = block.iter().map(|&byte| u64::from(byte)).sum();
    octal(&mut block[148..155], sum);
    block
}

/// Writes as many octal digits as fit, followed by a NUL.
pub(super) fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let text = format!("{value:0digits$o}");
    field[..digits].copy_from_slice(text.as_bytes());
    field[digits] = 0;
}

/// Formats `<length> <key>=<value>\n`. The length includes its own digits.
pub(super) fn pax_line(key: &str, value: &str) -> Vec<u8> {
    let body = key.len() + value.len() + 3;
    let mut length = body + 1;
    while body + length.to_string().len() != length {
        length += 1;
    }
    format!("{length} {key}={value}\n").into_bytes()
}
