//! Reads containerd's configuration: the main file and the files that it imports.
//!
//! containerd merges an imported file over what it has read so far. Up to configuration version 2
//! (containerd 1.x), a plugin's section replaces the earlier section completely. From version 3 on,
//! tables are merged key by key. Arrays are joined at the top level and replaced below it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// Limits for files that someone else wrote.
const MAX_BYTES: u64 = 4 << 20;
const MAX_FILES: usize = 256;

/// The first version in which sections are merged key by key.
const MERGED_BY_KEY: i64 = 3;

/// Why the configuration cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilesError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A file is not TOML.
    #[error("{} is not valid", path.display())]
    Toml {
        path: PathBuf,
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A file is larger than any configuration.
    #[error("{} is larger than {MAX_BYTES} bytes", .0.display())]
    TooLarge(PathBuf),
    /// The files import more files than any configuration.
    #[error("{} imports more than {MAX_FILES} files", .0.display())]
    TooMany(PathBuf),
}

/// The configuration.
#[derive(Debug)]
pub(super) struct Files {
    /// The text of the main file.
    pub(super) text: String,
    /// Its version; 1 if it states none.
    pub(super) version: i64,
    /// All settings.
    pub(super) merged: Table,
    /// The imported files, in their order.
    pub(super) imported: Vec<PathBuf>,
    /// The imports of the main file, as absolute patterns.
    pub(super) patterns: Vec<PathBuf>,
}

impl Files {
    pub(super) fn read(path: &Path) -> Result<Self, FilesError> {
        let text = read(path)?;
        let merged = parse(path, &text)?;
        let version = merged.get("version").and_then(Value::as_integer);
        let patterns = patterns(path, &merged);
        let mut files = Self {
            text,
            version: version.unwrap_or(1),
            merged,
            imported: Vec::new(),
            patterns: patterns.clone(),
        };
        let mut waiting: VecDeque<PathBuf> =
            patterns.iter().flat_map(|one| matching(one)).collect();
        while let Some(next) = waiting.pop_front() {
            if next == path || files.imported.contains(&next) {
                continue;
            }
            if files.imported.len() == MAX_FILES {
                return Err(FilesError::TooMany(path.to_owned()));
            }
            let table = parse(&next, &read(&next)?)?;
            waiting.extend(
                self::patterns(&next, &table)
                    .iter()
                    .flat_map(|one| matching(one)),
            );
            merge(&mut files.merged, table, files.version);
            files.imported.push(next);
        }
        Ok(files)
    }

    /// The directories of which the main file imports all files, in their order. Files of the last
    /// one are merged over all others.
    pub(super) fn folders(&self) -> impl DoubleEndedIterator<Item = &Path> {
        let is_all = |name: &std::ffi::OsStr| name == "*.toml" || name == "*";
        let all = self.patterns.iter();
        let all = all.filter(move |pattern| pattern.file_name().is_some_and(is_all));
        // The pattern of a directory names several.
        all.filter_map(|pattern| pattern.parent())
            .filter(|folder| !folder.to_string_lossy().contains('*'))
    }
}

