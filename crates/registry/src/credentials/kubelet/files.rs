//! The files of the configuration, which are read again when they change.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{
    PluginOptions,
    config::{self, MAX_FILE, Place},
    plugin::Plugin,
};

/// Limit for the files of a directory.
const MANY_FILES: usize = 64;
/// The files of a directory that are read, as in the kubelet.
const ENDINGS: [&str; 3] = ["json", "yaml", "yml"];

type Contents = Vec<(PathBuf, Vec<u8>)>;

#[derive(Debug)]
pub(super) struct Files {
    options: PluginOptions,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What the plugins in use were read from.
    contents: Option<Contents>,
    /// Problems already logged. Without this, every token request would log them again.
    reported: BTreeSet<String>,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The files may contain secrets.
        f.write_str("State")
    }
}

impl Files {
    pub(super) fn new(options: PluginOptions) -> Files {
        Files {
            options,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The configured plugins if the configuration has changed. Files that cannot be read change
    /// nothing.
    pub(super) async fn changed(&self) -> Option<Vec<Plugin>> {
        let path = self.options.config.clone();
        let read = tokio::task::spawn_blocking(move || read(&path)).await;
        let contents = match read {
            Ok(Ok(contents)) => contents,
            Ok(Err(error)) => {
                self.warn(format!("{}: {error}", self.options.config.display()));
                return None;
            }
            // The runtime ends.
            Err(_) => return None,
        };
        if self.state().contents.as_ref() == Some(&contents) {
            return None;
        }
        let plugins = self.plugins(&contents);
        self.state().contents = Some(contents);
        Some(plugins)
    }

    fn plugins(&self, contents: &Contents) -> Vec<Plugin> {
        let place = Place {
            folder: &self.options.bin_dir,
            limit: self.options.limit,
        };
        let (mut plugins, mut names) = (Vec::new(), BTreeSet::new());
        for (path, text) in contents {
            let path = path.display();
            match config::providers(text, &place, &mut names) {
                Ok(providers) => {
                    for provider in providers {
                        match provider {
                            Ok(plugin) => plugins.push(plugin),
                            Err((name, error)) => {
                                self.warn(format!("{path}: provider {name:?}: {error}"));
                            }
                        }
                    }
                }
                Err(error) => self.warn(format!("{path}: {error}")),
            }
        }
        plugins
    }

    fn warn(&self, problem: String) {
        if self.state().reported.insert(problem.clone()) {
            tracing::warn!("{problem}; going on without this credential provider configuration");
        }
    }
}

/// Reads the file, or the files of the directory in the order of their names.
fn read(path: &Path) -> io::Result<Contents> {
    if !path.is_dir() {
        return Ok(vec![(path.to_owned(), read_file(path)?)]);
    }
    let mut files = Vec::new();
    for entry in path.read_dir()? {
        let file = entry?.path();
        let is_read = file.extension().and_then(OsStr::to_str);
        if is_read.is_some_and(|ending| ENDINGS.contains(&ending)) && file.is_file() {
            files.push(file);
        }
    }
    if files.len() > MANY_FILES {
        return Err(io::Error::other(format!("more than {MANY_FILES} files")));
    }
    files.sort();
    let contents = files.into_iter().map(|file| {
        let text = read_file(&file)?;
        Ok((file, text))
    });
    contents.collect()
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?
        .take(MAX_FILE + 1)
        .read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!("larger than {MAX_FILE} bytes")));
    }
    Ok(text)
}
