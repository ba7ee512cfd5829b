//! Is a layer what its index says? Its whole tar against the zTOC's entries, and the tar's digest.
//!
//! Spans that come in order are hashed as they pass, while no reader waits; the rest is read from the store when the layer is complete. What the
//! stream has behind the archive counts for its digest and is not stored: it is kept from the last span while that is
//! decoded, or fetched again.

use std::{io, ops::ControlFlow, ops::Range};

use sha2::{Digest as _, Sha256};
use soci_oci::Digest;
use soci_ztoc::{
    Decoder, Entry, Policy, SpanId, TarScanner, TarSink, VerifiedSpan, Ztoc, disagreement,
};
use tokio::sync::oneshot;

use super::{Class, Context, Demand, DemandError, Layer, Layers, Patience};
use crate::{
    cpu::{Lane, Lost},
    fetch::Delivery,
    store::{LayerKey, ZtocFile, proofs::Proof, sums::sum_of},
    sync::Arc,
};

/// Bytes of the tar that one job reads.
const STEP: u64 = 16 << 20;
/// Bytes behind the archive that are kept until the layer is complete.
pub(super) const KEPT: usize = 64 << 10;

/// Why it is not known yet what a layer is.
#[derive(Debug, thiserror::Error)]
pub enum ProveError {
    /// Bytes are missing.
    #[error("layer {0} is not complete")]
    Incomplete(Digest),
    /// Its files cannot be read, or are not what was written.
    #[error("read layer {layer}")]
    Store {
        /// The layer.
        layer: Digest,
        /// The system's account.
        #[source]
        source: io::Error,
    },
    /// What is behind its archive does not come.
    #[error("the end of layer {layer} cannot be fetched")]
    Fetch {
        /// The layer.
        layer: Digest,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The pool lost the job.
    #[error(transparent)]
    Lost(#[from] Lost),
}

/// The tar of a layer as it passes, in order.
pub(super) struct Passing {
    hash: Sha256,
    scanner: TarScanner,
    /// The next entry of the zTOC.
    entry: usize,
    /// The first thing that the tar and the zTOC say differently.
    fault: Option<Arc<str>>,
    at: u64,
}

impl Passing {
    pub(super) fn new() -> Box<Passing> {
        Box::new(Passing {
            hash: Sha256::new(),
            scanner: TarScanner::new(Policy::Ztoc),
            entry: 0,
            fault: None,
            at: 0,
        })
    }

    fn push(&mut self, ztoc: &ZtocFile, bytes: &[u8]) {
        self.hash.update(bytes);
        self.at += bytes.len() as u64;
        if self.fault.is_some() {
            return;
        }
        let mut against = Against {
            ztoc: ztoc.view(),
            entry: &mut self.entry,
            fault: &mut self.fault,
        };
        if let Err(error) = self.scanner.feed(bytes, &mut against) {
            self.fault = Some(error.to_string().into());
        }
    }

    /// Reads on from the store, as far as spans are there and at most about `most` bytes. True at the end of the archive.
    fn read_on(&mut self, layer: &Layer, ztoc: &ZtocFile, most: u64) -> io::Result<bool> {
        let spans = ztoc.spans();
        let end = self.at.saturating_add(most);
        while self.at < spans.archive_size() {
            let Some(span) = spans.at(self.at) else { break };
            if self.at >= end || !layer.files.present.has(span.0) {
                return Ok(false);
            }
            let bytes = layer.tar_bytes(spans.uncompressed(span), &[])?;
            let sum = layer.files.sums.get(span.0)?;
            if sum.is_some_and(|sum| sum != sum_of(&bytes)) {
                let what = format!("span {} is not what was written", span.0);
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            self.push(ztoc, &bytes);
        }
        Ok(true)
    }

    /// The stream has ended.
    fn finish(self, ztoc: &ZtocFile) -> Proof {
        let stated = ztoc.view().entry_count();
        let fault = self.fault.or_else(|| match self.scanner.finish() {
            Err(error) => Some(error.to_string().into()),
            Ok(_) if self.entry < stated => {
                let (found, stated) = (self.entry, stated);
                Some(format!("the tar has {found} entries, the zTOC {stated}").into())
            }
            Ok(_) => None,
        });
        match fault {
            Some(why) => Proof::False(why),
            None => Proof::Tar(Digest::from_sha256(self.hash.finalize().into())),
        }
    }
}

/// Holds the entries of a tar against those of its zTOC.
struct Against<'a> {
    ztoc: Ztoc<'a>,
    entry: &'a mut usize,
    fault: &'a mut Option<Arc<str>>,
}

impl TarSink for Against<'_> {
    fn entry(&mut self, found: &Entry<'_>) {
        if self.fault.is_some() {
            return;
        }
        let name = || String::from_utf8_lossy(found.name).into_owned();
        *self.fault = match self.ztoc.entry(*self.entry) {
            None => Some(format!("the zTOC leaves out the entry {:?}", name()).into()),
            Some(stated) if stated.header() != found.header() || stated.offset != found.offset => {
                Some(format!("the zTOC has another place for the entry {:?}", name()).into())
            }
            Some(stated) => disagreement(found, &stated).map(|field| {
                format!("tar and zTOC disagree about the {field} of {:?}", name()).into()
            }),
        };
        *self.entry += 1;
    }
}

impl Layer {
    /// A span was stored in the background: hashes it if it is its turn, and what was stored before and left out.
    pub(super) fn pass_on(&self, ztoc: &ZtocFile, tar: &Range<u64>, bytes: &[u8]) {
        // Taken out: no lock is held meanwhile, and who comes then has nothing to do.
        let Some(mut passing) = self.passing.lock().take() else {
            return;
        };
        if passing.at == tar.start {
            passing.push(ztoc, bytes);
        }
        if let Err(error) = passing.read_on(self, ztoc, STEP) {
            tracing::debug!(layer = %self.files.key.layer, error = %error, "read again when the layer is complete");
        }
        *self.passing.lock() = Some(passing);
    }

