//! The program with its configuration: what it prints of it, and what it says about it.

use std::fs;
use std::process::{Command, Output};

use rustix::process::Signal;

use crate::process::{Line, PROGRAM, Place, Running};

fn printed(command: &mut Command) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().unwrap();
    assert_eq!(String::from_utf8(stderr).unwrap(), "");
    assert!(status.success());
    String::from_utf8(stdout).unwrap()
}

#[test]
fn the_defaults_and_the_effective_configuration_are_printed() {
    let default = printed(Command::new(PROGRAM).args(["config", "default"]));
    assert!(default.starts_with("http_cache_type = ''\n"), "{default}");
    let place = Place::with(&default);
    let path = place.path("config.toml");
    let dump = || {
        let mut command = Command::new(PROGRAM);
        command
            .args(["config", "dump"])
            .env("SOCI_SNAPSHOTTER_CONFIG", &path);
        command
    };
    assert_eq!(printed(&mut dump()), default);
    fs::write(
        &path,
        "nobody_knows = 1\nmount_timeout_sec = 7\n[blob]\nmax_concurrent_downloads = 5\n[cache]\nmax_bytes = 9\n",
    )
    .unwrap();
    let printed_by_flag = printed(
        Command::new(PROGRAM)
            .arg("--config")
            .arg(&path)
            .args(["config", "dump"]),
    );
    assert_eq!(printed(&mut dump()), printed_by_flag);
    let wanted = default
        .replace("mount_timeout_sec = 30", "mount_timeout_sec = 7")
        .replace(
            "max_concurrent_downloads = -1",
            "max_concurrent_downloads = 5",
        )
        // A key that is not set is not the same as one that is false.
        .replace("unpack]\n    enable = false\n", "unpack]\n");
    assert_eq!(
        printed_by_flag,
        format!("{wanted}\n[cache]\n  max_bytes = 9\n")
    );
    fs::write(&path, "metadata_store = 'other'\n").unwrap();
    let refused = dump().output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(
        said.starts_with("soci-snapshotter-grpc: failed to load config file"),
        "{said}"
    );
}

#[test]
fn one_line_per_kind_says_what_is_odd_about_the_file() {
    let place = Place::with(
        "nobody_knows = 1\ndebug_address = 'localhost:6060'\n[registry.configs.\"h\".auth]\nusername = 'u'\n\
         [http]\nMaxRetrys = 3\n[fuse]\nattr_timeout = 5\n[blob]\nmax_concurrent_downloads = 5\n",
    );
    let mut command = place.command();
    command.arg("--no-keeper");
    let mut running = Running::start(command);
    assert_eq!(running.end(Signal::TERM).code(), Some(0));
    let keys = |message: &str| {
        let lines = running
            .said
            .iter()
            .filter(|line| line["msg"].contains(message));
        let lines: Vec<&Line> = lines.collect();
        let [line] = lines[..] else {
            panic!("{message}: {lines:?}")
        };
        line["keys"].clone()
    };
    let unknown = keys("unknown keys");
    for key in ["http.MaxRetrys", "nobody_knows"] {
        assert!(unknown.contains(key), "{unknown}");
    }
    let unused = keys("have no effect");
    for key in ["debug_address", "fuse.attr_timeout"] {
        assert!(unused.contains(key), "{unused}");
    }
    assert_eq!(keys("under [blob]"), "max_concurrent_downloads");
}
