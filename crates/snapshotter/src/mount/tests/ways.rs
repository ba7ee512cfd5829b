//! The probe, and how mounts get to their places and leave them.

use super::*;

#[test]
fn the_probe_works_here_and_leaves_nothing_behind() {
    let world = World::new(Layer::new(&[]));
    let state = world.place("state");
    match wait(choose(&state, &world.device, &world.thread)) {
        Choice::Way { mounter, reason } => {
            assert_eq!(mounter.way(), Way::Erofs);
            assert!(reason.contains("EROFS"), "{reason}");
        }
        Choice::None { reason } => panic!("{reason}"),
    }
    assert_eq!(world.table().under(&state).len(), 0);
    assert_eq!(std::fs::read_dir(&state).unwrap().count(), 0);
    let probe_file = world.device.path(u64::MAX / 2);
    assert!(apart(|| File::open(probe_file)).is_err());
}

#[test]
fn the_probe_says_why_a_state_folder_is_unsuitable() {
    let world = World::new(Layer::new(&[]));
    let state = world.place("state");
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", &state, "tmpfs", flags, None).unwrap();
    let choice = wait(choose(&state, &world.device, &world.thread));
    let left = std::fs::read_dir(&state).unwrap().count();
    rustix::mount::unmount(&state, UnmountFlags::DETACH).unwrap();
    let Choice::None { reason } = choice else {
        panic!("EROFS on tmpfs")
    };
    assert!(reason.contains("mounting over plain data"), "{reason}");
    assert!(reason.contains("Block device required"), "{reason}");
    assert_eq!(left, 0);
}

#[test]
fn a_mount_is_ours_only_as_long_as_it_is_the_one_we_made() {
    let world = World::new(Layer::new(&[("file", 10)]));
    world.serve_at_once();
    let at = world.mount("at");
    assert!(world.mounter.is_ours(&world.table(), &at));
    // Another process's view of the same mount.
    let other = erofs::ErofsMounter::new(world.thread.clone());
    assert!(!other.is_ours(&world.table(), &at));
    // Somebody mounts over it: what containers would see is no longer what we made.
    over(&world, &at);
    assert!(!world.mounter.is_ours(&world.table(), &at));
    // Mounting again takes away whatever layers lie there.
    wait(world.mounter.mount(&world.complete(), &at)).unwrap();
    assert!(world.mounter.is_ours(&world.table(), &at));
    assert_eq!(world.table().depth(&at), 1);
    for _ in 0..2 {
        wait(world.mounter.unmount(&at)).unwrap();
        assert!(!world.mounter.is_ours(&world.table(), &at));
        assert_eq!(world.table().depth(&at), 0);
    }
}

/// Mounts the layer over whatever is at `at`, as another process might.
fn over(world: &World, at: &Path) {
    let (image, at) = (world.complete(), at.to_path_buf());
    wait(world.thread.run(move || erofs::mount_now(&image, &at)))
        .unwrap()
        .unwrap();
}

#[test]
fn what_is_mounted_is_seen_in_the_table() {
    let world = World::new(Layer::new(&[("file", 10)]));
    world.serve_at_once();
    let at = world.mount("at");
    let table = world.table();
    let top = table.top(&at).unwrap();
    assert_eq!(
        (top.fs_type.as_str(), &top.source),
        ("erofs", &world.path("meta"))
    );
    assert!(top.options.split(',').any(|option| option == "ro"));
    assert!(!top.options.contains("nodev") && !top.options.contains("nosuid"));
}

#[test]
fn stale_mounts_are_detached_by_whole_path_components() {
    let world = World::new(Layer::new(&[("file", 10)]));
    world.serve_at_once();
    let places = ["s/1/fs", "s/12/fs", "s2/1/fs"].map(|name| world.mount(name));
    let twice = world.place("s/1/fs");
    over(&world, &twice);
    assert_eq!(world.table().depth(&twice), 2);
    let gone = wait(detach_all_under(&world.thread, &world.path("s"))).unwrap();
    assert_eq!(gone.len(), 3);
    let left = world.table();
    assert_eq!(places.map(|at| left.depth(&at)), [0, 0, 1]);
}

#[test]
fn a_mount_whose_device_is_gone_is_detached_without_being_touched() {
    let world = World::new(Layer::new(&[("file", 10)]));
    world.serve_at_once();
    let at = world.mount("at");
    world.device.stop();
    assert!(read_file(&at.join("file")).is_err());
    let gone = wait(detach_all_under(&world.thread, &at)).unwrap();
    assert_eq!(gone, std::slice::from_ref(&at));
    assert_eq!(world.table().depth(&at), 0);
}

#[test]
fn paths_that_fsconfig_does_not_take_are_mounted_all_the_same() {
    let world = World::new(Layer::new(&[("file", 4097)]));
    let far = world.place(&format!("{0}/{0}/{0}", "d".repeat(120)));
    let image = LayerImage {
        meta: far.join("meta"),
        device: far.join("data"),
        ..world.complete()
    };
    std::fs::rename(world.path("meta"), &image.meta).unwrap();
    std::fs::rename(world.path("data"), &image.device).unwrap();
    let at = world.place("at");
    wait(world.mounter.mount(&image, &at)).unwrap();
    assert!(world.mounter.is_ours(&world.table(), &at));
    assert_eq!(
        read_file(&at.join("file")).unwrap(),
        world.layer.content("file")
    );
    wait(world.mounter.replace(&image, std::slice::from_ref(&at))).unwrap();
    assert!(world.mounter.is_ours(&world.table(), &at));
    let comma = LayerImage {
        device: far.join("a,b"),
        ..image
    };
    let error = wait(world.mounter.mount(&comma, &at)).unwrap_err();
    assert!(matches!(error, MountError::Unsayable { .. }), "{error}");
}

#[test]
fn commas_and_spaces_in_paths_are_no_options() {
    let world = World::new(Layer::new(&[("file", 4097)]));
    let odd = world.place("odd, dir\\ro");
    let image = LayerImage {
        meta: odd.join("me,ta"),
        device: odd.join("a,b c"),
        ..world.complete()
    };
    std::fs::rename(world.path("meta"), &image.meta).unwrap();
    std::fs::rename(world.path("data"), &image.device).unwrap();
    let at = world.place("odd, dir\\ro/at");
    wait(world.mounter.mount(&image, &at)).unwrap();
    assert!(world.mounter.is_ours(&world.table(), &at));
    assert_eq!(
        read_file(&at.join("file")).unwrap(),
        world.layer.content("file")
    );
}

#[test]
fn refusals_name_the_step_the_image_and_the_reason() {
    let world = World::new(Layer::new(&[]));
    let at = world.place("at");
    std::fs::write(world.path("meta"), [0; 4096]).unwrap();
    let error = wait(world.mounter.mount(&world.complete(), &at)).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("mounting erofs image") && text.contains("meta"),
        "{text}"
    );
    let relative = wait(world.mounter.unmount(Path::new("at"))).unwrap_err();
    assert!(matches!(relative, MountError::Path(_)), "{relative}");
    assert_eq!(world.table().depth(&at), 0);
}

#[test]
fn readahead_is_that_of_the_supply() {
    let world = World::new(Layer::new(&[("file", 4 << 20)]));
    world.serve_at_once();
    // The kernel names bdis by a counter: the newest ones are this test's or a neighbour's.
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
    // A mount of a neighbour in the same moment leaves the default; it does not do so each time.
    until(|| {
        wait(world.mounter.mount(&world.complete(), &at)).unwrap();
        settings().contains(&"1024".to_owned())
    });
}
