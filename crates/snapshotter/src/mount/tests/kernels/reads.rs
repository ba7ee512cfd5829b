//! READs: which ones the kernel sends, and who waits for them.

use std::sync::atomic::AtomicU64;

use super::*;

/// Counts the requested bytes of the file and records the largest READ.
#[derive(Default)]
struct Asked {
    bytes: AtomicU64,
    largest: AtomicU64,
}

fn serve_counted(world: &World) -> Arc<Asked> {
    let asked = Arc::new(Asked::default());
    let count = Arc::clone(&asked);
    serve_edges(world, move |layer, offset, len, done| {
        count.bytes.fetch_add(u64::from(len), Ordering::SeqCst);
        count.largest.fetch_max(u64::from(len), Ordering::SeqCst);
        done(Ok(layer.slice(offset, len)));
    });
    asked
}

#[test]
fn bytes_are_asked_for_when_they_are_read() {
    let world = World::new(layer(&[("file", 16 << 20)]));
    let asked = serve_counted(&world);
    let at = world.mount("at");
    let path = at.join("file");
    assert_eq!(
        asked.bytes.load(Ordering::SeqCst),
        0,
        "mounting reads no content"
    );
    let middle = path.clone();
    let page = apart(move || {
        let file = File::open(middle).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
        let mut page = [0; 4096];
        file.read_exact_at(&mut page, 8 << 20).unwrap();
        page
    });
    let start = usize::try_from(8_u64 << 20).unwrap();
    assert!(page[..] == world.layer.content("file")[start..start + 4096]);
    let first = asked.bytes.load(Ordering::SeqCst);
    assert!(first <= 128 << 10, "{first} bytes for a page");
    assert!(read_file(&path).unwrap() == world.layer.content("file"));
    let (bytes, largest) = (&asked.bytes, asked.largest.load(Ordering::SeqCst));
    assert!(
        bytes.load(Ordering::SeqCst) <= (16 << 20) + first,
        "no byte is requested twice"
    );
    assert!(largest >= 128 << 10, "READs of at most {largest} bytes");
    answer(format!(
        "a page asks for {} KiB, reading on for {} KiB at once",
        first >> 10,
        largest >> 10
    ));
}

#[test]
fn o_direct_is_lazy_and_complete() {
    let world = World::new(layer(&[("file", 4 << 20)]));
    let asked = serve_counted(&world);
    let at = world.mount("at");
    let (path, content) = (at.join("file"), world.layer.content("file"));
    apart(move || {
        let mut block = Aligned::new(64 << 10);
        let file = open_direct(&path).unwrap();
        file.read_exact_at(block.bytes(), 1 << 20).unwrap();
        let start = 1 << 20;
        assert!(block.bytes()[..] == content[start..start + (64 << 10)]);
        let first = asked.bytes.load(Ordering::SeqCst);
        assert!((64 << 10..=128 << 10).contains(&first), "{first} bytes");
        for place in (0..content.len()).step_by(64 << 10) {
            file.read_exact_at(block.bytes(), place as u64).unwrap();
            assert!(
                block.bytes()[..] == content[place..place + (64 << 10)],
                "{place}"
            );
        }
        // Some programs set `O_DIRECT` after the file is open.
        let file = File::open(&path).unwrap();
        rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::DIRECT).unwrap();
        file.read_exact_at(block.bytes(), 2 << 20).unwrap();
        assert!(block.bytes()[..] == content[2 << 20..(2 << 20) + (64 << 10)]);
    });
}

