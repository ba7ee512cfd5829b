//! Layers that become complete while they are in use.

use super::*;

/// A reader that keeps a file open, has read its start, and reads its end when told to.
struct Reader {
    go_on: std::sync::mpsc::Sender<()>,
    end: std::sync::mpsc::Receiver<Vec<u8>>,
}

impl Reader {
    const SIZE: u64 = 4 << 20;

    fn open(file: PathBuf) -> Reader {
        let (go_on, wait_for) = std::sync::mpsc::channel();
        let (opened, is_open) = std::sync::mpsc::channel();
        let end = begin(move || {
            let file = File::open(file).unwrap();
            let mut page = vec![0; 4096];
            file.read_exact_at(&mut page, 0).unwrap();
            opened.send(()).unwrap();
            wait_for.recv().unwrap();
            // None of this was read before.
            file.read_exact_at(&mut page, Reader::SIZE - 4096)
                .map(|()| page)
                .unwrap()
        });
        is_open.recv_timeout(LONG).unwrap();
        Reader { go_on, end }
    }

    fn end(&self) -> Vec<u8> {
        self.go_on.send(()).unwrap();
        self.end.recv_timeout(LONG).unwrap()
    }
}

#[test]
fn a_complete_layer_switches_to_its_data_under_a_reader() {
    let world = World::new(Layer::new(&[("file", Reader::SIZE)]));
    world.serve_at_once();
    let at = world.mount("at");
    let reader = Reader::open(at.join("file"));
    let before = world.table().top(&at).unwrap().id;

    world.supply(&world.complete(), &[]).unwrap();

    assert_eq!(world.table().top(&at).unwrap().id, before, "the same mount");
    let reads = world.reads.load(Ordering::SeqCst);
    // The device is not needed any more.
    world.device.stop();
    let end = u32::try_from(Reader::SIZE).unwrap() - 4096;
    assert!(reader.end() == world.layer.slice(u64::from(end), 4096));
    assert!(read_file(&at.join("file")).unwrap() == world.layer.content("file"));
    assert_eq!(world.reads.load(Ordering::SeqCst), reads);
}

#[test]
fn a_layer_switches_back_and_forth_without_errors_for_readers() {
    let world = World::new(Layer::new(&[("file", 8 << 20)]));
    world.serve_at_once();
    let at = world.mount("at");
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let (path, content) = (at.join("file"), world.layer.content("file"));
    let looks = begin(move || {
        let file = File::open(&path).unwrap();
        let (mut looks, mut place) = (0_u64, 0_usize);
        let mut page = [0; 4096];
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            place = (place * 31 + 4_096_007) % (content.len() - 4096);
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            file.read_exact_at(&mut page, place as u64).unwrap();
            assert!(page == content[place..place + 4096], "at {place}");
            looks += 1;
        }
        looks
    });
    for _ in 0..20 {
        world.supply(&world.complete(), &[]).unwrap();
        world.supply(&world.on_demand(), &[]).unwrap();
    }
    stop.send(()).unwrap();
    assert!(looks.recv_timeout(LONG).unwrap() > 0);
}

#[test]
fn images_of_one_layer_share_its_data_device() {
    let world = World::new(Layer::new(&[("file", 1 << 20)]));
    world.serve_at_once();
    let plain = world.mount("plain");
    let patched = world.place("patched");
    let image = LayerImage {
        patch: "patched".to_owned(),
        ..world.on_demand()
    };
    wait(world.mounter.mount(&image, &patched)).unwrap();
    assert_ne!(world.loop_at(&plain), world.loop_at(&patched));
    let data = |world: &World| {
        let prefix = format!("soci:data:{}:", root_of(world));
        loops::attached(&prefix)
    };
    assert_eq!(data(&world).len(), 1, "{:?}", data(&world));
    world.supply(&world.complete(), &[]).unwrap();
    world.device.stop();
    for at in [plain, patched] {
        assert!(read_file(&at.join("file")).unwrap() == world.layer.content("file"));
    }
    // The devices are released with their last mount.
    wait(detach_all_under(&world.thread, world.folder.path())).unwrap();
    until(|| data(&world).is_empty());
}

/// The part of the device names that identifies this world.
fn root_of(world: &World) -> String {
    let table = world.table();
    let layer = table
        .under(world.folder.path())
        .into_iter()
        .find(|entry| entry.fs_type == "erofs");
    let source = layer.map(|entry| entry.source.clone());
    let label = source
        .and_then(|source| loops::index_of(source.to_str()?))
        .and_then(loops::label_of);
    match label {
        Some(label) => label.split(':').nth(2).unwrap().to_owned(),
        None => "none".to_owned(),
    }
}

#[test]
fn a_settled_layer_is_cached_once() {
    let world = World::new(Layer::new(&[("file", 4 << 20)]));
    let at = world.place("at");
    wait(world.mounter.mount(&world.complete(), &at)).unwrap();
    read_file(&at.join("file")).unwrap();
    let data = world.path("data");
    std::fs::File::open(&data).unwrap().sync_all().unwrap();
    wait(world.mounter.settle(vec![(2, vec![data.clone()])])).unwrap();
    // Read again from the device: drop the mount's cached pages first.
    let path = at.join("file");
    apart(move || {
        let file = File::open(&path).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    });
    assert!(read_file(&at.join("file")).unwrap() == world.layer.content("file"));
    assert_eq!(cached_pages(&data), 0, "a second cached copy");
}

/// Number of pages of a file that are in the page cache.
#[allow(unsafe_code, reason = "mincore has no safe wrapper")]
fn cached_pages(path: &Path) -> usize {
    let file = File::open(path).unwrap();
    // SAFETY: the file does not change during the test, and the mapping is only queried.
    let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
    let mut there = vec![0_u8; map.len().div_ceil(4096)];
    // SAFETY: the mapping is valid and the vector has a byte for each of its pages.
    let asked = unsafe {
        libc::mincore(
            map.as_ptr().cast_mut().cast(),
            map.len(),
            there.as_mut_ptr(),
        )
    };
    assert_eq!(asked, 0);
    there.iter().filter(|&&page| page & 1 == 1).count()
}

#[test]
fn mount_points_of_one_layer_share_the_page_cache() {
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
    // The first mount point can be unmounted without the second.
    wait(world.mounter.unmount(&first)).unwrap();
    assert!(read_file(&second.join("file")).unwrap() == world.layer.content("file"));
}

#[test]
fn a_mount_point_is_never_uncovered_while_its_image_is_replaced() {
    let world = World::new(Layer::new(&[("file", 4096)]));
    world.serve_at_once();
    let at = world.mount("at");
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let path = at.join("file");
    let looks = begin(move || {
        let mut looks = 0;
        while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
            File::open(&path).unwrap();
            looks += 1;
        }
        looks
    });
    for round in 0..50 {
        let image = LayerImage {
            patch: format!("patch-{round}"),
            ..world.complete()
        };
        wait(world.mounter.mount(&image, &at)).unwrap();
    }
    stop.send(()).unwrap();
    assert!(looks.recv_timeout(LONG).unwrap() > 0);
    assert_eq!(world.table().depth(&at), 1);
}
