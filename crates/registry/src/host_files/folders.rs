//! Finds the settings of a registry, and reads them again when they change.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{HostEntry, TlsOverrides, only, parse::parse};
use crate::{stamp::Stamp, tls::Identity};

/// The file that lists the hosts of a registry.
const FILE: &str = "hosts.toml";
/// The folder for registries without their own folder.
const DEFAULT: &str = "_default";
/// Size limit in bytes for a file.
const MAX_FILE: u64 = 1 << 20;
/// Above this number of registries, all are dropped and read again.
const MANY_REGISTRIES: usize = 256;

/// The folders with the administrator's settings for registries. Cheap to clone; clones share what
/// they have read.
///
/// Every use checks whether the settings of that registry have changed, so edits take effect without
/// a restart.
#[derive(Clone, Debug, Default)]
pub struct HostFolders(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    folders: Vec<PathBuf>,
    known: Mutex<HashMap<String, Known>>,
}

/// The settings of a registry, and the files that they were read from.
#[derive(Clone, Debug)]
struct Known {
    seen: Seen,
    entries: Arc<[HostEntry]>,
}

/// What changes when someone edits the settings: the file, or the names in the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    folder: PathBuf,
    file: Option<Stamp>,
    names: Option<Stamp>,
}

impl HostFolders {
    /// Reads containerd's `hosts.toml` and Docker's `certs.d` in these folders; the first one with
    /// settings for a registry applies. A missing folder is not an error.
    pub fn new(folders: Vec<PathBuf>) -> HostFolders {
        HostFolders(Arc::new(Inner {
            folders,
            known: Mutex::default(),
        }))
    }

    /// The hosts for a registry in order of preference; `None` if there are no settings.
    pub(crate) fn entries(&self, registry: &str) -> Option<Arc<[HostEntry]>> {
        let folder = folder_of(&self.0.folders, registry)?;
        // Taken before the files are read: an edit in between is noticed next time.
        let seen = Seen {
            file: Stamp::of(&folder.join(FILE)),
            names: Stamp::of(&folder),
            folder,
        };
        let known = self.known().get(registry).cloned();
        if let Some(known) = known.filter(|known| known.seen == seen) {
            return Some(known.entries);
        }
        let entries: Arc<[HostEntry]> = load(&seen.folder)?.into();
        let mut known = self.known();
        if known.len() >= MANY_REGISTRIES {
            known.clear();
        }
        let entry = Known {
            seen,
            entries: Arc::clone(&entries),
        };
        if known.insert(registry.to_owned(), entry).is_some() {
            tracing::info!(registry, "settings of a registry have changed");
        }
        Some(entries)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The folder with the settings of a registry.
fn folder_of(folders: &[PathBuf], registry: &str) -> Option<PathBuf> {
    folders
        .iter()
        .flat_map(|root| names_of(registry).map(|name| root.join(name)))
        .find(|folder| folder.is_dir())
}

/// The settings in a folder; `None` if it cannot be read.
fn load(folder: &Path) -> Option<Vec<HostEntry>> {
    let path = folder.join(FILE);
    let entries = match read(&path) {
        Ok(text) if text.is_empty() => Ok(None),
        Ok(text) => parse(folder, &text).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
    };
    match entries {
        Ok(Some(entries)) => return Some(entries),
        Ok(None) => {}
        Err(problem) => tracing::warn!(path = %path.display(), problem, "file left out"),
    }
    match certificates(folder) {
        Ok(tls) => Some(vec![HostEntry::itself(tls)]),
        Err(error) => {
            tracing::warn!(path = %folder.display(), %error, "folder left out");
            None
        }
    }
}
fn read(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > MAX_FILE {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    fs::read_to_string(path)
}

/// Names of a registry's folder. A registry name that would act as a path, such as `..`, is
/// ignored, and only the default folder remains.
fn names_of(registry: &str) -> impl Iterator<Item = String> {
    let usable = !registry.is_empty() && !registry.contains('/') && !registry.starts_with('.');
    let own = usable.then(|| registry.to_owned());
    let spelt = registry
        .rsplit_once(':')
        .filter(|(host, _)| usable && !host.is_empty());
    let spelt = spelt.map(|(host, port)| format!("{host}_{port}_"));
    spelt.into_iter().chain(own).chain([DEFAULT.to_owned()])
}

/// The certificate files of Docker's layout, in the order of their names.
fn certificates(folder: &Path) -> io::Result<TlsOverrides> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        names.push(entry?.path());
    }
    names.sort();
    let with = |extension: &str| {
        let has = |path: &&PathBuf| path.extension().is_some_and(|it| it == extension);
        names.iter().filter(has).cloned().collect::<Vec<_>>()
    };
    let identity = with("cert").into_iter().map(|certificate| Identity {
        key: Some(certificate.with_extension("key")),
        certificate,
    });
    Ok(TlsOverrides {
        authorities: with("crt"),
        identity: only(identity, folder),
        skip_verify: None,
    })
}