    /// What a stream has behind the archive, for when the layer is complete; `None` if that is too much to keep.
    pub(super) fn keep_behind(&self, bytes: Option<Vec<u8>>) {
        *self.behind.lock() = bytes;
    }

    async fn find_proof(self: &Arc<Self>) -> Result<Proof, ProveError> {
        let layer = self.files.key.layer;
        if !self.is_complete() {
            return Err(ProveError::Incomplete(layer));
        }
        if self.ztoc().is_none() {
            // Checked while it was pulled; see `stream`.
            let diff_id = self.files.sources.diff_id;
            return diff_id.map(Proof::Tar).ok_or_else(|| ProveError::Store {
                layer,
                source: io::Error::new(io::ErrorKind::NotFound, "its diff-ID was not noted"),
            });
        }
        let taken = self.passing.lock().take();
        let mut passing = taken.unwrap_or_else(Passing::new);
        loop {
            let of = Arc::clone(self);
            let job = move || {
                let ztoc = of.ztoc().ok_or(io::ErrorKind::NotFound)?;
                let done = passing.read_on(&of, ztoc, STEP)?;
                Ok((done, passing))
            };
            let read = self.context.cpu.run(Lane::ComputeBehind, job).await?;
            let (done, next) = read.map_err(|source| ProveError::Store { layer, source })?;
            passing = next;
            if done {
                break;
            }
            if !self.is_complete() || self.is_closed() {
                return Err(ProveError::Incomplete(layer));
            }
        }
        let kept = self.behind.lock().take();
        let passing = match (kept, self.ztoc()) {
            (Some(kept), Some(ztoc)) => {
                passing.push(ztoc, &kept);
                passing
            }
            _ => self.fetch_behind(passing).await?,
        };
        let of = Arc::clone(self);
        let job = move || of.ztoc().map(|ztoc| passing.finish(ztoc));
        let proof = self.context.cpu.run(Lane::ComputeBehind, job).await?;
        proof.ok_or(ProveError::Incomplete(layer))
    }

    /// Every byte is there, and a header disagrees: notes that the layer is not what its index says.
    pub(super) async fn prove_false(self: &Arc<Self>) {
        let layer = self.files.key.layer;
        tracing::error!(layer = %layer, image = &*self.image(), "every byte is there, but the layer is not what its index says; it stays on the device, and no container is started from it");
        let why = self.trouble.last_error();
        let why = why.unwrap_or_else(|| "a tar header disagrees with the zTOC".to_owned());
        let proof = Proof::False(why.into());
        if let Err(lost) = note(&self.context, self.files.key, proof).await {
            tracing::error!(layer = %layer, error = %lost, "a verdict");
        }
    }

