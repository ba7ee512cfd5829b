//! The images of the test: random, the same for the same seed, and fully described by their file
//! lists.
//!
//! Each has a shared layer with a shell and programs, two lazy layers of its own, and a small layer
//! that is downloaded whole.

use std::fs;

use anyhow::Result;
use soci_tests::process::tool;
use soci_tests::tar::{self, Entry};
use soci_tests::{Image, image};

use crate::truth::{Dice, File, Kind};
use crate::world::Registry;

/// A published image.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) name: String,
    pub(crate) reference: String,
    pub(crate) files: Vec<File>,
}

/// Small spans, so that layers stay incomplete for long. The smallest layer has no zTOC.
const CONVERT: &[&str] = &["--min-layer-size", "100000", "--span-size", "262144"];

/// Builds image `number` and pushes it.
pub(crate) fn publish(registry: &Registry, number: u64, seed: u64) -> Result<Published> {
    let shell = fs::read(tool("busybox")?)?;
    let mut dice = Dice::new(seed ^ (number << 32));
    let programs = programs(&mut Dice::new(seed), shell.len() as u64);
    let name = format!("stress-{number}:1");
    let large = folder("large", 12, 100_000, 2_000_000, &mut dice);
    let many = folder("many", 40, 1, 200_000, &mut dice);
    let small = folder("small", 4, 1, 8_000, &mut dice);
    let layers = [
        [image::shell()?, entries(&programs, "programs", &shell)].concat(),
        entries(&large, "large", &shell),
        entries(&many, "many", &shell),
        entries(&small, "small", &shell),
    ];
    let made = Image::of(&layers.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
    let reference = registry.publish(&made, &name, CONVERT)?;
    Ok(Published {
        name,
        reference,
        files: [programs, large, many, small].concat(),
    })
}

fn programs(dice: &mut Dice, shell: u64) -> Vec<File> {
    let program = |n: u64| File {
        kind: Kind::Program,
        seed: dice.throw(1, u64::MAX),
        size: shell + dice.throw(1, 300_000),
        path: format!("/programs/busybox{n}"),
    };
    (0..4).map(program).collect()
}

fn folder(name: &str, count: u64, least: u64, most: u64, dice: &mut Dice) -> Vec<File> {
    let file = |n: u64| File {
        kind: if dice.throw(0, 3) == 0 {
            Kind::Text
        } else {
            Kind::Noise
        },
        seed: dice.throw(1, u64::MAX),
        size: dice.throw(least, most),
        path: format!("/{name}/{n}"),
    };
    (0..count).map(file).collect()
}

fn entries(files: &[File], folder: &str, shell: &[u8]) -> Vec<Entry> {
    let mode = |file: &File| match file.kind {
        Kind::Program => 0o755,
        _ => 0o644,
    };
    let entry = |file: &File| tar::file(&file.path[1..], file.bytes(shell)).mode(mode(file));
    std::iter::once(tar::directory(folder))
        .chain(files.iter().map(entry))
        .collect()
}
