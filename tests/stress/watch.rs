//! Detects hangs: records the state of the system, then aborts the FUSE connections of this test's
//! mounts, so that no unkillable process remains.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result};
use soci_tests::Node;
use soci_tests::process::Program;
use soci_tests::unit::marked;

use crate::slots::{Slot, now};
use crate::world::{LIMIT, Out, World, lock};

const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// Makes the FUSE connections of the machine visible in this mount namespace.
pub(crate) fn see_connections() -> Result<()> {
    if fs::read_dir(CONNECTIONS).is_ok_and(|mut found| found.next().is_some())
        || fs::read_to_string("/proc/self/mounts")?.contains(CONNECTIONS)
    {
        return Ok(());
    }
    Program::at(Path::new("mount"))
        .args(["-t", "fusectl", "fusectl", CONNECTIONS])
        .succeed()
        .map(drop)
        .context("the FUSE connections cannot be seen")
}

/// The FUSE connections of a node, including those that are no longer mounted but still serve
/// devices.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    /// The number of each connection, and its identity, because numbers are reused.
    seen: Mutex<BTreeMap<String, (u64, i64, i64)>>,
}

impl Connections {
    /// Records the current mounts.
    pub(crate) fn look(&self, node: &Node) {
        for line in node.mounts().unwrap_or_default() {
            let words: Vec<&str> = line.split(' ').collect();
            let kind = words.iter().skip_while(|word| **word != "-").nth(1);
            let minor = words.get(2).and_then(|device| device.strip_prefix("0:"));
            if let (Some(kind), Some(minor)) = (kind, minor)
                && kind.starts_with("fuse")
                && let Some(mark) = birth(minor)
            {
                lock(&self.seen).insert(minor.to_owned(), mark);
            }
        }
    }

    /// Aborts all recorded connections that still exist.
    pub(crate) fn abort(&self, node: &Node) {
        self.look(node);
        for (minor, mark) in lock(&self.seen).iter() {
            if birth(minor).as_ref() == Some(mark) {
                // It may be gone already.
                let _ = fs::write(format!("{CONNECTIONS}/{minor}/abort"), "1");
            }
        }
    }
}

fn birth(minor: &str) -> Option<(u64, i64, i64)> {
    let found = fs::metadata(format!("{CONNECTIONS}/{minor}")).ok()?;
    Some((found.ino(), found.ctime(), found.ctime_nsec()))
}

/// Watches the readers until the end of the test.
pub(crate) fn go_on(world: &World) {
    while !world.is_over() {
        world.connections.look(&world.node);
        let outs = lock(&world.outs).clone();
        for out in outs {
            if let Some(trouble) = trouble_of(&out) {
                world.trouble(trouble);
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    if !world.troubles().is_empty() {
        let state = state(world);
        // For later analysis, next to the report. A failure to write must not hide the hang.
        let _ = fs::write(crate::plan::folder().join("soak-state.txt"), state);
        world.aborted.store(true, Ordering::SeqCst);
        world.connections.abort(&world.node);
    }
}

fn trouble_of(out: &Out) -> Option<String> {
    let slots = Slot::read_all(&fs::read(out.folder.join("slots")).ok()?);
    let late = u64::try_from(LIMIT.as_millis()).unwrap_or(u64::MAX);
    for slot in &slots {
        if slot.began > 0 && now().saturating_sub(slot.began) > late {
            let file = usize::try_from(slot.file).unwrap_or_default();
            let path = out.paths.get(file)?;
            let folder = out.folder.display();
            return Some(format!(
                "{folder}: {path} at {} does not answer within {LIMIT:?}",
                slot.offset
            ));
        }
    }
    if slots.iter().any(|slot| slot.failed + slot.wrong > 0) {
        let errors = fs::read_to_string(out.folder.join("errors")).unwrap_or_default();
        return Some(format!("{}: {errors}", out.folder.display()));
    }
    None
}

/// State that helps to analyze a hang.
fn state(world: &World) -> String {
    let mut text = String::new();
    let mut add = |title: &str, what: &str| {
        let _ = writeln!(text, "== {title}\n{what}");
    };
    add("troubles", &world.troubles().join("\n"));
    for file in ["soci.log", "containerd.log"] {
        let log = fs::read(world.node.folder().join(file)).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        let lines: Vec<&str> = log.lines().collect();
        add(file, &lines[lines.len().saturating_sub(300)..].join("\n"));
    }
    let marks = [
        world.node.root().display().to_string(),
        world.memory().display().to_string(),
        world.node.folder().display().to_string(),
    ];
    for mark in marks {
        for process in marked(&mark) {
            add(&format!("process {process}"), &process_state(process));
        }
    }
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    add("mounts", &table);
    let loops = Program::at(Path::new("losetup")).args(["-a"]).finish();
    add(
        "loop devices",
        &loops.map(|it| it.stdout).unwrap_or_default(),
    );
    text
}

fn process_state(process: u32) -> String {
    let read = |path: &Path| fs::read(path).unwrap_or_default();
    let shown = |path: &Path| String::from_utf8_lossy(&read(path)).replace('\0', " ");
    let root = Path::new("/proc").join(process.to_string());
    let mut text = shown(&root.join("cmdline"));
    for task in fs::read_dir(root.join("task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let path = task.path();
        let (name, wait) = (shown(&path.join("comm")), shown(&path.join("wchan")));
        let stack = shown(&path.join("stack"));
        let stack: Vec<&str> = stack.lines().take(12).collect();
        let status = shown(&path.join("stat"));
        let letter = status
            .rsplit(") ")
            .next()
            .and_then(|rest| rest.chars().next());
        let _ = write!(
            text,
            "\n  {} {} {} {}",
            name.trim(),
            letter.unwrap_or('?'),
            wait.trim(),
            stack.join(" < ")
        );
    }
    text
}
