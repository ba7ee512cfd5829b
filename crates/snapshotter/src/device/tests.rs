//! The device through the kernel: a mount in a temporary directory, with test doubles as files.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use std::sync::atomic::AtomicUsize;

use bytes::Bytes;

use super::reads::errno;
use super::testing::{Double, LONG, apart, begin, bytes, subject, unavailable};
use super::*;
use crate::layer::{ReadDone, ReadError};

/// A mounted device that is unmounted on drop.
pub(super) struct Mounted {
    pub(super) device: Arc<Device>,
    _folder: tempfile::TempDir,
}

impl Mounted {
    pub(super) fn new() -> Mounted {
        let folder = tempfile::tempdir().unwrap();
        let device = Device::start(&folder.path().join("device"), 2).unwrap();
        Mounted {
            device,
            _folder: folder,
        }
    }

    pub(super) fn add(
        &self,
        number: u64,
        size: u64,
        behaviour: impl Fn(u64, u32, ReadDone) + Send + Sync + 'static,
    ) -> PathBuf {
        self.device.add(Arc::new(Double {
            number,
            size,
            behaviour: Box::new(behaviour),
        }));
        self.device.path(number)
    }

    pub(super) fn wait_parked(&self, count: usize) {
        let start = Instant::now();
        while self.device.parked() != count {
            assert!(
                start.elapsed() < LONG,
                "{} parked, not {count}",
                self.device.parked()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        self.device.stop();
    }
}

pub(super) fn read_at(path: &Path, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
    let path = path.to_path_buf();
    apart(move || {
        let mut out = vec![0; len];
        File::open(path)?
            .read_exact_at(&mut out, offset)
            .map(|()| out)
    })
}

pub(super) fn at_once(offset: u64, len: u32, done: ReadDone) {
    done(Ok(bytes(offset, len)));
}

#[test]
fn files_are_found_by_number_and_read_in_full() {
    let mounted = Mounted::new();
    let path = mounted.add(2, 3 << 20, at_once);
    let (len, all) = apart(move || {
        let mut file = File::open(&path).unwrap();
        let mut all = Vec::new();
        file.read_to_end(&mut all).unwrap();
        file.seek(SeekFrom::End(0)).map(|len| (len, all)).unwrap()
    });
    assert_eq!(len, 3 << 20);
    assert!(all == bytes(0, 3 << 20));
    assert_eq!(mounted.device.parked(), 0);
}

#[test]
fn requests_are_up_to_a_mebibyte() {
    let mounted = Mounted::new();
    let (seen, lengths) = mpsc::channel();
    let path = mounted.add(2, 4 << 20, move |offset, len, done| {
        seen.send(len).unwrap();
        at_once(offset, len, done);
    });
    read_at(&path, 0, 4 << 20).unwrap();
    assert_eq!(lengths.try_iter().max(), Some(1 << 20));
}

#[test]
fn reads_end_with_the_file() {
    let mounted = Mounted::new();
    let path = mounted.add(2, 4096, at_once);
    assert_eq!(read_at(&path, 4000, 96).unwrap(), bytes(4000, 96));
    let past = read_at(&path, 4096, 1).unwrap_err();
    assert_eq!(past.kind(), std::io::ErrorKind::UnexpectedEof);
    let empty = mounted.add(3, 0, at_once);
    assert_eq!(apart(|| std::fs::read(empty)).unwrap(), Vec::<u8>::new());
}

#[test]
fn only_canonical_numbers_of_present_files_are_names() {
    let mounted = Mounted::new();
    mounted.add(17, 1, at_once);
    mounted.add(1, 1, at_once);
    for name in [
        "1",
        "2",
        "017",
        "+17",
        "17 ",
        "x",
        "18446744073709551616",
        "17/17",
    ] {
        let path = mounted.device.mountpoint().join(name);
        assert!(apart(|| File::open(path)).is_err(), "{name}");
    }
    assert!(read_at(&mounted.device.path(17), 0, 1).is_ok());
}

#[test]
fn a_removed_file_cannot_be_read_through_open_descriptors() {
    let mounted = Mounted::new();
    let path = mounted.add(2, 8192, at_once);
    let (go_on, wait) = mpsc::channel();
    let (opened, is_open) = mpsc::channel();
    let reopened = path.clone();
    let read = begin(move || {
        let file = File::open(path).unwrap();
        opened.send(()).unwrap();
        wait.recv().unwrap();
        file.read_at(&mut [0; 4096], 0)
    });
    is_open.recv_timeout(LONG).unwrap();
    mounted.device.remove(2);
    go_on.send(()).unwrap();
    assert_eq!(
        read.recv_timeout(LONG).unwrap().unwrap_err().raw_os_error(),
        Some(libc::EIO)
    );
    assert!(apart(|| File::open(reopened)).is_err());
}

#[test]
fn an_error_is_eio_and_is_not_cached() {
    let mounted = Mounted::new();
    let first = AtomicUsize::new(0);
    let path = mounted.add(2, 4096, move |offset, len, done| {
        if first.fetch_add(1, Ordering::SeqCst) == 0 {
            done(Err(unavailable()));
        } else {
            at_once(offset, len, done);
        }
    });
    assert_eq!(
        read_at(&path, 0, 4096).unwrap_err().raw_os_error(),
        Some(libc::EIO)
    );
    assert_eq!(read_at(&path, 0, 4096).unwrap(), bytes(0, 4096));
}

#[test]
fn an_incomplete_answer_is_eio() {
    let mounted = Mounted::new();
    let misdeeds: [fn(u64, u32, ReadDone); 5] = [
        |offset, len, done| done(Ok(bytes(offset, len - 1))),
        |offset, len, done| done(Ok(bytes(offset, len + 1))),
        |_, _, done| drop(done),
        |_, _, _done| panic!("this panic is part of the test"),
        |_, _, done| done(Ok(Bytes::new())),
    ];
    for (number, misdeed) in (2..).zip(misdeeds) {
        let path = mounted.add(number, 4096, misdeed);
        let error = read_at(&path, 0, 4096).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EIO), "case {number}");
    }
    mounted.wait_parked(0);
    assert!(mounted.device.is_served());
}

