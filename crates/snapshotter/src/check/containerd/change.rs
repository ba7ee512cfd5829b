//! Adds the missing settings to containerd's configuration, and takes them back.
//!
//! The settings go into a file of their own, in the directory that the main file imports. If it
//! imports none, one line of the main file changes, after a copy was made. The new file repeats the
//! complete sections that it touches, because containerd 1.x replaces a section as a whole.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::files::{Files, FilesError};
use super::needs::{self, Wanted};
use super::setting::Setting;

/// The file with our settings. Later than others in the order of names.
const DROP_IN: &str = "zz-soci-snapshotter.toml";
/// The directory that is imported if the main file imports none, beside it.
const FOLDER: &str = "conf.d";
/// Added to the name of the main file for its copy.
const COPY: &str = "before-soci";

/// Why the configuration was not changed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChangeError {
    /// It cannot be read.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Its version has other sections.
    #[error("version {0} of the configuration is not supported")]
    Version(i64),
    /// The line with the imports has a form that is not understood.
    #[error("cannot add an import to {}", .0.display())]
    Imports(PathBuf),
    /// A file cannot be written.
    #[error("cannot change {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A part of it was changed.
    #[error("{done}; restart containerd; the rest could not be taken back")]
    Partly {
        done: String,
        #[source]
        source: Box<ChangeError>,
    },
}

/// Adds the missing settings. Says what was done.
pub(super) fn fix(config: &Path, wanted: &Wanted) -> Result<String, ChangeError> {
    let files = Files::read(config)?;
    if files.version < needs::OLDEST_VERSION {
        return Err(ChangeError::Version(files.version));
    }
    let findings = needs::findings(files.version, &files.merged, wanted);
    let missing: Vec<Setting> = findings
        .into_iter()
        .flat_map(|finding| finding.missing)
        .collect();
    if missing.is_empty() {
        return Ok("nothing is missing, nothing was changed".to_owned());
    }
    let (folder, imported) = match files.folders().next_back() {
        Some(folder) => (folder.to_owned(), None),
        None => {
            // Replacing a link would cut it, and someone else may own what it points to.
            if config.is_symlink() {
                return Err(ChangeError::Imports(config.to_owned()));
            }
            let folder = config.with_file_name(FOLDER);
            let text = with_import(config, &files.text, &folder)?;
            (folder, Some(text))
        }
    };
    let path = folder.join(DROP_IN);
    fs::create_dir_all(&folder).map_err(|source| failed(&folder, source))?;
    // It repeats sections of the main file, which may hold passwords.
    let mode = fs::metadata(config).map_err(|source| failed(config, source))?;
    let mode = mode.permissions().mode();
    write(&path, &drop_in(&files, &missing), mode)?;
    let Some(text) = imported else {
        return Ok(format!("wrote {}; restart containerd", path.display()));
    };
    let copy = copy_of(config);
    if !copy.exists() {
        fs::copy(config, &copy).map_err(|source| failed(&copy, source))?;
    }
    write(config, &text, mode)?;
    Ok(format!(
        "wrote {} and imported it in {} (the earlier file is {}); restart containerd",
        path.display(),
        config.display(),
        copy.display()
    ))
}

