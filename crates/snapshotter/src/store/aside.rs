//! Layers that this version does not use: layers of other versions, and layers that cannot be read.
//!
//! The version is part of the directory name. After an upgrade or a downgrade, each version finds
//! its own store and never reads another version's files:
//!
//! ```text
//! layers            version 1, which had no number
//! layers-VERSION    all later versions; ours is `super::FOLDER`
//! layers-VERSION.aside/NUMBER    layers of that version that could not be read
//! ```
//!
//! Layers of older versions are deleted when nothing mounts them. Everything else is left to the
//! administrator; the log names it and the remedy.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::{FOLDER, StoreError, VERSION, adopt::number_of, sealed::missing_is_none};

/// The state root, which contains the stores of all versions.
#[derive(Debug)]
pub(super) struct Aside {
    state: PathBuf,
}

/// Whether the files in a directory are in use.
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

    /// The directory for layers of this version that could not be read.
    fn folder(&self) -> PathBuf {
        self.state.join(format!("{FOLDER}.aside"))
    }

    /// Moves the directory of a layer out of the store. Open and mounted files stay valid.
    pub(super) fn put(&self, path: &Path, why: &StoreError) {
        let why = why as &dyn std::error::Error;
        match self.moved(path) {
            Ok(to) => tracing::error!(
                path = %path.display(),
                aside = %to.display(),
                error = why,
                "a layer of the store cannot be used and is set aside; it is downloaded again when it is needed. \
                 Delete the directory when you no longer need it for analysis"
            ),
            Err(error) => tracing::error!(
                path = %path.display(),
                error = why,
                rename = %error,
                "a layer of the store cannot be used and cannot be set aside; it is left in place and ignored. \
                 Check the file system"
            ),
        }
    }

    fn moved(&self, path: &Path) -> io::Result<PathBuf> {
        let folder = self.folder();
        fs::create_dir_all(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
        let name = path.file_name().unwrap_or_default();
        // Numbers are never reused, so the target does not exist.
        let to = folder.join(name);
        fs::rename(path, &to)?;
        Ok(to)
    }

    /// The largest layer number of any version.
    pub(super) fn largest_number(&self) -> u64 {
        let mut folders: Vec<_> = self.others().into_iter().map(|(_, path)| path).collect();
        folders.push(self.folder());
        let numbers = folders.iter().flat_map(|folder| layers_in(folder));
        numbers.map(|(number, _)| number).max().unwrap_or(0)
    }

    /// Logs the stores and layers that this version does not use.
    pub(super) fn report(&self) {
        for (version, path) in self.others() {
            if version < VERSION {
                tracing::info!(
                    path = %path.display(),
                    version,
                    "found layers of an older version of the store; they are deleted when nothing mounts them"
                );
            } else {
                tracing::warn!(
                    path = %path.display(),
                    version,
                    "ignoring layers of a newer version of the store; if you do not go back to that version, \
                     delete the directory"
                );
            }
        }
        let aside = layers_in(&self.folder()).len();
        if aside > 0 {
            let path = self.folder();
            tracing::warn!(
                path = %path.display(),
                layers = aside,
                "some unreadable layers are set aside; delete the directory when you no longer need it for analysis"
            );
        }
    }

    /// Deletes one unmounted layer of an older version. Returns false if there is none. Blocks on
    /// the disk.
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
                // Only bookkeeping files of that version are left.
                fs::remove_dir_all(&folder)?;
                tracing::info!(path = %folder.display(), "deleted the store of an older version");
                return Ok(true);
            }
            for (_, path) in layers {
                match uses.of(&path) {
                    Used::Yes => {}
                    Used::Unknown => {
                        tracing::warn!(
                            path = %folder.display(),
                            "keeping layers of an older version: cannot determine whether they are mounted. They are deleted \
                             after a reboot; you can also delete the directory"
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

/// The layer directories in a store of any version, by number.
fn layers_in(folder: &Path) -> Vec<(u64, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut layers: Vec<_> = entries
        .filter_map(|entry| Some((number_of(&entry.path())?.0, entry.path())))
        .collect();
    layers.sort_unstable();
    layers
}

/// What the kernel reports about mounted files.
#[derive(Debug)]
pub(super) struct Uses {
    /// The mount table. A file-backed mount names the file as its source.
    mounts: String,
    /// Backing files of loop devices.
    loops: Vec<String>,
    /// There are file-backed EROFS mounts. Containers may hold some that no table shows.
    hidden: bool,
}

impl Uses {
    /// Reads the state from the kernel.
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
            // A loop device that is detached meanwhile has no backing file.
            loops.extend(missing_is_none(fs::read_to_string(backing)).unwrap_or_default());
        }
        // sysfs has one directory per live EROFS file system, named after its block device if it
        // has one.
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

    /// Whether something is mounted from this directory.
    fn of(&self, folder: &Path) -> Used {
        let path = format!("{}/", folder.display());
        // The mount table escapes spaces in octal.
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
