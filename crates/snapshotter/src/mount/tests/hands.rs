//! A process takes over the mounts of an earlier one.

use super::*;

/// The mounter of a later process on the same state directory.
fn later(world: &World) -> Arc<dyn Mounter> {
    chosen(Way::Loop).mounter(world.folder.path(), &world.thread)
}

/// Ends the connection as if its process died: waiting requests fail, the layers stay mounted.
fn kill_server(world: &World) {
    wait(end_connection(&world.thread, &world.path("device"))).unwrap();
    until(|| !world.device.is_served());
}

/// A reader that keeps a file open, on a thread without the FUSE descriptor.
struct OpenReader {
    ask: std::sync::mpsc::Sender<u64>,
    page: std::sync::mpsc::Receiver<std::io::Result<Vec<u8>>>,
}

impl OpenReader {
    /// The page at `offset`.
    fn read(&self, offset: u64) -> std::io::Result<Vec<u8>> {
        self.ask.send(offset).unwrap();
        self.page.recv_timeout(LONG).unwrap()
    }
}

fn open_reader(path: PathBuf) -> OpenReader {
    let (ask, asked) = std::sync::mpsc::channel();
    let (answer, page) = std::sync::mpsc::channel();
    let (opened, is_open) = std::sync::mpsc::channel();
    begin(move || {
        let file = File::open(path).unwrap();
        opened.send(()).unwrap();
        while let Ok(offset) = asked.recv() {
            let mut page = vec![0; 4096];
            let read = file.read_exact_at(&mut page, offset).map(|()| page);
            let _ = answer.send(read);
        }
    });
    is_open.recv_timeout(LONG).unwrap();
    OpenReader { ask, page }
}

#[test]
fn a_layer_recovers_under_its_reader_after_its_server_died() {
    let world = World::new(Layer::new(&[("file", 1 << 20)]));
    world.serve_at_once();
    let at = world.mount("at");
    let reader = open_reader(at.join("file"));
    kill_server(&world);
    let error = reader.read(8192).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));

    let device = Device::start(&world.path("device"), 2).unwrap();
    let layer = Arc::clone(&world.layer);
    let behaviour = Box::new(move |offset, len, done: ReadDone| done(Ok(layer.slice(offset, len))));
    let size = world.layer.data.len() as u64;
    device.add(Arc::new(Double {
        number: 2,
        size,
        behaviour,
    }));
    let mounter = later(&world);
    assert_eq!(wait(mounter.find()).unwrap(), [2]);
    wait(mounter.supply(&world.on_demand().source, &[])).unwrap();
    assert!(reader.read(8192).unwrap() == world.layer.slice(8192, 4096));
    // The same mount serves new readers.
    wait(mounter.mount(&world.on_demand(), &at)).unwrap();
    assert!(mounter.is_ours(&world.table(), &at));
    assert_eq!(world.table().depth(&at), 1);
    assert!(read_file(&at.join("file")).unwrap() == world.layer.content("file"));
    drop(reader);
    device.stop();
}

#[test]
fn an_existing_mount_of_the_image_is_recognized_and_kept() {
    let world = World::new(Layer::new(&[("file", 4096)]));
    world.serve_at_once();
    let at = world.mount("at");
    let before = world.table().top(&at).unwrap().clone();
    let mounter = later(&world);
    assert!(!mounter.is_ours(&world.table(), &at));
    wait(mounter.mount(&world.on_demand(), &at)).unwrap();
    assert_eq!(world.table().top(&at).unwrap(), &before);
    assert!(mounter.is_ours(&world.table(), &at));
    // Another image of the layer gets its own mount.
    let patched = LayerImage {
        patch: "patched".to_owned(),
        ..world.on_demand()
    };
    wait(mounter.mount(&patched, &at)).unwrap();
    assert_ne!(world.table().top(&at).unwrap().id, before.id);
    assert_eq!(world.table().depth(&at), 1);
}

#[test]
fn the_device_identifies_the_layer_at_a_mount_point() {
    let world = World::new(Layer::new(&[("file", 4096)]));
    world.serve_at_once();
    let at = world.mount("at");
    assert_eq!(wait(later(&world).last_layer_at(&at)).unwrap(), Some(2));
    let elsewhere = world.place("elsewhere");
    assert_eq!(wait(later(&world).last_layer_at(&elsewhere)).unwrap(), None);
    // Devices of another state directory are not ours.
    let other = chosen(Way::Loop).mounter(&elsewhere, &world.thread);
    assert_eq!(wait(other.last_layer_at(&at)).unwrap(), None);
    assert_eq!(wait(other.find()).unwrap(), Vec::<u64>::new());
}

/// After a kill during a Prepare, the mount of that attempt is still there when another mount shows
/// the layer.
#[test]
fn a_layer_shown_by_two_file_systems_is_not_the_last_at_either() {
    let world = World::new(Layer::new(&[("file", 4096)]));
    world.serve_at_once();
    let (one, two) = (world.mount("one"), world.place("two"));
    let mounter = later(&world);
    let again = LayerImage {
        copy: 1,
        ..world.on_demand()
    };
    wait(mounter.mount(&again, &two)).unwrap();
    let device = |at: &Path| world.table().top(at).unwrap().device;
    assert_ne!(device(&one), device(&two));
    for at in [&one, &two] {
        assert_eq!(wait(mounter.last_layer_at(at)).unwrap(), None);
    }
    wait(mounter.unmount(&two)).unwrap();
    assert_eq!(wait(mounter.last_layer_at(&one)).unwrap(), Some(2));
}

#[test]
fn devices_in_use_are_not_released() {
    let world = World::new(Layer::new(&[("file", 4096)]));
    world.serve_at_once();
    let at = world.mount("at");
    assert_eq!(wait(later(&world).let_go()).unwrap(), 0);
    assert!(read_file(&at.join("file")).unwrap() == world.layer.content("file"));
    let label = loops::label_of(world.loop_at(&at));
    assert!(label.is_some_and(|label| label.starts_with("soci:meta:")));
}

#[test]
fn a_layer_with_waiting_readers_is_removed_immediately() {
    let world = World::new(Layer::new(&[("file", 1 << 20)]));
    let waiting = world.serve_never();
    let at = world.mount("at");
    let mut reader = Command::new("cat")
        .arg(at.join("file"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    world.wait_parked(1);
    reader.kill().unwrap();
    reader.wait().unwrap();
    let start = Instant::now();
    let refused = world.device.refuse(2);
    wait(world.mounter.unmount(&at)).unwrap();
    drop(refused);
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(world.table().depth(&at), 0);
    world.answer(&waiting);
}
