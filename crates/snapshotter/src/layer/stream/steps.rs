//! The compressed bytes of a layer in order, requested ahead in bounded memory.

use std::{collections::VecDeque, ops::Range};

use bytes::Bytes;
use soci_oci::Digest;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::{
    fetch::{Class, Delivery, Demand, DemandError, Patience, Scheduler, Source},
    layer::{Context, Whole},
    metrics::{self, Purpose},
    sync::Arc,
};

type Answer = Result<Delivery, DemandError>;

/// The steps of a blob. A step that is requested, or that anyone still holds, takes a part of the
/// window. A part that is returned is used for the next request.
pub(super) struct Steps {
    fetch: Arc<Scheduler>,
    blob: Digest,
    sources: Arc<[Source]>,
    image: Arc<str>,
    order: u64,
    step: u64,
    window: Arc<Semaphore>,
    left: Range<u64>,
    asked: VecDeque<(oneshot::Receiver<Answer>, OwnedSemaphorePermit)>,
}

/// The bytes of a step. Returns its part of the window when dropped.
pub(super) struct Step {
    pub(super) bytes: Bytes,
    _part: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Step {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Steps {
    pub(super) fn new(context: &Context, whole: &Whole, image: Arc<str>) -> Steps {
        let settings = &context.options.whole;
        Steps {
            fetch: Arc::clone(&context.fetch),
            blob: whole.layer.digest,
            sources: whole.sources.clone().into(),
            image,
            order: whole.order,
            step: settings.step(),
            window: Arc::new(Semaphore::new(settings.steps())),
            left: 0..whole.layer.size,
            asked: VecDeque::new(),
        }
    }

    /// The next step, or `None` after the last one. A dropped future loses nothing.
    pub(super) async fn next(&mut self) -> Option<Result<Step, DemandError>> {
        loop {
            let window = Arc::clone(&self.window);
            let part = window.acquire_owned();
            let wants = !self.left.is_empty();
            let Some((first, _)) = self.asked.front_mut() else {
                if !wants {
                    return None;
                }
                self.ask(part.await.ok()?);
                continue;
            };
            tokio::select! {
                biased;
                part = part, if wants => self.ask(part.ok()?),
                answer = first => {
                    let (_, part) = self.asked.pop_front()?;
                    let answer = answer.unwrap_or(Err(DemandError::Closed));
                    return Some(answer.map(|delivery| Step {
                        bytes: delivery.bytes,
                        _part: part,
                    }));
                }
            }
        }
    }

    fn ask(&mut self, part: OwnedSemaphorePermit) {
        let end = self.left.end.min(self.left.start + self.step);
        let range = self.left.start..end;
        self.left.start = end;
        let (tell, told) = oneshot::channel();
        self.asked.push_back((told, part));
        self.fetch.demand(Demand {
            blob: self.blob,
            range,
            class: Class::Pull,
            image: Arc::clone(&self.image),
            order: self.order,
            sources: Arc::clone(&self.sources),
            avoid: None,
            patience: Patience::Budget,
            watch: None,
            sink: Box::new(move |outcome| {
                if let Ok(delivery) = &outcome {
                    let bytes = delivery.bytes.len() as u64;
                    metrics::global().fetched.add(Purpose::Whole, bytes);
                }
                // The window bounds what waits here, so its permit is returned at once and does not
                // delay the step that all later ones wait for. A failed send means that the pass
                // was dropped.
                drop(tell.send(outcome.map(Delivery::without_permit)));
            }),
        });
    }
}
