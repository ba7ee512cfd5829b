//! Reads of a layer whose bytes are served on demand.

use super::*;

#[test]
fn files_read_the_same_in_order_and_at_random() {
    let files = [
        ("big", 3_000_001),
        ("empty", 0),
        ("one", 1),
        ("page", 4096),
        ("tail", 5000),
    ];
    let world = World::new(Layer::new(&files));
    world.serve_at_once();
    let at = world.mount("at");
    for (name, _) in files {
        assert_eq!(
            read_file(&at.join(name)).unwrap(),
            world.layer.content(name),
            "{name}"
        );
    }
    // Nothing of a second mount is cached.
    let at = world.mount("again");
    let big = world.layer.content("big");
    let path = at.join("big");
    let wrong = apart(move || {
        let file = File::open(path).unwrap();
        let mut buffer = [0; 1000];
        (0..300_usize)
            .map(|step| step * 7_919_003 % 2_999_000)
            .find(|&place| {
                file.read_exact_at(&mut buffer, place as u64).unwrap();
                buffer != big[place..place + 1000]
            })
    });
    assert_eq!(wrong, None);
}

#[test]
fn a_layer_without_content_is_mounted() {
    let world = World::new(Layer::new(&[("empty", 0)]));
    world.serve_at_once();
    let at = world.mount("at");
    assert_eq!(read_file(&at.join("empty")).unwrap(), Vec::<u8>::new());
    let listed = apart(move || std::fs::read_dir(at).unwrap().count());
    assert_eq!(listed, 1);
    assert_eq!(world.reads.load(Ordering::SeqCst), 0);
}

#[test]
fn a_mapping_of_the_last_page_has_zeros_behind_the_end() {
    let world = World::new(Layer::new(&[("first", 5000), ("second", 8192)]));
    world.serve_at_once();
    let at = world.mount("at");
    let path = at.join("first");
    let pages = apart(move || mapped_pages(&File::open(path).unwrap()));
    let expected = world.layer.slice(0, 8192);
    assert!(pages == expected, "the mapping differs from the data");
    assert_eq!(pages[5000..], [0; 8192 - 5000]);
}

/// All pages of a file, including the bytes after its end.
#[allow(unsafe_code, reason = "the test reads through a mapping")]
fn mapped_pages(file: &File) -> Vec<u8> {
    let len = usize::try_from(file.metadata().unwrap().len().next_multiple_of(4096)).unwrap();
    let mut options = memmap2::MmapOptions::new();
    // SAFETY: a file of a read-only image is neither written nor truncated, and the length ends
    // inside the last page, which a mapping may access.
    let map = unsafe { options.len(len).map(file) }.unwrap();
    map.to_vec()
}

#[test]
fn reads_of_several_threads_are_in_flight_at_once() {
    let world = World::new(Layer::new(&[("file", 64 << 20)]));
    let waiting = world.serve_never();
    let at = world.mount("at");
    let readers: Vec<_> = (0..64_u64)
        .map(|index| {
            let path = at.join("file");
            begin(move || {
                let mut buffer = [0; 4096];
                File::open(path)?
                    .read_exact_at(&mut buffer, index << 20)
                    .map(|()| buffer)
            })
        })
        .collect();
    world.wait_parked(64);
    assert_eq!(waiting.lock().unwrap().len(), 64);
    // Neither metadata nor other files of the device are blocked.
    let listed = apart(move || std::fs::read_dir(at).unwrap().count());
    assert_eq!(listed, 1);
    world.answer(&waiting);
    for (index, reader) in (0..).zip(readers) {
        let read = reader.recv_timeout(LONG).unwrap().unwrap();
        assert!(
            read[..] == world.layer.slice(index << 20, 4096),
            "reader {index}"
        );
    }
}

