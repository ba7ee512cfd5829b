//! Stores that accept no data.

use super::*;
use crate::cpu::Lane;
use crate::store::space::Limits;

/// A small file system. Mounting it needs root and a mount namespace, which `make test` provides.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn new(bytes: u64) -> SmallDisk {
        let folder = tempfile::tempdir().expect("a directory");
        let options = std::ffi::CString::new(format!("size={bytes}")).expect("no zero byte");
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount(
            "tmpfs",
            folder.path(),
            "tmpfs",
            flags,
            Some(options.as_c_str()),
        )
        .expect("a small disk; run `make test`, which may mount");
        SmallDisk(folder)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let flags = rustix::mount::UnmountFlags::DETACH;
        rustix::mount::unmount(self.0.path(), flags).expect("unmounted");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_reads_are_served_from_memory() {
    let made = Made::new(Form::Gzip, 120, 64 << 10);
    let data = made.data();
    let disk = SmallDisk::new(20 << 20);
    let filler = disk.0.path().join("filler");
    let life = Life {
        layers: start_in(
            disk.0.path(),
            "boot",
            Options::default(),
            fetch::Options::default(),
        ),
    };
    let layer = life
        .open(&made, Arc::new(MemoryBlob::new(made.layer.clone())))
        .await;
    let free = life.layers.store().disk().expect("statvfs").free;
    std::fs::write(&filler, vec![1; (free - (256 << 10)) as usize]).expect("enough space");
    life.layers.complete(&layer);
    for start in (0..layer.data_size()).step_by(50_000) {
        let range = start..(start + 70_000).min(layer.data_size());
        let bytes = read(&layer, range.clone())
            .await
            .expect("bytes from memory");
        assert_eq!(
            &bytes[..],
            &data[range.start as usize..range.end as usize],
            "{range:?}"
        );
    }
    assert!(layer.progress().spans_present < made.spans());
    assert!(!layer.is_complete());
    std::fs::remove_file(&filler).expect("removed");
    completes(&layer).await;
    assert_eq!(std::fs::read(layer.data_path()).expect("readable"), data);
    drop((layer, life));
}

/// What happens after the disk has space again, or shortly before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// Everything is read once more.
    Read,
    /// The same, after the background has requested everything.
    ReadBehindTheBackground,
    /// The background continues.
    Complete,
}