/// Takes back what [`fix`] did. Settings that someone else added stay.
pub(super) fn undo(config: &Path) -> Result<String, ChangeError> {
    let beside = config.with_file_name(FOLDER);
    let imported = match Files::read(config) {
        Ok(files) => files.folders().map(Path::to_owned).collect(),
        // The file may already be gone.
        Err(FilesError::Read { .. }) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let folders = imported.into_iter().chain([beside.clone()]).collect();
    let mut done = Vec::new();
    let result = take_back(config, folders, &beside, &mut done);
    let nothing = done.is_empty();
    let done = done.join(", ");
    match result {
        Ok(()) if nothing => Ok("nothing was changed before, nothing is taken back".to_owned()),
        Ok(()) => Ok(format!("{done}; restart containerd")),
        Err(error) if nothing => Err(error),
        Err(error) => {
            let source = Box::new(error);
            Err(ChangeError::Partly { done, source })
        }
    }
}

/// Removes our files from these directories, and restores the main file. Adds what it did to `done`.
fn take_back(
    config: &Path,
    folders: BTreeSet<PathBuf>,
    beside: &Path,
    done: &mut Vec<String>,
) -> Result<(), ChangeError> {
    for folder in folders {
        let path = folder.join(DROP_IN);
        match fs::remove_file(&path) {
            Ok(()) => done.push(format!("removed {}", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(failed(&path, source)),
        }
    }
    if restore(config, beside)? {
        done.push(format!("restored {}", config.display()));
        // Made by `fix`, unless someone put files there.
        let _ = fs::remove_dir(beside);
    }
    Ok(())
}

/// Restores the copy of the main file, if nothing but the import has changed since. An import of an
/// empty directory does no harm.
fn restore(config: &Path, folder: &Path) -> Result<bool, ChangeError> {
    let copy = copy_of(config);
    let (Ok(before), Ok(now)) = (fs::read_to_string(&copy), fs::read_to_string(config)) else {
        return Ok(false);
    };
    if with_import(config, &before, folder)? != now {
        return Ok(false);
    }
    fs::rename(&copy, config).map_err(|source| failed(config, source))?;
    Ok(true)
}

fn copy_of(config: &Path) -> PathBuf {
    let name = config.file_name().unwrap_or_default().to_string_lossy();
    config.with_file_name(format!("{name}.{COPY}"))
}

/// The file with the missing settings and the rest of their sections.
fn drop_in(files: &Files, missing: &[Setting]) -> String {
    let mut all = files.merged.clone();
    for setting in missing {
        setting.apply(&mut all);
    }
    let mut own = Table::from_iter([("version".to_owned(), Value::Integer(files.version))]);
    for (group, name) in missing
        .iter()
        .map(Setting::section)
        .collect::<BTreeSet<_>>()
    {
        let section = all.get(group).and_then(|group| group.get(name));
        let kept = own
            .entry(group)
            .or_insert_with(|| Value::Table(Table::new()));
        if let (Some(section), Value::Table(kept)) = (section, kept) {
            kept.insert(name.to_owned(), section.clone());
        }
    }
    format!(
        "# Written by `soci-snapshotter-grpc check --fix`; `check --undo` removes it.\n\
         # It repeats whole sections, because older versions of containerd replace a section by that of a later file.\n\
         {own}"
    )
}

/// The text of the main file with one more import. Everything else stays as it is.
fn with_import(config: &Path, text: &str, folder: &Path) -> Result<String, ChangeError> {
    let refused = || ChangeError::Imports(config.to_owned());
    let before: Table = text.parse().map_err(|_| refused())?;
    let pattern = folder.join("*.toml").to_string_lossy().into_owned();
    let mut imports = match before.get("imports") {
        None => Vec::new(),
        Some(Value::Array(imports)) => imports.clone(),
        Some(_) => return Err(refused()),
    };
    imports.push(Value::String(pattern));
    let line = format!("imports = {}", Value::Array(imports.clone()));
    let mut lines: Vec<&str> = text.lines().collect();
    let top = lines
        .iter()
        .position(|line| line.trim_start().starts_with('['));
    let top = top.unwrap_or(lines.len());
    let existing = lines.iter().take(top).position(|line| {
        let key = line.split('=').next().unwrap_or_default();
        key.trim() == "imports"
    });
    match existing {
        Some(at) => lines[at] = &line,
        // Before the first table, because the key belongs to none.
        None => lines.insert(0, &line),
    }
    let changed = format!("{}\n", lines.join("\n"));
    // An array of several lines, for example, does not survive this. Then nothing is changed.
    let mut expected = before;
    expected.insert("imports".to_owned(), Value::Array(imports));
    match changed.parse::<Table>() {
        Ok(after) if after == expected => Ok(changed),
        _ => Err(refused()),
    }
}

/// Replaces a file at once, so that containerd never reads a part of it.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), ChangeError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let written = tempfile::NamedTempFile::new_in(folder).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.as_file()
            .set_permissions(fs::Permissions::from_mode(mode & 0o7777))?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)
    });
    written.map(drop).map_err(|source| failed(path, source))
}

