//! Docker credential helpers: `docker-credential-<name> get`.
//!
//! The helper reads the server name from standard input and writes a JSON document to standard
//! output. The user `<token>` means that the secret is an identity token. If the helper has no
//! credential, it prints a fixed message to standard output and exits with an error status.

use std::{ffi::OsString, process::Command, time::Duration};

use serde::Deserialize;

use super::{
    Credential, Secret,
    program::{self, Group, ProgramError},
};

/// Timeout for a helper. Some ask the user to unlock a keychain, and some contact a cloud service.
const PATIENCE: Duration = Duration::from_secs(30);
/// The message of helpers that have no credential for the server.
const NOT_FOUND: &str = "credentials not found in native keychain";
/// The user name that marks the secret as an identity token.
const TOKEN_USER: &str = "<token>";

/// Why a helper returned no credential. Never contains the helper's output, which may be a secret.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelperError {
    #[error("{name:?} is no name of a credential helper")]
    Name { name: String },
    #[error(transparent)]
    Program(#[from] ProgramError),
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
    let mut command = Command::new(&program);
    command.arg("get");
    let answer = match program::run(command, Group::Shared, server.as_bytes(), PATIENCE).await {
        Ok(answer) => answer,
        Err(ProgramError::Failed { output, .. }) if output.is(NOT_FOUND) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let Ok(Answer { username, secret }) = serde_json::from_slice(answer.reveal()) else {
        return Err(HelperError::Answer { program });
    };
    Ok(match username.as_str() {
        _ if secret.is_empty() => None,
        TOKEN_USER | "" => Some(Credential::Identity(Secret::new(secret))),
        user => Some(Credential::new(user, &secret)),
    })
}

#[cfg(test)]
mod tests {
    use std::{io, os::unix::fs::PermissionsExt as _};

    use super::*;

    async fn answer_of(script: &str) -> Result<Option<Credential>, HelperError> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("helper");
        std::fs::write(&path, format!("#!/bin/sh\n{script}")).expect("write the script");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        loop {
            match ask_program(path.clone().into(), "r.example:5000").await {
                // A concurrent test's fork may hold the script open for writing for a moment.
                Err(HelperError::Program(ProgramError::Start { source, .. }))
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
            Err(HelperError::Program(ProgramError::Start { .. }))
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
            Err(HelperError::Program(ProgramError::Slow { .. }))
        ));
        assert!(started.elapsed() < Duration::from_secs(20));
    }
}
