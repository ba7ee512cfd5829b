//! Images converted in place: a real registry behind TLS with a password, and `crane` as another
//! client.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use soci_tests::image::noise;
use soci_tests::process::{Finished, Program};
use soci_tests::registry::{LOGIN, TlsRegistry};
use soci_tests::tar::{directory, file};
use soci_tests::{Image, registry};

/// A registry with an image, and the credentials for it.
struct Case {
    folder: tempfile::TempDir,
    registry: TlsRegistry,
}

impl Case {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let registry = TlsRegistry::with_password(&folder.path().join("registry"))?;
        let auth = "Y2Fyb2w6c2VzYW1l"; // As `docker login` encodes the name and the password.
        let host = registry.reference("");
        let host = host.trim_end_matches('/');
        let config = format!(r#"{{"auths":{{"{host}":{{"auth":"{auth}"}}}}}}"#);
        fs::create_dir(folder.path().join("docker"))?;
        fs::write(folder.path().join("docker/config.json"), config)?;
        let case = Self { folder, registry };
        let image = Image::of(&[
            &[directory("data"), file("data/big", noise(31, 3 << 20))],
            &[file("small", "small\n")],
        ])?;
        image.write_layout(&case.path("in"))?;
        Ok(case)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn docker(&self, name: &str) -> String {
        format!("docker://{}", self.registry.reference(name))
    }

    fn convert(&self, flags: &[&str], from: &str, to: &str) -> Result<Finished> {
        let fixed = ["convert", "--standalone", "--min-layer-size", "100000"];
        Program::ours("soci")?
            .args(fixed.iter().chain(flags).copied().chain([from, to]))
            .env("HOME", self.path("nobody"))
            .finish()
    }

    fn crane(&self, words: &[&str]) -> Result<String> {
        Program::tool("crane")?
            .args(words)
            .env("SSL_CERT_FILE", self.registry.authority())
            .env("DOCKER_CONFIG", self.path("docker"))
            .succeed()
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("test paths are text")
}

#[test]
fn an_image_behind_tls_and_a_password_is_converted_where_it_is() -> Result<()> {
    let case = Case::new()?;
    ensure!(case.registry.reference("x").starts_with(registry::HOST));
    let authority = text(case.registry.authority())?;
    let login = format!("{}:{}", LOGIN.0, LOGIN.1);
    let access = ["--tlscacert", authority, "--user", login.as_str()];
    let (input, source) = (case.path("in"), case.docker("app:plain"));
    case.crane(&["push", text(&input)?, &case.registry.reference("app:plain")])?;

    let done = case.convert(&access, &source, &case.docker("app:soci"))?;
    ensure!(done.code == Some(0), "{}", done.stderr);
    let done = case.convert(&access, &source, &case.docker("other/app:soci"))?;
    ensure!(done.code == Some(0), "{}", done.stderr);
    let layout = case.path("layout");
    let done = case.convert(&access, &source, &format!("oci:{}", text(&layout)?))?;
    ensure!(done.code == Some(0), "{}", done.stderr);

    let digest = case.crane(&["digest", &case.registry.reference("app:soci")])?;
    let other = case.crane(&["digest", &case.registry.reference("other/app:soci")])?;
    let index: serde_json::Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
    assert_eq!(digest, other);
    assert_eq!(
        index["manifests"][0]["digest"].as_str(),
        Some(digest.trim())
    );

    // Another client finds every blob, with the bytes that match its digest.
    let reference = case.registry.reference("other/app:soci");
    let pulled = case.path("pulled");
    case.crane(&["pull", "--format", "oci", &reference, text(&pulled)?])?;
    for entry in fs::read_dir(pulled.join("blobs/sha256"))? {
        let entry = entry?;
        let bytes = fs::read(entry.path())?;
        let name = format!("sha256:{}", entry.file_name().to_string_lossy());
        assert_eq!(soci_tests::image::digest(&bytes), name);
    }
    case.crane(&["config", "--platform", "linux/amd64", &reference])?;
    Ok(())
}

#[test]
fn wrong_credentials_are_reported_in_one_line() -> Result<()> {
    let case = Case::new()?;
    let authority = text(case.registry.authority())?;
    let input = case.path("in");
    let (input, target) = (text(&input)?, case.docker("app:1"));
    for (flags, said) in [
        (&["--tlscacert", authority][..], "password"),
        (
            &["--tlscacert", authority, "--user", "carol:wrong"],
            "refused",
        ),
        (&["--user", "carol:sesame"], "UnknownIssuer"),
        (&["--tlscacert", "/no/such/file"], "/no/such/file"),
    ] {
        let done = case.convert(flags, input, &target)?;
        ensure!(
            done.code == Some(1) && done.stderr.contains(said),
            "{flags:?}: {}",
            done.stderr
        );
        ensure!(!done.stderr.contains("sesame"), "{}", done.stderr);
        ensure!(done.stderr.lines().count() == 1, "{}", done.stderr);
    }
    let config = text(&case.path("docker"))?.to_owned();
    let done = Program::ours("soci")?
        .args([
            "convert",
            "--standalone",
            "--min-layer-size",
            "0",
            "-k",
            input,
            &target,
        ])
        .env("DOCKER_CONFIG", config)
        .succeed();
    done.map(drop)
}
