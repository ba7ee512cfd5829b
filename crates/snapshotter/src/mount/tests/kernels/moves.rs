//! The data device switches: to `data` when the layer is complete, or to the server of the next
//! process.

use std::sync::atomic::{AtomicBool, AtomicU64};

use super::*;

/// Threads that read a file at random positions, with and without the page cache, and compare.
struct Load {
    stop: Arc<AtomicBool>,
    reads: Arc<AtomicU64>,
    threads: Vec<std::sync::mpsc::Receiver<Result<(), String>>>,
}

impl Load {
    fn start(path: &Path, content: &Bytes) -> Load {
        let (stop, reads) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let threads = (0..4_usize)
            .map(|number| {
                let (path, content) = (path.to_path_buf(), content.clone());
                let (stop, reads) = (Arc::clone(&stop), Arc::clone(&reads));
                begin(move || {
                    let file = if number == 0 {
                        open_direct(&path)
                    } else {
                        File::open(&path)
                    };
                    let file = file.map_err(|error| error.to_string())?;
                    let mut block = Aligned::new(4096);
                    let mut place = number * 4099;
                    while !stop.load(Ordering::SeqCst) {
                        place = (place * 31 + 1009) % (content.len() / 4096);
                        read_once(&file, block.bytes(), place * 4096, &content)?;
                        reads.fetch_add(1, Ordering::SeqCst);
                    }
                    Ok(())
                })
            })
            .collect();
        Load {
            stop,
            reads,
            threads,
        }
    }

    /// Waits for `count` more correct reads.
    fn more(&self, count: u64) {
        let now = self.reads.load(Ordering::SeqCst);
        until(|| self.reads.load(Ordering::SeqCst) >= now + count);
    }

    /// Stops the threads. Returns the number of reads, all of which were correct.
    fn end(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.recv_timeout(LONG).unwrap().unwrap();
        }
        self.reads.load(Ordering::SeqCst)
    }
}

fn read_once(file: &File, page: &mut [u8], at: usize, content: &Bytes) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("at {at}: {error}");
    // Drop the cache. Otherwise each page would be read only once.
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)
        .map_err(|error| failed(error.into()))?;
    file.read_exact_at(page, at as u64).map_err(failed)?;
    if *page != content[at..at + page.len()] {
        return Err(format!("wrong bytes at {at}"));
    }
    Ok(())
}

#[test]
fn device_moves_under_load_without_an_error() {
    let world = World::new(layer(&[("file", 8 << 20)]));
    world.serve_at_once();
    let at = world.mount("at");
    let load = Load::start(&at.join("file"), &world.layer.content("file"));
    load.more(100);
    let mut slowest = Duration::ZERO;
    let mut moved = |image: &LayerImage| {
        let start = Instant::now();
        world.supply(image, &[]).unwrap();
        slowest = slowest.max(start.elapsed());
        load.more(20);
    };
    for _ in 0..10 {
        moved(&world.complete());
        moved(&world.on_demand());
    }
    moved(&world.complete());
    let reads = world.reads.load(Ordering::SeqCst);
    // Neither the device nor its mount is needed any more.
    world.device.stop();
    load.more(100);
    assert_eq!(world.reads.load(Ordering::SeqCst), reads);
    // Pages of a file on disk are cached only once.
    wait(world.mounter.settle(vec![(2, vec![world.path("data")])])).unwrap();
    load.more(100);
    answer(format!(
        "21 moves of up to {} among {} reads",
        ms(slowest),
        load.end()
    ));
}

#[test]
fn move_waits_for_the_answer_of_a_read_and_no_longer() {
    let world = World::new(layer(&[("file", 1 << 20)]));
    let waiting = serve_edges_only(&world);
    let at = world.mount("at");
    let path = at.join("file");
    let reader = begin(move || {
        let mut page = [0; 4096];
        File::open(path)?.read_exact_at(&mut page, 0).map(|()| page)
    });
    world.wait_parked(1);
    // Otherwise the device would answer the reader only after the switch, which waits for that
    // READ.
    let (source, mounter) = (world.complete().source, Arc::clone(&world.mounter));
    let (begun, moving) = std::sync::mpsc::channel();
    let job = std::thread::spawn(move || {
        begun.send(()).unwrap();
        wait(mounter.supply(&source, &[])).map(|()| Instant::now())
    });
    moving.recv_timeout(LONG).unwrap();
    let answered = Instant::now();
    until(|| {
        world.answer(&waiting);
        job.is_finished()
    });
    let took = job.join().unwrap().unwrap() - answered;
    let page = reader.recv_timeout(LONG).unwrap().unwrap();
    assert!(page[..] == world.layer.content("file")[..4096]);
    assert!(took < Duration::from_secs(2), "{took:?}");
    answer(format!("done {} after the answer", ms(took)));
}

/// Starts another server for the layer at a new mount, as the next process does.
fn next_server(world: &World) -> Arc<Device> {
    let device = Device::start(&world.path("device"), 2).unwrap();
    let layer = Arc::clone(&world.layer);
    device.add(Arc::new(Double {
        number: 2,
        size: world.layer.data.len() as u64,
        behaviour: Box::new(move |offset, len, done| done(Ok(layer.slice(offset, len)))),
    }));
    device
}

/// A thread that keeps a file open and reads a page of it on request.
struct Reader {
    places: std::sync::mpsc::Sender<u64>,
    pages: std::sync::mpsc::Receiver<std::io::Result<Vec<u8>>>,
}

impl Reader {
    fn open(path: PathBuf) -> Reader {
        let (places, asked) = std::sync::mpsc::channel();
        let (done, pages) = std::sync::mpsc::channel();
        begin(move || {
            let file = File::open(path).unwrap();
            for place in asked {
                let mut page = vec![0; 4096];
                let _ = done.send(file.read_exact_at(&mut page, place).map(|()| page));
            }
        });
        Reader { places, pages }
    }

    fn begin(&self, place: u64) {
        self.places.send(place).unwrap();
    }

    fn end(&self) -> std::io::Result<Vec<u8>> {
        self.pages.recv_timeout(LONG).unwrap()
    }
}

#[test]
fn layer_whose_server_was_killed_heals_under_its_readers() {
    let world = World::new(layer(&[("file", 4 << 20)]));
    let _never = serve_edges_only(&world);
    let at = world.mount("at");
    let reader = Reader::open(at.join("file"));
    reader.begin(1 << 20);
    world.wait_parked(1);
    // As if the last process that holds the connection died.
    let start = Instant::now();
    world.device.stop();
    let error = reader.end().unwrap_err();
    let told = start.elapsed();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));

    let start = Instant::now();
    let device = next_server(&world);
    let mounter = chosen(Way::Loop).mounter(world.folder.path(), &world.thread);
    assert_eq!(wait(mounter.find()).unwrap(), [2]);
    wait(mounter.supply(&world.on_demand().source, &[])).unwrap();
    let healed = start.elapsed();
    reader.begin(1 << 20);
    let page = reader.end().unwrap();
    assert!(page[..] == world.layer.content("file")[1 << 20..(1 << 20) + 4096]);
    assert!(read_file(&at.join("file")).unwrap() == world.layer.content("file"));
    wait(mounter.supply(&world.complete().source, &[])).unwrap();
    device.stop();
    answer(format!("EIO after {}, healed in {}", ms(told), ms(healed)));
}
