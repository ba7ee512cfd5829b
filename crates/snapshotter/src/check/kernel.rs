//! Kernel version and features.

use std::fs;
use std::path::Path;

use super::row::Row;
use crate::args::Part;

/// The first kernel that mounts EROFS images with more than one device.
const OLDEST: (u32, u32) = (5, 16);
/// The first kernel that mounts EROFS images from files, without loop devices.
const FILES: (u32, u32) = (6, 12);

/// What the machine says about its kernel.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    /// `uname -r`.
    release: String,
    /// `/proc/filesystems`.
    filesystems: String,
    /// The lists of modules that can be loaded or are built in, if the machine has them.
    modules: Option<String>,
    /// Whether `/dev/loop-control` exists.
    loop_control: bool,
    /// Whether `/dev/fuse` exists.
    fuse_device: bool,
}

impl Facts {
    pub(super) fn read() -> Self {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let release = release.trim_end().to_owned();
        let folder = Path::new("/lib/modules").join(&release);
        let lists: Vec<String> = ["modules.dep", "modules.builtin"]
            .iter()
            .filter_map(|name| fs::read_to_string(folder.join(name)).ok())
            .collect();
        Self {
            release,
            filesystems: fs::read_to_string("/proc/filesystems").unwrap_or_default(),
            modules: (!lists.is_empty()).then(|| lists.concat()),
            loop_control: Path::new("/dev/loop-control").exists(),
            fuse_device: Path::new("/dev/fuse").exists(),
        }
    }

    fn has_filesystem(&self, name: &str) -> bool {
        let mut names = self.filesystems.lines();
        names.any(|line| line.split_whitespace().last() == Some(name))
    }

    /// Whether the kernel can load the module, if that is known.
    fn has_module(&self, name: &str) -> Option<bool> {
        let modules = self.modules.as_ref()?;
        let file = format!("/{name}.ko");
        Some(modules.lines().any(|line| {
            // The first word is the module, the others are what it depends on.
            let path = line.split(':').next().unwrap_or_default();
            path.contains(&file)
        }))
    }
}

/// Judges the facts.
pub(super) fn rows(facts: &Facts) -> Vec<Row> {
    let mut rows = vec![version(facts)];
    for name in ["erofs", "overlay", "fuse"] {
        rows.push(filesystem(facts, name));
    }
    rows.push(loops(facts));
    rows
}

fn version(facts: &Facts) -> Row {
    const NAME: &str = "kernel version";
    let release = &facts.release;
    match parsed(release) {
        None => Row::warning(
            Part::Kernel,
            NAME,
            format!("{release:?} is not understood"),
            "the row `mount` says whether layers can be mounted",
        ),
        Some(found) if found < OLDEST => Row::problem(
            Part::Kernel,
            NAME,
            format!("{release} cannot mount layers"),
            "use Linux 5.16 or later; until then, containerd unpacks every layer",
        ),
        Some(_) => Row::ok(Part::Kernel, NAME, release),
    }
}

/// `6.12.1-foo` becomes (6, 12).
fn parsed(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn filesystem(facts: &Facts, name: &'static str) -> Row {
    if facts.has_filesystem(name) {
        return match name == "fuse" && !facts.fuse_device {
            true => Row::problem(
                Part::Kernel,
                name,
                "the kernel supports it, but /dev/fuse does not exist",
                "run `mknod /dev/fuse c 10 229`, or find out why udev does not create it",
            ),
            false => Row::ok(Part::Kernel, name, "supported by the running kernel"),
        };
    }
    match facts.has_module(name) {
        Some(true) => Row::ok(Part::Kernel, name, "a module that is loaded on first use"),
        Some(false) => Row::problem(
            Part::Kernel,
            name,
            format!("the kernel has no module {name}"),
            format!(
                "install the package with additional modules of this kernel, or a kernel with {name}"
            ),
        ),
        None => Row::warning(
            Part::Kernel,
            name,
            "not loaded, and /lib/modules has no list of modules",
            format!("run `modprobe {name}`; the row `mount` says whether it is needed"),
        ),
    }
}

fn loops(facts: &Facts) -> Row {
    const NAME: &str = "loop devices";
    if facts.loop_control {
        return Row::ok(Part::Kernel, NAME, "/dev/loop-control exists");
    }
    let found = "/dev/loop-control does not exist";
    let remedy = "run `modprobe loop`, and list `loop` in /etc/modules-load.d";
    match parsed(&facts.release).is_some_and(|found| found >= FILES) {
        true => Row::warning(
            Part::Kernel,
            NAME,
            format!("{found}: containers depend on the daemon until they end"),
            remedy,
        ),
        false => Row::problem(Part::Kernel, NAME, found, remedy),
    }
}

#[cfg(test)]
mod tests {
    use super::super::row::Level;
    use super::*;

    fn good() -> Facts {
        Facts {
            release: "6.12.43+deb13-amd64".to_owned(),
            filesystems: "nodev\toverlay\n\text4\nnodev\tfuse\n\terofs\n".to_owned(),
            modules: None,
            loop_control: true,
            fuse_device: true,
        }
    }

    fn level(facts: &Facts, name: &str) -> Level {
        let rows = rows(facts);
        rows.iter().find(|row| row.name == name).unwrap().level
    }

    #[test]
    fn a_kernel_with_everything_is_ok() {
        let rows = rows(&good());
        assert_eq!(rows.len(), 5);
        assert!(rows.iter().all(|row| row.level == Level::Ok), "{rows:#?}");
    }

    #[test]
    fn the_oldest_kernel_is_5_16() {
        for (release, wanted) in [
            ("5.15.0-1084-aws", Level::Problem),
            ("4.18.0-553.el8", Level::Problem),
            ("5.16.0", Level::Ok),
            ("6.1.141-155.222.amzn2023.x86_64", Level::Ok),
            ("unheard", Level::Warning),
        ] {
            let facts = Facts {
                release: release.to_owned(),
                ..good()
            };
            assert_eq!(level(&facts, "kernel version"), wanted, "{release}");
        }
    }

    #[test]
    fn a_module_may_be_loaded_later_but_must_exist() {
        let without = Facts {
            filesystems: "nodev\toverlay\nnodev\tfuse\n".to_owned(),
            ..good()
        };
        assert_eq!(level(&without, "erofs"), Level::Warning);
        let mut listed = without;
        // A module that only depends on erofs does not count.
        listed.modules =
            Some("kernel/fs/x/x.ko.xz: kernel/fs/erofs/erofs.ko.xz\nkernel/fs/y.ko:\n".to_owned());
        assert_eq!(level(&listed, "erofs"), Level::Problem);
        listed.modules = Some("kernel/fs/erofs/erofs.ko.xz: kernel/lib/lz4.ko.xz\n".to_owned());
        assert_eq!(level(&listed, "erofs"), Level::Ok);
    }

    #[test]
    fn devices_are_needed_too() {
        let facts = Facts {
            loop_control: false,
            fuse_device: false,
            ..good()
        };
        assert_eq!(level(&facts, "fuse"), Level::Problem);
        assert_eq!(level(&facts, "loop devices"), Level::Warning);
        let old = Facts {
            release: "6.1.0".to_owned(),
            ..facts
        };
        assert_eq!(level(&old, "loop devices"), Level::Problem);
    }
}
