//! Compares the table of exit codes in `docs/cli.md` with the program and its manual pages.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::building::{ZSTD, image};
use crate::pages::{page, table};
use crate::soci::{command, member, run};

fn documented() -> BTreeSet<String> {
    let rows = table(&page("cli.md"), "exit code");
    rows.into_iter().map(|row| row[0].clone()).collect()
}

/// Starts a command that waits for a registry, sends signals, and returns the exit code.
fn interrupted(mut soci: Command, signals: &[Signal]) -> Option<i32> {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let image = format!("docker://{}/app:1", silent.local_addr().unwrap());
    let mut soci = soci
        .args(["convert", "--standalone", &image, "-"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Once the command connects, it handles signals.
    let _connection = silent.accept().unwrap();
    for &signal in signals {
        send(signal, &soci);
    }
    soci.wait().unwrap().code()
}

fn send(signal: Signal, to: &Child) {
    kill_process(Pid::from_child(to), signal).unwrap();
}

#[test]
fn a_hangup_that_is_ignored_stays_ignored() {
    let mut nohup = Command::new("nohup");
    nohup.arg(env!("CARGO_BIN_EXE_soci"));
    let code = interrupted(nohup, &[Signal::HUP, Signal::INT]);
    assert_eq!(code, Some(130));
}

#[test]
fn a_second_signal_ends_a_command_that_still_waits() {
    let mut soci = command()
        .args(["convert", "--standalone", "-", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // An archive that stops in the middle. When more was taken than a pipe holds, the command reads
    // it, and after a signal it waits two seconds for this read.
    let archive = member("blob", b'0', "", &vec![1; 8 << 20]);
    let mut input = soci.stdin.take().unwrap();
    input.write_all(&archive[..4 << 20]).unwrap();
    send(Signal::INT, &soci);
    send(Signal::TERM, &soci);
    let output = soci.wait_with_output().unwrap();
    drop(input);
    // If both are pending, the kernel decides which one comes second.
    let code = output.status.code();
    assert!(matches!(code, Some(130 | 143)), "{output:?}");
    // Otherwise, the command says that it was interrupted.
    assert!(output.stderr.is_empty(), "{output:?}");
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
    for signal in [Signal::HUP, Signal::INT, Signal::TERM] {
        let code = interrupted(command(), &[signal]);
        assert_eq!(code, Some(128 + signal.as_raw()));
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
