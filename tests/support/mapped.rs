//! Files as memory maps show them: also behind their end, up to the page.

// JUSTIFICATION: what lies behind the end of a file in its last page can be seen through a map only.
#![expect(unsafe_code, reason = "a memory map of a file is the thing under test")]

use std::fs::File;
use std::path::Path;

use anyhow::Result;

/// The first `length` bytes of a map of the file, which may reach behind its end within the last page.
pub fn read(path: &Path, length: usize) -> Result<Vec<u8>> {
    let file = File::open(path)?;
    // SAFETY: the file lies in a read-only view of an image; nobody can change or truncate it while it is mapped, and
    // the map is copied and dropped here.
    let map = unsafe { memmap2::MmapOptions::new().len(length).map(&file) }?;
    Ok(map.to_vec())
}
