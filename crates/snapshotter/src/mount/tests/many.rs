//! A node with many layers.

use super::*;

/// A large node: dozens of images with dozens of layers each.
const LAYERS: u64 = 1000;

#[test]
#[expect(
    clippy::print_stdout,
    reason = "prints a figure for the reader of the log"
)]
fn a_thousand_layers_are_mounted_at_once() {
    let world = World::new(Layer::new(&[("file", 5000)]));
    let before = available_kib();
    for number in 2..2 + LAYERS {
        let at = world.place(&format!("at/{number}"));
        let mut image = world.complete();
        image.source.number = number;
        wait(world.mounter.mount(&image, &at)).unwrap();
    }
    let taken = before.saturating_sub(available_kib());
    // Only an indication: it includes the other work of the machine.
    println!("{} KiB of memory for each mounted layer", taken / LAYERS);
    assert_eq!(world.table().under(&world.path("at")).len(), 1000);
    for number in [2, LAYERS / 2, LAYERS + 1] {
        let file = world.path(&format!("at/{number}/file"));
        assert!(read_file(&file).unwrap() == world.layer.content("file"));
    }
    let moved = LayerSource {
        number: LAYERS + 1,
        ..world.complete().source
    };
    wait(world.mounter.supply(&moved, &[])).unwrap();
    // A later process finds all of them.
    let later = chosen(Way::Loop).mounter(world.folder.path(), &world.thread);
    assert_eq!(wait(later.find()).unwrap().len(), 1000);
}

#[test]
fn layers_that_move_together_all_arrive_and_one_failure_stays_alone() {
    let world = World::new(Layer::new(&[("file", 1 << 20)]));
    let numbers = 2..30_u64;
    let mut layers = Vec::new();
    for number in numbers.clone() {
        let file = world.path(&format!("data-{number}"));
        std::fs::copy(world.path("data"), &file).unwrap();
        let mut image = world.complete();
        image.source.number = number;
        wait(
            world
                .mounter
                .mount(&image, &world.place(&format!("at/{number}"))),
        )
        .unwrap();
        image.source.file = file;
        layers.push(SwitchedLayer {
            source: image.source,
            shown: Vec::new(),
        });
    }
    std::fs::remove_file(world.path("data-7")).unwrap();

    let results = wait(world.mounter.supply_all(&layers));

    let failed = numbers
        .clone()
        .zip(&results)
        .filter(|(_, result)| result.is_err());
    assert_eq!(failed.map(|(number, _)| number).collect::<Vec<_>>(), [7]);
    for number in numbers {
        let content = world.layer.content("file");
        let file = world.path(&format!("at/{number}/file"));
        assert!(read_file(&file).unwrap() == content, "layer {number}");
    }
    let moved = (2..30)
        .filter(|&number| number != 7)
        .map(|number| format!("data-{number}"));
    let expected = moved.chain(["data".to_owned()]).collect::<BTreeSet<_>>();
    assert_eq!(world.files_behind_devices(), expected);
}

/// `MemAvailable` of the machine.
fn available_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"));
    let value = line.and_then(|line| line.split_whitespace().nth(1));
    value.unwrap().parse().unwrap()
}
