//! The installer of the DaemonSet, with the programs of busybox as in its image, on the root directory
//! of a host made for the test. The host's systemd is a script that records its calls.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use soci_tests::process::{Finished, Program, binary, repository, tool};
use tempfile::TempDir;

const CONTAINERD: &str =
    "version = 3\n\n[plugins.'io.containerd.cri.v1.images']\n  max_concurrent_downloads = 7\n";
const DROP_IN: &str = "etc/containerd/conf.d/zz-soci-snapshotter.toml";
const UNIT: &str = "etc/systemd/system/soci-snapshotter.service";
const SETTINGS: &str = "etc/soci-snapshotter-grpc/config.toml";
const SYSTEMCTL: &str = "#!/bin/sh\necho \"$*\" >>/calls\n\
    case \"$*\" in\n\
    *is-active*containerd*)\n\
    [ ! -e /refuses ] || [ ! -e /etc/containerd/conf.d/zz-soci-snapshotter.toml ] || exit 3 ;;\n\
    *is-active*) [ -e /active ] || exit 3 ;;\n\
    *disable*) rm -f /active ;;\n\
    *start*soci*) : >/active ;;\n\
    esac\n";
/// Enters the host's namespaces: here, its root directory.
const NSENTER: &str =
    "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done\nshift\nexec chroot \"$HOST\" \"$@\"\n";

/// A host, and what the image contains.
struct Host {
    folder: TempDir,
}

impl Host {
    fn new() -> Result<Self> {
        let host = Self {
            folder: tempfile::tempdir()?,
        };
        for name in [
            "root/etc/containerd",
            "root/usr/bin",
            "root/usr/local",
            "root/var/lib",
        ] {
            fs::create_dir_all(host.folder.path().join(name))?;
        }
        host.write("root/etc/containerd/config.toml", CONTAINERD)?;
        let busybox = tool("busybox")?;
        fs::copy(&busybox, host.path("root/usr/bin/busybox"))?;
        symlink("usr/bin", host.path("root/bin"))?;
        for applet in ["cat", "mount", "rm", "sh", "umount"] {
            symlink("busybox", host.path("root/usr/bin").join(applet))?;
        }
        for name in ["systemctl", "udevadm"] {
            host.script(&format!("root/usr/bin/{name}"), SYSTEMCTL)?;
        }
        let program = binary("soci-snapshotter-grpc")?;
        host.copy_libraries(&program)?;
        // The image: busybox is all that the installer has.
        fs::create_dir_all(host.path("image/bin"))?;
        Program::at(&busybox)
            .args([
                "--install".as_ref(),
                "-s".as_ref(),
                host.path("image/bin").as_os_str(),
            ])
            .succeed()?;
        fs::remove_file(host.path("image/bin/nsenter"))?;
        host.script("image/bin/nsenter", NSENTER)?;
        fs::create_dir_all(host.path("source/bin"))?;
        fs::hard_link(&program, host.path("source/bin/soci-snapshotter-grpc")).or_else(|_| {
            fs::copy(&program, host.path("source/bin/soci-snapshotter-grpc")).map(drop)
        })?;
        host.script("source/bin/soci", "the first version\n")?;
        for folder in ["systemd", "udev"] {
            let from = repository().join("packaging").join(folder);
            symlink(from, host.path("source").join(folder))?;
        }
        host.write("config.toml", "[snapshotter]\nmount = \"loop\"\n")?;
        Ok(host)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path(name);
        fs::create_dir_all(path.parent().context("a folder")?)?;
        Ok(fs::write(path, text)?)
    }

    fn script(&self, name: &str, text: &str) -> Result<()> {
        self.write(name, text)?;
        Ok(fs::set_permissions(
            self.path(name),
            fs::Permissions::from_mode(0o755),
        )?)
    }

    fn copy_libraries(&self, program: &Path) -> Result<()> {
        let list = Program::at(Path::new("ldd")).args([program]).succeed()?;
        let paths = list.split_whitespace().filter(|word| word.starts_with('/'));
        for library in paths {
            let to = self.path(&format!("root{library}"));
            fs::create_dir_all(to.parent().context("a folder")?)?;
            fs::copy(library, to)?;
        }
        Ok(())
    }

