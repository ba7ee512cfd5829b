//! Test doubles and helpers for tests of the device and of mounts on it.
//!
//! Reads below a mount run on a thread with its own descriptor table, like the mount thread, or in
//! another process. Otherwise a test could not be killed.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use soci_oci::Digest;

use crate::layer::{DeviceFile, ReadDone, ReadError, Subject};
use crate::mount::thread::leave_descriptors;

/// Time limit of each step; longer means that it hangs.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// How a double answers a read.
pub(crate) type Behaviour = Box<dyn Fn(u64, u32, ReadDone) + Send + Sync>;

pub(crate) struct Double {
    pub(crate) number: u64,
    pub(crate) size: u64,
    pub(crate) behaviour: Behaviour,
}

impl DeviceFile for Double {
    fn number(&self) -> u64 {
        self.number
    }

    fn size(&self) -> u64 {
        self.size
    }

    fn read(self: Arc<Self>, offset: u64, len: u32, done: ReadDone) {
        (self.behaviour)(offset, len, done);
    }
}

/// The byte at `offset` of every double with correct content.
pub(crate) fn byte(offset: u64) -> u8 {
    u8::try_from((offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) & 0xff).unwrap()
}

pub(crate) fn bytes(offset: u64, len: u32) -> Bytes {
    (offset..offset + u64::from(len)).map(byte).collect()
}

/// Runs `job` on a thread without the FUSE descriptor and waits for it with a time limit.
pub(crate) fn apart<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> T {
    begin(job).recv_timeout(LONG).expect("the kernel answers")
}

pub(crate) fn begin<T: Send + 'static>(
    job: impl FnOnce() -> T + Send + 'static,
) -> mpsc::Receiver<T> {
    let (result, finished) = mpsc::channel();
    std::thread::spawn(move || {
        leave_descriptors().unwrap();
        let _ = result.send(job());
    });
    finished
}

/// The read error of a removed layer.
pub(crate) fn unavailable() -> ReadError {
    ReadError::Removed { subject: subject() }
}

/// The subject of the errors in these tests.
pub(crate) fn subject() -> Arc<Subject> {
    let (image, layer) = ("registry.test/image:1".into(), Digest::sha256(b"layer"));
    Arc::new(Subject {
        image,
        layer,
        span: Some(3),
    })
}