#[test]
fn many_parked_reads_do_not_block_others() {
    let mounted = Mounted::new();
    let waiting: Arc<Mutex<Vec<(u64, u32, ReadDone)>>> = Arc::default();
    let park = Arc::clone(&waiting);
    let slow = mounted.add(2, 1 << 20, move |offset, len, done| {
        park.lock().unwrap().push((offset, len, done));
    });
    let quick = mounted.add(3, 4096, at_once);
    let readers: Vec<_> = (0..64_u64)
        .map(|index| {
            let path = slow.clone();
            begin(move || {
                let mut out = [0; 4096];
                let file = File::open(path)?;
                file.read_exact_at(&mut out, index * 4096)
                    .map(|()| out.to_vec())
            })
        })
        .collect();
    mounted.wait_parked(64);
    assert_eq!(read_at(&quick, 0, 4096).unwrap(), bytes(0, 4096));
    for (offset, len, done) in waiting.lock().unwrap().drain(..) {
        done(Ok(bytes(offset, len)));
    }
    for (index, reader) in (0..).zip(readers) {
        assert_eq!(
            reader.recv_timeout(LONG).unwrap().unwrap(),
            bytes(index * 4096, 4096)
        );
    }
    mounted.wait_parked(0);
}

/// Starts a process that reads the first byte of a file.
fn reader_process(path: &Path) -> Child {
    let mut command = Command::new("head");
    command
        .arg("-c1")
        .arg(path)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().unwrap()
}

