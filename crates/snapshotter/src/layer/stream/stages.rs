//! The stages of a pass: bytes go from one to the next, and each stage works on a core of its own.
//!
//! The queues between stages have no limit of their own. What lies in them is bounded by the window
//! of the steps ([`super::steps`]) and by the buffers for the tar ([`super::rooms`]).

use bytes::Bytes;
use soci_oci::{Digest, Verifier};
use soci_ztoc::{Policy, TarEnd, TarScanner};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::{Files, StreamError};
use crate::{
    cpu::{Cpu, Lane},
    places::{self, PlaceError},
    store::Draft,
};

/// Pieces that one job takes. Other passes wait for it meanwhile.
pub(super) const TURN: usize = 8;

/// A stage that takes bytes in order.
pub(super) trait Stage: Send + 'static {
    fn push(&mut self, bytes: &[u8]) -> Result<(), StreamError>;
}

impl Stage for Verifier {
    fn push(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        self.update(bytes);
        Ok(())
    }
}

/// Runs a stage until its queue ends, and returns it.
pub(super) async fn run<S: Stage>(
    cpu: &Cpu,
    mut stage: S,
    mut queue: UnboundedReceiver<Bytes>,
) -> Result<S, StreamError> {
    while let Some(first) = queue.recv().await {
        let job = move || {
            let mut next = Some(first);
            for _ in 0..TURN {
                let Some(bytes) = next else { break };
                stage.push(&bytes)?;
                drop(bytes);
                next = queue.try_recv().ok();
            }
            // The last one taken must not be lost.
            if let Some(bytes) = next {
                stage.push(&bytes)?;
            }
            Ok::<_, StreamError>((stage, queue))
        };
        (stage, queue) = cpu.run(Lane::ComputeBehind, job).await??;
    }
    Ok(stage)
}

/// Where the tar goes: to its digest and to the scanner.
#[derive(Clone)]
pub(super) struct Tar(pub(super) [UnboundedSender<Bytes>; 2]);

impl Tar {
    pub(super) fn push(&self, bytes: &Bytes) {
        for queue in &self.0 {
            // A stage that is gone has failed, and ends the pass.
            drop(queue.send(bytes.clone()));
        }
    }
}

/// Passes on the steps of a layer that is not compressed.
pub(super) async fn pass_on(first: Bytes, mut steps: UnboundedReceiver<Bytes>, tar: &Tar) {
    let mut next = Some(first);
    while let Some(bytes) = next {
        tar.push(&bytes);
        drop(bytes);
        next = steps.recv().await;
    }
}

/// Reads the tar and writes the files of a draft.
pub(super) struct Unpack {
    layer: Digest,
    scanner: TarScanner,
    files: Files,
}

impl Unpack {
    pub(super) fn new(layer: Digest, draft: Draft) -> Unpack {
        Unpack {
            layer,
            scanner: TarScanner::new(Policy::Unpack),
            files: Files::new(draft),
        }
    }

    /// Ends the tar. Returns the draft, and the table of places.
    pub(super) fn finish(self) -> Result<(Draft, Vec<u8>), StreamError> {
        let Unpack {
            layer,
            scanner,
            mut files,
        } = self;
        let end: TarEnd = scanner.finish().map_err(|source| StreamError::Tar {
            layer: Box::new(layer),
            source,
        })?;
        let table = places::plan(files.planned.drain(..), end.archive_size).map_err(|source| {
            StreamError::Places {
                layer: Box::new(layer),
                source,
            }
        })?;
        let draft = files.finish().map_err(|source| StreamError::Write {
            layer: Box::new(layer),
            source,
        })?;
        Ok((draft, table))
    }
}

impl Stage for Unpack {
    fn push(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        let layer = || Box::new(self.layer);
        let fed = self.scanner.feed(bytes, &mut self.files);
        fed.map_err(|source| StreamError::Tar {
            layer: layer(),
            source,
        })?;
        if self.files.planned.len() > places::MOST_ENTRIES {
            return Err(StreamError::Places {
                layer: layer(),
                source: PlaceError::TooMany,
            });
        }
        match self.files.error.take() {
            Some(source) => Err(StreamError::Write {
                layer: layer(),
                source,
            }),
            None => Ok(()),
        }
    }
}