fn failed(path: &Path, source: io::Error) -> ChangeError {
    ChangeError::Write {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::row::Level;
    use super::*;

    fn wanted() -> Wanted {
        Wanted {
            address: "/run/soci.sock".to_owned(),
            root: "/var/lib/soci".to_owned(),
            kubelet: true,
        }
    }

    fn is_ready(config: &Path) -> bool {
        let files = Files::read(config).unwrap();
        let found = needs::findings(files.version, &files.merged, &wanted());
        found.iter().all(|finding| finding.level == Level::Ok)
    }

    /// A directory with a main file of this text.
    fn place(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.toml");
        fs::write(&config, text).unwrap();
        (folder, config)
    }

    /// All files below a directory with their content.
    fn tree(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => found.extend(tree(&path)),
                false => found.push((path.clone(), fs::read(&path).unwrap())),
            }
        }
        found.sort();
        found
    }

    #[test]
    fn settings_go_into_the_imported_directory_and_the_main_file_stays() {
        let text = "version = 3\nimports = ['conf.d/*.toml']\n[plugins.'io.containerd.cri.v1.images']\nmax_concurrent_downloads = 7\n";
        let (folder, config) = place(text);
        fs::create_dir(folder.path().join("conf.d")).unwrap();
        let before = tree(folder.path());
        let said = fix(&config, &wanted()).unwrap();
        assert!(said.contains("conf.d/zz-soci-snapshotter.toml"), "{said}");
        assert!(is_ready(&config));
        assert_eq!(fs::read_to_string(&config).unwrap(), text);
        let once = tree(folder.path());
        fix(&config, &wanted()).unwrap();
        assert_eq!(tree(folder.path()), once, "nothing to do the second time");
        undo(&config).unwrap();
        assert_eq!(tree(folder.path()), before);
        assert!(folder.path().join("conf.d").is_dir(), "it was there before");
    }

    #[test]
    fn of_several_imported_directories_the_one_that_is_merged_last_is_used() {
        let text =
            "version = 3\nimports = ['first/*.toml', 'last/*.toml', 'a.toml', '*/x/*.toml']\n";
        let (folder, config) = place(text);
        fs::write(folder.path().join("a.toml"), "").unwrap();
        for name in ["first", "last"] {
            fs::create_dir(folder.path().join(name)).unwrap();
            let other = "[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'overlayfs'\n";
            fs::write(folder.path().join(name).join("cri.toml"), other).unwrap();
        }
        let before = tree(folder.path());
        fix(&config, &wanted()).unwrap();
        assert!(folder.path().join("last").join(DROP_IN).exists());
        assert!(is_ready(&config));
        // An operator changes the order.
        fs::write(
            &config,
            text.replace("first", "other")
                .replace("last", "first")
                .replace("other", "last"),
        )
        .unwrap();
        undo(&config).unwrap();
        fs::write(&config, text).unwrap();
        assert_eq!(tree(folder.path()), before);
    }

    #[test]
    fn a_change_that_is_taken_back_in_part_says_so() {
        let (folder, config) = place("version = 3\n");
        fix(&config, &wanted()).unwrap();
        fs::write(copy_of(&config), "[[").unwrap();
        let error = format!("{:#}", anyhow::Error::new(undo(&config).unwrap_err()));
        let path = folder.path().join(FOLDER).join(DROP_IN);
        let done = format!("removed {}; restart containerd; ", path.display());
        assert!(error.starts_with(&done), "{error}");
        let error = format!("{:#}", anyhow::Error::new(undo(&config).unwrap_err()));
        assert!(!error.contains("restart"), "nothing changed: {error}");
    }

    #[test]
    fn a_main_file_without_imports_is_changed_after_a_copy_and_restored() {
        for text in [
            "# ours\nversion = 2\n\n[grpc]\n  address = '/x'\n",
            "version = 2\nimports = []\n[grpc]\nimports = 1\n",
            "version = 2\nimports = ['/etc/a.toml']\n",
        ] {
            let (folder, config) = place(&text.replace("/etc/a.toml", "a.toml"));
            fs::write(folder.path().join("a.toml"), "").unwrap();
            let before = tree(folder.path());
            fix(&config, &wanted()).unwrap();
            assert!(is_ready(&config), "{text}");
            let copy = fs::read(folder.path().join("config.toml.before-soci")).unwrap();
            assert_eq!(copy, text.replace("/etc/a.toml", "a.toml").as_bytes());
            undo(&config).unwrap();
            assert_eq!(tree(folder.path()), before, "{text}");
            assert!(!folder.path().join("conf.d").exists());
        }
    }

    #[test]
    fn what_others_changed_since_is_kept() {
        let (folder, config) = place("version = 2\n");
        fix(&config, &wanted()).unwrap();
        let now = fs::read_to_string(&config).unwrap() + "[grpc]\nuid = 1\n";
        fs::write(&config, &now).unwrap();
        undo(&config).unwrap();
        assert_eq!(fs::read_to_string(&config).unwrap(), now);
        assert!(folder.path().join("config.toml.before-soci").exists());
        assert!(!folder.path().join("conf.d").join(DROP_IN).exists());
    }

    #[test]
    fn the_rest_of_a_replaced_section_is_repeated() {
        let cri = "[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = 'pause'\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]\nSystemdCgroup = true\n";
        let (folder, config) = place(&format!(
            "version = 2\nimports = ['conf.d/*.toml']\n{cri}[plugins.x]\ny = 1\n"
        ));
        fix(&config, &wanted()).unwrap();
        let own: Table = fs::read_to_string(folder.path().join("conf.d").join(DROP_IN))
            .unwrap()
            .parse()
            .unwrap();
        let kept = &own["plugins"]["io.containerd.grpc.v1.cri"];
        assert_eq!(kept["sandbox_image"].as_str(), Some("pause"));
        let options = &kept["containerd"]["runtimes"]["runc"]["options"];
        assert_eq!(options["SystemdCgroup"].as_bool(), Some(true));
        assert_eq!(kept["containerd"]["snapshotter"].as_str(), Some("soci"));
        assert!(own["plugins"].get("x").is_none(), "others are not touched");
    }

    #[test]
    fn a_main_file_that_is_a_link_is_not_replaced() {
        let (folder, target) = place("version = 2\n");
        let config = folder.path().join("link.toml");
        std::os::unix::fs::symlink(&target, &config).unwrap();
        fix(&config, &wanted()).unwrap_err();
        assert!(config.is_symlink());
        assert_eq!(fs::read_to_string(&target).unwrap(), "version = 2\n");
    }

    #[test]
    fn passwords_in_repeated_sections_stay_private() {
        let (folder, config) = place("version = 2\nimports = ['conf.d/*.toml']\n");
        fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
        fix(&config, &wanted()).unwrap();
        let made = fs::metadata(folder.path().join("conf.d").join(DROP_IN)).unwrap();
        assert_eq!(made.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_not_understood_is_not_changed() {
        for text in [
            "version = 2\nimports = [\n  'a.toml',\n]\n",
            "version = 2\nimports = 'a'\n",
            "version = 1\n",
            "",
            "[[",
        ] {
            let (folder, config) = place(text);
            fs::write(folder.path().join("a.toml"), "").unwrap();
            let before = tree(folder.path());
            fix(&config, &wanted()).unwrap_err();
            assert_eq!(tree(folder.path()), before, "{text}");
        }
    }
}
