//! Runs the scripts of `docs/ci.md` unchanged, with a registry that requires a password and with the
//! environment that the CI systems give to them.

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

/// The environment that GitHub Actions gives to a job: what its `env:` block says. The registry of
/// the page is replaced by that of the test.
fn github(yaml: &str, registry: &TestRegistry, password: &str) -> Vec<(String, String)> {
    let (_, block) = yaml.split_once("\n    env:\n").expect("an environment");
    let lines = block.lines().take_while(|line| line.starts_with("      "));
    let evaluate = |text: &str| {
        let text = text
            .replace("${{ github.repository }}", "team/app")
            .replace("${{ github.ref_name }}", "1")
            .replace("${{ github.actor }}", USER)
            .replace("${{ secrets.GITHUB_TOKEN }}", password);
        assert!(!text.contains("${{"), "this test does not know {text:?}");
        text
    };
    let mut environment = Vec::new();
    for line in lines {
        let (name, value) = line.trim().split_once(": ").expect(line);
        let value = evaluate(value).replace("ghcr.io/", &format!("{}/", registry.host()));
        environment.push((name.to_owned(), value));
    }
    environment
}

/// The variables that GitLab sets for a job of a project with a container registry.
fn gitlab(registry: &TestRegistry, password: &str) -> Vec<(String, String)> {
    let host = registry.host();
    let image = format!("{host}/team/app");
    let variables = [
        ("CI_REGISTRY", host.as_str()),
        ("CI_REGISTRY_IMAGE", &image),
        ("CI_REGISTRY_USER", USER),
        ("CI_REGISTRY_PASSWORD", password),
        ("CI_COMMIT_TAG", "1"),
    ];
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    variables.map(owned).into()
}

/// Runs a script as a CI system does. Unset variables are errors.
fn shell(script: &str, environment: &[(String, String)], folder: &Path) -> Output {
    let programs = Path::new(env!("CARGO_BIN_EXE_soci")).parent().unwrap();
    let ca = folder.join("ca.pem");
    fs::write(&ca, TestRegistry::ca_pem()).unwrap();
    Command::new("sh")
        .args(["-eu", "-c", script])
        .env_clear()
        .env("CI", "true")
        .env("PATH", format!("{}:/usr/bin:/bin", programs.display()))
        .env("HOME", folder)
        .env("TMPDIR", folder)
        .env("SSL_CERT_FILE", ca)
        .envs(environment.iter().cloned())
        .output()
        .unwrap()
}

/// Runs a job up to its first failure, which returns the script's output.
fn job(yaml: &str, registry: &TestRegistry, password: &str) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let environment = match yaml.contains("steps:") {
        true => github(yaml, registry, password),
        false => gitlab(registry, password),
    };
    for script in scripts(yaml) {
        let output = shell(&script, &environment, folder.path());
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
        let converted = tagged(&registry, "team/app", "1-soci");
        assert!(converted.is_some());
        assert_ne!(converted, tagged(&registry, "team/app", "1"));
        // The page says that a repeated job gives the same digest.
        assert_eq!(job(yaml, &registry, PASSWORD), Ok(()));
        assert_eq!(tagged(&registry, "team/app", "1-soci"), converted);
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
