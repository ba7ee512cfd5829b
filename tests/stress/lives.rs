//! Repeats the life of an image: it is pulled, read by a container during faults, and removed.

use std::fs;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use soci_tests::node::SOCI;
use soci_tests::process::Daemon;
use soci_tests::unit::Keeping;

use crate::Plan;
use crate::images::Published;
use crate::samples::loops;
use crate::slots::Slot;
use crate::truth::Dice;
use crate::world::{ATTEMPTS, LIMIT, Mercy, Out, World, last_line, lock};

/// Repeats lives until the end of the test. Errors are reported to the world.
pub(crate) fn live_on(world: &World, plan: &Plan, image: &Published, seed: u64) {
    let mut dice = Dice::new(seed);
    let mut number = 0;
    while !world.is_over() {
        number += 1;
        let name = image.name.replace(':', "-");
        let id = format!("{name}-{number}");
        if let Err(error) = live(world, plan, image, &id, &mut dice)
            && !world.is_over()
        {
            world.trouble(format!("{id}: {error:#}"));
        }
    }
}

/// Removes every image. Our last loop device must go with the last image.
pub(crate) fn end_all(world: &World, images: &[Published]) {
    let start = Instant::now();
    let removed = images
        .iter()
        .try_for_each(|image| remove(world, &["images", "rm", "--sync", &image.reference]));
    if let Err(error) = removed {
        world.trouble(format!("at the end: {error:#}"));
    }
    loop {
        let left = remains(world);
        if left.is_empty() {
            return;
        }
        if start.elapsed() > LIMIT {
            world.trouble(format!(
                "all images are removed, but there are still {left}"
            ));
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What remains of layers although there is no image; empty if nothing.
fn remains(world: &World) -> String {
    let (all, lazy) = loops(&world.node);
    let mounts = world.node.mounts().unwrap_or_default();
    let mounts: Vec<&String> = mounts
        .iter()
        .filter(|line| !line.contains(" - fuse"))
        .collect();
    if all == 0 && mounts.is_empty() {
        return String::new();
    }
    format!("{all} loop devices, {lazy} of them on FUSE, and mounts {mounts:#?}")
}

fn live(world: &World, plan: &Plan, image: &Published, id: &str, dice: &mut Dice) -> Result<()> {
    let reference = image.reference.as_str();
    again(
        world,
        world.ctr(&["images", "pull", "--snapshotter", SOCI, reference]),
    )?;
    let seconds = dice.throw(6, 25);
    let container = Container::start(world, plan, image, id)?;
    world.events.say(&format!("{id} reads for {seconds} s"));
    container.run(Duration::from_secs(seconds))?;
    // Three of four are removed. The next container of the others finds data on disk.
    if dice.throw(0, 4) > 0 && !world.is_over() {
        let start = Instant::now();
        remove(world, &["images", "rm", "--sync", reference])?;
        let took = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let longest = &world.events.longest_removal;
        longest.fetch_max(took, Ordering::SeqCst);
        world.events.say(&format!("{id} removed in {took} ms"));
    }
    world.events.lives.fetch_add(1, Ordering::SeqCst);
    Ok(())
}

fn again(world: &World, failures: Result<u64>) -> Result<()> {
    world
        .events
        .calls_again
        .fetch_add(failures?, Ordering::SeqCst);
    Ok(())
}

/// Removes an object of containerd, which may be gone already.
fn remove(world: &World, arguments: &[&str]) -> Result<()> {
    let start = Instant::now();
    loop {
        let said = world.finish(world.node.ctr(arguments)?)?;
        if said.code == Some(0) || said.stdout.contains("not found") {
            return Ok(());
        }
        world.excused(arguments, &said.stdout)?;
        ensure!(start.elapsed() < ATTEMPTS, "{arguments:?}: {}", said.stdout);
        world.events.calls_again.fetch_add(1, Ordering::SeqCst);
        world.sleep(Duration::from_millis(100));
    }
}

/// A container that runs the reader.
struct Container<'a> {
    world: &'a World,
    id: String,
    out: Out,
    run: Daemon,
}

impl<'a> Container<'a> {
    /// Starts the container, and tries again if the daemon was killed during the calls.
    fn start(world: &'a World, plan: &Plan, image: &Published, id: &str) -> Result<Self> {
        let start = Instant::now();
        let mut mercy = Mercy::new(world);
        for attempt in 0.. {
            let mut container = Self::attempt(world, plan, image, &format!("{id}-{attempt}"))?;
            if container.has_begun()? {
                return Ok(container);
            }
            let said = container.run.log();
            container.forget()?;
            if world.is_over() {
                bail!("the test is over");
            }
            world.excused(&["run", id], &said)?;
            mercy.broken();
            let last = last_line(&said);
            world.events.say(&format!("again: run {id}: {last}"));
            world.events.calls_again.fetch_add(1, Ordering::SeqCst);
            ensure!(start.elapsed() < ATTEMPTS, "run {id}: {said}");
            std::thread::sleep(Duration::from_millis(100));
        }
        unreachable!("the loop has no end")
    }

    fn attempt(world: &'a World, plan: &Plan, image: &Published, id: &str) -> Result<Self> {
        let folder = world.memory().join(id);
        fs::create_dir_all(&folder)?;
        let list: String = image.files.iter().map(|file| format!("{file}\n")).collect();
        fs::write(folder.join("truth"), list)?;
        let lib = world.memory().join("lib");
        let tag = world.memory().display();
        let mounts =
            [(lib.as_path(), "lib", "ro"), (&folder, "out", "rw")].map(|(from, to, access)| {
                let from = from.display();
                format!("--mount=type=bind,src={from},dst=/reader/{to},options=rbind:{access}")
            });
        let command = [
            "/reader/lib/ld-linux-x86-64.so.2",
            "--library-path",
            "/reader/lib",
            "/reader/lib/soci-test-reader",
            "/reader/lib",
            "/reader/out",
            &tag.to_string(),
        ];
        let mut run = world
            .node
            .ctr(["run", "--rm", "--snapshotter", SOCI])?
            .args(mounts)
            .args([image.reference.as_str(), id])
            .args(command);
        if plan.keeping == Keeping::Alone {
            run = run.args(["again"]);
        }
        if plan.leaves_out("direct") {
            run = run.args(["buffered"]);
        }
        let out = Out {
            folder,
            paths: image.files.iter().map(|file| file.path.clone()).collect(),
        };
        lock(&world.outs).push(out.clone());
        Ok(Self {
            world,
            id: id.to_owned(),
            run: run.spawn(&world.folder().join(format!("{id}.log")))?,
            out,
        })
    }

    /// Waits until the reader reads. Returns false if the container ends first.
    fn has_begun(&mut self) -> Result<bool> {
        let start = Instant::now();
        while !self.out.folder.join("slots").exists() {
            if self.run.ended() {
                return Ok(false);
            }
            ensure!(
                start.elapsed() < LIMIT,
                "{} does not start: {}",
                self.id,
                self.run.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(true)
    }

    /// Lets the reader run, then stops and removes the container.
    fn run(mut self, time: Duration) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < time && !self.world.is_over() {
            if self.run.ended() {
                let errors = fs::read_to_string(self.out.folder.join("errors")).unwrap_or_default();
                let code = self.run.wait_for_end(LIMIT)?;
                // A page fault that fails ends a program with SIGBUS, exit code 128 + 7.
                bail!("the reader ended: {code:?} {}{errors}", self.run.log());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        fs::write(self.out.folder.join("stop"), "")?;
        self.run
            .wait_for_end(LIMIT)
            .context("the reader did not stop in time")?;
        let said = self.run.log();
        if !said.is_empty() {
            self.world.excused(&["run", &self.id], &said)?;
        }
        self.forget()
    }

    /// Adds up the reader's counters and removes what remains of the container.
    fn forget(self) -> Result<()> {
        let folder = self.out.folder.clone();
        lock(&self.world.outs).retain(|out| out.folder != folder);
        for mut slot in Slot::read_all(&fs::read(folder.join("slots")).unwrap_or_default()) {
            if self.world.aborted.load(Ordering::SeqCst) {
                slot.failed = 0;
            }
            lock(&self.world.counted).add(&slot);
        }
        if let Ok(errors) = fs::read_to_string(folder.join("errors")) {
            for line in errors.lines() {
                self.world.events.say(&format!("{}: {line}", self.id));
            }
        }
        fs::remove_dir_all(&folder)?;
        remove(self.world, &["tasks", "rm", "--force", &self.id])?;
        remove(self.world, &["containers", "rm", &self.id])?;
        remove(
            self.world,
            &["snapshots", "--snapshotter", SOCI, "rm", &self.id],
        )
    }
}