    /// Fetches the spans in which the stream goes on behind the archive, and passes them.
    async fn fetch_behind(
        self: &Arc<Self>,
        mut passing: Box<Passing>,
    ) -> Result<Box<Passing>, ProveError> {
        let Some(ztoc) = self.ztoc() else {
            return Ok(passing);
        };
        let spans = ztoc.spans().clone();
        for span in spans.ids().filter(|span| spans.is_cut(*span)) {
            let delivery = self
                .fetch_again(span)
                .await
                .map_err(|error| self.unfetched(error))?;
            let of = Arc::clone(self);
            let job = move || {
                let ztoc = of.ztoc().ok_or("it has no zTOC")?;
                pass_behind(&mut passing, ztoc, span, &delivery.bytes)
                    .map_err(|error| error.to_string())?;
                Ok::<_, String>(passing)
            };
            let passed = self.context.cpu.run(Lane::ComputeBehind, job).await?;
            passing = passed.map_err(|error| self.unfetched(error))?;
        }
        Ok(passing)
    }

    fn unfetched(&self, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ProveError {
        ProveError::Fetch {
            layer: self.files.key.layer,
            source: error.into(),
        }
    }

    async fn fetch_again(self: &Arc<Self>, span: SpanId) -> Result<Delivery, DemandError> {
        let Some(ztoc) = self.ztoc() else {
            return Err(DemandError::NoSource);
        };
        let (tell, told) = oneshot::channel();
        self.context.fetch.demand(Demand {
            blob: self.files.key.layer,
            range: ztoc.spans().compressed(span),
            class: Class::All,
            image: self.image(),
            order: self.files.number.0,
            sources: self.named.sources(),
            avoid: None,
            patience: Patience::Budget,
            sink: Box::new(move |outcome| drop(tell.send(outcome))),
        });
        told.await.unwrap_or(Err(DemandError::Closed))
    }
}

/// Passes what a span's stream has behind the archive. A stream that does not decode there is a fault of the layer.
fn pass_behind(
    passing: &mut Passing,
    ztoc: &ZtocFile,
    span: SpanId,
    bytes: &[u8],
) -> Result<(), soci_ztoc::VerifyError> {
    let spans = ztoc.spans();
    let verified = VerifiedSpan::verify(span, bytes, spans)?;
    let archive = spans.uncompressed(span);
    let mut skip = usize::try_from(archive.end - archive.start).unwrap_or(usize::MAX);
    let view = ztoc.view();
    let decoded = Decoder::new().decode_to_end(&verified, &view.checkpoint(span), spans, |piece| {
        let behind = piece.get(skip.min(piece.len())..).unwrap_or_default();
        skip = skip.saturating_sub(piece.len());
        passing.push(ztoc, behind);
        ControlFlow::Continue(())
    });
    if let Err(error) = decoded {
        passing
            .fault
            .get_or_insert_with(|| error.to_string().into());
    }
    Ok(())
}

impl Layers {
    /// What the whole tar of a complete layer is: as the table knows it, or found out and noted there. One layer at a time.
    ///
    /// # Errors
    /// [`ProveError`]: it may be asked again.
    pub async fn prove(&self, layer: &Arc<Layer>) -> Result<Proof, ProveError> {
        let key = layer.key();
        let proofs = || self.context.store.proofs();
        if let Some(known) = proofs().get(&key) {
            return Ok(known);
        }
        let turn = self.context.proving.acquire().await;
        let proof = layer.find_proof().await?;
        drop(turn);
        note(&self.context, key, proof.clone()).await?;
        Ok(proof)
    }

    /// Notes the tar of a layer that was pulled whole: both its digests were checked on the way.
    pub(super) async fn prove_whole(&self, layer: &Layer) -> Result<(), Lost> {
        match layer.files.sources.diff_id {
            Some(diff_id) => note(&self.context, layer.key(), Proof::Tar(diff_id)).await,
            None => Ok(()),
        }
    }
}

async fn note(context: &Context, key: LayerKey, proof: Proof) -> Result<(), Lost> {
    let store = Arc::clone(&context.store);
    let job = move || store.proofs().add(key, &proof);
    if let Err(error) = context.cpu.run(Lane::FilesBehind, job).await? {
        tracing::warn!(layer = %key.layer, error = %error, "what a layer is was not noted; it is found out again after a restart");
    }
    Ok(())
}
