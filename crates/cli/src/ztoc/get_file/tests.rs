use std::os::unix::fs::symlink;
use std::sync::atomic::AtomicUsize;

use async_trait::async_trait;
use soci_oci::Descriptor;
use soci_store::{Blob, Content, Labels, Put};
use soci_ztoc::{BuildOptions, Builder, Compression};

use super::*;

/// A store with one layer that counts the bytes requested from it.
#[derive(Debug)]
struct Counted {
    layer: Vec<u8>,
    asked: AtomicUsize,
}

#[async_trait]
impl ContentStore for Counted {
    async fn size(&self, _: &Digest) -> Result<Option<u64>, StoreError> {
        Ok(Some(self.layer.len() as u64))
    }

    async fn open(&self, digest: &Digest) -> Result<Blob, StoreError> {
        Err(StoreError::NotFound(*digest))
    }

    async fn put(&self, _: &Descriptor, _: Content) -> Result<Put, StoreError> {
        Err(StoreError::Unlisted)
    }

    async fn label(&self, _: &Digest, _: &Labels) -> Result<(), StoreError> {
        Ok(())
    }

    async fn read_range(&self, _: &Digest, range: Range<u64>) -> Result<Bytes, StoreError> {
        let at = |offset| usize::try_from(offset).unwrap();
        let part = &self.layer[at(range.start)..at(range.end)];
        self.asked.fetch_add(part.len(), Ordering::Relaxed);
        Ok(Bytes::copy_from_slice(part))
    }
}

struct Fixture {
    _runtime: tokio::runtime::Runtime,
    store: Arc<Counted>,
    job: Job,
    folder: tempfile::TempDir,
}

const SPAN: u64 = 4096;

fn member(name: &str, kind: u8, link: &str, data: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    for (at, text) in [(100, "0000644"), (108, "0000000"), (116, "0000000")] {
        header[at..at + 7].copy_from_slice(text.as_bytes());
    }
    header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
    header[136..147].copy_from_slice(b"00000000000");
    header[156] = kind;
    header[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].fill(b' ');
    let sum: u64 = header.iter().map(|&byte| u64::from(byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let mut bytes = header.to_vec();
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn content(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251).to_le_bytes()[0]).collect()
}

fn fixture() -> Fixture {
    let mut layer = [
        member("before", b'0', "", &content(50_000)),
        member("file", b'0', "", &content(10_000)),
        member("hard", b'1', "file", b""),
        member("soft", b'2', "hard", b""),
        member("a", b'2', "b", b""),
        member("b", b'2', "a", b""),
        member("after", b'0', "", &content(50_000)),
    ]
    .concat();
    layer.extend([0; 1024]);
    let options = BuildOptions {
        span_size: SPAN,
        ..BuildOptions::default()
    };
    let mut built = Builder::new(options)
        .build(&layer[..], Compression::Plain)
        .unwrap();
    let mut ztoc = Vec::new();
    built.encode(&mut ztoc).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let digest = Digest::sha256(&layer);
    let store = Arc::new(Counted {
        layer,
        asked: AtomicUsize::new(0),
    });
    let job = Job {
        ztoc: ztoc.into(),
        name: "file".into(),
        layer: Layer {
            store: store.clone(),
            digest,
            runtime: runtime.handle().clone(),
            stopped: Arc::default(),
        },
    };
    Fixture {
        _runtime: runtime,
        store,
        job,
        folder: tempfile::tempdir().unwrap(),
    }
}

#[test]
fn only_the_spans_of_the_file_are_read() {
    let fixture = fixture();
    let path = fixture.folder.path().join("out");
    fixture.job.run(Some(&path)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), content(10_000));
    // Three complete spans, and a partial one at either end.
    let asked = fixture.store.asked.load(Ordering::Relaxed) as u64;
    assert!((10_000..=4 * SPAN).contains(&asked), "{asked}");
}

#[test]
fn links_are_followed_by_name_and_circles_end() {
    let fixture = fixture();
    let ztoc = Ztoc::parse(&fixture.job.ztoc).unwrap();
    let file = find(&ztoc, b"file").unwrap();
    assert_eq!(find(&ztoc, b"soft").unwrap(), file);
    for (name, message) in [
        (&b"none"[..], "file none does not exist in metadata"),
        (b"\xff", "file \u{fffd} does not exist in metadata"),
        (
            b"a",
            "file a does not exist in metadata: its links lead in a circle",
        ),
    ] {
        assert_eq!(find(&ztoc, name).unwrap_err().to_string(), message);
    }
}

#[test]
fn a_damaged_layer_leaves_the_old_file() {
    let mut fixture = fixture();
    let mut layer = fixture.store.layer.clone();
    layer[55_000] ^= 1;
    fixture.job.layer.store = Arc::new(Counted {
        layer,
        asked: AtomicUsize::new(0),
    });
    let path = fixture.folder.path().join("out");
    fs::write(&path, "old").unwrap();
    let error = fixture.job.run(Some(&path)).unwrap_err();
    assert!(
        format!("{error:#}").starts_with("span digests do not match"),
        "{error:#}"
    );
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(fs::read_dir(fixture.folder.path()).unwrap().count(), 1);
}

#[test]
fn a_reading_that_nobody_waits_for_ends() {
    let fixture = fixture();
    fixture.job.layer.stopped.store(true, Ordering::Relaxed);
    let path = fixture.folder.path().join("out");
    fixture.job.run(Some(&path)).unwrap_err();
    assert_eq!(fixture.store.asked.load(Ordering::Relaxed), 0);
    assert_eq!(fs::read_dir(fixture.folder.path()).unwrap().count(), 0);
}

#[test]
fn a_link_is_written_through_and_a_device_stays_one() {
    let fixture = fixture();
    let (path, link) = (
        fixture.folder.path().join("out"),
        fixture.folder.path().join("link"),
    );
    fs::write(&path, "old").unwrap();
    symlink("out", &link).unwrap();
    fixture.job.run(Some(&link)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), content(10_000));
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    fixture.job.run(Some(Path::new("/dev/null"))).unwrap();
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
    let folder = fixture.folder.path();
    let error = fixture.job.run(Some(folder)).unwrap_err();
    let wanted = format!("open {}: is a directory", folder.display());
    assert_eq!(error.to_string(), wanted);
}
