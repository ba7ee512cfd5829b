//! The packages, installed, upgraded and removed by dpkg and rpm in a Debian made by debootstrap.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use soci_tests::process::{Program, binary, repository};
use tempfile::TempDir;

/// What the packages install on every distribution.
const FILES: &[&str] = &[
    "usr/bin/soci",
    "usr/bin/soci-snapshotter-grpc",
    "usr/lib/systemd/system/soci-snapshotter.service",
    "usr/lib/systemd/system/soci-snapshotter.socket",
    "usr/lib/udev/rules.d/59-soci-snapshotter.rules",
    "usr/share/man/man1/soci.1.gz",
    "usr/share/man/man8/soci-snapshotter-grpc.8.gz",
    "usr/share/bash-completion/completions/soci",
    "etc/soci-snapshotter-grpc/config.toml",
];
const CONFIG: &str = "etc/soci-snapshotter-grpc/config.toml";
/// A systemd that records what it is asked, and has our service running.
const SYSTEMCTL: &str = "#!/bin/sh\necho \"$*\" >>/systemctl.log\n\
    case \"$*\" in *is-enabled*) exit 1 ;; esac\n";

/// The Debian in the first layer of the demo image, with a systemd that records calls.
struct Machine {
    folder: TempDir,
}

impl Machine {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let layer = first_layer(&repository().join("target/image/demo"))?;
        let machine = Self { folder };
        Program::at(Path::new("tar"))
            .args([Path::new("-xzf"), &layer, Path::new("-C"), machine.root()])
            // Half of its bytes, which nothing here reads.
            .args(
                ["python3*", "usr/share/locale", "usr/share/doc"]
                    .map(|path| format!("--exclude={path}")),
            )
            .succeed()?;
        // What systemd makes at boot.
        fs::create_dir_all(machine.root().join("run/systemd/system"))?;
        for name in ["systemctl", "udevadm"] {
            let path = machine.root().join("usr/bin").join(name);
            fs::write(&path, SYSTEMCTL)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        Ok(machine)
    }

    fn root(&self) -> &Path {
        self.folder.path()
    }

    /// Calls of systemd since the last time.
    fn calls(&self) -> Vec<String> {
        let path = self.root().join("systemctl.log");
        let text = fs::read_to_string(&path).unwrap_or_default();
        // It does not exist if there were none.
        let _ = fs::remove_file(path);
        text.lines().map(str::to_owned).collect()
    }

    /// Paths with our name, without the records of package managers.
    fn ours(&self) -> Result<BTreeSet<String>> {
        let found = Program::at(Path::new("find"))
            .args([self.root()])
            .args([
                "-path",
                "*/var/lib/dpkg",
                "-prune",
                "-o",
                "-path",
                "*/rpm",
                "-prune",
            ])
            .args(["-o", "-name", "*soci*", "-printf", "%P\n"])
            .succeed()?;
        Ok(found.lines().map(str::to_owned).collect())
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        Program::at(Path::new("chroot"))
            .args([self.root().as_os_str(), program.as_ref()])
            .args(arguments)
            .succeed()
    }
}

fn first_layer(layout: &Path) -> Result<PathBuf> {
    let blob = |digest: &Value| -> Result<PathBuf> {
        let digest = digest.as_str().context("a digest")?;
        Ok(layout.join("blobs").join(digest.replace(':', "/")))
    };
    let json = |path: &Path| -> Result<Value> {
        let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        Ok(serde_json::from_slice(&text)?)
    };
    let index = json(&layout.join("index.json"))?;
    let manifest = json(&blob(&index["manifests"][0]["digest"])?)?;
    blob(&manifest["layers"][0]["digest"])
}

/// Builds a package of the programs under test.
fn built(format: &str, out: &Path) -> Result<PathBuf> {
    built_as(format, out, env!("CARGO_PKG_VERSION"))
}