    fn install(&self, action: &str, environment: &[(&str, &str)]) -> Result<Finished> {
        // Not the shell of busybox, which may prefer its own `nsenter` to that in PATH.
        let mut program = Program::at(Path::new("/bin/sh"))
            .args([repository().join("packaging/kubernetes/install")])
            .args([action])
            .env("PATH", self.path("image/bin"))
            .env("HOST", self.path("root"))
            .env("SOURCE", self.path("source"))
            .env("CONFIG", self.path("config.toml"))
            // The host has no devices, so the check finds problems.
            .env("STRICT", "false");
        for (key, value) in environment {
            program = program.env(key, value);
        }
        program.finish()
    }

    fn succeed(&self, action: &str) -> Result<Vec<String>> {
        let finished = self.install(action, &[])?;
        ensure!(
            finished.code == Some(0),
            "{}{}",
            finished.stdout,
            finished.stderr
        );
        self.calls()
    }

    /// Calls of the host's systemd that change something, since the last time.
    fn calls(&self) -> Result<Vec<String>> {
        let path = self.path("root/calls");
        let text = fs::read_to_string(&path).unwrap_or_default();
        fs::write(path, "")?;
        let calls = text.lines().filter(|call| !call.contains("is-active"));
        Ok(calls.map(str::to_owned).collect())
    }

    /// Everything on the host that the installer is responsible for.
    fn tree(&self) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
        let mut found = BTreeMap::new();
        let mut folders = vec![self.path("root")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                let inside = path.strip_prefix(self.path("root"))?.to_owned();
                if matches!(inside.to_str(), Some("calls" | "active")) {
                    continue;
                }
                if path.is_symlink() {
                    let target = fs::read_link(&path)?.into_os_string();
                    found.insert(inside, target.into_encoded_bytes());
                } else if path.is_file() {
                    found.insert(inside, fs::read(&path)?);
                } else {
                    found.insert(inside, Vec::new());
                    folders.push(path);
                }
            }
        }
        Ok(found)
    }
}

fn assert_same(
    tree: &BTreeMap<PathBuf, Vec<u8>>,
    wanted: &BTreeMap<PathBuf, Vec<u8>>,
) -> Result<()> {
    let paths = tree.keys().chain(wanted.keys());
    let other: Vec<&PathBuf> = paths
        .filter(|path| tree.get(*path) != wanted.get(*path))
        .collect();
    ensure!(other.is_empty(), "{other:?}");
    Ok(())
}

#[test]
fn a_host_gets_the_snapshotter_once_and_is_left_as_it_was() -> Result<()> {
    let host = Host::new()?;
    // The operator's own file, which is put aside.
    host.write(&format!("root/{SETTINGS}"), "max_concurrency = 7\n")?;
    // Its target is a file of the host, which this process does not see.
    fs::create_dir_all(host.path("root/usr/local/bin"))?;
    symlink("/opt/soci-0.11/soci", host.path("root/usr/local/bin/soci"))?;
    let before = host.tree()?;
    let calls = host.succeed("install")?;
    for wanted in [
        "daemon-reload",
        "--quiet enable soci-snapshotter.socket soci-snapshotter.service",
        "start soci-snapshotter.socket soci-snapshotter.service",
        "restart containerd.service",
    ] {
        ensure!(
            calls.iter().any(|call| call == wanted),
            "no {wanted}: {calls:#?}"
        );
    }
    let installed = host.tree()?;
    for path in [
        DROP_IN,
        UNIT,
        "etc/udev/rules.d/59-soci-snapshotter.rules",
        "usr/local/bin/soci",
    ] {
        ensure!(installed.contains_key(Path::new(path)), "{path}");
    }
    let settings = fs::read_to_string(host.path(&format!("root/{SETTINGS}")))?;
    ensure!(settings.contains("mount = \"loop\""), "{settings}");
    // Again: nothing to do, and containerd is left alone.
    ensure!(
        host.succeed("install")?
            == ["--quiet enable soci-snapshotter.socket soci-snapshotter.service"]
    );
    assert_same(&host.tree()?, &installed)?;
    // An earlier run was killed before it restarted containerd.
    host.write("root/etc/soci-snapshotter-grpc/.restart-containerd", "")?;
    let calls = host.succeed("install")?;
    ensure!(
        calls.contains(&"restart containerd.service".to_owned()),
        "{calls:#?}"
    );
    assert_same(&host.tree()?, &installed)?;
    // A new program replaces the worker only.
    host.script("source/bin/soci", "the second version\n")?;
    let calls = host.succeed("install")?;
    ensure!(
        calls
            .last()
            .is_some_and(|call| call == "reload soci-snapshotter.service"),
        "{calls:#?}"
    );
    let calls = host.succeed("uninstall")?;
    ensure!(
        calls[0] == "restart containerd.service",
        "before the daemon stops: {calls:#?}"
    );
    ensure!(calls[1].contains("disable --now"), "{calls:#?}");
    assert_same(&host.tree()?, &before)?;
    ensure!(
        host.succeed("uninstall")?.is_empty(),
        "nothing is installed"
    );
    Ok(())
}

