//! The daemon's own configuration file.

use std::fs;
use std::path::Path;

use super::row::Row;
use crate::args::Part;
use crate::config::{Config, ConfigError, unknown_keys};

const NAME: &str = "configuration";
/// More names are not printed: the file is for another program.
const MOST: usize = 20;

pub(super) fn rows(path: &Path, loaded: &Result<Config, ConfigError>) -> Vec<Row> {
    let config = match loaded {
        Ok(config) => config,
        Err(error) => return vec![refused(error)],
    };
    let mut rows = vec![keys(path)];
    let socket = Path::new(&config.content_store.containerd_address);
    rows.push(match socket.exists() {
        true => Row::ok(
            Part::Config,
            "containerd socket",
            socket.display().to_string(),
        ),
        false => Row::warning(
            Part::Config,
            "containerd socket",
            format!("{} does not exist", socket.display()),
            "start containerd, or set [content_store] containerd_address; until then, the daemon downloads manifests again",
        ),
    });
    rows
}

fn keys(path: &Path) -> Row {
    let Ok(text) = fs::read_to_string(path) else {
        return Row::ok(
            Part::Config,
            NAME,
            format!("{} does not exist: defaults apply", path.display()),
        );
    };
    let mut unknown = unknown_keys(&text);
    if unknown.is_empty() {
        return Row::ok(Part::Config, NAME, path.display().to_string());
    }
    let count = unknown.len();
    let keys = if count == 1 { "key" } else { "keys" };
    unknown.truncate(MOST);
    Row::warning(
        Part::Config,
        NAME,
        format!(
            "{} has {count} unknown {keys}: {}",
            path.display(),
            unknown.join(", ")
        ),
        "check their spelling and their table; docs/config.md lists every key",
    )
}

fn refused(error: &ConfigError) -> Row {
    Row::problem(
        Part::Config,
        NAME,
        chain(error),
        "correct the file: the daemon does not start with it",
    )
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        // Some errors contain their source already.
        Some(source) if !error.to_string().contains(&source.to_string()) => {
            format!("{error}: {}", chain(source))
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::row::Level;
    use super::*;

    fn checked(text: &str) -> Row {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        fs::write(&path, text).unwrap();
        rows(&path, &Config::load(&path)).remove(0)
    }

    #[test]
    fn a_file_with_known_keys_is_ok() {
        let row =
            checked("debug_address = ''\n[HTTP]\nmaxretries = 3\n[snapshotter]\nmount = 'loop'\n");
        assert_eq!(row.level, Level::Ok, "{row:?}");
    }

    /// What nodeadm writes on AL2023 with `FastImagePull`.
    const NODEADM: &str = r#"
debug = false
[content_store]
type = "containerd"
[cri_keychain]
enable_keychain = true
image_service_path = "/run/containerd/containerd.sock"
[pull_modes.soci_v1]
enable = false
[pull_modes.soci_v2]
enable = false
[pull_modes.parallel_pull_unpack]
enable = true
max_concurrent_downloads = -1
max_concurrent_downloads_per_image = 20
concurrent_download_chunk_size = "16mb"
max_concurrent_unpacks = -1
max_concurrent_unpacks_per_image = 12
discard_unpacked_layers = true
[pull_modes.parallel_pull_unpack.decompress_streams."gzip"]
path = "/usr/bin/unpigz"
args = ["-d", "-c"]
"#;

    /// What Bottlerocket renders, with a mirror and credentials that the daemon does not use.
    const BOTTLEROCKET: &str = r#"
[content_store]
type = "containerd"
[cri_keychain]
enable_keychain = true
[[resolver.host."docker.io".mirrors]]
host = "https://mirror.example"
[registry.configs."docker.io".auth]
username = "user"
password = "word"
[pull_modes.parallel_pull_unpack]
enable = true
max_concurrent_downloads_per_image = 3
concurrent_download_chunk_size = ""
"#;

    #[test]
    fn the_files_of_known_distributions_load() {
        for text in [NODEADM, BOTTLEROCKET] {
            let row = checked(text);
            assert_ne!(row.level, Level::Problem, "{row:?}");
        }
        let row = checked(BOTTLEROCKET);
        assert!(row.found.contains("registry"), "{row:?}");
        assert!(
            !row.found.contains("word"),
            "no values are printed: {row:?}"
        );
    }

    #[test]
    fn unknown_keys_are_named_with_their_tables() {
        let row = checked(
            "typo = 1\n[snapshotter]\nmuont = 'loop'\n[registry.configs.'a'.auth]\nusername = 'u'\n",
        );
        assert_eq!(row.level, Level::Warning);
        assert!(
            row.found
                .ends_with("3 unknown keys: registry.configs, snapshotter.muont, typo"),
            "{row:?}"
        );
    }

    #[test]
    fn a_file_that_the_daemon_refuses_is_a_problem() {
        for text in [
            "a = ",
            "[http]\nMaxRetries = 'many'",
            "[content_store]\ntype = 'x'",
        ] {
            let row = checked(text);
            assert_eq!(row.level, Level::Problem, "{text}");
            assert!(row.found.contains("config.toml"), "{row:?}");
        }
        let missing = Path::new("/nowhere/config.toml");
        let row = rows(missing, &Config::load(missing)).remove(0);
        assert_eq!(row.level, Level::Problem);
    }
}
