//! A device is left by one value and adopted by another, as by one process after another.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::testing::{Double, LONG, begin, bytes};
use super::tests::{at_once, read_at};
use super::*;
use crate::layer::ReadDone;

const LAYER: u64 = 2;
const SIZE: u64 = 1 << 20;

/// A mount that is removed at the end of the test, together with everything that waits for it.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder }
    }

    fn mountpoint(&self) -> PathBuf {
        self.folder.path().join("device")
    }

    fn start(&self, written: bool) -> Arc<Device> {
        Device::start_with(&self.mountpoint(), 2, written).unwrap()
    }

    fn adopt(&self, kept: KeptDevice) -> Arc<Device> {
        Device::adopt(kept, &self.mountpoint(), 2).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.mountpoint(), TAKE_AWAY);
    }
}

fn add(device: &Device, behaviour: impl Fn(u64, u32, ReadDone) + Send + Sync + 'static) {
    let behaviour = Box::new(behaviour);
    device.add(Arc::new(Double {
        number: LAYER,
        size: SIZE,
        behaviour,
    }));
}

/// Adds a file whose READs wait for the test.
fn add_silent(device: &Device) -> Arc<Mutex<Vec<ReadDone>>> {
    let held: Arc<Mutex<Vec<ReadDone>>> = Arc::default();
    let hold = Arc::clone(&held);
    add(device, move |_, _, done| hold.lock().unwrap().push(done));
    held
}

fn wait_parked(device: &Device, count: usize) {
    let start = Instant::now();
    while device.parked() != count {
        let parked = device.parked();
        assert!(start.elapsed() < LONG, "{parked} parked, not {count}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn reader(path: PathBuf, offset: u64) -> Receiver<std::io::Result<Vec<u8>>> {
    begin(move || {
        use std::os::unix::fs::FileExt;
        let mut out = vec![0; 4096];
        let file = std::fs::File::open(path)?;
        file.read_exact_at(&mut out, offset).map(|()| out)
    })
}

/// Runs a test for both ways in which requests are recovered.
fn each_way(test: impl Fn(bool)) {
    for written in [true, false] {
        test(written);
    }
}

#[test]
fn readers_of_an_abandoned_device_are_served_by_the_next_process() {
    each_way(|written| {
        let place = Place::new();
        let first = place.start(written);
        let held = add_silent(&first);
        let readers: Vec<_> = (0..8)
            .map(|page| reader(first.path(LAYER), page * 4096))
            .collect();
        wait_parked(&first, 8);
        let kept = first.keep().unwrap();
        assert!(!first.is_adopted());
        drop(first);
        let second = place.adopt(kept);
        assert!(second.is_adopted());
        wait_parked(&second, 8);
        // The first process can no longer answer what it still holds.
        drop(held);
        add(&second, at_once);
        for (page, reader) in (0..).zip(readers) {
            let read = reader.recv_timeout(LONG).expect("the reader returns");
            assert_eq!(read.unwrap(), bytes(page * 4096, 4096));
        }
        wait_parked(&second, 0);
        second.stop();
    });
}

#[test]
fn requests_sent_between_two_processes_are_answered() {
    each_way(|written| {
        let place = Place::new();
        let first = place.start(written);
        add(&first, at_once);
        let path = first.path(LAYER);
        let (opened, is_open) = std::sync::mpsc::channel();
        let (go_on, wait) = std::sync::mpsc::channel();
        let early = begin(move || {
            use std::os::unix::fs::FileExt;
            let file = std::fs::File::open(path).unwrap();
            opened.send(()).unwrap();
            wait.recv().unwrap();
            let mut out = vec![0; 4096];
            file.read_exact_at(&mut out, 0).map(|()| out)
        });
        is_open.recv_timeout(LONG).unwrap();
        let kept = first.keep().unwrap();
        drop(first);
        go_on.send(()).unwrap();
        let second = place.adopt(kept);
        add(&second, at_once);
        let read = early.recv_timeout(LONG).expect("the reader returns");
        assert_eq!(read.unwrap(), bytes(0, 4096));
        second.stop();
    });
}

#[test]
fn reads_of_layers_that_are_not_restored_fail() {
    each_way(|written| {
        let place = Place::new();
        let first = place.start(written);
        let held = add_silent(&first);
        let waits = reader(first.path(LAYER), 0);
        wait_parked(&first, 1);
        let kept = first.keep().unwrap();
        drop(first);
        let second = place.adopt(kept);
        wait_parked(&second, 1);
        waits.try_recv().unwrap_err();
        second.restored();
        let error = waits.recv_timeout(LONG).unwrap().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        second.stop();
        drop(held);
    });
}

#[test]
fn a_device_is_adopted_under_load_without_errors() {
    each_way(|written| {
        let place = Place::new();
        let mut device = place.start(written);
        // Answers are late and come from another thread, so most take-overs find unanswered READs.
        let slowly = |offset, len, done: ReadDone| {
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(1));
                done(Ok(bytes(offset, len)));
            });
        };
        add(&device, slowly);
        let over = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = (0..4_u64)
            .map(|seed| {
                let (path, over) = (device.path(LAYER), Arc::clone(&over));
                begin(move || read_until(&path, seed, &over))
            })
            .collect();
        for _ in 0..40 {
            std::thread::sleep(Duration::from_millis(5));
            let kept = device.keep().unwrap();
            drop(device);
            device = place.adopt(kept);
            add(&device, slowly);
            device.restored();
        }
        over.store(true, Ordering::SeqCst);
        for reader in readers {
            let reads = reader.recv_timeout(LONG).expect("the reader returns");
            assert!(reads.unwrap() > 10);
        }
        device.stop();
    });
}

fn read_until(path: &Path, seed: u64, over: &AtomicBool) -> std::io::Result<u64> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::open(path)?;
    let mut out = vec![0; 4096];
    let mut count = 0;
    while !over.load(Ordering::SeqCst) {
        count += 1;
        let offset = (count * 7919 + seed * 104_729) % (SIZE / 4096) * 4096;
        file.read_exact_at(&mut out, offset)?;
        if out != bytes(offset, 4096) {
            return Err(std::io::Error::other(format!("wrong bytes at {offset}")));
        }
    }
    Ok(count)
}

#[test]
fn a_device_that_cannot_be_adopted_is_removed_and_its_readers_get_errors() {
    let place = Place::new();
    let first = place.start(true);
    let held = add_silent(&first);
    let waits = reader(first.path(LAYER), 0);
    wait_parked(&first, 1);
    let mut kept = first.keep().unwrap();
    let other_holder = first.keep().unwrap();
    drop(first);
    kept.journal = None;
    let error = Device::adopt(kept, &place.mountpoint(), 1).unwrap_err();
    assert!(matches!(error, SessionError::NoJournal), "{error}");
    waits
        .recv_timeout(LONG)
        .expect("the reader does not wait indefinitely")
        .unwrap_err();
    let error = Device::adopt(other_holder, &place.mountpoint(), 1).unwrap_err();
    assert!(matches!(error, SessionError::Ended), "{error}");
    // The mount point is free for a new device.
    let second = place.start(false);
    add(&second, at_once);
    assert_eq!(read_at(&second.path(LAYER), 0, 10).unwrap(), bytes(0, 10));
    second.stop();
    drop(held);
}