#[test]
fn settings_go_where_containerd_imports_them_from() -> Result<()> {
    let host = Host::new()?;
    // Not beside the main file, and given with a path from the root directory of the host.
    let main = format!("imports = ['/opt/containerd.d/*.toml']\n{CONTAINERD}");
    host.write("root/etc/containerd/config.toml", &main)?;
    host.write("root/opt/containerd.d/10-other.toml", "version = 3\n")?;
    let before = host.tree()?;
    let calls = host.succeed("install")?;
    let restarts = |calls: &[String]| {
        let restart = |call: &&String| *call == "restart containerd.service";
        calls.iter().filter(restart).count()
    };
    ensure!(restarts(&calls) == 1, "{calls:#?}");
    let found = host.path("root/opt/containerd.d/zz-soci-snapshotter.toml");
    let settings = fs::read_to_string(found)?;
    ensure!(
        settings.contains("max_concurrent_downloads = 7"),
        "{settings}"
    );
    let config = fs::read_to_string(host.path("root/etc/containerd/config.toml"))?;
    ensure!(config == main, "{config}");
    ensure!(restarts(&host.succeed("install")?) == 0, "nothing to do");
    let calls = host.succeed("uninstall")?;
    ensure!(restarts(&calls) == 1, "{calls:#?}");
    assert_same(&host.tree()?, &before)
}

#[test]
fn layers_are_removed_on_request_but_not_under_a_container() -> Result<()> {
    const STATE: &str = "root/var/lib/soci-snapshotter-grpc/snapshotter/snapshots";
    let host = Host::new()?;
    for name in ["1/fs", "2/fs"] {
        host.write(&format!("{STATE}/{name}/file"), "content\n")?;
    }
    let purge = || {
        host.succeed("install")?;
        let finished = host.install("uninstall", &[("PURGE", "true")])?;
        ensure!(finished.code == Some(0), "{}", finished.stderr);
        Ok(finished.stdout)
    };
    let said = purge()?;
    ensure!(said.contains("cannot see"), "without /proc: {said}");
    let inside = |words: &str| {
        Program::at(Path::new("chroot"))
            .args([
                host.path("root").as_os_str(),
                "/bin/sh".as_ref(),
                "-c".as_ref(),
            ])
            .args([words])
            .succeed()
    };
    fs::create_dir_all(host.path("root/proc"))?;
    fs::create_dir_all(host.path("root/run/container"))?;
    let below = "/var/lib/soci-snapshotter-grpc/snapshotter/snapshots";
    inside(&format!(
        "mount -t proc proc /proc && \
         mount -t overlay overlay -o lowerdir={below}/2/fs:{below}/1/fs /run/container"
    ))?;
    let said = purge();
    let kept = host.path(STATE).join("2/fs/file").exists();
    inside("umount /run/container")?;
    let said_later = purge();
    inside("umount /proc")?;
    let said = said?;
    ensure!(kept && said.contains("containers still use"), "{said}");
    let said = said_later?;
    ensure!(!host.path(STATE).exists(), "{said}");
    Ok(())
}

#[test]
fn settings_that_cannot_be_taken_back_stop_the_removal() -> Result<()> {
    let host = Host::new()?;
    host.succeed("install")?;
    let installed = host.tree()?;
    // Not TOML, so nobody knows where the settings are.
    host.write("root/etc/containerd/config.toml", "[[")?;
    let finished = host.install("uninstall", &[])?;
    ensure!(finished.code == Some(1), "{}", finished.stdout);
    let named = "cannot be taken back";
    ensure!(finished.stderr.contains(named), "{}", finished.stderr);
    ensure!(!host.calls()?.iter().any(|call| call.contains("disable")));
    let left = host.tree()?;
    ensure!(
        left.keys().eq(installed.keys()),
        "everything is still there"
    );
    Ok(())
}

