//! `soci push` with a real containerd, to a real registry and to one that lists referrers.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use soci_registry::testing::{Seen, Setup, TestRegistry};
use soci_tests::image::{digest, noise};
use soci_tests::node::NodeOptions;
use soci_tests::process::{Finished, Program, binary};
use soci_tests::tar::file;
use soci_tests::{Image, Node};
use tempfile::TempDir;

mod modes;
mod real;
mod trouble;

/// A containerd to which images are added without a registry.
struct Bench {
    node: Node,
    folder: TempDir,
}

impl Bench {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let options = NodeOptions {
            oracle_only: true,
            ..NodeOptions::default()
        };
        let node = Node::start(&folder.path().join("node"), options)?;
        Ok(Self { node, folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the image as a layout with this name and imports it into containerd.
    fn import(&self, image: &Image, reference: &str) -> Result<PathBuf> {
        let layout = self.path("layout");
        if layout.exists() {
            fs::remove_dir_all(&layout)?;
        }
        image.write_layout(&layout)?;
        let path = layout.join("index.json");
        let mut index: Value = serde_json::from_slice(&fs::read(&path)?)?;
        index["manifests"][0]["annotations"] = json!({"io.containerd.image.name": reference});
        fs::write(&path, serde_json::to_vec(&index)?)?;
        self.import_layout(&layout)?;
        Ok(layout)
    }

    fn import_layout(&self, layout: &Path) -> Result<()> {
        let archive = self.path("image.tar");
        Program::at(Path::new("tar"))
            .args([
                Path::new("-cf"),
                &archive,
                Path::new("-C"),
                layout,
                Path::new("."),
            ])
            .succeed()?;
        let import = [
            "images",
            "import",
            "--local",
            "--no-unpack",
            "--all-platforms",
        ];
        self.node.ctr(import)?.args([&archive]).succeed()?;
        Ok(())
    }

    /// Creates an index of every layer. zTOCs depend on the span size.
    fn create(&self, reference: &str, span_size: &str) -> Result<()> {
        let create = ["create", "--min-layer-size", "0", "--span-size", span_size];
        self.node.soci(create)?.args([reference]).succeed()?;
        Ok(())
    }

    fn push(&self, arguments: &[&str]) -> Result<Finished> {
        self.node.soci(["push"])?.args(arguments).finish()
    }

    /// Pushes and returns the output.
    fn pushed(&self, arguments: &[&str]) -> Result<String> {
        self.node.soci(["push"])?.args(arguments).succeed()
    }
}

fn image(seed: u64) -> Result<Image> {
    Image::of(&[
        &[file("big", noise(seed, 300_000))],
        &[file("small", "small\n")],
    ])
}

/// The digest of the manifest in a layout with one image.
fn manifest_of(layout: &Path) -> Result<String> {
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
    let digest = index["manifests"][0]["digest"].as_str();
    Ok(digest.context("a digest")?.to_owned())
}

fn crane_push(layout: &Path, reference: &str) -> Result<()> {
    let (push, insecure) = (Path::new("push"), Path::new("--insecure"));
    Program::tool("crane")?
        .args([push, insecure, layout, Path::new(reference)])
        .succeed()
        .map(drop)
}

/// A reference in a test registry.
fn name(registry: &TestRegistry, rest: &str) -> String {
    format!("{}/{rest}", registry.host())
}

/// Number of requests that change something.
fn writes(registry: &TestRegistry) -> Vec<Seen> {
    let mut seen = registry.seen();
    seen.retain(|seen| !matches!(seen.method.as_str(), "GET" | "HEAD"));
    seen
}

/// A manifest as the registry returns it.
fn manifest(registry: &TestRegistry, repository: &str, object: &str) -> Result<Value> {
    let (_, bytes) = registry
        .manifest(repository, object)
        .context("a manifest")?;
    Ok(serde_json::from_slice(&bytes)?)
}

/// Checks the output of the first push of an index, and returns the digest of the index.
fn check_lines(printed: &str, registry_has: &[&str]) -> Result<String> {
    let lines: Vec<&str> = printed.lines().collect();
    ensure!(lines.len() > 4, "{printed}");
    assert_eq!(
        lines[0],
        "checking if a soci index already exists in remote repository..."
    );
    let index = lines[1].strip_prefix("pushing soci index with digest: ");
    let index = index.context("the second line")?.to_owned();
    assert_eq!(lines[2], format!("pushing artifact with digest: {index}"));
    let last = format!("successfully pushed artifact with digest: {index}");
    assert_eq!(lines.last(), Some(&last.as_str()));
    let of = |prefix: &str| -> Vec<&str> {
        let mut of: Vec<_> = lines
            .iter()
            .filter_map(|line| line.strip_prefix(prefix))
            .collect();
        of.sort_unstable();
        of
    };
    assert_eq!(of("skipped artifact with digest: "), registry_has);
    let pushed = of("successfully pushed artifact with digest: ");
    assert_eq!(of("pushing artifact with digest: "), pushed);
    assert_eq!(lines.len(), 2 + registry_has.len() + 2 * pushed.len());
    Ok(index)
}

/// Runs a command as nerdctl does: standard output by lines until its end, then standard error.
fn as_nerdctl(program: &Path, arguments: &[&str]) -> Result<(bool, Vec<String>, String)> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdout = String::new();
    let pipe = child.stdout.as_mut().context("a pipe")?;
    pipe.read_to_string(&mut stdout)?;
    let mut stderr = String::new();
    let pipe = child.stderr.as_mut().context("a pipe")?;
    pipe.read_to_string(&mut stderr)?;
    let lines: Vec<String> = stdout.lines().map(str::to_owned).collect();
    assert!(lines.iter().all(|line| line.len() < 64 << 10));
    Ok((child.wait()?.success(), lines, stderr))
}

#[test]
fn nerdctl_pushes_an_index_after_the_image() -> Result<()> {
    let bench = Bench::new()?;
    let registry = TestRegistry::start();
    let reference = name(&registry, "app:1");
    let layout = bench.import(&image(1)?, &reference)?;
    crane_push(&layout, &reference)?;
    bench.create(&reference, "65536")?;
    registry.forget_seen();
    let socket = bench.node.containerd_socket().display().to_string();
    let root = bench.node.folder().join("soci-cli").display().to_string();
    let folders = "/etc/containerd/certs.d,/etc/docker/certs.d";
    let call = [
        "--address",
        &socket,
        "--namespace",
        "default",
        "push",
        "--platform",
        "linux/amd64",
        "--skip-verify",
        "--plain-http",
        "--hosts-dir",
        folders,
        &reference,
        // Only so that the test has its own state directory.
        "--root",
        &root,
    ];
    let (succeeded, lines, stderr) = as_nerdctl(&binary("soci")?, &call)?;
    ensure!(succeeded, "{stderr}");
    assert_eq!(stderr, "");
    let subject = manifest_of(&layout)?;
    let index = check_lines(&lines.join("\n"), &[&subject])?;
    let pushed = manifest(&registry, "app", &index)?;
    assert_eq!(pushed["subject"]["digest"], subject.as_str());
    assert_eq!(registry.tags("app"), ["1"]);

    registry.forget_seen();
    let (succeeded, lines, _) = as_nerdctl(&binary("soci")?, &call)?;
    assert!(succeeded);
    assert_eq!(
        lines,
        [
            "checking if a soci index already exists in remote repository...".to_owned(),
            format!(
                "[WARN] soci index found in remote repository with digest: {index}: pushing index anyway"
            ),
            format!("pushing soci index with digest: {index}"),
            format!("skipped artifact with digest: {index}"),
        ]
    );
    assert!(writes(&registry).is_empty(), "{:#?}", writes(&registry));
    Ok(())
}

#[test]
fn an_image_that_its_registry_lacks_is_copied_from_several_sources() -> Result<()> {
    let bench = Bench::new()?;
    let registry = TestRegistry::start();
    let base = name(&registry, "base:1");
    let layout = bench.import(&image(2)?, "unused.test/a:1")?;
    crane_push(&layout, &base)?;
    let pull = ["images", "pull", "--plain-http", "--local", &base];
    bench.node.ctr(pull)?.succeed()?;
    let app = name(&registry, "team/app:1");
    bench.node.ctr(["images", "tag", &base, &app])?.succeed()?;
    bench.create(&base, "65536")?;
    bench.pushed(&["--plain-http", &base])?;
    registry.forget_seen();
    let printed = bench.pushed(&["--plain-http", "--json", &app])?;
    let report: Value = serde_json::from_str(&printed)?;
    let blobs = report["indexes"][0]["blobs"].as_array().context("blobs")?;
    let of = |outcome: &str| {
        blobs
            .iter()
            .filter(|blob| blob["outcome"] == outcome)
            .count()
    };
    // Two layers, their zTOCs, and the image's configuration. The index's `{}` is unknown
    // everywhere.
    assert_eq!(
        (of("mounted"), of("pushed"), of("skipped")),
        (5, 3, 0),
        "{report:#}"
    );
    assert_eq!(report["indexes"][0]["listed_by"], "registry");
    let sent: u64 = registry.seen().iter().map(|seen| seen.received).sum();
    assert_eq!(report["bytes"].as_u64(), Some(sent));
    Ok(())
}

#[test]
fn an_image_that_is_complete_nowhere_is_reported() -> Result<()> {
    let bench = Bench::new()?;
    let registry = TestRegistry::with(Setup::default());
    let reference = name(&registry, "app:1");
    let image = image(3)?;
    bench.import(&image, &reference)?;
    bench.create(&reference, "65536")?;
    let layer = image.layers[0].digest();
    bench.node.ctr(["content", "rm", &layer])?.succeed()?;
    let pushed = bench.push(&["--plain-http", &reference])?;
    assert_eq!(pushed.code, Some(1));
    let error = format!(
        "soci: error pushing graph to remote: blob {layer}: not found (push the image first, or pull all of it)\n"
    );
    assert_eq!(pushed.stderr, error);
    assert!(registry.tags("app").is_empty());
    Ok(())
}