/// The same with another version.
fn built_as(format: &str, out: &Path, version: &str) -> Result<PathBuf> {
    let program = binary("soci")?;
    let binaries = program.parent().context("a folder")?;
    let printed = Program::at(&repository().join("scripts/package"))
        .args([format, "--fast", "--binaries"])
        .args([binaries, Path::new("--out"), out])
        .env("SOCI_VERSION", version)
        .succeed()?;
    Ok(PathBuf::from(printed.trim_end()))
}

fn assert_installed(machine: &Machine) -> Result<()> {
    for file in FILES {
        ensure!(machine.root().join(file).is_file(), "{file} is missing");
    }
    let version = machine.run("soci-snapshotter-grpc", &["--version"])?;
    ensure!(
        version.starts_with("soci-snapshotter-grpc version "),
        "{version}"
    );
    ensure!(
        machine
            .run("soci", &["--version"])?
            .starts_with("soci version ")
    );
    let unit = machine
        .root()
        .join("usr/lib/systemd/system/soci-snapshotter.service");
    let unit = fs::read_to_string(unit)?;
    ensure!(
        unit.contains("ExecStart=/usr/bin/soci-snapshotter-grpc "),
        "{unit}"
    );
    let checked = Program::at(&machine.root().join("usr/bin/soci-snapshotter-grpc"))
        .args(["check", "--only", "config", "--config"])
        .args([machine.root().join(CONFIG)])
        .finish()?;
    ensure!(
        !checked.stdout.contains("without effect"),
        "{}",
        checked.stdout
    );
    Ok(())
}

#[test]
fn the_debian_package_is_installed_upgraded_and_removed() -> Result<()> {
    let machine = Machine::new()?;
    let before = machine.ours()?;
    let package = built("deb", machine.root())?;
    let dpkg = |action: &str, what: &Path| {
        Program::at(Path::new("dpkg"))
            .args([format!("--root={}", machine.root().display())])
            .args([action.as_ref(), what.as_os_str()])
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("DEBIAN_FRONTEND", "noninteractive")
            .succeed()
    };
    let name = Path::new("soci-snapshotter");
    let said = dpkg("-i", &package)?;
    ensure!(said.contains("systemctl enable --now"), "{said}");
    assert_installed(&machine)?;
    let calls = machine.calls();
    ensure!(calls.contains(&"daemon-reload".to_owned()), "{calls:?}");
    ensure!(
        !calls.iter().any(|call| call.contains("start")),
        "{calls:?}"
    );
    // An upgrade keeps what the operator changed, and replaces the worker only.
    fs::write(machine.root().join(CONFIG), "max_concurrency = 7\n")?;
    dpkg("-i", &package)?;
    let calls = machine.calls();
    ensure!(
        calls.contains(&"reload soci-snapshotter.service".to_owned()),
        "{calls:?}"
    );
    ensure!(
        !calls
            .iter()
            .any(|call| call.contains("stop") || call.contains("start")),
        "{calls:?}"
    );
    ensure!(fs::read_to_string(machine.root().join(CONFIG))? == "max_concurrency = 7\n");
    dpkg("-r", name)?;
    let calls = machine.calls();
    ensure!(
        calls[0].starts_with("stop soci-snapshotter.service"),
        "{calls:?}"
    );
    ensure!(
        machine.root().join(CONFIG).exists(),
        "the configuration stays"
    );
    fs::create_dir_all(
        machine
            .root()
            .join("var/lib/soci-snapshotter-grpc/layers-2"),
    )?;
    dpkg("-P", name)?;
    fs::remove_file(package)?;
    let left = machine.ours()?;
    ensure!(left == before, "{:?}", left.difference(&before));
    Ok(())
}

