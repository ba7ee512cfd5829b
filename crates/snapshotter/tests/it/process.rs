//! The program itself: how it starts, what it writes, and how it ends.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use soci_registry::testing::{Access, Fault, On, Setup, TestRegistry, Wrong};
use tempfile::TempDir;

use crate::image::{Image, Shape, file, tar};
use crate::server::{connect, prepare_request};

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_soci-snapshotter-grpc");

/// Time limit of each step; longer means that it hangs.
pub(crate) const LONG: Duration = Duration::from_secs(30);

pub(crate) type Line = BTreeMap<String, String>;

/// A directory with everything that one daemon needs.
pub(crate) struct Place {
    folder: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self::with("")
    }

    /// As [`Place::new`], with this configuration.
    pub(crate) fn with(config: &str) -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("config.toml"), config).unwrap();
        Self { folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn command(&self) -> Command {
        self.command_of(Path::new(PROGRAM))
    }

    fn command_of(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
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

/// A daemon that has logged that it serves.
pub(crate) struct Running {
    pub(crate) child: Child,
    lines: BufReader<std::process::ChildStderr>,
    pub(crate) said: Vec<Line>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap());
        let mut running = Self {
            child,
            lines,
            said: Vec::new(),
        };
        while !running.has("soci-snapshotter-grpc successfully started") {
            assert!(running.next(), "the daemon ended: {:#?}", running.said);
        }
        running
    }

    pub(crate) fn next(&mut self) -> bool {
        let mut text = String::new();
        if self.lines.read_line(&mut text).unwrap() == 0 {
            return false;
        }
        let line = serde_json::from_str(&text);
        self.said
            .push(line.unwrap_or_else(|error| panic!("{error}: {text}")));
        true
    }

    pub(crate) fn has(&self, message: &str) -> bool {
        self.said.iter().any(|line| line["msg"] == message)
    }

    /// The children of the keeper.
    fn workers(&self) -> Vec<u32> {
        let pid = self.child.id();
        let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        text.split_whitespace()
            .map(|pid| pid.parse().unwrap())
            .collect()
    }

    /// The process ID of the only worker; waits for it.
    pub(crate) fn worker(&self) -> u32 {
        let start = Instant::now();
        loop {
            if let [worker] = self.workers()[..] {
                return worker;
            }
            assert!(start.elapsed() < LONG, "{:?}", self.workers());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn end(&mut self, signal: Signal) -> ExitStatus {
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

/// Runs a daemon that fails to start. Returns its exit code and its output.
pub(crate) fn fails(mut command: Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn it_logs_in_json_that_it_serves_and_ends_cleanly_on_signals() {
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
    assert_eq!(mounted(), 1, "only the device is mounted");
    running.end(Signal::KILL);
    assert_eq!(mounted(), 1, "a dead device stays");
    let mut running = Running::start(place.command());
    assert_eq!(mounted(), 1);
    running.end(Signal::INT);
    assert_eq!(mounted(), 0);
}

#[test]
fn a_killed_worker_is_replaced_without_errors_for_callers() {
    let place = Place::new();
    let mut running = Running::start(place.command());
    let device = mounted(&place.path("root"));
    assert_eq!(device.len(), 1);
    for _ in 0..5 {
        let before = running.worker();
        kill_process(pid(before), Signal::KILL).unwrap();
        // The call waits until the next worker serves, and is answered.
        serves(&place.path("s/s.sock"));
        assert_ne!(running.worker(), before);
        assert_eq!(mounted(&place.path("root")), device, "the same device");
    }
    assert_eq!(running.end(Signal::TERM).code(), Some(0));
    assert!(running.has("adopted the device of the earlier process"));
    let ended = running.said.iter();
    let ended = ended.filter(|line| line["msg"] == "the worker ended, starting a new one");
    assert_eq!(ended.count(), 5, "{:#?}", running.said);
}

#[test]
fn a_worker_is_replaced_on_request_and_running_calls_are_answered() {
    let place = Place::new();
    let mut running = Running::start(place.command());
    let before = running.worker();
    kill_process(Pid::from_child(&running.child), Signal::HUP).unwrap();
    let start = Instant::now();
    while running.workers().is_empty() || running.worker() == before {
        assert!(start.elapsed() < LONG, "the worker is not replaced");
        std::thread::sleep(Duration::from_millis(2));
    }
    serves(&place.path("s/s.sock"));
    assert_eq!(running.end(Signal::INT).code(), Some(0));
    assert_eq!(mounted(&place.path("root")), Vec::<String>::new());
    assert!(running.has("replacing the worker") && running.has("Got terminated"));
    assert!(!running.has("the worker ended, starting a new one"));
}

#[test]
fn a_new_program_that_does_not_serve_is_replaced_by_the_previous_one() {
    let place = Place::new();
    let program = place.path("program");
    fs::copy(PROGRAM, &program).unwrap();
    let mut command = place.command_of(&program);
    command.arg("keeper");
    let mut running = Running::start(command);
    // Like a package manager: a new file under the old name.
    fs::copy("/bin/false", place.path("new")).unwrap();
    fs::rename(place.path("new"), &program).unwrap();
    kill_process(Pid::from_child(&running.child), Signal::HUP).unwrap();
    while !running.has("the new program did not start serving, reverting to the previous one") {
        assert!(running.next(), "the daemon ended: {:#?}", running.said);
    }
    serves(&place.path("s/s.sock"));
    // A program that works is used.
    fs::copy(PROGRAM, place.path("new")).unwrap();
    fs::rename(place.path("new"), &program).unwrap();
    let before = running.worker();
    kill_process(Pid::from_child(&running.child), Signal::HUP).unwrap();
    let start = Instant::now();
    while running.workers().is_empty() || running.worker() == before {
        assert!(start.elapsed() < LONG, "the worker is not replaced");
        std::thread::sleep(Duration::from_millis(2));
    }
    serves(&place.path("s/s.sock"));
    let runs = fs::read_link(format!("/proc/{}/exe", running.worker())).unwrap();
    assert_eq!(runs, program);
    assert_eq!(running.end(Signal::TERM).code(), Some(0));
}

#[test]
fn the_worker_ends_with_its_keeper() {
    let place = Place::new();
    let mut running = Running::start(place.command());
    let worker = running.worker();
    running.end(Signal::KILL);
    let start = Instant::now();
    while fs::exists(format!("/proc/{worker}/exe")).unwrap_or(false)
        && fs::read_link(format!("/proc/{worker}/exe")).is_ok()
    {
        assert!(start.elapsed() < LONG, "the worker does not end");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn only_the_keeper_is_excluded_from_oom_kills() {
    let place = Place::new();
    let running = Running::start(place.command());
    let score = |pid: u32| {
        let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        text.trim().parse::<i32>().unwrap()
    };
    let ours = score(std::process::id());
    let spared = if may_spare() { -1000 } else { ours };
    assert_eq!(score(running.child.id()), spared);
    assert_eq!(score(running.worker()), ours);
    // The worker has its own standard input, and no other descriptors of the keeper than those
    // passed to it.
    let input = fs::read_link(format!("/proc/{}/fd/0", running.worker())).unwrap();
    assert_eq!(input, PathBuf::from("/dev/null"));
    let fuse = |pid: u32| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        descriptors
            .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
            .filter(|target| target.as_os_str() == "/dev/fuse")
            .count()
    };
    // The keeper may not have received the device yet.
    let start = Instant::now();
    while fuse(running.child.id()) != 1 {
        assert!(start.elapsed() < LONG, "the keeper does not get the device");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(fuse(running.worker()), 1);
}

/// Whether this machine allows a process to exclude itself from OOM kills. Some sandboxes do not.
fn may_spare() -> bool {
    let script = "echo -1000 2>/dev/null >/proc/self/oom_score_adj";
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", script]).status().unwrap().success()
}

#[test]
fn without_a_keeper_there_is_one_process() {
    let place = Place::new();
    let mut command = place.command();
    command.arg("--no-keeper");
    let mut running = Running::start(command);
    assert_eq!(running.workers(), Vec::<u32>::new());
    serves(&place.path("s/s.sock"));
    let (code, said) = fails(place.command());
    assert_eq!(code, Some(1));
    assert!(said.contains("another daemon runs"), "{said}");
    assert_eq!(running.end(Signal::TERM).code(), Some(0));
    assert_eq!(mounted(&place.path("root")), Vec::<String>::new());
}

#[test]
fn the_next_daemon_adopts_the_descriptors_that_systemd_stored() {
    let forms = ["--no-keeper=false", "--no-keeper"];
    let signals = [Signal::TERM, Signal::KILL];
    for (form, signal) in forms
        .into_iter()
        .flat_map(|form| signals.map(|signal| (form, signal)))
    {
        let place = Place::new();
        let systemd = Systemd::new(&place);
        let mut first = Running::start(systemd.command(&place, form, &[]));
        let kept = systemd.until_ready();
        let names: Vec<&str> = kept.keys().map(String::as_str).collect();
        assert_eq!(names, ["fuse", "journal"], "{form}");
        let device = mounted(&place.path("root"));
        let code = first.end(signal).code();
        assert_eq!(code, (signal == Signal::TERM).then_some(0), "{form}");
        assert_eq!(
            mounted(&place.path("root")),
            device,
            "{form}: the device stays mounted"
        );
        let kept: Vec<(&str, &OwnedFd)> =
            kept.iter().map(|(name, fd)| (name.as_str(), fd)).collect();
        let mut second = Running::start(systemd.command(&place, form, &kept));
        assert!(
            second.has("adopted the device of the earlier process"),
            "{form}: {:#?}",
            second.said
        );
        assert_eq!(mounted(&place.path("root")), device, "{form}");
        assert_eq!(second.end(Signal::INT).code(), Some(0));
        assert_eq!(mounted(&place.path("root")), Vec::<String>::new());
    }
}

/// Acts as systemd: receives notifications and stores descriptors.
pub(crate) struct Systemd {
    pub(crate) notices: UnixDatagram,
    path: PathBuf,
}

impl Systemd {
    pub(crate) fn new(place: &Place) -> Self {
        let path = place.path("notify");
        let notices = UnixDatagram::bind(&path).unwrap();
        notices.set_read_timeout(Some(LONG)).unwrap();
        Self { notices, path }
    }

    /// Starts a daemon with these descriptors.
    pub(crate) fn command(&self, place: &Place, form: &str, kept: &[(&str, &OwnedFd)]) -> Command {
        let mut shell = Command::new("/bin/sh");
        // LISTEN_PID must be the process ID of the daemon, which only the shell that becomes the
        // daemon knows. At most two descriptors: standard input and output are moved to where
        // systemd puts descriptors.
        let script = match kept.len() {
            0 => "exec \"$@\"",
            _ => "exec 3<&0 4<&1 </dev/null >/dev/null; export LISTEN_PID=$$; exec \"$@\"",
        };
        shell
            .args(["-c", script, "sh", PROGRAM, form, "--root"])
            .arg(place.path("root"))
            .arg("--config")
            .arg(place.path("config.toml"))
            .arg("--address")
            .arg(place.path("s/s.sock"))
            .env("NOTIFY_SOCKET", &self.path)
            .stderr(Stdio::piped());
        if let [(one, first), (two, second)] = kept {
            shell
                .env("LISTEN_FDS", "2")
                .env("LISTEN_FDNAMES", format!("{one}:{two}"))
                .stdin(first.try_clone().unwrap())
                .stdout(second.try_clone().unwrap());
        }
        shell
    }

    /// The descriptors that were stored before the daemon reported that it is ready.
    pub(crate) fn until_ready(&self) -> BTreeMap<String, OwnedFd> {
        let mut kept = BTreeMap::new();
        loop {
            let (text, descriptors) = receive(&self.notices);
            if text.contains("READY=1") {
                return kept;
            }
            let name = text
                .lines()
                .find_map(|line| line.strip_prefix("FDNAME="))
                .unwrap_or_else(|| panic!("{text}"))
                .to_owned();
            if text.contains("FDSTORE=1") {
                assert!(text.contains("FDPOLL=0"), "wakes process 1: {text}");
                kept.extend(descriptors.into_iter().map(|fd| (name.clone(), fd)));
            } else {
                assert!(text.contains("FDSTOREREMOVE=1"), "{text}");
                kept.remove(&name);
            }
        }
    }
}

fn receive(socket: &UnixDatagram) -> (String, Vec<OwnedFd>) {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut bytes = [0; 256];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
    let got = recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let text = String::from_utf8_lossy(&bytes[..got.bytes]).into_owned();
    (text, descriptors)
}

pub(crate) fn pid(number: u32) -> Pid {
    Pid::from_raw(i32::try_from(number).unwrap()).unwrap()
}

/// The mounts below a directory, with their device numbers.
pub(crate) fn mounted(root: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let below = format!(" {}/", root.display());
    let lines = table.lines().filter(|line| line.contains(&below));
    lines.map(str::to_owned).collect()
}

/// Checks that a call is answered, as soon as a daemon serves.
pub(crate) fn serves(socket: &Path) {
    let socket = socket.to_owned();
    let call = async move {
        let mut client = connect(socket).await;
        let request = prepare_request(
            "default",
            &format!("{:?}", Instant::now()),
            "",
            Default::default(),
        );
        client.prepare(request).await.unwrap();
    };
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().unwrap();
    runtime
        .block_on(async { tokio::time::timeout(LONG, call).await })
        .expect("an answer");
}

#[test]
fn a_second_daemon_on_the_root_fails_without_side_effects() {
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
fn a_second_signal_ends_it_immediately() {
    let registry = TestRegistry::start();
    let tars = [tar(&[file("a", b"one")])];
    let image = Image::publish(&registry, &tars, Shape::default());
    let silent = Wrong::Delay(LONG * 2);
    registry.fault(Fault::always(On::Any, silent));
    let place = Place::new();
    let mut command = place.command();
    command.arg("--no-keeper");
    let mut running = Running::start(command);
    let pid = Pid::from_child(&running.child);
    let (socket, labels) = (place.path("s/s.sock"), image.labels(0));
    // The daemon waits some seconds for this call before it ends.
    let asks = std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        runtime.block_on(async move {
            let mut client = connect(socket).await;
            let request = prepare_request("default", "key", "", labels);
            client.prepare(request).await.unwrap_err()
        })
    });
    let start = Instant::now();
    while registry.requests() == 0 {
        assert!(start.elapsed() < LONG, "the registry gets no request");
        std::thread::sleep(Duration::from_millis(5));
    }
    kill_process(pid, Signal::INT).unwrap();
    while !running.has("Got interrupt") {
        assert!(running.next(), "the daemon ended: {:#?}", running.said);
    }
    let start = Instant::now();
    let status = running.end(Signal::INT);
    assert!(!status.success());
    let took = start.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    asks.join().unwrap();
}

#[test]
fn errors_name_the_invalid_setting() {
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
        let fatal = said.matches("\"level\":\"fatal\"").count();
        assert_eq!(fatal, 1, "logged once: {said}");
        assert!(
            !place.path("s").exists(),
            "a daemon that does not serve leaves no socket"
        );
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
fn systemd_is_notified_and_its_socket_is_used_but_not_removed() {
    let place = Place::new();
    let notices = UnixDatagram::bind(place.path("notify")).unwrap();
    notices
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let activated = UnixListener::bind(place.path("activated.sock")).unwrap();
    let mut shell = Command::new("/bin/sh");
    // LISTEN_PID must be the process ID of the daemon, which only the shell that becomes the daemon
    // knows.
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
        // Not by number, because shells support only single digits there.
        .stdin(OwnedFd::from(activated.try_clone().unwrap()))
        .stderr(Stdio::piped());
    let mut running = Running::start(shell);
    // The notifications arrive in this order, among descriptors to store.
    let notice = |wanted: &str| {
        loop {
            let (text, _) = receive(&notices);
            if text.contains(wanted) {
                return;
            }
            assert!(text.contains("FDSTORE"), "{text}");
        }
    };
    notice("READY=1");
    UnixStream::connect(place.path("activated.sock")).unwrap();
    assert_eq!(running.end(Signal::TERM).code(), Some(0));
    notice("STOPPING=1");
    assert!(place.path("activated.sock").exists());
}

/// Words that must not appear in the log of an ordinary pull, in any case.
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