#[test]
fn readers_wait_side_by_side() {
    const READERS: usize = 64;
    let world = World::new(layer(&[("slow", 64 << 20), ("quick", 1 << 20)]));
    let waiting = Waiting::default();
    let park = Arc::clone(&waiting);
    let (slow, size) = world.layer.files["slow"];
    serve_edges(&world, move |layer, offset, len, done| {
        if offset < slow + size {
            park.lock().unwrap().push((offset, len, done));
        } else {
            done(Ok(layer.slice(offset, len)));
        }
    });
    let at = world.mount("at");
    let readers: Vec<_> = (0..READERS as u64)
        .map(|index| {
            let path = at.join("slow");
            begin(move || {
                let file = File::open(path)?;
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random)?;
                let mut page = [0; 4096];
                file.read_exact_at(&mut page, index << 20).map(|()| page)
            })
        })
        .collect();
    world.wait_parked(READERS);
    assert!(read_file(&at.join("quick")).unwrap() == world.layer.content("quick"));
    let state = world.folder.path().to_path_buf();
    apart(move || {
        std::fs::metadata(at.join("slow")).unwrap();
        for place in [at, state] {
            rustix::fs::syncfs(File::open(place).unwrap()).unwrap();
        }
    });
    world.answer(&waiting);
    for (index, reader) in (0..).zip(readers) {
        let read = reader.recv_timeout(LONG).unwrap().unwrap();
        assert!(
            read[..] == world.layer.slice(slow + (index << 20), 4096),
            "{index}"
        );
    }
}

/// Starts a `cat` of the file and waits for its first READ.
fn waiting_reader(world: &World, at: &Path) -> Child {
    let reader = Command::new("cat")
        .arg(at.join("file"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    world.wait_parked(1);
    reader
}

/// Kills the process and waits for its end. Returns how long that took.
fn killed(mut reader: Child) -> Duration {
    let start = Instant::now();
    reader.kill().unwrap();
    until(|| reader.try_wait().unwrap().is_some());
    start.elapsed()
}

#[test]
fn reader_that_waits_can_be_killed() {
    let world = World::new(layer(&[("file", 1 << 20)]));
    let waiting = serve_edges_only(&world);
    let at = world.mount("at");
    let took = killed(waiting_reader(&world, &at));
    assert!(took < Duration::from_secs(2), "{took:?}");
    // The bytes it waited for still arrive and serve the next reader.
    let path = at.join("file");
    let next = begin(move || std::fs::read(path));
    let next = loop {
        world.answer(&waiting);
        match next.recv_timeout(Duration::from_millis(2)) {
            Ok(read) => break read.unwrap(),
            Err(_) => assert!(world.device.is_served()),
        }
    };
    assert!(next == world.layer.content("file"));
    answer(format!("gone after {}", ms(took)));
}

#[test]
fn mount_goes_when_the_reads_that_wait_are_refused() {
    let world = World::new(layer(&[("file", 1 << 20)]));
    let _waiting = serve_edges_only(&world);
    let at = world.mount("at");
    killed(waiting_reader(&world, &at));
    let device = data_loop(&world, &at);
    let start = Instant::now();
    let refused = world.device.refuse(2);
    wait(world.mounter.unmount(&at)).unwrap();
    until(|| loops::label_of(loops::index_of(device.to_str().unwrap()).unwrap()).is_none());
    let took = start.elapsed();
    drop(refused);
    assert!(took < Duration::from_secs(2), "{took:?}");
    answer(format!("in {}", ms(took)));
}

#[test]
fn head_and_tail_of_the_device_need_no_read_of_a_file() {
    // How far programs that look for file systems read: libblkid and LVM from the front, RAID and
    // ZFS labels from the end.
    const FRONT: u64 = 4 << 20;
    const BACK: u64 = 1600 << 10;
    let world = World::new(layer(&[("file", 4 << 20)]));
    let waiting = serve_edges_only(&world);
    let at = world.mount("at");
    let device = data_loop(&world, &at);
    let len = world.layer.data.len() as u64;
    apart(move || {
        let mut block = Aligned::new(4096);
        // Direct reads first, while nothing is cached.
        for file in [open_direct(&device).unwrap(), File::open(&device).unwrap()] {
            for place in (0..FRONT).chain(len - BACK..len).step_by(4096) {
                file.read_exact_at(block.bytes(), place).unwrap();
                assert!(block.bytes().iter().all(|&byte| byte == 0), "{place}");
            }
        }
    });
    assert_eq!(waiting.lock().unwrap().len(), 0, "READs of the file");
}
