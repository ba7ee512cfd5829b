//! Modifies the layer store as a power failure would.
//!
//! Relies on the file formats that the store documents: `present` has a 64-byte header (magic, the
//! boot ID at 8, the mark of a complete layer at 56) and one byte per span (1 written, 2 durable);
//! `NAME.sum` contains a checksum and the boot in which it was verified.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The store of the tested version. The name contains the version.
const STORE: &str = "layers-2";
const HEADER: usize = 64;
const BOOT: usize = 8;
const COMPLETE: usize = 56;

/// The directory of the store in a state directory.
pub fn folder(root: &Path) -> PathBuf {
    root.join(STORE)
}

/// The directories of all layers in a state directory.
pub fn layers(root: &Path) -> Result<Vec<PathBuf>> {
    // Only there: next to it are mounts, which no process serves after a kill.
    let store = folder(root);
    let mut found = Vec::new();
    for entry in fs::read_dir(&store).with_context(|| format!("list {}", store.display()))? {
        let folder = entry?.path();
        if folder.join("present").exists() {
            found.push(folder);
        }
    }
    Ok(found)
}

/// The marks of a layer's spans.
pub fn marks(layer: &Path) -> Result<Vec<u8>> {
    Ok(fs::read(layer.join("present"))?.split_off(HEADER))
}

/// Simulates a reboot: the files of the layer refer to another boot.
pub fn reboot(layer: &Path) -> Result<()> {
    let path = layer.join("present");
    let mut present = fs::read(&path)?;
    present[BOOT..BOOT + 4].copy_from_slice(b"gone");
    fs::write(&path, present)?;
    for entry in fs::read_dir(layer)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "sum") {
            let sum = fs::read_to_string(&path)?;
            let digest = sum.split_ascii_whitespace().next().context("a checksum")?;
            fs::write(
                &path,
                format!("{digest} 00000000-0000-0000-0000-000000000000\n"),
            )?;
        }
    }
    Ok(())
}

/// Simulates a power failure before any sync: no mark is durable, and the content is garbage.
pub fn lose_everything_volatile(layer: &Path) -> Result<()> {
    let path = layer.join("present");
    let mut present = fs::read(&path)?;
    present[COMPLETE] = 0;
    for mark in &mut present[HEADER..] {
        *mark = (*mark).min(1);
    }
    fs::write(&path, present)?;
    for name in ["data", "heads"] {
        let file = fs::File::options().write(true).open(layer.join(name))?;
        let (garbage, length) = (vec![0x55; 1 << 16], file.metadata()?.len());
        let mut at = 0;
        while at < length {
            let piece = usize::try_from(length - at)
                .unwrap_or(usize::MAX)
                .min(garbage.len());
            file.write_all_at(&garbage[..piece], at)?;
            at += piece as u64;
        }
    }
    Ok(())
}

/// Simulates a torn write of the metadata images: half of each is zeros.
pub fn tear_metas(layer: &Path) -> Result<usize> {
    let mut torn = 0;
    for entry in fs::read_dir(layer)? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.starts_with("meta") && !name.ends_with(".sum") {
            let mut content = fs::read(&path)?;
            let half = content.len() / 2;
            content[half..].fill(0);
            // Replaces the file, because the old one may still be mounted.
            fs::remove_file(&path)?;
            fs::write(&path, content)?;
            torn += 1;
        }
    }
    Ok(torn)
}
