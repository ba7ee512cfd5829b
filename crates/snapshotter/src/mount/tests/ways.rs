//! The probe, and attaching and detaching mounts.

use super::*;

#[test]
fn the_probe_works_here_and_leaves_nothing_behind() {
    let world = World::new(Layer::new(&[]));
    let state = world.place("state");
    for way in [Way::Loop, Way::File] {
        let chosen = wait(choose(
            Allowed::Only(way),
            &state,
            &world.device,
            &world.thread,
        ))
        .unwrap();
        assert_eq!(chosen.way, way);
        assert!(chosen.xino, "{chosen:?}");
        assert_eq!(chosen.owners, None);
        assert!(chosen.reason.contains("EROFS"), "{}", chosen.reason);
        assert_eq!(world.table().under(&state).len(), 0);
        assert_eq!(std::fs::read_dir(&state).unwrap().count(), 0);
        let probe_file = world.device.path(u64::MAX / 2);
        assert!(apart(|| File::open(probe_file)).is_err());
    }
    let chosen = wait(choose(Allowed::Auto, &state, &world.device, &world.thread)).unwrap();
    assert_eq!(chosen.way, Way::Loop, "the first mode that works");
}

#[test]
fn the_probe_reports_why_a_mount_mode_does_not_work() {
    let world = World::new(Layer::new(&[]));
    let state = world.place("state");
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("none", &state, "tmpfs", flags, None).unwrap();
    let file = wait(choose(
        Allowed::Only(Way::File),
        &state,
        &world.device,
        &world.thread,
    ));
    let auto = wait(choose(Allowed::Auto, &state, &world.device, &world.thread));
    let left = std::fs::read_dir(&state).unwrap().count();
    rustix::mount::unmount(&state, UnmountFlags::DETACH).unwrap();
    let reason = file.unwrap_err();
    assert!(reason.contains("mounting over plain data"), "{reason}");
    assert!(reason.contains("Block device required"), "{reason}");
    assert_eq!(
        auto.unwrap().way,
        Way::Loop,
        "loop devices accept files on tmpfs"
    );
    assert_eq!(left, 0);
}

#[test]
fn the_probe_reports_why_containers_in_user_namespaces_cannot_start() {
    let world = World::new(Layer::new(&[]));
    let [state, upper, work] = ["state", "upper", "work"].map(|name| world.place(name));
    // The kernel has no ID-mapped mounts of overlays.
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        state.display(),
        upper.display(),
        work.display()
    );
    let options = std::ffi::CString::new(options).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("overlay", &state, "overlay", flags, options.as_c_str()).unwrap();
    let chosen = wait(choose(Allowed::Auto, &state, &world.device, &world.thread));
    let left = std::fs::read_dir(&state).unwrap().count();
    rustix::mount::unmount(&state, UnmountFlags::DETACH).unwrap();
    let reason = chosen.unwrap().owners.unwrap();
    assert!(reason.contains("unpacked layer"), "{reason}");
    assert!(reason.contains("ID-mapped mounts"), "{reason}");
    assert_eq!(left, 0);
}

#[test]
fn mount_mode_none_is_reported_as_the_reason() {
    let world = World::new(Layer::new(&[]));
    let state = world.place("state");
    let reason = wait(choose(Allowed::None, &state, &world.device, &world.thread)).unwrap_err();
    assert!(reason.contains("none"), "{reason}");
}

#[test]
fn remains_of_a_killed_probe_are_removed() {
    let world = World::new(Layer::new(&[]));
    world.serve_at_once();
    let at = world.place("probe-killed/upper");
    wait(world.mounter.mount(&world.on_demand(), &at)).unwrap();
    assert_eq!(
        wait(sweep_probes(&world.thread, world.folder.path())).unwrap(),
        1
    );
    assert!(!world.path("probe-killed").exists());
    assert!(world.path("data").exists());
}

#[test]
fn a_mount_is_ours_only_while_it_is_the_one_we_made() {
    let world = World::new(Layer::new(&[("file", 10)]));
    world.serve_at_once();
    let at = world.mount("at");
    assert!(world.mounter.is_ours(&world.table(), &at));
    // Another mount above it: containers would no longer see our mount.
    rustix::mount::mount_bind(&at, &at).unwrap();
    assert!(!world.mounter.is_ours(&world.table(), &at));
    for _ in 0..2 {
        wait(world.mounter.unmount(&at)).unwrap();
        assert!(!world.mounter.is_ours(&world.table(), &at));
        assert_eq!(world.table().depth(&at), 0);
    }
}

#[test]
fn what_is_mounted_is_seen_in_the_table() {
    let world = World::new(Layer::new(&[("file", 10)]));
    world.serve_at_once();
    let at = world.mount("at");
    let table = world.table();
    let top = table.top(&at).unwrap();
    assert_eq!(top.fs_type, "erofs");
    assert!(top.source.starts_with("/dev"), "{}", top.source.display());
    assert!(top.options.split(',').any(|option| option == "ro"));
    assert!(!top.options.contains("nodev") && !top.options.contains("nosuid"));
    assert_eq!(
        world.reads.load(Ordering::SeqCst),
        0,
        "mounting reads no content"
    );
}

#[test]
fn mounts_are_detached_by_whole_path_components() {
    let world = World::new(Layer::new(&[("file", 10)]));
    world.serve_at_once();
    let places = ["s/1/fs", "s/12/fs", "s2/1/fs"].map(|name| world.mount(name));
    let gone = wait(detach_all_under(&world.thread, &world.path("s"))).unwrap();
    assert_eq!(gone, 2);
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
    assert_eq!(wait(detach_all_under(&world.thread, &at)).unwrap(), 1);
    assert_eq!(world.table().depth(&at), 0);
}

#[test]
fn refusals_name_the_step_the_image_and_the_reason() {
    let world = World::new(Layer::new(&[]));
    let at = world.place("at");
    std::fs::write(world.path("meta"), [0; 4096]).unwrap();
    let error = wait(world.mounter.mount(&world.complete(), &at)).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("cannot mount EROFS image"), "{text}");
    let relative = wait(world.mounter.unmount(Path::new("at"))).unwrap_err();
    assert!(matches!(relative, MountError::Path(_)), "{relative}");
    assert_eq!(world.table().depth(&at), 0);
}

#[test]
fn readahead_is_set_on_the_meta_device() {
    let world = World::new(Layer::new(&[("file", 10)]));
    world.serve_at_once();
    let at = world.mount("at");
    let setting = format!("/sys/block/loop{}/queue/read_ahead_kb", world.loop_at(&at));
    assert_eq!(std::fs::read_to_string(setting).unwrap().trim(), "1024");
}

#[test]
fn the_data_device_reads_directly_from_the_fuse_file() {
    let world = World::new(Layer::new(&[("file", 10)]));
    world.serve_at_once();
    world.mount("at");
    let mounted = loops::attached("soci:data:");
    let on_fuse = mounted.iter().filter(|found| {
        let device = loops::Loop::open(found.index, &found.label);
        device.is_some_and(|device| device.is_on(&world.device.path(2)) && device.is_direct())
    });
    assert_eq!(on_fuse.count(), 1, "{mounted:?}");
}