#[test]
fn stopping_wakes_all_readers_and_unmounts() {
    let mounted = Mounted::new();
    let held: Arc<Mutex<Vec<ReadDone>>> = Arc::default();
    let hold = Arc::clone(&held);
    let path = mounted.add(2, 4096, move |_, _, done| hold.lock().unwrap().push(done));
    let mut reader = reader_process(&path);
    mounted.wait_parked(1);
    mounted.device.stop();
    assert!(!reader.wait().unwrap().success());
    assert!(!mounted.device.is_served());
    let table = crate::mount::table::MountTable::read().unwrap();
    assert_eq!(table.top(mounted.device.mountpoint()), None);
    // A late answer is harmless.
    held.lock()
        .unwrap()
        .drain(..)
        .for_each(|done| done(Ok(bytes(0, 4096))));
    mounted.device.stop();
}

#[test]
fn an_unmount_by_another_process_ends_the_loop() {
    let mounted = Mounted::new();
    rustix::mount::unmount(mounted.device.mountpoint(), UnmountFlags::empty()).unwrap();
    let start = Instant::now();
    while mounted.device.is_served() {
        assert!(start.elapsed() < LONG, "the loop does not end");
        std::thread::sleep(Duration::from_millis(2));
    }
    mounted.device.stop();
}

#[test]
fn a_connection_that_is_dropped_unserved_leaves_no_mount() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().join("missing/parent");
    assert!(matches!(
        Device::start(&at, 1),
        Err(SessionError::System { .. })
    ));
    let table = crate::mount::table::MountTable::read().unwrap();
    assert_eq!(table.under(folder.path()).len(), 0);
}

#[test]
fn every_error_of_a_layer_is_eio() {
    let io = std::io::Error::from(std::io::ErrorKind::StorageFull);
    let table = [
        (unavailable(), Errno::IO),
        (
            ReadError::Outside {
                subject: subject(),
                start: 1,
                end: 2,
            },
            Errno::IO,
        ),
        (
            ReadError::Undecodable {
                subject: subject(),
                reason: "window".into(),
            },
            Errno::IO,
        ),
        (
            ReadError::Store {
                subject: subject(),
                source: Arc::new(io),
            },
            Errno::IO,
        ),
    ];
    for (error, expected) in table {
        assert_eq!(errno(&error), expected, "{error}");
    }
}

#[test]
fn a_file_is_found_as_soon_as_it_is_added() {
    let mounted = Mounted::new();
    let path = mounted.device.path(5);
    assert!(read_at(&path, 0, 1).is_err());
    mounted.add(5, 4096, at_once);
    assert_eq!(read_at(&path, 1, 100).unwrap(), bytes(1, 100));
    mounted.device.remove(5);
    assert!(read_at(&path, 0, 1).is_err());
    mounted.add(5, 4096, at_once);
    assert_eq!(read_at(&path, 2, 100).unwrap(), bytes(2, 100));
}

#[test]
fn a_listing_continues_where_it_was_cut() {
    let mounted = Mounted::new();
    let list = || {
        let root = mounted.device.mountpoint().to_owned();
        apart(move || {
            let names = std::fs::read_dir(root)?.map(|entry| Ok(entry?.file_name()));
            names.collect::<std::io::Result<Vec<_>>>()
        })
    };
    assert_eq!(list().unwrap().len(), 0);
    // More entries than fit into one reply.
    let numbers = (2..2000_u64).chain([u64::from(u32::MAX) * 7]);
    for number in numbers.clone() {
        mounted.add(number, 4096, at_once);
    }
    let wanted: Vec<std::ffi::OsString> = numbers.map(|number| number.to_string().into()).collect();
    let found = list().unwrap();
    assert!(found == wanted, "{} of {}", found.len(), wanted.len());
}

#[test]
fn the_kernels_deadline_is_the_smaller_one_that_is_set() {
    let secs = |secs| Some(Duration::from_secs(secs));
    let table = [
        (Some("0\n"), Some("0\n"), None),
        (None, None, None),
        (Some("60\n"), Some("0\n"), secs(60)),
        (Some("0\n"), Some("300\n"), secs(300)),
        (Some("600\n"), Some("300\n"), secs(300)),
        (Some("junk"), Some("20"), secs(20)),
    ];
    for (default, max, expected) in table {
        assert_eq!(
            effective_timeout(default, max),
            expected,
            "{default:?} {max:?}"
        );
    }
}