async fn stored_after_a_full_disk(then: Then) {
    let made = Made::new(Form::Gzip, 120, 64 << 10);
    // Determine what this reads on a disk with enough space.
    let node = Node::new();
    let life = node.start();
    let layer = life
        .open(&made, Arc::new(MemoryBlob::new(made.layer.clone())))
        .await;
    let size = layer.data_size();
    let whole = read(&layer, 0..size).await.expect("bytes");
    let wanted = layer.progress().spans_present;
    drop((layer, life));

    let disk = SmallDisk::new(48 << 20);
    let filler = disk.0.path().join("filler");
    let start = || Life {
        layers: start_in(
            disk.0.path(),
            "boot",
            Options::default(),
            fetch::Options::default(),
        ),
    };
    let life = start();
    let blob = Arc::new(FaultyFetcher::new(made.layer.clone(), []));
    let layer = life.open(&made, Arc::clone(&blob) as _).await;
    let free = life.layers.store().disk().expect("statvfs").free;
    std::fs::write(&filler, vec![1; (free - (64 << 10)) as usize]).expect("enough space");
    let bytes = read(&layer, 0..size).await;
    assert!(bytes.expect("from memory") == whole);
    let there = || layer.progress().spans_present;
    assert!(there() < wanted, "{wanted}");
    // From here on the source delivers nothing.
    blob.set_online(false);
    if then == Then::ReadBehindTheBackground {
        for span in 0..made.spans() {
            layer.spans.want(u32::try_from(span).expect("a span"));
        }
    }
    std::fs::remove_file(&filler).expect("removed");
    if then == Then::Complete {
        life.layers.complete(&layer);
    } else {
        let again = read(&layer, 0..size).await.expect("bytes");
        assert!(again == whole);
    }
    let begin = std::time::Instant::now();
    while there() < wanted {
        let limit = Duration::from_secs(20);
        assert!(begin.elapsed() < limit, "{} of {wanted}", there());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The next process must find the bytes without a source.
    let key = layer.key();
    drop((layer, life));
    let life = start();
    let layer = life.layers.open_present(&key).await.expect("opens");
    let bytes = read(&layer.expect("exists"), 0..size).await;
    assert!(bytes.expect("bytes from the disk") == whole);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_served_from_memory_are_stored_when_read_again() {
    stored_after_a_full_disk(Then::Read).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_served_from_memory_are_stored_despite_background_demands() {
    stored_after_a_full_disk(Then::ReadBehindTheBackground).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_served_from_memory_are_stored_by_the_background_without_a_download() {
    stored_after_a_full_disk(Then::Complete).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_spans_of_zeros_need_little_memory_and_disk() {
    // One span of 40 MB with a compression ratio of a thousand, opened lazily and downloaded whole.
    let mut made = Made::new(Form::Gzip, 3, 64 << 20);
    made.tar.truncate(made.tar.len() - 1024);
    let size = 40 << 20;
    made.tar
        .extend_from_slice(&made::header("zeros", b'0', size));
    made.tar.resize(made.tar.len() + size as usize, 0);
    made.files
        .push(("zeros".to_owned(), vec![0; size as usize]));
    let made = made.with_behind(&[0; 1024], 64 << 20);
    assert!(made.layer.len() < 100 << 10);
    let node = Node::new();
    let life = node.start();
    let blob = || Arc::new(MemoryBlob::new(made.layer.clone())) as Arc<dyn Fetcher>;
    let diff_id = Digest::sha256(&made.tar);
    let whole = whole::pull(&life, &made, diff_id, blob())
        .await
        .expect("pulled");
    assert_eq!(
        std::fs::read(whole.data_path()).expect("readable"),
        made.data()
    );
    life.layers.remove(&whole.key()).await.expect("removed");
    drop(whole);
    let layer = life.open(&made, blob()).await;
    life.layers.complete(&layer);
    completes(&layer).await;
    assert_eq!(
        std::fs::read(layer.data_path()).expect("readable"),
        made.data()
    );
    let proof = life.layers.prove(&layer).await.expect("proven");
    assert_eq!(proof, Proof::Tar(diff_id));
    assert!(
        life.layers.store().used() < 1 << 20,
        "{}",
        life.layers.store().used()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn background_downloads_leave_free_disk_space() {
    let made = Made::new(Form::Plain, 900, 64 << 10);
    let data = made.data();
    let disk = SmallDisk::new(64 << 20);
    let filler = disk.0.path().join("filler");
    let keep = 30 << 20;
    let limits = |min_free, max_bytes| Options {
        limits: Limits {
            min_free,
            max_bytes,
        },
        ..Options::default()
    };
    let start = |options| Life {
        layers: start_in(disk.0.path(), "boot", options, fetch::Options::default()),
    };
    let blob = || Arc::new(MemoryBlob::new(made.layer.clone())) as Arc<dyn Fetcher>;
    let life = start(limits(Some(keep), None));
    let layer = life.open(&made, blob()).await;
    let free = || life.layers.store().disk().expect("statvfs").free;
    std::fs::write(&filler, vec![1; (free() - keep - (10 << 20)) as usize]).expect("enough space");
    life.layers.complete(&layer);
    stands_still(&layer).await;
    assert!(free() >= keep, "{} bytes are free", free());
    assert!(layer.progress().spans_present > 0 && !layer.is_complete());
    // A reader gets its bytes, and they are stored.
    let bytes = read(&layer, 0..layer.data_size()).await.expect("bytes");
    assert_eq!(&bytes[..], &data[..]);
    assert!(free() < keep);
    drop((layer, life));
    std::fs::remove_file(&filler).expect("removed");
    // The same for the limit on all layers together.
    let folder = tempfile::tempdir_in(disk.0.path()).expect("a directory");
    let options = limits(Some(0), Some(9 << 20));
    let layers = start_in(folder.path(), "boot", options, fetch::Options::default());
    let life = Life { layers };
    let layer = life.open(&made, blob()).await;
    life.layers.complete(&layer);
    stands_still(&layer).await;
    let used = life.layers.store().used();
    assert!(used > 0 && used < 9 << 20, "{used}");
    assert!(!layer.is_complete());
}

/// Waits until no more spans arrive.
async fn stands_still(layer: &Layer) {
    let mut before = usize::MAX;
    while before != layer.progress().spans_present {
        before = layer.progress().spans_present;
        tokio::time::sleep(Duration::from_millis(700)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_succeed_on_a_store_that_accepts_no_writes() {
    let made = Made::new(Form::Gzip, 60, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let blob = Arc::new(MemoryBlob::new(made.layer.clone()));
    let mut files = life
        .layers
        .store()
        .create_lazy(
            &made.descriptor(),
            &made.ztoc_descriptor(),
            &made.ztoc,
            origin(),
        )
        .expect("files");
    files.data = std::fs::File::open(files.data_path()).expect("opened read-only");
    let layer = Layer::new(&life.layers.context, files);
    layer.add_source(source(Arc::clone(&blob) as _));
    let data = made.data();
    for start in (0..layer.data_size()).step_by(30_000) {
        let range = start..(start + 60_000).min(layer.data_size());
        let bytes = read(&layer, range.clone())
            .await
            .expect("bytes from memory");
        assert_eq!(
            &bytes[..],
            &data[range.start as usize..range.end as usize],
            "{range:?}"
        );
    }
    assert_eq!(layer.progress().spans_present, 0);
    // Each span is downloaded once, regardless of the number of reads.
    let most = made.layer.len() + 2 * made.spans();
    assert!(
        blob.bytes_sent() <= most as u64,
        "{} of {most}",
        blob.bytes_sent()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_loses_data_is_not_rewritten_endlessly() {
    let made = Made::new(Form::Gzip, 60, 16 << 10);
    let node = Node::new();
    let trusting = Options {
        trust_headers: true,
        ..Options::default()
    };
    let life = node.start_with(trusting, fetch::Options::default());
    let blob = Arc::new(MemoryBlob::new(made.layer.clone()));
    let (layer, ztoc) = (made.descriptor(), made.ztoc_descriptor());
    let store = life.layers.store();
    let files = store.create_lazy(&layer, &ztoc, &made.ztoc, origin());
    let mut files = files.expect("files");
    // /dev/null accepts every write and fails every sync.
    files.heads = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .expect("a device");
    let layer = Layer::new(&life.layers.context, files);
    layer.add_source(source(Arc::clone(&blob) as _));
    life.layers.complete(&layer);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let rounds = blob.bytes_sent() / made.layer.len() as u64;
    assert!(
        (1..15).contains(&rounds),
        "fetched {rounds} times: {:?}",
        layer.progress()
    );
    assert!(!layer.is_complete());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn background_writes_wait_for_a_slow_disk_and_reads_do_not() {
    let made = Made::new(Form::Plain, 4000, 64 << 10);
    let data = made.data();
    let node = Node::new();
    let life = node.start();
    // Blocks the lane that writes to disk, like a disk that accepts nothing for a while.
    let (release, gate) = std::sync::mpsc::channel::<()>();
    life.layers.context.cpu.spawn(Lane::FilesBehind, move || {
        assert!(gate.recv().is_err());
    });
    let layer = life
        .open(&made, Arc::new(MemoryBlob::new(made.layer.clone())))
        .await;
    life.layers.complete(&layer);
    stands_still(&layer).await;
    let dirty = life.layers.context.writeback.dirty();
    assert!(dirty > 1 << 20 && dirty < 16 << 20, "{dirty} bytes");
    assert!(data.len() > 24 << 20 && !layer.is_complete());
    let end = layer.data_size();
    let bytes = tokio::time::timeout(Duration::from_secs(30), read(&layer, end / 2..end));
    let bytes = bytes.await.expect("soon").expect("bytes");
    assert!(bytes[..] == data[(end / 2) as usize..]);
    drop(release);
    completes(&layer).await;
    assert_eq!(std::fs::read(layer.data_path()).expect("readable"), data);
}
