//! Mount mode *file*: differences from mount mode *loop*.

use super::*;

#[test]
fn a_complete_layer_replaces_the_lazy_one_under_a_reader() {
    let world = World::on(Way::File, Layer::new(&[("file", 4 << 20)]));
    world.serve_at_once();
    let at = world.mount("at");
    let (go_on, wait_for) = std::sync::mpsc::channel();
    let (opened, is_open) = std::sync::mpsc::channel();
    let path = at.join("file");
    let old = begin(move || {
        let file = File::open(path).unwrap();
        let mut start = vec![0; 4096];
        file.read_exact_at(&mut start, 0).unwrap();
        opened.send(()).unwrap();
        wait_for.recv().unwrap();
        // None of this was read before, so it still comes from the device.
        let mut end = vec![0; 4096];
        file.read_exact_at(&mut end, (4 << 20) - 4096)
            .map(|()| end)
            .unwrap()
    });
    is_open.recv_timeout(LONG).unwrap();
    let before = world.table().top(&at).unwrap().id;

    world
        .supply(&world.complete(), std::slice::from_ref(&at))
        .unwrap();

    let table = world.table();
    assert_ne!(table.top(&at).unwrap().id, before);
    assert_eq!(table.depth(&at), 1);
    assert!(world.mounter.is_ours(&table, &at));
    let reads = world.reads.load(Ordering::SeqCst);
    assert!(read_file(&at.join("file")).unwrap() == world.layer.content("file"));
    assert_eq!(
        world.reads.load(Ordering::SeqCst),
        reads,
        "new readers do not need the device"
    );
    go_on.send(()).unwrap();
    assert!(old.recv_timeout(LONG).unwrap() == world.layer.slice((4 << 20) - 4096, 4096));
    assert!(
        world.reads.load(Ordering::SeqCst) > reads,
        "the old reader kept its mount"
    );
}

#[test]
fn a_replacement_works_where_mounts_propagate() {
    let world = World::on(Way::File, Layer::new(&[("file", 4096)]));
    world.serve_at_once();
    let shared = world.place("shared");
    rustix::mount::mount_bind(&shared, &shared).unwrap();
    let propagation = rustix::mount::MountPropagationFlags::SHARED;
    rustix::mount::mount_change(&shared, propagation).unwrap();
    let at = world.mount("shared/at");
    world
        .supply(&world.complete(), std::slice::from_ref(&at))
        .unwrap();
    world.device.remove(2);
    assert!(read_file(&at.join("file")).unwrap() == world.layer.content("file"));
    assert!(world.mounter.is_ours(&world.table(), &at));
    wait(world.mounter.unmount(&at)).unwrap();
    let depth = world.table().depth(&at);
    rustix::mount::unmount(&shared, UnmountFlags::DETACH).unwrap();
    assert_eq!(depth, 0);
}

#[test]
fn an_image_that_cannot_be_mounted_leaves_the_old_mount() {
    let world = World::on(Way::File, Layer::new(&[("file", 4096)]));
    world.serve_at_once();
    let at = world.mount("at");
    std::fs::write(world.path("broken"), [0; 4096]).unwrap();
    let broken = LayerImage {
        meta: world.path("broken"),
        ..world.complete()
    };
    assert!(world.supply(&broken, std::slice::from_ref(&at)).is_err());
    assert!(world.mounter.is_ours(&world.table(), &at));
    assert!(read_file(&at.join("file")).unwrap() == world.layer.content("file"));
}

#[test]
fn paths_too_long_for_fsconfig_are_mounted() {
    let world = World::on(Way::File, Layer::new(&[("file", 4097)]));
    let far = world.place(&format!("{0}/{0}/{0}", "d".repeat(120)));
    let image = LayerImage {
        meta: far.join("meta"),
        ..world.image(far.join("data"), Supply::Complete)
    };
    std::fs::rename(world.path("meta"), &image.meta).unwrap();
    std::fs::rename(world.path("data"), &image.source.file).unwrap();
    let at = world.place("at");
    wait(world.mounter.mount(&image, &at)).unwrap();
    assert!(world.mounter.is_ours(&world.table(), &at));
    assert_eq!(
        read_file(&at.join("file")).unwrap(),
        world.layer.content("file")
    );
    world.supply(&image, std::slice::from_ref(&at)).unwrap();
    assert!(world.mounter.is_ours(&world.table(), &at));
    let comma = world.image(far.join("a,b"), Supply::Complete);
    let error = wait(world.mounter.mount(&comma, &at)).unwrap_err();
    assert!(matches!(error, MountError::Unsayable { .. }), "{error}");
}

#[test]
fn commas_and_spaces_in_paths_are_not_options() {
    let world = World::on(Way::File, Layer::new(&[("file", 4097)]));
    let odd = world.place("odd, dir\\ro");
    let image = LayerImage {
        meta: odd.join("me,ta"),
        ..world.image(odd.join("a,b c"), Supply::Complete)
    };
    std::fs::rename(world.path("meta"), &image.meta).unwrap();
    std::fs::rename(world.path("data"), &image.source.file).unwrap();
    let at = world.place("odd, dir\\ro/at");
    wait(world.mounter.mount(&image, &at)).unwrap();
    assert!(world.mounter.is_ours(&world.table(), &at));
    assert_eq!(
        read_file(&at.join("file")).unwrap(),
        world.layer.content("file")
    );
}

#[test]
fn readahead_depends_on_the_supply() {
    let world = World::on(Way::File, Layer::new(&[("file", 4 << 20)]));
    world.serve_at_once();
    // The kernel numbers bdis in sequence. The newest ones belong to this test or to a concurrent
    // one.
    let settings = || {
        let bdis = std::fs::read_dir("/sys/class/bdi").unwrap().flatten();
        let erofs = bdis.filter(|bdi| bdi.file_name().to_string_lossy().starts_with("erofs-"));
        let setting =
            |bdi: std::fs::DirEntry| std::fs::read_to_string(bdi.path().join("read_ahead_kb")).ok();
        erofs
            .filter_map(setting)
            .map(|text| text.trim().to_owned())
            .collect::<Vec<_>>()
    };
    let at = world.place("at");
    // A concurrent mount makes the mounter keep the default, but not in every attempt.
    until(|| {
        wait(world.mounter.mount(&world.complete(), &at)).unwrap();
        settings().contains(&"1024".to_owned())
    });
}

#[test]
fn a_layer_mounted_from_files_cannot_switch_back() {
    let world = World::on(Way::File, Layer::new(&[("file", 4096)]));
    world.serve_at_once();
    let error = world.supply(&world.on_demand(), &[]).unwrap_err();
    assert!(matches!(error, MountError::Fixed), "{error}");
}
