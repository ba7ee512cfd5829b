//! The stages of a pass: bytes go from one to the next, and each stage works on a core of its own.
//!
//! The queues between stages have no limit of their own. What lies in them is bounded by the window
//! of the steps ([`super::steps`]) and by the buffers for the tar ([`super::rooms`]).

use bytes::Bytes;
use soci_oci::{Digest, Verifier};
use soci_ztoc::{LayerDecoder, LayerError, LayerFormat, Policy, TarEnd, TarScanner};
use tokio::sync::{
    OwnedSemaphorePermit, Semaphore,
    mpsc::{UnboundedReceiver, UnboundedSender},
};

use super::{Files, StreamError, rooms::Rooms};
use crate::{
    cpu::{Cpu, Lane},
    places::{self, PlaceError},
    store::Draft,
    sync::Arc,
};

/// Pieces that one job takes. Other passes wait for it meanwhile.
const TURN: usize = 8;

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

/// Decompresses the first step and those that follow. Returns whether the layer ended correctly.
///
/// A layer that needs much memory, or may need it, waits for others of its kind. In any other layer,
/// a later frame that needs much is an error.
pub(super) async fn decompress(
    cpu: &Cpu,
    large: &Arc<Semaphore>,
    layer: Digest,
    (mut step, mut steps): (Bytes, UnboundedReceiver<Bytes>),
    tar: Tar,
) -> Result<Result<(), LayerError>, StreamError> {
    let failed = move |source| StreamError::Decompress {
        layer: Box::new(layer),
        source,
    };
    let format = LayerFormat::sniff(&step);
    // The semaphore is never closed.
    let (decoder, alone) = if LayerDecoder::is_small(&step) {
        (LayerDecoder::small(format), None)
    } else {
        let alone = Arc::clone(large).acquire_owned().await.ok();
        (LayerDecoder::new(format), alone)
    };
    let mut work = Decompressing {
        decoder: decoder.map_err(failed)?,
        _alone: alone,
        rooms: Rooms::new(),
        room: (Vec::new(), 0),
        tar,
    };
    loop {
        let job = move || {
            let left = work.take(&step)?;
            let rest = step.split_off(step.len() - left);
            Ok::<_, LayerError>((work, rest))
        };
        (work, step) = cpu.run(Lane::ComputeBehind, job).await?.map_err(failed)?;
        if work.room.0.is_empty() {
            work.room = (work.rooms.next().await, 0);
        } else {
            match steps.recv().await {
                Some(next) => step = next,
                None => break,
            }
        }
    }
    if work.room.1 > 0 {
        work.emit();
    }
    Ok(work.decoder.finish())
}

/// A decoder, and the buffer that it fills. An empty one means that it waits for the next.
struct Decompressing {
    decoder: LayerDecoder,
    /// Returned when the decoder is gone, if it may take much memory.
    _alone: Option<OwnedSemaphorePermit>,
    rooms: Rooms,
    room: (Vec<u8>, usize),
    tar: Tar,
}

impl Decompressing {
    /// Decompresses until the step ends, or no buffer is free, or it is the turn of others. Returns
    /// how much of the step is left.
    fn take(&mut self, mut step: &[u8]) -> Result<usize, LayerError> {
        for _ in 0..TURN {
            if self.room.0.is_empty() {
                match self.rooms.take() {
                    Some(room) => self.room = (room, 0),
                    None => return Ok(step.len()),
                }
            }
            let (room, filled) = &mut self.room;
            let rest = room.get_mut(*filled..).unwrap_or_default();
            *filled += self.decoder.fill(&mut step, rest)?;
            if *filled < room.len() {
                return Ok(step.len());
            }
            self.emit();
        }
        Ok(step.len())
    }

    fn emit(&mut self) {
        let (room, filled) = std::mem::take(&mut self.room);
        self.tar.push(&self.rooms.lend(room, filled));
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
