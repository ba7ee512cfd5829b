//! Configures registry access from the flags.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use soci_oci::reference::ImageRef;
use soci_registry::credentials::{
    Chain, Credential, Credentials, DockerConfig, ForRegistry, Secret,
};
use soci_registry::retry::RetryPolicy;
use soci_registry::{HostFolders, Hosts, Identity, Options, Registry, Tls, Trace};

use crate::args::{Global, RegistryAccess};
use crate::output::{self, Progress};

/// No container waits for the answer, so slow registries get more time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Registries check everything that a manifest refers to before they answer.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest password in bytes; tokens of cloud registries have a few thousand.
const MAX_PASSWORD: u64 = 64 << 10;

/// Creates a client for the registries of these images. The credentials in the flags apply to the
/// registry of the first image; docker's configuration provides the others. `trace` receives all
/// requests.
pub(crate) fn registry(
    flags: &RegistryAccess,
    images: &[&ImageRef],
    trace: Option<Trace>,
) -> Result<Registry> {
    let hosts = Hosts {
        plain_http: flags.plain_http,
        folders: HostFolders::new(flags.hosts_dirs.clone()),
        ..Hosts::default()
    };
    let mut sources: Vec<Arc<dyn Credentials>> = Vec::new();
    let credential = credential(flags, io::stdin().lock())?;
    if let (Some(credential), Some(image)) = (credential, images.first()) {
        sources.push(Arc::new(ForRegistry {
            registry: image.host().to_owned(),
            hosts: hosts.own_hosts(image)?,
            credential,
        }));
    }
    sources.push(Arc::new(DockerConfig::from_env()));
    let options = Options {
        user_agent: concat!("soci/", env!("CARGO_PKG_VERSION")).to_owned(),
        hosts,
        tls: tls(flags)?,
        connect_timeout: CONNECT_TIMEOUT,
        head_timeout: HEAD_TIMEOUT,
        retry: RetryPolicy::COMMAND,
        trace,
        ..Options::default()
    };
    Ok(Registry::new(options, Arc::new(Chain(sources)))?)
}

/// With `--debug`, a trace that prints all requests on standard error.
pub(crate) fn debugged(global: &Global, progress: &Progress) -> Option<Trace> {
    let progress = progress.clone();
    global.debug.then(|| {
        Trace::new(move |traffic| progress.aside(|| output::complain(&format!("{traffic}\n"))))
    })
}

/// Runs work that may upload. However it ends (success, error, `--timeout`, interrupt), incomplete
/// uploads are canceled.
pub(crate) async fn uploading<T>(
    global: &Global,
    registry: Option<&Registry>,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let result = crate::signals::unless_interrupted(crate::limited(global.timeout, work)).await;
    if let Some(registry) = registry {
        registry.cancel_uploads().await;
    }
    result
}

fn tls(flags: &RegistryAccess) -> Result<Tls> {
    let identity = match (&flags.cert, &flags.key) {
        (Some(certificate), key) => Some(Identity {
            certificate: certificate.clone(),
            key: key.clone(),
        }),
        (None, None) => None,
        (None, Some(key)) => {
            let missing = || format!("--tlskey {} needs --tlscert as well", key.display());
            return None.with_context(missing);
        }
    };
    Ok(Tls {
        authorities: flags.ca.iter().cloned().collect(),
        identity,
        skip_verify: flags.skip_verify,
    })
}

/// The credentials in the flags: a refresh token, or a user name and a password, which follows the
/// first colon or comes from standard input. No message quotes a value, because a token may be
/// given in place of the name.
fn credential(flags: &RegistryAccess, stdin: impl Read) -> Result<Option<Credential>> {
    if flags.password_stdin {
        return with_password(flags, stdin).map(Some);
    }
    if !flags.refresh.is_empty() {
        let token = Secret::new(flags.refresh.as_str());
        return Ok(Some(Credential::Identity(token)));
    }
    let (name, password) = match flags.user.split_once(':') {
        // A leading colon is part of the name.
        Some((name, password)) if !name.is_empty() => (name, password),
        _ => (flags.user.as_str(), ""),
    };
    if name.is_empty() {
        return Ok(None);
    }
    if password.is_empty() {
        tracing::warn!(
            "--user comes without a password; add --password-stdin and write the password to standard input"
        );
    }
    Ok(Some(Credential::new(name, password)))
}

/// The name from `--user` and the password from the first line of standard input.
fn with_password(flags: &RegistryAccess, stdin: impl Read) -> Result<Credential> {
    if !flags.refresh.is_empty() {
        bail!("--password-stdin and --refresh are two credentials; leave one out");
    }
    if flags.user.is_empty() {
        bail!("--password-stdin needs the name of the user: --user NAME");
    }
    if flags.user.contains(':') {
        bail!("--password-stdin: --user has a password already; leave it and its colon out");
    }
    let mut password = String::new();
    stdin
        .take(MAX_PASSWORD)
        .read_to_string(&mut password)
        .context("read the password from standard input")?;
    let password = password.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        bail!("--password-stdin: there is no password on standard input");
    }
    Ok(Credential::new(flags.user.as_str(), password))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(user: &str, refresh: &str) -> Option<Credential> {
        let flags = RegistryAccess {
            user: user.to_owned(),
            refresh: refresh.to_owned(),
            ..RegistryAccess::default()
        };
        credential(&flags, io::empty()).expect("a credential or none")
    }

    #[test]
    fn a_user_ends_at_the_first_colon_that_is_not_the_first_character() {
        assert_eq!(of("", ""), None);
        assert_eq!(
            of("AWS:se:cret", ""),
            Some(Credential::new("AWS", "se:cret"))
        );
        assert_eq!(of("me", ""), Some(Credential::new("me", "")));
        assert_eq!(of(":me", ""), Some(Credential::new(":me", "")));
        let token = Credential::Identity(Secret::new("token"));
        assert_eq!(of("me:pw", "token"), Some(token));
    }

    #[test]
    fn a_password_may_come_on_standard_input() {
        let of = |user: &str, refresh: &str, stdin: &str| {
            let flags = RegistryAccess {
                user: user.to_owned(),
                refresh: refresh.to_owned(),
                password_stdin: true,
                ..RegistryAccess::default()
            };
            credential(&flags, stdin.as_bytes()).map_err(|error| error.to_string())
        };
        let me = Ok(Some(Credential::new("me", "se:cret ")));
        for stdin in ["se:cret ", "se:cret \n", "se:cret \r\n"] {
            assert_eq!(of("me", "", stdin), me);
        }
        for (user, refresh, stdin) in [
            ("", "", "hunter2"),
            ("me", "", "\n"),
            ("me:hunter2", "", "hunter2"),
            ("me", "hunter2", "hunter2"),
        ] {
            let error = of(user, refresh, stdin).expect_err(user);
            assert!(error.starts_with("--password-stdin") && !error.contains("hunter2"));
        }
    }

    #[test]
    fn a_key_without_a_certificate_is_refused() {
        let flags = RegistryAccess {
            key: Some("client.key".into()),
            ..RegistryAccess::default()
        };
        let error = tls(&flags).unwrap_err();
        assert_eq!(
            error.to_string(),
            "--tlskey client.key needs --tlscert as well"
        );
    }
}
