//! A root file system that is written to: `st_dev` and `st_ino` must lead programs to the same
//! conclusions as on containerd's overlayfs.

use std::fs::{self, Metadata};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use soci_tests::image::noise;
use soci_tests::node::{OVERLAYFS, SOCI};
use soci_tests::tar::{directory, file, hardlink, symlink};
use soci_tests::{Image, Program, Site, View};

const OF_EVERY_KIND: [&str; 8] = [
    "",
    "d",
    "d/lower",
    "d/lower-link",
    "d/grown",
    "merged",
    "merged/one",
    "merged/two",
];

/// A site, and the same writable root file system under both snapshotters, the oracle first.
fn written(name: &str) -> Result<(Site, [View; 2])> {
    let site = Site::new("")?;
    let image = Image::of(&[
        &[
            directory("d"),
            file("d/lower", noise(1, 100_000)),
            hardlink("d/hard", "d/lower"),
            file("d/grown", noise(2, 300_000)),
            symlink("d/lower-link", "lower"),
            directory("merged"),
            file("merged/one", "1"),
            file("mode", "its mode will change"),
        ],
        &[directory("merged"), file("merged/two", "2")],
    ])?;
    let reference = site.publish(&image, name)?;
    let views = [OVERLAYFS, SOCI].map(|snapshotter| {
        site.node.pull(&reference, snapshotter)?;
        site.node.writable(&reference, snapshotter)
    });
    let [oracle, ours] = views;
    Ok((site, [oracle?, ours?]))
}

fn stat(view: &View, path: &str) -> Result<Metadata> {
    fs::symlink_metadata(view.join(path)).with_context(|| format!("look at {path}"))
}

/// Its path contains the name of the snapshotter.
fn show(view: &View) -> String {
    view.path().display().to_string()
}

fn append(view: &View, path: &str) -> Result<()> {
    let mut file = fs::File::options().append(true).open(view.join(path))?;
    Ok(file.write_all(b"more")?)
}

#[test]
fn copying_up_changes_neither_device_nor_inode() -> Result<()> {
    let (_site, views) = written("copied:1")?;
    for view in &views {
        let identity = |path: &str| stat(view, path).map(|meta| (meta.dev(), meta.ino()));
        let before = ["d/grown", "mode", "d", "merged"].map(identity);
        append(view, "d/grown")?;
        fs::set_permissions(view.join("mode"), fs::Permissions::from_mode(0o600))?;
        fs::write(view.join("d/new"), "new")?;
        fs::write(view.join("merged/new"), "new")?;
        let after = ["d/grown", "mode", "d", "merged"].map(identity);
        for (before, after) in before.into_iter().zip(after) {
            let (before, after) = (before?, after?);
            ensure!(
                before == after,
                "{}: {before:?} became {after:?}",
                show(view)
            );
        }
    }
    Ok(())
}

#[test]
fn a_root_file_system_is_one_device() -> Result<()> {
    let (_site, views) = written("device:1")?;
    for view in &views {
        append(view, "d/grown")?;
        fs::write(view.join("d/new"), "new")?;
        let root = stat(view, "")?.dev();
        for path in OF_EVERY_KIND.into_iter().chain(["d/new"]) {
            let found = stat(view, path)?.dev();
            ensure!(
                found == root,
                "{}: {path} lies on {found}, not {root}",
                show(view)
            );
        }
    }
    Ok(())
}

/// Like `os.path.ismount` in Python: the parent has another device, or the same inode.
fn is_mount(view: &View, path: &str) -> Result<bool> {
    let parent = Path::new(path).parent().and_then(Path::to_str);
    let (own, parent) = (stat(view, path)?, stat(view, parent.unwrap_or_default())?);
    Ok(own.dev() != parent.dev() || own.ino() == parent.ino())
}

#[test]
fn programs_that_stay_on_one_device_see_all_of_it() -> Result<()> {
    let (_site, views) = written("staying:1")?;
    for view in &views {
        append(view, "d/grown")?;
        fs::write(view.join("merged/new"), "new")?;
        for path in &OF_EVERY_KIND[1..] {
            ensure!(
                !is_mount(view, path)?,
                "{}: {path} looks like a mount",
                show(view)
            );
        }
    }
    for (name, words) in [
        ("du", &["-x", "-a", "-l", "--inodes"][..]),
        ("find", &["-xdev", "-printf", "%P %y %m %l\\n"]),
        (
            "tar",
            &["--one-file-system", "--sort=name", "-cvf", "/dev/null"],
        ),
        // With a destination that does not exist, a dry run lists everything that it would copy.
        (
            "rsync",
            &[
                "-aHx",
                "--dry-run",
                "--out-format=%n%L",
                ".",
                "/nonexistent/",
            ],
        ),
    ] {
        let said = |view: &View| {
            let program = Program::at(Path::new(name)).folder(view.path());
            let program = match name {
                // find requires the starting path before the conditions.
                "find" => program.args(["."]).args(words),
                "rsync" => program.args(words),
                _ => program.args(words).args(["."]),
            };
            let mut lines: Vec<String> = program.succeed()?.lines().map(str::to_owned).collect();
            lines.sort();
            Ok::<_, anyhow::Error>(lines)
        };
        let (want, have) = (said(&views[0])?, said(&views[1])?);
        ensure!(want.len() >= 10, "{name} saw little: {want:?}");
        ensure!(want == have, "{name}: {have:#?} instead of {want:#?}");
    }
    Ok(())
}
