//! READs that are held back, given up and let go, through the kernel.

use std::future::Future;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::Meanwhile;
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

fn answer(waiting: &Waiting) {
    let reads: Vec<_> = waiting.lock().unwrap().drain(..).collect();
    for (offset, len, done) in reads {
        done(Ok(bytes(offset, len)));
    }
}

/// A reader of the layer's first page.
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
    let read = reader.recv_timeout(LONG).expect("the reader ends");
    read.map_err(|error| error.raw_os_error())
}

/// Runs a future to its end on a thread of its own.
fn spawn<T: Send + 'static>(
    job: impl Future<Output = T> + Send + 'static,
) -> std::sync::mpsc::Receiver<T> {
    let (done, result) = channel();
    std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let value = runtime.enable_time().build().unwrap().block_on(job);
        let _ = done.send(value);
    });
    result
}

fn drain(
    mounted: &Mounted,
    meanwhile: Meanwhile,
    patience: Option<Duration>,
) -> Receiver<super::Drained> {
    let device = Arc::clone(&mounted.device);
    spawn(async move { device.drain(LAYER, meanwhile, patience).await })
}

#[test]
fn settling_takes_as_long_as_the_answer() {
    let mounted = Mounted::new();
    let waiting = waiting_layer(&mounted);
    mounted.add(3, 4096, at_once);
    let one = reader(&mounted);
    mounted.wait_parked(1);
    assert_eq!(mounted.device.unanswered(LAYER), 1);
    assert_eq!(mounted.device.unanswered(3), 0);
    let device = Arc::clone(&mounted.device);
    let settled = spawn(async move { device.settled(LAYER).await });
    let device = Arc::clone(&mounted.device);
    let other = spawn(async move { device.settled(3).await });
    other.recv_timeout(LONG).expect("another layer is settled");
    settled.try_recv().unwrap_err();
    answer(&waiting);
    settled.recv_timeout(LONG).expect("the layer is settled");
    assert_eq!(finish(&one), Ok(bytes(0, 4096).to_vec()));
    assert_eq!(mounted.device.unanswered(LAYER), 0);
}

#[test]
fn a_layer_that_is_taken_away_answers_at_once_and_the_late_bytes_are_dropped() {
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

#[test]
fn held_reads_go_on_when_the_guard_is_dropped() {
    let mounted = Mounted::new();
    let waiting = waiting_layer(&mounted);
    let first = reader(&mounted);
    mounted.wait_parked(1);
    let draining = drain(&mounted, Meanwhile::Hold, None);
    let held = reader(&mounted);
    mounted.wait_parked(2);
    draining.try_recv().unwrap_err();
    answer(&waiting);
    let guard = draining.recv_timeout(LONG).expect("the first is answered");
    assert_eq!(finish(&first), Ok(bytes(0, 4096).to_vec()));
    assert_eq!(mounted.device.unanswered(LAYER), 1);
    assert!(waiting.lock().unwrap().is_empty(), "nobody asked for it");
    drop(guard);
    answer_when_asked(&waiting);
    assert_eq!(finish(&held), Ok(bytes(0, 4096).to_vec()));
}

fn answer_when_asked(waiting: &Waiting) {
    let start = std::time::Instant::now();
    while waiting.lock().unwrap().is_empty() {
        assert!(start.elapsed() < LONG, "the file is not asked");
        std::thread::sleep(Duration::from_millis(2));
    }
    answer(waiting);
}

#[test]
fn patience_ends_with_an_error_for_those_that_wait() {
    let mounted = Mounted::new();
    let waiting = waiting_layer(&mounted);
    let one = reader(&mounted);
    mounted.wait_parked(1);
    let patience = Some(Duration::from_millis(20));
    let draining = drain(&mounted, Meanwhile::Refuse, patience);
    let guard = draining.recv_timeout(LONG).expect("drained");
    assert_eq!(finish(&one), Err(Some(libc::EIO)));
    assert_eq!(finish(&reader(&mounted)), Err(Some(libc::EIO)));
    drop(guard);
    answer(&waiting);
    assert_eq!(mounted.device.unanswered(LAYER), 0);
}

#[test]
fn a_drain_that_is_given_up_opens_the_gate_again() {
    let mounted = Mounted::new();
    let waiting = waiting_layer(&mounted);
    let one = reader(&mounted);
    mounted.wait_parked(1);
    let device = Arc::clone(&mounted.device);
    let given_up = spawn(async move {
        let drain = device.drain(LAYER, Meanwhile::Refuse, None);
        let short = Duration::from_millis(20);
        tokio::time::timeout(short, drain).await.is_err()
    });
    assert_eq!(given_up.recv_timeout(LONG), Ok(true));
    let two = reader(&mounted);
    mounted.wait_parked(2);
    answer(&waiting);
    for reader in [one, two] {
        assert_eq!(finish(&reader), Ok(bytes(0, 4096).to_vec()));
    }
}
