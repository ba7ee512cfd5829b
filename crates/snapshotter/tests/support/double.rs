//! Doubles and helpers for tests of the device and of what is mounted on it.
//!
//! Whoever reads below a mount does it on a thread with its own descriptor table, as the mounting
//! thread does, or in another process: a test that is killed must die.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use soci_oci::Digest;

use crate::layer::{DeviceFile, ReadDone, ReadError, Subject};
use crate::mount::thread::leave_descriptors;

/// How long anything here may take before it counts as hanging.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// What a double does with a read.
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

/// The byte at `offset` of every double that tells the truth.
pub(crate) fn byte(offset: u64) -> u8 {
    u8::try_from((offset.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) & 0xff).unwrap()
}

pub(crate) fn bytes(offset: u64, len: u32) -> Bytes {
    (offset..offset + u64::from(len)).map(byte).collect()
}

/// Runs `job` on a thread without the FUSE descriptor and waits for it, but not for ever.
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

/// A read error, as a layer that is removed gives it.
pub(crate) fn unavailable() -> ReadError {
    ReadError::Removed { subject: subject() }
}

/// What the errors of these tests are about.
pub(crate) fn subject() -> Arc<Subject> {
    let (image, layer) = ("registry.test/image:1".into(), Digest::sha256(b"layer"));
    Arc::new(Subject {
        image,
        layer,
        span: Some(3),
    })
}
