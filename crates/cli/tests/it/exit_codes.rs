//! Compares the table of exit codes in `docs/cli.md` with the program and its manual pages.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::building::{ZSTD, image};
use crate::pages::{page, table};
use crate::soci::{command, run};

fn documented() -> BTreeSet<String> {
    let rows = table(&page("cli.md"), "exit code");
    rows.into_iter().map(|row| row[0].clone()).collect()
}

/// Starts a command that waits for a registry, sends a signal, and returns the exit code.
fn interrupted(signal: i32) -> Option<i32> {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let image = format!("docker://{}/app:1", silent.local_addr().unwrap());
    let mut soci = command()
        .args(["convert", "--standalone", &image, "-"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Once the command connects, it handles signals.
    let _connection = silent.accept().unwrap();
    let killed = Command::new("kill")
        .args([format!("-{signal}"), soci.id().to_string()])
        .status();
    assert!(killed.unwrap().success());
    soci.wait().unwrap().code()
}

#[test]
fn every_exit_code_is_in_the_table() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    image(Path::new(&path("in")), &[(ZSTD, b"zstd")]);
    let (input, output, root) = (path("in"), path("out.tar"), path("root"));
    let strict = [
        "convert",
        "--standalone",
        "--strict",
        "--min-layer-size=0",
        &input,
        &output,
    ];
    let late = [
        "--root",
        &root,
        "--address",
        "/none.sock",
        "--timeout",
        "50ms",
        "create",
        "app",
    ];
    let cases: [(&str, &[&str]); 9] = [
        ("0", &["--version"]),
        ("0", &["help"]),
        ("0", &["convert", "--help"]),
        ("1", &["--root", &root, "convert"]),
        ("1", &["convert", "--bogus"]),
        ("1", &["verify", &input]),
        ("1", &late),
        ("3", &["rpull"]),
        ("4", &strict),
    ];
    let mut seen = BTreeSet::new();
    for (code, words) in cases {
        let ran = run(words);
        assert_eq!(ran.code, Some(code.parse().unwrap()), "{words:?}: {ran:?}");
        seen.insert(code.to_owned());
    }
    for signal in [2, 15] {
        assert_eq!(interrupted(signal), Some(128 + signal));
        seen.insert("128+n".to_owned());
    }
    assert_eq!(documented(), seen);
}

#[test]
fn the_manual_pages_have_the_same_codes() {
    let folder = tempfile::tempdir().unwrap();
    run(["man".as_ref(), folder.path().as_os_str()]);
    let manual = fs::read_to_string(folder.path().join("soci.1")).unwrap();
    let (_, rest) = manual.split_once(".SH EXIT STATUS\n").unwrap();
    let part = rest.split("\n.SH").next().unwrap();
    let codes = part.lines().filter_map(|line| line.strip_prefix(".B "));
    assert_eq!(documented(), codes.map(str::to_owned).collect());
}
