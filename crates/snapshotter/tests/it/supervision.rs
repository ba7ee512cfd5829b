//! What a service manager sees of the program: its watchdog and its limits.

use std::fs;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::process::{LONG, Place, Running, Systemd, pid};

/// Time limit that the watchdog of the tests has.
const LIMIT: Duration = Duration::from_millis(300);

/// Waits for a report that the daemon is alive. Returns whether one came within `wait`.
fn hears(systemd: &Systemd, wait: Duration) -> bool {
    let start = Instant::now();
    while let Some(left) = wait
        .checked_sub(start.elapsed())
        .filter(|left| !left.is_zero())
    {
        let mut bytes = [0; 256];
        systemd.notices.set_read_timeout(Some(left)).unwrap();
        if let Ok(length) = systemd.notices.recv(&mut bytes)
            && bytes[..length].starts_with(b"WATCHDOG=1")
        {
            return true;
        }
    }
    false
}

#[test]
fn the_watchdog_hears_of_a_daemon_that_answers_and_not_of_one_that_hangs() {
    for form in ["--no-keeper=false", "--no-keeper"] {
        let place = Place::new();
        let systemd = Systemd::new(&place);
        let mut command = systemd.command(&place, form, &[]);
        command.env("WATCHDOG_USEC", LIMIT.as_micros().to_string());
        let mut running = Running::start(command);
        systemd.until_ready();
        for _ in 0..4 {
            assert!(hears(&systemd, LONG), "{form}");
        }
        let worker = match form {
            "--no-keeper" => running.child.id(),
            _ => running.worker(),
        };
        kill_process(pid(worker), Signal::STOP).unwrap();
        while hears(&systemd, LIMIT / 2) {}
        assert!(!hears(&systemd, LIMIT * 2), "{form}: it hangs");
        kill_process(pid(worker), Signal::CONT).unwrap();
        assert!(hears(&systemd, LONG), "{form}: it answers again");
        assert_eq!(running.end(Signal::TERM).code(), Some(0), "{form}");
    }
}

#[test]
fn without_a_watchdog_nothing_is_reported() {
    let place = Place::new();
    let systemd = Systemd::new(&place);
    let mut command = systemd.command(&place, "--no-keeper=false", &[]);
    // Another process is meant.
    command
        .env("WATCHDOG_USEC", "1000")
        .env("WATCHDOG_PID", "1");
    let mut running = Running::start(command);
    systemd.until_ready();
    assert!(!hears(&systemd, Duration::from_millis(200)));
    assert_eq!(running.end(Signal::TERM).code(), Some(0));
}

#[test]
fn the_daemon_may_open_as_many_files_as_the_hard_limit_allows() {
    let place = Place::new();
    let plain = place.command();
    let mut command = std::process::Command::new("/bin/sh");
    command
        .args(["-c", "ulimit -Sn 200; ulimit -Hn 3000; exec \"$@\"", "sh"])
        .arg(plain.get_program())
        .args(plain.get_args())
        .envs(
            plain
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        )
        .stderr(std::process::Stdio::piped());
    let mut running = Running::start(command);
    let limits = fs::read_to_string(format!("/proc/{}/limits", running.worker())).unwrap();
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let words: Vec<&str> = line.unwrap().split_whitespace().collect();
    assert_eq!(words[3..5], ["3000", "3000"], "{limits}");
    assert_eq!(running.end(Signal::TERM).code(), Some(0));
}