#[test]
fn reads_of_one_reader_overlap() {
    let world = World::new(Layer::new(&[("file", 8 << 20)]));
    let waiting = world.serve_never();
    let at = world.mount("at");
    let path = at.join("file");
    let reader = begin(move || {
        let mut all = Vec::new();
        File::open(path)
            .unwrap()
            .read_to_end(&mut all)
            .map(|_| all)
            .unwrap()
    });
    // The kernel reads ahead without another request from the reader.
    let mut most = 0;
    let all = loop {
        std::thread::sleep(Duration::from_millis(1));
        most = most.max(waiting.lock().unwrap().len());
        world.answer(&waiting);
        match reader.try_recv() {
            Ok(all) => break all,
            Err(_) => assert!(world.device.is_served()),
        }
    };
    assert!(all == world.layer.content("file"));
    assert!(most >= 2, "at most {most} reads at once");
}

#[test]
fn an_error_is_eio_and_is_not_cached() {
    let world = World::new(Layer::new(&[("file", 4096)]));
    let broken = Arc::new(AtomicUsize::new(1));
    let state = Arc::clone(&broken);
    world.serve(
        move |layer, offset, len, done| match state.load(Ordering::SeqCst) {
            0 => done(Ok(layer.slice(offset, len))),
            _ => done(Err(unavailable())),
        },
    );
    let at = world.mount("at");
    for _ in 0..2 {
        let error = read_file(&at.join("file")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }
    broken.store(0, Ordering::SeqCst);
    assert_eq!(
        read_file(&at.join("file")).unwrap(),
        world.layer.content("file")
    );
    broken.store(1, Ordering::SeqCst);
    assert_eq!(
        read_file(&at.join("file")).unwrap(),
        world.layer.content("file"),
        "cached"
    );
}

#[test]
fn a_signal_does_not_disturb_a_reader() {
    let world = World::new(Layer::new(&[("file", 1_000_000)]));
    let waiting = world.serve_never();
    let at = world.mount("at");
    // dd handles this signal and continues.
    let mut dd = Command::new("dd")
        .arg(format!("if={}", at.join("file").display()))
        .arg("bs=50001")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut out = dd.stdout.take().unwrap();
    let collected = std::thread::spawn(move || {
        let mut all = Vec::new();
        out.read_to_end(&mut all).map(|_| all).unwrap()
    });
    // Once dd reads, its signal handlers are installed.
    world.wait_parked(1);
    let start = Instant::now();
    let status = loop {
        assert!(start.elapsed() < LONG, "dd does not exit");
        for _ in 0..20 {
            if dd.try_wait().unwrap().is_none() {
                rustix::process::kill_process(pid(&dd), Signal::USR1).unwrap();
            }
        }
        std::thread::sleep(Duration::from_millis(2));
        world.answer(&waiting);
        if let Some(status) = dd.try_wait().unwrap() {
            break status;
        }
    };
    assert!(status.success(), "{status}");
    assert!(collected.join().unwrap() == world.layer.content("file"));
}

#[test]
fn a_waiting_reader_is_killed_immediately() {
    let world = World::new(Layer::new(&[("file", 1 << 20)]));
    let waiting = world.serve_never();
    let at = world.mount("at");
    let mut command = Command::new("cat");
    command.arg(at.join("file")).stdout(Stdio::null());
    let mut readers: Vec<_> = (0..3).map(|_| command.spawn().unwrap()).collect();
    world.wait_parked(1);
    // Waits for all readers, whether the kernel sends one read per file or one each.
    std::thread::sleep(Duration::from_millis(50));
    let start = Instant::now();
    for reader in &mut readers {
        reader.kill().unwrap();
        assert!(!reader.wait().unwrap().success());
    }
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "took {:?}",
        start.elapsed()
    );
    // The bytes they waited for still arrive and serve the next reader.
    let next = begin({
        let path = at.join("file");
        move || std::fs::read(path)
    });
    let next = loop {
        world.answer(&waiting);
        match next.recv_timeout(Duration::from_millis(2)) {
            Ok(read) => break read.unwrap(),
            Err(_) => assert!(start.elapsed() < LONG),
        }
    };
    assert!(next == world.layer.content("file"));
}