fn read(path: &Path) -> Result<String, FilesError> {
    let failed = |source| FilesError::Read {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    let limited = file.take(MAX_BYTES + 1).read_to_string(&mut text);
    match limited.map_err(failed)? as u64 > MAX_BYTES {
        true => Err(FilesError::TooLarge(path.to_owned())),
        false => Ok(text),
    }
}

fn parse(path: &Path, text: &str) -> Result<Table, FilesError> {
    text.parse().map_err(|source| FilesError::Toml {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

/// The imports of a file. Relative ones start in its directory.
fn patterns(path: &Path, table: &Table) -> Vec<PathBuf> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let imports = table.get("imports").and_then(Value::as_array);
    let names = imports.into_iter().flatten().filter_map(Value::as_str);
    names.map(|name| folder.join(name)).collect()
}

/// The files that an import names, sorted. A name without a pattern must exist.
fn matching(pattern: &Path) -> Vec<PathBuf> {
    let text = pattern.to_string_lossy();
    if !text.contains('*') {
        return vec![pattern.to_owned()];
    }
    glob::glob(&text).into_iter().flatten().flatten().collect()
}

/// Merges a later file over earlier ones.
fn merge(to: &mut Table, from: Table, version: i64) {
    for (name, value) in from {
        match (to.get_mut(&name), value) {
            (Some(Value::Table(old)), Value::Table(new)) => {
                let sections = matches!(name.as_str(), "plugins" | "proxy_plugins");
                if sections && (version < MERGED_BY_KEY || name == "proxy_plugins") {
                    old.extend(new);
                } else {
                    merge_keys(old, new);
                }
            }
            (Some(Value::Array(old)), Value::Array(new)) => {
                for value in new {
                    if !old.contains(&value) {
                        old.push(value);
                    }
                }
            }
            (_, value) => {
                to.insert(name, value);
            }
        }
    }
}

fn merge_keys(to: &mut Table, from: Table) {
    for (name, value) in from {
        match (to.get_mut(&name), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge_keys(old, new),
            (_, value) => {
                to.insert(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn files(version: i64) -> (tempfile::TempDir, Files) {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, format!("version = {version}\n{text}")).unwrap();
            path
        };
        let main = write(
            "config.toml",
            "imports = ['conf.d/*.toml', 'none.d/*']\ndisabled_plugins = ['a']\n[plugins.x]\na = 1\nb = 1\n[proxy_plugins.p]\nc = 1\n",
        );
        write(
            "conf.d/10.toml",
            "disabled_plugins = ['b', 'a']\n[plugins.x]\nb = 2\n[proxy_plugins.p]\nd = 2\n",
        );
        write(
            "conf.d/20.toml",
            "imports = ['../more.toml', '10.toml']\n[plugins.x]\nb = 3\n",
        );
        write("more.toml", "[plugins.y]\nz = [1]\n");
        let files = Files::read(&main).unwrap();
        (folder, files)
    }

    #[test]
    fn imported_files_are_merged_as_containerd_merges_them() {
        let (_folder, old) = files(2);
        let x = old.merged["plugins"]["x"].as_table().unwrap();
        assert_eq!(x.to_string(), "b = 3\n", "the section is replaced");
        let (folder, new) = files(3);
        let x = new.merged["plugins"]["x"].as_table().unwrap();
        assert_eq!(x.to_string(), "a = 1\nb = 3\n", "the section is merged");
        assert_eq!(new.merged["proxy_plugins"]["p"].to_string(), "{ d = 2 }");
        assert!(new.merged["plugins"]["y"]["z"].is_array());
        assert_eq!(new.merged["disabled_plugins"].to_string(), "[\"a\", \"b\"]");
        assert_eq!(new.imported.len(), 3);
        assert_eq!(
            new.folders().next(),
            Some(folder.path().join("conf.d").as_path())
        );
    }

    #[test]
    fn a_file_that_is_missing_or_broken_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let main = folder.path().join("config.toml");
        let error = Files::read(&main).unwrap_err();
        assert!(error.to_string().contains("config.toml"), "{error}");
        fs::write(&main, "imports = ['other.toml']").unwrap();
        let error = Files::read(&main).unwrap_err();
        assert!(error.to_string().contains("other.toml"), "{error}");
        fs::write(folder.path().join("other.toml"), "[[").unwrap();
        assert!(matches!(Files::read(&main), Err(FilesError::Toml { .. })));
    }

    #[test]
    fn files_that_import_each_other_end() {
        let folder = tempfile::tempdir().unwrap();
        let main = folder.path().join("a.toml");
        fs::write(&main, "version = 3\nimports = ['b.toml', '*.toml']").unwrap();
        fs::write(
            folder.path().join("b.toml"),
            "imports = ['a.toml', 'b.toml']",
        )
        .unwrap();
        assert_eq!(Files::read(&main).unwrap().imported.len(), 1);
    }
}
