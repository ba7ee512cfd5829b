//! The program itself: how it starts, what it writes, how it ends.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use soci_oci::testing::{Access, Setup, TestRegistry};
use tempfile::TempDir;

use crate::image::{Image, Shape, file, tar};
use crate::server::{connect, prepare_request};

const PROGRAM: &str = env!("CARGO_BIN_EXE_soci-snapshotter-grpc");

type Line = BTreeMap<String, String>;

/// A folder with everything that one daemon needs.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("config.toml"), "").unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        command
            .arg("-root")
            .arg(self.path("root"))
            .arg("--config")
            .arg(self.path("config.toml"))
            .env("SOCI_SNAPSHOTTER_ADDRESS", self.path("s/s.sock"))
            .stderr(Stdio::piped());
        command
    }
}

/// A daemon that has said that it serves.
struct Running {
    child: Child,
    lines: BufReader<std::process::ChildStderr>,
    said: Vec<Line>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap());
        let mut running = Self {
            child,
            lines,
            said: Vec::new(),
        };
        while !running.has("soci-snapshotter-grpc successfully started") {
            assert!(running.next(), "it ended: {:#?}", running.said);
        }
        running
    }

    fn next(&mut self) -> bool {
        let mut text = String::new();
        if self.lines.read_line(&mut text).unwrap() == 0 {
            return false;
        }
        let line = serde_json::from_str(&text);
        self.said
            .push(line.unwrap_or_else(|error| panic!("{error}: {text}")));
        true
    }

    fn has(&self, message: &str) -> bool {
        self.said.iter().any(|line| line["msg"] == message)
    }

    fn end(&mut self, signal: Signal) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        while self.next() {}
        self.child.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Runs a daemon that does not get far; its exit code and what it wrote.
fn fails(mut command: Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn it_says_in_json_that_it_serves_and_ends_well_on_signals() {
    let place = Place::new();
    for (signal, word) in [
        (Signal::TERM, "Got terminated"),
        (Signal::INT, "Got interrupt"),
    ] {
        let mut running = Running::start(place.command());
        UnixStream::connect(place.path("s/s.sock")).unwrap();
        let last = running.said.last().unwrap();
        assert_eq!(
            last["address"],
            place.path("s/s.sock").display().to_string()
        );
        let status = running.end(signal);
        assert_eq!(status.code(), Some(0), "{:#?}", running.said);
        assert!(
            running.has(word) && running.has("Exiting"),
            "{:#?}",
            running.said
        );
        for line in &running.said {
            assert!(
                line.contains_key("level") && line.contains_key("time"),
                "{line:?}"
            );
        }
        assert!(!place.path("s/s.sock").exists());
    }
}

#[test]
fn a_device_that_a_killed_daemon_left_is_replaced_at_the_next_start() {
    let place = Place::new();
    let root = place.path("root").display().to_string();
    let mounted = || {
        fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .matches(&root)
            .count()
    };
    let mut running = Running::start(place.command());
    assert_eq!(mounted(), 1, "the device");
    running.end(Signal::KILL);
    assert_eq!(mounted(), 1, "a dead device stays");
    let mut running = Running::start(place.command());
    assert_eq!(mounted(), 1);
    running.end(Signal::INT);
    assert_eq!(mounted(), 0);
}

#[test]
fn a_second_daemon_on_the_root_is_refused_and_disturbs_nothing() {
    let place = Place::new();
    let mut running = Running::start(place.command());
    let (code, said) = fails(place.command());
    assert_eq!(code, Some(1));
    assert!(
        said.contains("another daemon runs on the same root"),
        "{said}"
    );
    assert!(said.contains("soci-snapshotter-grpc: "), "{said}");
    let fatal = said
        .lines()
        .find(|line| line.contains("\"level\":\"fatal\""))
        .unwrap();
    assert!(serde_json::from_str::<Line>(fatal).unwrap()["error"].contains("locked"));
    UnixStream::connect(place.path("s/s.sock")).unwrap();
    assert_eq!(running.end(Signal::INT).code(), Some(0));
}

#[test]
fn what_cannot_be_used_is_named() {
    let place = Place::new();
    let with = |name: &str, value: &str| {
        let mut command = place.command();
        command.arg(format!("--{name}={value}"));
        fails(command)
    };
    for (name, value, wanted) in [
        (
            "config",
            "/nobody/has/this.toml",
            "failed to open config file",
        ),
        ("log-level", "loud", "not a valid logrus Level"),
        (
            "address",
            "tcp://127.0.0.1:1",
            "unknown protocol for address",
        ),
    ] {
        let (code, said) = with(name, value);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(wanted), "{said}");
    }
    fs::write(place.path("config.toml"), "[http]\nMaxRetries = 'many'\n").unwrap();
    let (code, said) = fails(place.command());
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("failed to load config file") && said.contains("MaxRetries"),
        "{said}"
    );
}