#[test]
fn a_removal_that_was_cut_short_is_finished_by_the_next_one() -> Result<()> {
    let host = Host::new()?;
    let before = host.tree()?;
    host.succeed("install")?;
    // The programs are gone by the time of the reload.
    let fails = "#!/bin/sh\n[ \"$*\" != daemon-reload ] || exit 1\n";
    host.script("root/usr/bin/systemctl", fails)?;
    let finished = host.install("uninstall", &[])?;
    ensure!(finished.code != Some(0), "{}", finished.stdout);
    ensure!(!host.path("root/usr/local/bin/soci").exists());
    host.script("root/usr/bin/systemctl", SYSTEMCTL)?;
    host.succeed("uninstall")?;
    assert_same(&host.tree()?, &before)
}

#[test]
fn containerd_is_restarted_after_a_part_of_the_settings_was_taken_back() -> Result<()> {
    let host = Host::new()?;
    host.succeed("install")?;
    host.calls()?;
    // The import can then not be taken out of the main file.
    host.write("root/etc/containerd/config.toml.before-soci", "[[")?;
    let finished = host.install("uninstall", &[])?;
    ensure!(finished.code == Some(1), "{}", finished.stdout);
    ensure!(!host.path("root").join(DROP_IN).exists());
    let calls = host.calls()?;
    ensure!(
        calls
            .iter()
            .any(|call| call == "restart containerd.service"),
        "{calls:#?}"
    );
    ensure!(!calls.iter().any(|call| call.contains("disable")));
    Ok(())
}

#[test]
fn other_paths_are_used_and_containerd_is_not_restarted_against_the_will() -> Result<()> {
    let host = Host::new()?;
    let before = host.tree()?;
    let places = [("BIN", "/opt/soci/bin"), ("CONTAINERD_RESTART", "false")];
    let finished = host.install("install", &places)?;
    ensure!(
        finished.code == Some(0),
        "{}{}",
        finished.stdout,
        finished.stderr
    );
    let unit = fs::read_to_string(host.path(&format!("root/{UNIT}")))?;
    ensure!(
        unit.contains("ExecStart=/opt/soci/bin/soci-snapshotter-grpc"),
        "{unit}"
    );
    ensure!(
        finished
            .stdout
            .contains("restart containerd.service on this host")
    );
    ensure!(!host.calls()?.iter().any(|call| call.contains("containerd")));
    host.install("uninstall", &places)?;
    assert_same(&host.tree()?, &before)
}

#[test]
fn settings_with_which_containerd_does_not_start_are_taken_back() -> Result<()> {
    let host = Host::new()?;
    host.write("root/refuses", "")?;
    let finished = host.install("install", &[("PATIENCE", "0")])?;
    ensure!(finished.code == Some(1), "{}", finished.stdout);
    let named = "containerd.service does not start";
    ensure!(finished.stderr.contains(named), "{}", finished.stderr);
    ensure!(!host.path(&format!("root/{DROP_IN}")).exists());
    let config = fs::read_to_string(host.path("root/etc/containerd/config.toml"))?;
    ensure!(config == CONTAINERD, "{config}");
    let calls = host.calls()?;
    ensure!(
        calls
            .last()
            .is_some_and(|call| call == "restart containerd.service"),
        "{calls:#?}"
    );
    Ok(())
}

#[test]
fn a_host_that_is_not_ready_fails_its_pod() -> Result<()> {
    let host = Host::new()?;
    let finished = host.install("install", &[("STRICT", "true")])?;
    ensure!(finished.code == Some(1), "{}", finished.stdout);
    ensure!(
        finished.stderr.contains("this host is not ready"),
        "{}",
        finished.stderr
    );
    ensure!(
        finished.stdout.contains("problem  socket"),
        "{}",
        finished.stdout
    );
    Ok(())
}

#[test]
fn the_plain_manifest_is_that_of_the_chart() -> Result<()> {
    let hash = Program::at(&repository().join("scripts/chart"))
        .args(["--hash"])
        .succeed()?;
    let manifest =
        fs::read_to_string(repository().join("packaging/kubernetes/soci-snapshotter.yaml"))?;
    let named = format!("# Chart: {}", hash.trim_end());
    ensure!(
        manifest.lines().any(|line| line == named),
        "run scripts/chart --write"
    );
    let version = format!(
        "image: registry.example/soci-snapshotter:{}\n",
        env!("CARGO_PKG_VERSION")
    );
    ensure!(
        manifest.contains(&version),
        "set the version in Chart.yaml, then run scripts/chart --write"
    );
    Ok(())
}
