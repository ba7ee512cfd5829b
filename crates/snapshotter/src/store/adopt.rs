//! Scans the store at startup: layers, leftovers of a crash, and unreadable directories.
//!
//! Nothing that the scan finds prevents the start. Leftovers of this program are removed,
//! unreadable layers are set aside, and unrelated files are left in place.

use std::{collections::HashMap, fs, io, path::Path};

use super::{
    FIRST_NUMBER, LayerKey, LayerNumber, StoreError,
    aside::Aside,
    files::key_of,
    sealed::Folder,
    sources::{self, Sources, SourcesError},
};

/// The result of the scan.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) by_key: HashMap<LayerKey, LayerNumber>,
    /// Larger than every number that is known to have been used.
    pub(super) next: u64,
}

/// Scans the directory of the store. Fails only if that directory itself cannot be read.
pub(super) fn all(root: &Path, boot: &str, aside: &Aside) -> io::Result<Found> {
    let mut found = Found {
        by_key: HashMap::new(),
        next: FIRST_NUMBER.max(aside.largest_number() + 1),
    };
    let mut numbers = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        match number_of(&entry.path()) {
            Some(number) => numbers.push(number),
            None => {
                tracing::warn!(path = %entry.path().display(), "ignoring a directory that is not a layer of the store");
            }
        }
    }
    numbers.sort_unstable();
    for number in numbers {
        found.next = found.next.max(number.0 + 1);
        let path = root.join(number.to_string());
        match one(&Folder::new(&path, boot), number) {
            Ok(Some(key)) => {
                if let Some(older) = found.by_key.insert(key, number) {
                    // The older layer was forgotten before the newer one was created. A crash
                    // prevented its deletion.
                    remove(&root.join(older.to_string()));
                }
            }
            Ok(None) => remove(&path),
            Err(error) => aside.put(&path, &error),
        }
    }
    Ok(found)
}

/// The layer in a directory. `None` if it was never finished or is being deleted.
fn one(folder: &Folder, number: LayerNumber) -> Result<Option<LayerKey>, StoreError> {
    let Some(sources) = read_sources(folder, number)? else {
        return Ok(None);
    };
    sweep_unfinished(folder.path()).map_err(StoreError::io(folder.path()))?;
    Ok(Some(key_of(&sources)))
}

/// The identity of a layer. `None` if the directory is not a layer.
pub(super) fn read_sources(
    folder: &Folder,
    number: LayerNumber,
) -> Result<Option<Sources>, StoreError> {
    let file = sources::NAME;
    Sources::read(folder).map_err(|error| match error {
        SourcesError::Io(source) => StoreError::io(&folder.file(file))(source),
        SourcesError::Torn => StoreError::Damaged { number, file },
        SourcesError::Foreign => StoreError::Foreign { number, file },
    })
}

/// The layer number in the name of a directory.
pub(super) fn number_of(path: &Path) -> Option<LayerNumber> {
    let number = path.file_name()?.to_str()?.parse::<u64>().ok()?;
    (number >= FIRST_NUMBER).then_some(LayerNumber(number))
}

fn remove(path: &Path) {
    tracing::info!(path = %path.display(), "removing the files of an unfinished or deleted layer");
    if let Err(error) = fs::remove_dir_all(path) {
        tracing::error!(path = %path.display(), error = %error, "cannot remove them; trying again at the next start");
    }
}

/// Removes temporary files that a crash left behind.
fn sweep_unfinished(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?.path();
        if entry
            .extension()
            .is_some_and(|extension| extension == "new")
        {
            fs::remove_file(entry)?;
        }
    }
    Ok(())
}
