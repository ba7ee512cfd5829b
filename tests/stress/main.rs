//! Containers read, map and execute files of images and compare every byte with the expected
//! content, while the daemon and its environment are killed, replaced, disconnected, and run out of
//! disk and memory. `make soak` runs this for hours, `make test` for three minutes.
//!
//! A hang is reported as a failure: every wait has a timeout, and processes that wait for the
//! daemon are released ([`watch`]).

mod chaos;
mod events;
mod group;
mod images;
mod lives;
mod plan;
mod pods;
mod report;
mod samples;
#[allow(dead_code, reason = "the reader uses the other half")]
mod slots;
#[allow(dead_code, reason = "the reader uses the other half")]
mod truth;
mod watch;
mod world;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::plan::Plan;
use crate::world::World;

#[test]
fn every_byte_is_right_while_everything_around_it_fails() -> Result<()> {
    let plan = Plan::from_environment()?;
    let world = World::start(&plan)?;
    let images = (0..plan.images)
        .map(|number| images::publish(&world.registry, number, plan.seed))
        .collect::<Result<Vec<_>>>()
        .context("make the images")?;
    let start = Instant::now();
    // At most 120 samples, and at least one per minute.
    let every = (plan.length / 120).clamp(Duration::from_secs(2), Duration::from_secs(60));
    let samples = std::thread::scope(|scope| {
        let (world, plan) = (&world, &plan);
        for (seed, image) in (plan.seed..).zip(&images) {
            scope.spawn(move || lives::live_on(world, plan, image, seed));
        }
        for (name, fault) in chaos::faults(plan) {
            scope.spawn(move || chaos::go_on(world, plan, name, fault));
        }
        scope.spawn(move || watch::go_on(world));
        let sampler = scope.spawn(move || samples::go_on(world, every));
        world.sleep(plan.length);
        world.over.store(true, Ordering::SeqCst);
        sampler.join().unwrap_or_default()
    });
    let ran = start.elapsed();
    if world.troubles().is_empty() {
        lives::end_all(&world, &images);
    }
    report::conclude(&world, &plan, ran, &samples)
}
