//! READs of a layer that is removed, through the kernel.

use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::testing::{LONG, begin, bytes};
use super::tests::{Mounted, at_once, read_at};
use crate::layer::ReadDone;

const LAYER: u64 = 2;

type Waiting = Arc<Mutex<Vec<(u64, u32, ReadDone)>>>;

/// A layer whose READs wait until the test answers them.
fn waiting_layer(mounted: &Mounted) -> Waiting {
    let waiting = Waiting::default();
    let park = Arc::clone(&waiting);
    mounted.add(LAYER, 1 << 20, move |offset, len, done| {
        park.lock().unwrap().push((offset, len, done));
    });
    waiting
}

/// Answers the waiting READs, once there are any. A READ counts as parked before its layer gets it.
fn answer(waiting: &Waiting) {
    let start = Instant::now();
    let mut reads = Vec::new();
    while reads.is_empty() {
        assert!(start.elapsed() < LONG, "no READ waits");
        std::thread::yield_now();
        reads.extend(waiting.lock().unwrap().drain(..));
    }
    for (offset, len, done) in reads {
        done(Ok(bytes(offset, len)));
    }
}

/// Starts a reader of the layer's first page.
fn reader(mounted: &Mounted) -> Receiver<std::io::Result<Vec<u8>>> {
    let path = mounted.device.path(LAYER);
    begin(move || {
        use std::os::unix::fs::FileExt;
        let mut out = vec![0; 4096];
        let file = std::fs::File::open(path)?;
        file.read_exact_at(&mut out, 0).map(|()| out)
    })
}

fn finish(reader: &Receiver<std::io::Result<Vec<u8>>>) -> Result<Vec<u8>, Option<i32>> {
    let read = reader.recv_timeout(LONG).expect("the reader returns");
    read.map_err(|error| error.raw_os_error())
}

#[test]
fn reads_of_a_removed_layer_fail_immediately_and_late_bytes_are_dropped() {
    let mounted = Mounted::new();
    let waiting = waiting_layer(&mounted);
    mounted.add(3, 4096, at_once);
    let early = reader(&mounted);
    mounted.wait_parked(1);
    let refused = mounted.device.refuse(LAYER);
    assert_eq!(mounted.device.unanswered(LAYER), 0);
    assert_eq!(finish(&early), Err(Some(libc::EIO)));
    assert_eq!(finish(&reader(&mounted)), Err(Some(libc::EIO)));
    let other = mounted.device.path(3);
    assert_eq!(read_at(&other, 0, 4096).unwrap(), bytes(0, 4096));
    answer(&waiting);
    drop(refused);
    let late = reader(&mounted);
    mounted.wait_parked(1);
    answer(&waiting);
    assert_eq!(finish(&late), Ok(bytes(0, 4096).to_vec()));
}
