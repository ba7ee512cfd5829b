//! containerd's configuration: which settings are missing for lazy layers, and adding them.
//!
//! * `files` reads the main file and what it imports, merged as containerd merges them.
//! * `needs` judges the merged settings and returns what is missing, as data.
//! * `change` writes the missing settings to a file of their own, and removes it again.

mod change;
mod files;
mod needs;
mod setting;

use std::path::Path;

use self::files::Files;
use self::needs::{Finding, Wanted};
use super::row::{Level, Row};
use crate::args::{Change, Part};

/// Exists on every node of a cluster.
const KUBELET: &str = "/var/lib/kubelet";

const NAME: &str = "containerd config";

/// What the settings must agree with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Node<'a> {
    /// containerd's configuration file.
    pub(super) config: &'a Path,
    /// The daemon's socket.
    pub(super) socket: &'a Path,
    /// The daemon's state directory.
    pub(super) root: &'a Path,
}

impl Node<'_> {
    fn wanted(&self) -> Wanted {
        let root = self.root.to_string_lossy();
        Wanted {
            address: self.socket.to_string_lossy().into_owned(),
            root: root.trim_end_matches('/').to_owned(),
            kubelet: Path::new(KUBELET).is_dir(),
        }
    }
}

/// Changes the configuration if asked, then judges it.
pub(super) fn rows(node: &Node<'_>, change: Change) -> Vec<Row> {
    let wanted = node.wanted();
    let changed = match change {
        Change::Nothing => None,
        Change::Fix => Some(change::fix(node.config, &wanted)),
        Change::Undo => Some(change::undo(node.config)),
    };
    let changed = changed.map(|done| match done {
        Ok(done) => Row::ok(Part::Containerd, "containerd change", done),
        Err(error) => Row::problem(
            Part::Containerd,
            "containerd change",
            format!("{:#}", anyhow::Error::new(error)),
            match change {
                Change::Undo => {
                    "remove the settings of soci-snapshotter from this configuration yourself, then restart containerd"
                }
                Change::Fix | Change::Nothing => {
                    "add the settings of the rows below yourself, then restart containerd"
                }
            },
        ),
    });
    changed
        .into_iter()
        .chain(judged(node.config, &wanted))
        .collect()
}

fn judged(config: &Path, wanted: &Wanted) -> Vec<Row> {
    let files = match Files::read(config) {
        Ok(files) => files,
        Err(error) => {
            return vec![Row::problem(
                Part::Containerd,
                NAME,
                format!("{:#}", anyhow::Error::new(error)),
                "correct the file, or create one with `containerd config default`",
            )];
        }
    };
    let shown = format!(
        "{}, version {}, {} imported files",
        config.display(),
        files.version,
        files.imported.len()
    );
    if files.version < needs::OLDEST_VERSION {
        return vec![Row::problem(
            Part::Containerd,
            NAME,
            shown,
            "convert it with `containerd config migrate`",
        )];
    }
    let findings = needs::findings(files.version, &files.merged, wanted);
    let judged = findings.into_iter().map(|finding| row(config, finding));
    [Row::ok(Part::Containerd, NAME, shown)]
        .into_iter()
        .chain(judged)
        .collect()
}

fn row(config: &Path, finding: Finding) -> Row {
    let remedy = (finding.level != Level::Ok).then(|| {
        format!(
            "add to {} (or use --fix), then restart containerd:\n{}",
            config.display(),
            setting::text(&finding.missing)
        )
    });
    Row {
        part: Part::Containerd,
        name: finding.name,
        level: finding.level,
        found: finding.found,
        remedy,
    }
}
