//! What the store does not read: layers of other versions of its form, and layers that cannot be read.
//!
//! The version is in the folder's name, so every version of this program has a store of its own under the state root, finds
//! it again after an upgrade and a downgrade, and never meets what it does not understand:
//!
//! ```text
//! layers            version 1, which had no number
//! layers-VERSION    the others; ours is `super::FOLDER`
//! layers-VERSION.aside/NUMBER    layers of that version that could not be read
//! ```
//!
//! An older version's layers go when nothing mounts them. All else is for people: the log names it, with the remedy.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::{FOLDER, StoreError, VERSION, adopt::number_of, sealed::missing_is_none};

/// Where all versions lie.
#[derive(Debug)]
pub(super) struct Aside {
    state: PathBuf,
}

/// Whether somebody uses the files of a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Used {
    No,
    Yes,
    Unknown,
}

impl Aside {
    pub(super) fn new(state: &Path) -> Aside {
        Aside {
            state: state.to_owned(),
        }
    }

    /// The folder of our version's layers that could not be read.
    fn folder(&self) -> PathBuf {
        self.state.join(format!("{FOLDER}.aside"))
    }

    /// Moves a layer's folder out of the store. Who has its files open or mounted keeps them.
    pub(super) fn put(&self, path: &Path, why: &StoreError) {
        let why = why as &dyn std::error::Error;
        match self.moved(path) {
            Ok(to) => tracing::error!(
                path = %path.display(),
                aside = %to.display(),
                error = why,
                "a layer of the store cannot be used and is set aside; it is fetched again when it is needed. Remove the \
                 folder by hand when nobody wants to look into it"
            ),
            Err(error) => tracing::error!(
                path = %path.display(),
                error = why,
                rename = %error,
                "a layer of the store cannot be used and cannot be set aside; it stays where it is and is not used. \
                 Check the file system"
            ),
        }
    }

    fn moved(&self, path: &Path) -> io::Result<PathBuf> {
        let folder = self.folder();
        fs::create_dir_all(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
        let name = path.file_name().unwrap_or_default();
        // Numbers are never used again.
        let to = folder.join(name);
        fs::rename(path, &to)?;
        Ok(to)
    }

    /// The largest number that a layer of any version has.
    pub(super) fn largest_number(&self) -> u64 {
        let mut folders: Vec<_> = self.others().into_iter().map(|(_, path)| path).collect();
        folders.push(self.folder());
        let numbers = folders.iter().flat_map(|folder| layers_in(folder));
        numbers.map(|(number, _)| number).max().unwrap_or(0)
    }

    /// Says what lies here that nobody reads.
    pub(super) fn report(&self) {
        for (version, path) in self.others() {
            if version < VERSION {
                tracing::info!(
                    path = %path.display(),
                    version,
                    "layers of an older version of the store: they go when nothing mounts them"
                );
            } else {
                tracing::warn!(
                    path = %path.display(),
                    version,
                    "layers of a newer version of the store are left alone; if that version does not come back, \
                     remove the folder by hand"
                );
            }
        }
        let aside = layers_in(&self.folder()).len();
        if aside > 0 {
            let path = self.folder();
            tracing::warn!(
                path = %path.display(),
                layers = aside,
                "layers that could not be read lie aside; remove the folder by hand when nobody wants to look into it"
            );
        }
    }

    /// Deletes one layer of an older version that nothing mounts; false if there is none. Blocks on the disk.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn delete_an_older(&self, uses: &Uses) -> io::Result<bool> {
        for (_, folder) in self
            .others()
            .into_iter()
            .filter(|(version, _)| *version < VERSION)
        {
            let layers = layers_in(&folder);
            if layers.is_empty() {
                // The rest are notes of that version's store.
                fs::remove_dir_all(&folder)?;
                tracing::info!(path = %folder.display(), "the last layer of an older version is gone");
                return Ok(true);
            }
            for (_, path) in layers {
                match uses.of(&path) {
                    Used::Yes => {}
                    Used::Unknown => {
                        tracing::warn!(
                            path = %folder.display(),
                            "layers of an older version stay: whether something mounts them cannot be told. After \
                             a reboot they go by themselves; or remove the folder by hand"
                        );
                        return Ok(false);
                    }
                    Used::No => {
                        fs::remove_dir_all(&path)?;
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    }

    /// The stores of other versions.
    fn others(&self) -> Vec<(u32, PathBuf)> {
        let Ok(entries) = fs::read_dir(&self.state) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let version = name.to_str().and_then(version_of);
            if let Some(version) = version.filter(|version| *version != VERSION)
                && entry.file_type().is_ok_and(|kind| kind.is_dir())
            {
                found.push((version, entry.path()));
            }
        }
        found.sort_unstable();
        found
    }
}

fn version_of(name: &str) -> Option<u32> {
    match name.strip_prefix("layers")? {
        "" => Some(1),
        rest => rest.strip_prefix('-')?.parse().ok(),
    }
}

/// The folders of layers in a store of any version, by number.
fn layers_in(folder: &Path) -> Vec<(u64, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut layers: Vec<_> = entries
        .filter_map(|entry| Some((number_of(&entry.path())?.0, entry.path())))
        .collect();
    layers.sort_unstable();
    layers
}

/// What the kernel says about files that are mounted.
#[derive(Debug)]
pub(super) struct Uses {
    /// The table of mounts: a mount from a file names it as its source.
    mounts: String,
    /// Backing files of loop devices.
    loops: Vec<String>,
    /// There are file systems on files, and containers may hold what no table shows any more.
    hidden: bool,
}

impl Uses {
    /// Asks the kernel.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn read() -> io::Result<Uses> {
        Uses::read_at(Path::new("/proc/self/mountinfo"), Path::new("/sys"))
    }

    pub(super) fn read_at(mounts: &Path, sys: &Path) -> io::Result<Uses> {
        let block = sys.join("class/block");
        let mut loops = Vec::new();
        for entry in fs::read_dir(&block)? {
            let backing = entry?.path().join("loop/backing_file");
            // A loop that is let go in between has none.
            loops.extend(missing_is_none(fs::read_to_string(backing)).unwrap_or_default());
        }
        // A directory for each EROFS that is alive, named after its block device if it has one.
        let erofs = missing_is_none(fs::read_dir(sys.join("fs/erofs")))?;
        let hidden = erofs.into_iter().flatten().flatten().any(|entry| {
            let name = entry.file_name();
            name != "features" && !block.join(&name).exists()
        });
        Ok(Uses {
            mounts: String::from_utf8_lossy(&fs::read(mounts)?).into_owned(),
            loops,
            hidden,
        })
    }

    /// Whether something is mounted from a folder.
    fn of(&self, folder: &Path) -> Used {
        let path = format!("{}/", folder.display());
        // The table writes a space in octal.
        let escaped = path.replace('\\', "\\134").replace(' ', "\\040");
        if self.mounts.contains(&escaped) || self.loops.iter().any(|file| file.starts_with(&path)) {
            Used::Yes
        } else if self.hidden {
            Used::Unknown
        } else {
            Used::No
        }
    }
}
