//! TLS with a certificate authority that is configured only in the environment.

use std::process::Command;

use soci_oci::media_type;
use soci_registry::testing::{Setup, TestRegistry};

use crate::{client, everything_said, quick};

/// Set in the child process of these tests: the expected result.
const EXPECT: &str = "SOCI_TEST_TLS_EXPECT";

fn secure() -> TestRegistry {
    let registry = TestRegistry::with(Setup {
        tls: true,
        ..Setup::default()
    });
    registry.add_manifest("app", Some("v1"), media_type::OCI_MANIFEST, &b"{}"[..]);
    registry
}

/// Runs one test of this binary in a child process with this environment. The environment is read
/// once and must not change during other tests.
fn in_a_process_with(environment: &[(&str, &std::path::Path)], expect: &str) {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command
        .args(["--exact", "tls::a_process_with_its_own_environment"])
        .env_remove("SSL_CERT_FILE")
        .env_remove("SSL_CERT_DIR")
        .env(EXPECT, expect)
        .envs(environment.iter().copied());
    let output = command.output().expect("run it");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[tokio::test]
async fn a_process_with_its_own_environment() {
    let Ok(expect) = std::env::var(EXPECT) else {
        return; // Runs only as a child process of the other tests in this file.
    };
    let registry = secure();
    let found = client(quick())
        .resolve(&registry.reference("app", "v1"))
        .await;
    match (expect.as_str(), found) {
        ("trusted", Ok(_)) => {}
        ("unknown", Err(error)) => {
            let said = everything_said(&error);
            assert!(
                !error.is_transient() && said.contains("UnknownIssuer"),
                "{said}"
            );
        }
        (_, found) => panic!("expected {expect}, got {found:?}"),
    }
}

#[test]
fn ssl_cert_file_adds_an_authority() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("ca.pem");
    std::fs::write(&path, TestRegistry::ca_pem()).expect("write the authority");
    in_a_process_with(&[("SSL_CERT_FILE", &path)], "trusted");
}

#[test]
fn ssl_cert_dir_adds_every_authority_in_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("any-name"), TestRegistry::ca_pem()).expect("write it");
    in_a_process_with(&[("SSL_CERT_DIR", folder.path())], "trusted");
}

#[test]
fn without_them_the_authority_is_unknown() {
    in_a_process_with(&[], "unknown");
}

#[test]
fn no_authority_at_all_is_no_obstacle_to_start() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let nothing = folder.path().join("nothing");
    in_a_process_with(
        &[("SSL_CERT_FILE", &nothing), ("SSL_CERT_DIR", folder.path())],
        "unknown",
    );
}
