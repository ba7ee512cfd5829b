//! A layer becomes complete while it is used.

use super::*;

#[test]
fn a_complete_layer_replaces_the_lazy_one_under_a_reader() {
    let world = World::new(Layer::new(&[("file", 4 << 20)]));
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
        // Nothing of this was read before: it still comes from the device.
        let mut end = vec![0; 4096];
        file.read_exact_at(&mut end, (4 << 20) - 4096)
            .map(|()| end)
            .unwrap()
    });
    is_open.recv_timeout(LONG).unwrap();
    let before = world.table().top(&at).unwrap().id;

    wait(
        world
            .mounter
            .replace(&world.complete(), std::slice::from_ref(&at)),
    )
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
        "new readers need no device"
    );
    go_on.send(()).unwrap();
    assert!(old.recv_timeout(LONG).unwrap() == world.layer.slice((4 << 20) - 4096, 4096));
    assert!(
        world.reads.load(Ordering::SeqCst) > reads,
        "the old reader kept its mount"
    );
}

#[test]
fn there_is_a_mount_at_every_moment_of_a_replacement() {
    let world = World::new(Layer::new(&[("file", 4096)]));
    world.serve_at_once();
    let at = world.mount("at");
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let path = at.join("file");
    let gaps = begin(move || {
        let mut looks = 0;
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            File::open(&path).unwrap();
            looks += 1;
        }
        looks
    });
    for _ in 0..50 {
        wait(
            world
                .mounter
                .replace(&world.complete(), std::slice::from_ref(&at)),
        )
        .unwrap();
    }
    stop.send(()).unwrap();
    assert!(gaps.recv_timeout(LONG).unwrap() > 0);
    assert_eq!(world.table().depth(&at), 1);
}

#[test]
fn places_of_one_layer_share_what_is_cached_before_and_after_completion() {
    let world = World::new(Layer::new(&[("file", 1 << 20)]));
    world.serve_at_once();
    let first = world.mount("first");
    let second = world.place("second");
    wait(world.mounter.bind(&first, &second)).unwrap();
    read_file(&first.join("file")).unwrap();
    let reads = world.reads.load(Ordering::SeqCst);
    assert!(read_file(&second.join("file")).unwrap() == world.layer.content("file"));
    assert_eq!(world.reads.load(Ordering::SeqCst), reads);

    let unknown = world.place("unknown");
    let error = wait(world.mounter.bind(&unknown, &second)).unwrap_err();
    assert!(matches!(error, MountError::NotOurs(_)), "{error}");
    assert!(world.mounter.is_ours(&world.table(), &second));

    let places = [first.clone(), unknown.clone(), second.clone()];
    wait(world.mounter.replace(&world.complete(), &places)).unwrap();
    let table = world.table();
    assert_eq!(
        table.depth(&unknown),
        0,
        "nothing was mounted there and nothing is"
    );
    let (one, two) = (table.top(&first).unwrap(), table.top(&second).unwrap());
    assert_eq!(one.device, two.device, "one file system");
    assert!(world.mounter.is_ours(&table, &first) && world.mounter.is_ours(&table, &second));
    // The first place can go without the second.
    wait(world.mounter.unmount(&first)).unwrap();
    assert!(read_file(&second.join("file")).unwrap() == world.layer.content("file"));
    assert_eq!(world.reads.load(Ordering::SeqCst), reads);
}

#[test]
fn a_replacement_works_where_mounts_propagate() {
    let world = World::new(Layer::new(&[("file", 4096)]));
    world.serve_at_once();
    let shared = world.place("shared");
    rustix::mount::mount_bind(&shared, &shared).unwrap();
    let propagation = rustix::mount::MountPropagationFlags::SHARED;
    rustix::mount::mount_change(&shared, propagation).unwrap();
    let at = world.mount("shared/at");
    wait(
        world
            .mounter
            .replace(&world.complete(), std::slice::from_ref(&at)),
    )
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
    let world = World::new(Layer::new(&[("file", 4096)]));
    world.serve_at_once();
    let at = world.mount("at");
    std::fs::write(world.path("broken"), [0; 4096]).unwrap();
    let broken = LayerImage {
        meta: world.path("broken"),
        ..world.complete()
    };
    assert!(wait(world.mounter.replace(&broken, std::slice::from_ref(&at))).is_err());
    assert!(world.mounter.is_ours(&world.table(), &at));
    assert!(read_file(&at.join("file")).unwrap() == world.layer.content("file"));
}