#[test]
fn the_rpm_package_is_installed_upgraded_and_removed() -> Result<()> {
    let machine = Machine::new()?;
    let before = machine.ours()?;
    let package = built("rpm", machine.root())?;
    let rpm = |arguments: &[&str], what: &Path| {
        Program::at(Path::new("rpm"))
            .args(["--root".as_ref(), machine.root().as_os_str()])
            .args(arguments)
            .args([what])
            .succeed()
    };
    let header = rpm(
        &["-qp", "--qf", "%{NAME} %{ARCH} %{LICENSE} %{OS}\n"],
        &package,
    )?;
    ensure!(
        header.starts_with("soci-snapshotter ") && header.ends_with(" Apache-2.0 linux\n"),
        "{header}"
    );
    ensure!(rpm(&["-qpc"], &package)? == format!("/{CONFIG}\n"));
    // The libraries are there, but rpm's database does not know Debian's packages.
    rpm(&["-i", "--nodeps", "--ignorearch"], &package)?;
    assert_installed(&machine)?;
    let calls = machine.calls();
    ensure!(calls.contains(&"daemon-reload".to_owned()), "{calls:?}");
    ensure!(
        !calls.iter().any(|call| call.contains("start")),
        "{calls:?}"
    );
    // An upgrade keeps what the operator changed, and replaces the worker only.
    fs::write(machine.root().join(CONFIG), "max_concurrency = 7\n")?;
    let newer = built_as("rpm", machine.root(), "99.0.0")?;
    rpm(&["-U", "--nodeps", "--ignorearch"], &newer)?;
    let version = rpm(
        &["-q", "--qf", "%{VERSION}\n"],
        Path::new("soci-snapshotter"),
    )?;
    ensure!(version == "99.0.0\n", "the old one is gone: {version}");
    let calls = machine.calls();
    ensure!(
        calls.contains(&"reload soci-snapshotter.service".to_owned()),
        "{calls:?}"
    );
    let others = ["stop", "start", "disable"];
    ensure!(
        !calls
            .iter()
            .any(|call| others.iter().any(|word| call.contains(word))),
        "{calls:?}"
    );
    assert_installed(&machine)?;
    ensure!(fs::read_to_string(machine.root().join(CONFIG))? == "max_concurrency = 7\n");
    rpm(&["-e", "--nodeps"], Path::new("soci-snapshotter"))?;
    let calls = machine.calls();
    ensure!(
        calls[0].starts_with("disable --now soci-snapshotter.service"),
        "{calls:?}"
    );
    // rpm keeps a changed configuration under another name.
    let saved = format!("{CONFIG}.rpmsave");
    ensure!(fs::read_to_string(machine.root().join(&saved))? == "max_concurrency = 7\n");
    fs::remove_dir_all(machine.root().join("etc/soci-snapshotter-grpc"))?;
    fs::remove_file(package)?;
    fs::remove_file(newer)?;
    let left = machine.ours()?;
    ensure!(left == before, "{:?}", left.difference(&before));
    Ok(())
}

#[test]
fn systemd_finds_nothing_wrong_in_the_units() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let program = binary("soci-snapshotter-grpc")?;
    let mut units = Vec::new();
    for name in ["soci-snapshotter.service", "soci-snapshotter.socket"] {
        let text = fs::read_to_string(repository().join("packaging/systemd").join(name))?;
        let path = folder.path().join(name);
        let installed = "/usr/local/bin/soci-snapshotter-grpc";
        fs::write(&path, text.replace(installed, &program.to_string_lossy()))?;
        units.push(path);
    }
    let verified = Program::at(Path::new("systemd-analyze"))
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .args(&units)
        .finish()?;
    let complaints = format!("{}{}", verified.stdout, verified.stderr);
    // systemd before 254 does not know this key, and says that it ignores it.
    let unknown = "FileDescriptorStorePreserve";
    let others: Vec<&str> = complaints
        .lines()
        .filter(|line| !line.contains(unknown))
        .collect();
    ensure!(others.is_empty(), "{others:#?}");
    ensure!(verified.code.is_some(), "systemd-analyze was killed");
    Ok(())
}
