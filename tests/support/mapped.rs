//! Files as seen through memory maps, including the bytes between the end of the file and of the
//! page.

// JUSTIFICATION: the bytes after the end of a file in its last page are visible only through a map.
#![expect(unsafe_code, reason = "a memory map of a file is the thing under test")]

use std::fs::File;
use std::path::Path;

use anyhow::Result;

/// The first `length` bytes of a map of the file, which may extend to the end of the last page.
pub fn read(path: &Path, length: usize) -> Result<Vec<u8>> {
    let file = File::open(path)?;
    // SAFETY: the file is in a read-only view of an image, so it cannot change or shrink while it
    // is mapped, and the map is copied and dropped here.
    let map = unsafe { memmap2::MmapOptions::new().len(length).map(&file) }?;
    Ok(map.to_vec())
}