#[test]
fn systemd_is_told_and_its_socket_is_used_and_left() {
    let place = Place::new();
    let notices = UnixDatagram::bind(place.path("notify")).unwrap();
    notices
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let activated = UnixListener::bind(place.path("activated.sock")).unwrap();
    let mut shell = Command::new("/bin/sh");
    // LISTEN_PID has to be the daemon's own number: only what becomes the daemon knows it.
    shell
        .arg("-c")
        .arg("exec 3<&0 </dev/null; export LISTEN_PID=$$; exec \"$@\"")
        .arg0("sh")
        .arg("sh")
        .arg(PROGRAM)
        .args(["--address", "fd://", "--root"])
        .arg(place.path("root"))
        .arg("--config")
        .arg(place.path("config.toml"))
        .env("LISTEN_FDS", "1")
        .env("NOTIFY_SOCKET", place.path("notify"))
        // Not by its number: shells take one digit there.
        .stdin(OwnedFd::from(activated.try_clone().unwrap()))
        .stderr(Stdio::piped());
    let mut running = Running::start(shell);
    let notice = || {
        let mut text = [0; 256];
        let length = notices.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..length]).into_owned()
    };
    assert!(notice().contains("READY=1"));
    UnixStream::connect(place.path("activated.sock")).unwrap();
    assert_eq!(running.end(Signal::TERM).code(), Some(0));
    assert!(notice().contains("STOPPING=1"));
    assert!(place.path("activated.sock").exists());
}

/// What no line of an ordinary pull may contain, in any case.
const SECRET_WORDS: [&str; 8] = [
    "password",
    "passwd",
    "secret",
    "credential",
    "token",
    "api_key",
    "bearer",
    "basic auth",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_with_a_password_says_no_secret_words() {
    let access = Access::Token {
        login: Some(("somebody".to_owned(), "p4ssw0rd".to_owned())),
        lifetime: Duration::from_secs(60),
        oauth: true,
    };
    let registry = TestRegistry::with(Setup {
        access,
        ..Setup::default()
    });
    let image = Image::publish(&registry, &[tar(&[file("a", b"a")])], Shape::default());
    let place = Place::new();
    // somebody:p4ssw0rd
    let auths = format!(
        r#"{{"auths":{{"{}":{{"auth":"c29tZWJvZHk6cDRzc3cwcmQ="}}}}}}"#,
        registry.host()
    );
    fs::write(place.path("config.json"), auths).unwrap();
    let mut command = place.command();
    command
        .arg("--log-level=debug")
        .env("DOCKER_CONFIG", place.folder.path());
    let mut running = Running::start(command);
    let mut client = connect(place.path("s/s.sock")).await;
    let request = prepare_request("default", "key", "", image.labels(0));
    let said = client.prepare(request).await.unwrap_err();
    assert_eq!(said.code(), tonic::Code::AlreadyExists, "{said}");
    running.end(Signal::INT);
    assert!(running.has("remote snapshot successfully prepared."));
    for line in &running.said {
        let text = format!("{line:?}").to_lowercase();
        for word in SECRET_WORDS.iter().chain(&["p4ssw0rd", "somebody"]) {
            assert!(!text.contains(word), "{word}: {text}");
        }
    }
}

#[test]
fn the_version_has_four_words() {
    let mut command = Command::new(PROGRAM);
    command.arg("-version").stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut text = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert!(child.wait().unwrap().success());
    let words: Vec<_> = text.split_whitespace().collect();
    assert_eq!(words[..2], ["soci-snapshotter-grpc", "version"]);
    assert_eq!(words.len(), 4, "{text}");
}
