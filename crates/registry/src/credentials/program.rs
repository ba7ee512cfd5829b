//! Runs a program that knows credentials: a Docker helper, a kubelet plugin, a kubeconfig command.
//!
//! The program gets its question on standard input and answers on standard output, which is limited
//! in size. At the time limit it is killed, with its whole process group if it has one of its own.
//! Neither its output nor its error output is logged, because both may contain secrets.

use std::{
    ffi::OsString,
    fmt,
    io::{self, Write as _},
    os::{
        fd::OwnedFd,
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::{io::AsyncReadExt as _, net::unix::pipe, time::Instant};

/// Size limit in bytes for the output.
const MAX_OUTPUT: u64 = 64 << 10;
/// Size limit in bytes for the input, which must fit into the buffer of a pipe.
const MAX_INPUT: usize = 16 << 10;
/// Poll interval for the exit of a program that has closed its output.
const LOOK: Duration = Duration::from_millis(5);
/// Variables with which systemd talks to the daemon, and not to its children.
const NOT_INHERITED: [&str; 5] = [
    "LISTEN_FDNAMES",
    "LISTEN_FDS",
    "LISTEN_PID",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
];

/// What a program wrote. Never printed.
pub(super) struct Output(Vec<u8>);

impl Output {
    /// The bytes, to be parsed only.
    pub(super) fn reveal(&self) -> &[u8] {
        &self.0
    }

    /// Whether the program wrote this line.
    pub(super) fn is(&self, line: &str) -> bool {
        self.0.trim_ascii() == line.as_bytes()
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(redacted)")
    }
}

/// Which process group a program runs in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Group {
    /// Its own, which ends with the answer.
    Own,
    /// That of this process, so that it may talk to a terminal and ends with Ctrl-C.
    Shared,
}

/// Why a program gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProgramError {
    #[error("cannot run {program:?}: {source}")]
    Start {
        program: OsString,
        source: io::Error,
    },
    #[error("cannot talk to {program:?}: {source}")]
    Talk {
        program: OsString,
        source: io::Error,
    },
    #[error("{program:?} has not answered for {} s", limit.as_secs_f32())]
    Slow { program: OsString, limit: Duration },
    #[error("{program:?} ended with {status}")]
    Failed {
        program: OsString,
        status: ExitStatus,
        output: Output,
    },
}

/// Runs a command until it has answered and ended, for at most `limit`.
pub(super) async fn run(
    mut command: Command,
    group: Group,
    input: &[u8],
    limit: Duration,
) -> Result<Output, ProgramError> {
    let deadline = Instant::now() + limit;
    let program = command.get_program().to_owned();
    let talk = |source| ProgramError::Talk {
        program: program.clone(),
        source,
    };
    let slow = |_| ProgramError::Slow {
        program: program.clone(),
        limit,
    };
    for name in NOT_INHERITED {
        command.env_remove(name);
    }
    let mut running = match Running::start(&mut command, group) {
        Ok(running) => running,
        Err(source) => return Err(ProgramError::Start { program, source }),
    };
    let mut out = running.say(input).map_err(talk)?.take(MAX_OUTPUT);
    let mut answer = Vec::new();
    let read = tokio::time::timeout_at(deadline, out.read_to_end(&mut answer)).await;
    read.map_err(slow)?.map_err(talk)?;
    // Close the pipe, so that a program with more output ends.
    drop(out);
    let ended = tokio::time::timeout_at(deadline, running.end()).await;
    let status = ended.map_err(slow)?.map_err(talk)?;
    let output = Output(answer);
    match status.success() {
        true => Ok(output),
        false => Err(ProgramError::Failed {
            program,
            status,
            output,
        }),
    }
}

/// A running program, killed on drop with its own process group.
struct Running {
    child: Child,
    group: Group,
}

impl Running {
    fn start(command: &mut Command, group: Group) -> io::Result<Running> {
        if group == Group::Own {
            command.process_group(0);
        }
        let child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Running { child, group })
    }

    /// Writes the question and returns the pipe with the answer.
    fn say(&mut self, input: &[u8]) -> io::Result<pipe::Receiver> {
        if input.len() > MAX_INPUT {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if let Some(mut pipe) = self.child.stdin.take() {
            // This does not block, because the input fits into the pipe's buffer. A program that
            // does not read it may still answer, so a broken pipe is not an error.
            match pipe.write_all(input) {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
                _ => {}
            }
        }
        let out = self.child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        pipe::Receiver::from_owned_fd(OwnedFd::from(out))
    }

    /// Waits for the end of the program. It stays a zombie, so that its process group keeps its
    /// number until the group is killed.
    async fn end(&mut self) -> io::Result<ExitStatus> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        loop {
            if let Some(ended) = waitid(WaitId::Pid(Pid::from_child(&self.child)), options)? {
                let code = ended.exit_status().map(|code| (code & 0xff) << 8);
                let raw = code.or(ended.terminating_signal()).unwrap_or(1);
                return Ok(ExitStatus::from_raw(raw));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // All of these fail only if there is nothing left to kill or to wait for.
        if self.group == Group::Own {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        }
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        command
    }

    async fn run_own(script: &str, limit: Duration) -> Result<Output, ProgramError> {
        run(shell(script), Group::Own, b"", limit).await
    }

    /// A killed process may stay a zombie until its new parent collects it.
    async fn ends(pid: &str) {
        let stat = format!("/proc/{}/stat", pid.trim());
        for _ in 0..500 {
            match std::fs::read_to_string(&stat) {
                Ok(stat) if !stat.contains(") Z ") => {}
                _ => return,
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{pid} still runs");
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_killed_with_its_children() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", file.display());
        let error = run_own(&script, Duration::from_millis(300)).await;
        assert!(matches!(error, Err(ProgramError::Slow { .. })), "{error:?}");
        ends(&std::fs::read_to_string(file).expect("the script ran")).await;
    }

    #[tokio::test]
    async fn what_a_program_leaves_behind_does_not_outlive_its_answer() {
        let script = "sleep 1000 >/dev/null & echo $!";
        let output = run_own(script, Duration::from_secs(20)).await;
        let output = output.expect("an answer");
        ends(std::str::from_utf8(output.reveal()).expect("a number")).await;
    }

    #[tokio::test]
    async fn the_status_is_that_of_the_program() {
        for (script, shown) in [("exit 3", "exit status: 3"), ("kill -9 $$", "signal: 9")] {
            let error = run_own(script, Duration::from_secs(20)).await;
            let text = error.expect_err("it fails").to_string();
            assert!(text.contains(shown), "{text}");
        }
    }

    #[tokio::test]
    async fn the_output_is_limited_and_not_shown() {
        let error = run_own("yes hunter2", Duration::from_secs(20)).await;
        let error = error.expect_err("it is ended by the closed pipe");
        let ProgramError::Failed { output, .. } = &error else {
            panic!("{error:?}");
        };
        assert_eq!(output.reveal().len() as u64, MAX_OUTPUT);
        assert!(!format!("{error:?} {error}").contains("hunter2"));
    }
}
