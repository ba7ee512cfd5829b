//! The stage that decompresses with our own decoders, and indexes gzip layers in passing if that is
//! wanted.

use bytes::Bytes;
use soci_oci::Digest;
use soci_ztoc::{BuiltZtoc, LayerDecoder, LayerError, LayerFormat, LayerIndexer};
use tokio::sync::{OwnedSemaphorePermit, mpsc::UnboundedReceiver};

use super::{
    StreamError,
    rooms::Rooms,
    stages::{TURN, Tar},
};
use crate::{
    cpu::{Cpu, Lane},
    layer::Context,
    sync::Arc,
};

/// Whether the layer ended correctly for our own decoder, and its zTOC if one was made.
pub(super) type Decompressed = Result<Option<Box<BuiltZtoc>>, LayerError>;

/// A decoder of a layer.
pub(super) struct Decoding {
    layer: Digest,
    decoder: Decoder,
    /// Returned when the decoder is gone, if it may take much memory.
    alone: Option<OwnedSemaphorePermit>,
}

enum Decoder {
    Only(LayerDecoder),
    Indexing(Box<LayerIndexer>),
}

impl Decoder {
    fn fill(&mut self, input: &mut &[u8], out: &mut [u8]) -> Result<usize, LayerError> {
        match self {
            Decoder::Only(decoder) => decoder.fill(input, out),
            Decoder::Indexing(indexer) => Ok(indexer.fill(input, out)?),
        }
    }

    fn finish(self, layer: &Digest) -> Decompressed {
        match self {
            Decoder::Only(decoder) => decoder.finish().map(|()| None),
            Decoder::Indexing(indexer) => match indexer.finish()? {
                Ok(built) => Ok(Some(Box::new(built))),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::debug!(%layer, error, "no zTOC can be made of the layer");
                    Ok(None)
                }
            },
        }
    }
}

impl Decoding {
    /// Starts the decoder for a layer that begins with these bytes.
    ///
    /// A layer that needs much memory, or may need it, waits for others of its kind. In any other
    /// layer, a later frame that needs much is an error.
    pub(super) async fn start(
        context: &Context,
        layer: Digest,
        start: &[u8],
        indexes: bool,
    ) -> Result<Decoding, StreamError> {
        let format = LayerFormat::sniff(start);
        // The semaphore is never closed.
        let (decoder, alone) = if indexes {
            let indexer = LayerIndexer::new().map_err(LayerError::from);
            (indexer.map(|it| Decoder::Indexing(Box::new(it))), None)
        } else if LayerDecoder::is_small(start) {
            (LayerDecoder::small(format).map(Decoder::Only), None)
        } else {
            let large = Arc::clone(&context.passes.large);
            let alone = large.acquire_owned().await.ok();
            (LayerDecoder::new(format).map(Decoder::Only), alone)
        };
        let decoder = decoder.map_err(|source| failed(layer, source))?;
        Ok(Decoding {
            layer,
            decoder,
            alone,
        })
    }

    /// Decompresses the first step and those that follow.
    pub(super) async fn decompress(
        self,
        cpu: &Cpu,
        (mut step, mut steps): (Bytes, UnboundedReceiver<Bytes>),
        tar: Tar,
    ) -> Result<Decompressed, StreamError> {
        let layer = self.layer;
        let mut work = Decompressing {
            decoder: self.decoder,
            _alone: self.alone,
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
            let worked = cpu.run(Lane::ComputeBehind, job).await?;
            (work, step) = worked.map_err(|source| failed(layer, source))?;
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
        Ok(work.decoder.finish(&layer))
    }
}

fn failed(layer: Digest, source: LayerError) -> StreamError {
    StreamError::Decompress {
        layer: Box::new(layer),
        source,
    }
}

/// A decoder, and the buffer that it fills. An empty one means that it waits for the next.
struct Decompressing {
    decoder: Decoder,
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
