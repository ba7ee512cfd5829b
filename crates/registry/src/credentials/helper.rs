//! Docker credential helpers: `docker-credential-<name> get`.
//!
//! The helper reads the server name from standard input and writes a JSON document to standard
//! output. The user `<token>` means that the secret is an identity token. If the helper has no
//! credential, it prints a fixed message to standard output and exits with an error status.

use std::{
    ffi::OsString,
    io::{self, Write as _},
    os::fd::OwnedFd,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use serde::Deserialize;
use tokio::{io::AsyncReadExt as _, net::unix::pipe, time::Instant};

use super::{Credential, Secret};

/// Timeout for a helper. Some ask the user to unlock a keychain, and some contact a cloud service.
const PATIENCE: Duration = Duration::from_secs(30);
/// Size limit in bytes for the output.
const MAX_ANSWER: u64 = 64 << 10;
/// Poll interval for the exit of a helper that has closed its output.
const LOOK: Duration = Duration::from_millis(5);
/// The message of helpers that have no credential for the server.
const NOT_FOUND: &str = "credentials not found in native keychain";
/// The user name that marks the secret as an identity token.
const TOKEN_USER: &str = "<token>";

/// Why a helper returned no credential. Never contains the helper's output, which may be a secret.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelperError {
    #[error("{name:?} is no name of a credential helper")]
    Name { name: String },
    #[error("run {program:?}")]
    Start {
        program: OsString,
        #[source]
        source: io::Error,
    },
    #[error("talk to {program:?}")]
    Talk {
        program: OsString,
        #[source]
        source: io::Error,
    },
    #[error("{program:?} has not answered for {} s", PATIENCE.as_secs())]
    Slow { program: OsString },
    #[error("{program:?} ended with {status}")]
    Failed {
        program: OsString,
        status: ExitStatus,
    },
    #[error("{program:?} answered with what is no credential")]
    Answer { program: OsString },
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// Asks the helper with this name from Docker's configuration.
pub(super) async fn ask(name: &str, server: &str) -> Result<Option<Credential>, HelperError> {
    // A name with a slash would be a path, and the configuration may only name programs.
    if name.is_empty() || name.contains('/') {
        let name = name.to_owned();
        return Err(HelperError::Name { name });
    }
    ask_program(format!("docker-credential-{name}").into(), server).await
}

async fn ask_program(program: OsString, server: &str) -> Result<Option<Credential>, HelperError> {
    let patience = Instant::now() + PATIENCE;
    let talk = |source| HelperError::Talk {
        program: program.clone(),
        source,
    };
    let slow = |_| HelperError::Slow {
        program: program.clone(),
    };
    let mut running = Running::start(&program)?;
    let mut out = running.say(server).map_err(talk)?.take(MAX_ANSWER);
    let mut answer = Vec::new();
    let read = tokio::time::timeout_at(patience, out.read_to_end(&mut answer)).await;
    read.map_err(slow)?.map_err(talk)?;
    // Close the pipe, so that a helper with more output ends.
    drop(out);
    let ended = tokio::time::timeout_at(patience, running.end()).await;
    let status = ended.map_err(slow)?.map_err(talk)?;
    if !status.success() {
        let said = String::from_utf8_lossy(&answer);
        return match said.trim() {
            NOT_FOUND => Ok(None),
            _ => Err(HelperError::Failed { program, status }),
        };
    }
    let Ok(Answer { username, secret }) = serde_json::from_slice(&answer) else {
        return Err(HelperError::Answer { program });
    };
    Ok(match username.as_str() {
        _ if secret.is_empty() => None,
        TOKEN_USER | "" => Some(Credential::Identity(Secret::new(secret))),
        user => Some(Credential::new(user, &secret)),
    })
}

/// A running helper, killed on drop.
struct Running(Child);

impl Running {
    fn start(program: &OsString) -> Result<Running, HelperError> {
        let child = Command::new(program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let child = child.map_err(|source| HelperError::Start {
            program: program.clone(),
            source,
        })?;
        Ok(Running(child))
    }

    /// Writes the server name and returns the pipe with the output.
    fn say(&mut self, server: &str) -> io::Result<pipe::Receiver> {
        if let Some(mut input) = self.0.stdin.take() {
            // This does not block, because a server name fits into the pipe's buffer. A helper that
            // does not read its input may still respond, so a broken pipe is not an error.
            match input.write_all(server.as_bytes()) {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error),
                _ => {}
            }
        }
        let out = self.0.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        pipe::Receiver::from_owned_fd(OwnedFd::from(out))
    }

    async fn end(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if the helper has exited and was waited for.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    async fn answer_of(script: &str) -> Result<Option<Credential>, HelperError> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("helper");
        std::fs::write(&path, format!("#!/bin/sh\n{script}")).expect("write the script");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        loop {
            match ask_program(path.clone().into(), "r.example:5000").await {
                // A concurrent test's fork may hold the script open for writing for a moment.
                Err(HelperError::Start { source, .. })
                    if source.kind() == io::ErrorKind::ExecutableFileBusy => {}
                other => return other,
            }
        }
    }

    #[tokio::test]
    async fn a_helper_is_asked_as_docker_asks() {
        let script = r#"[ "$1" = get ] || exit 9
read -r server
printf '{"ServerURL":"%s","Username":"me","Secret":"for %s"}' "$server" "$server""#;
        assert_eq!(
            answer_of(script).await.expect("an answer"),
            Some(Credential::new("me", "for r.example:5000"))
        );
        let token = r#"echo '{"Username":"<token>","Secret":"refresh"}'"#;
        assert_eq!(
            answer_of(token).await.expect("an answer"),
            Some(Credential::Identity(Secret::new("refresh")))
        );
        let deaf = r#"exec <&-; echo '{"Username":"a","Secret":"b"}'"#;
        assert_eq!(
            answer_of(deaf).await.expect("an answer"),
            Some(Credential::new("a", "b"))
        );
    }

    #[tokio::test]
    async fn a_helper_that_knows_nothing_is_no_error() {
        for script in [
            "echo credentials not found in native keychain; exit 1",
            "echo '{}'",
            r#"echo '{"Username":"a","Secret":""}'"#,
        ] {
            assert_eq!(answer_of(script).await.expect(script), None, "{script}");
        }
    }

    #[tokio::test]
    async fn a_helper_that_fails_is_told_without_what_it_said() {
        for script in [
            "echo hunter2; exit 1",
            "echo hunter2",
            "echo '{\"Secret\":[\"hunter2\"]}'",
            "yes hunter2",
            "kill -9 $$",
        ] {
            let error = answer_of(script).await.expect_err(script);
            assert!(!format!("{error:?} {error}").contains("hunter2"), "{error}");
        }
        assert!(matches!(
            ask("no-such-helper", "h").await,
            Err(HelperError::Start { .. })
        ));
        assert!(matches!(
            ask("../../bin/sh", "h").await,
            Err(HelperError::Name { .. })
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn a_helper_that_hangs_is_ended() {
        let started = std::time::Instant::now();
        assert!(matches!(
            answer_of("exec sleep 100").await,
            Err(HelperError::Slow { .. })
        ));
        assert!(started.elapsed() < Duration::from_secs(20));
    }
}
