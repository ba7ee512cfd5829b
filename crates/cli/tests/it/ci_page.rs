//! Runs the scripts of `docs/ci.md` unchanged, with a registry that requires a password.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use soci_registry::testing::{Access, Setup, TestRegistry};

use crate::pages::{blocks, page};
use crate::site::{layer, layout, publish, tagged};

const USER: &str = "ci-user";
/// Contains characters that are special in a shell or in JSON.
const PASSWORD: &str = r#"hunter2 $(id)'"\ %s"#;
/// Larger than the default `--min-layer-size`.
const LAYER: usize = 11 << 20;

/// The scripts of a YAML block, each of which runs in its own shell.
fn scripts(yaml: &str) -> Vec<String> {
    let depth = |line: &str| line.len() - line.trim_start().len();
    let mut scripts = Vec::new();
    let mut lines = yaml.lines().peekable();
    while let Some(line) = lines.next() {
        if line.trim() != "- |" && line.trim() != "run: |" {
            let is_script = line.trim_start().starts_with("run:");
            assert!(!is_script, "this test does not read {line:?}");
            continue;
        }
        let margin = depth(lines.peek().unwrap());
        let mut script = String::new();
        while let Some(next) = lines.next_if(|next| depth(next) > depth(line)) {
            script += &next[margin..];
            script.push('\n');
        }
        assert!(!script.contains("${{"), "values come from the environment");
        scripts.push(script);
    }
    assert!(!scripts.is_empty(), "{yaml}");
    // GitLab runs all scripts of a job in one shell.
    match yaml.contains("steps:") {
        true => scripts,
        false => vec![scripts.concat()],
    }
}

/// A registry with an image that only [`USER`] may access.
fn registry() -> TestRegistry {
    let registry = TestRegistry::with(Setup {
        access: Access::Basic {
            user: USER.to_owned(),
            password: PASSWORD.to_owned(),
        },
        tls: true,
        ..Setup::default()
    });
    let folder = tempfile::tempdir().unwrap();
    let manifest = layout(folder.path(), &[layer(1, LAYER), layer(2, 100)]);
    publish(folder.path(), &manifest, &registry, "team/app");
    registry
}

/// Runs a script as a CI system does. Unset variables are errors.
fn shell(script: &str, registry: &TestRegistry, password: &str, folder: &Path) -> Output {
    let programs = Path::new(env!("CARGO_BIN_EXE_soci")).parent().unwrap();
    let (ca, host) = (folder.join("ca.pem"), registry.host());
    fs::write(&ca, TestRegistry::ca_pem()).unwrap();
    Command::new("sh")
        .args(["-eu", "-c", script])
        .env_clear()
        .env("PATH", format!("{}:/usr/bin:/bin", programs.display()))
        .env("HOME", folder)
        .env("TMPDIR", folder)
        .env("SSL_CERT_FILE", ca)
        .env("IMAGE", format!("{host}/team/app:1"))
        .env("REGISTRY_USER", USER)
        .env("REGISTRY_PASSWORD", password)
        .env("CI_REGISTRY", &host)
        .env("CI_REGISTRY_IMAGE", format!("{host}/team/app"))
        .env("CI_REGISTRY_USER", USER)
        .env("CI_REGISTRY_PASSWORD", password)
        .env("CI_COMMIT_TAG", "1")
        .output()
        .unwrap()
}

/// Runs a job up to its first failure, which returns the script's output.
fn job(yaml: &str, registry: &TestRegistry, password: &str) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    for script in scripts(yaml) {
        let output = shell(&script, registry, password, folder.path());
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        assert!(!said.contains("hunter2"), "{said}");
        if !output.status.success() {
            return Err(said);
        }
    }
    Ok(())
}

#[test]
fn the_jobs_convert_an_image_with_a_password_from_the_environment() {
    let page = page("ci.md");
    let jobs = blocks(&page, "yaml");
    assert_eq!(jobs.len(), 2);
    for yaml in jobs {
        let registry = registry();
        assert_eq!(job(yaml, &registry, PASSWORD), Ok(()));
        let converted = tagged(&registry, "team/app", "1-soci").expect("the copy");
        assert_ne!(Some(converted), tagged(&registry, "team/app", "1"));
    }
}

#[test]
fn the_jobs_fail_with_a_wrong_password() {
    for yaml in blocks(&page("ci.md"), "yaml") {
        let registry = registry();
        let said = job(yaml, &registry, "hunter2").unwrap_err();
        let seen = registry.seen();
        let refused = seen.iter().all(|seen| seen.status == 401);
        assert!(refused && !seen.is_empty(), "{said}");
        assert_eq!(registry.tags("team/app"), ["1"]);
    }
}
