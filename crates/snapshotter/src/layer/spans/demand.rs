//! Turns spans into demands of the scheduler.

use soci_ztoc::SpanId;
use tokio::sync::oneshot;

use super::{Demander, Effect, Event, Spans};
use crate::{
    fetch::{Class, Delivery, Demand, DemandError, Patience, Sink, Source},
    layer::ReadError,
    sync::{Arc, Weak},
};

impl Spans {
    /// Submits a demand for one span. `avoid` is a source that sent wrong bytes for it.
    pub(super) fn demand(self: &Arc<Self>, span: u32, class: Class, avoid: Option<Arc<str>>) {
        self.times.demanded(span);
        let (demander, patience) = match class {
            Class::All => (Demander::Patient, Patience::Forever),
            Class::Now | Class::Next => (Demander::Urgent, Patience::Budget),
        };
        let sources = self.named.sources();
        let (spans, asked): (Weak<Spans>, _) = (Arc::downgrade(self), Arc::clone(&sources));
        let sink = Box::new(move |outcome| {
            let Some(spans) = spans.upgrade() else { return };
            match outcome {
                Ok(delivery) => spans.delivered(span, delivery),
                // The sources changed after the demand was made. Readers that joined since may use
                // the new ones.
                Err(_) if spans.has_other_sources(&asked) => spans.demand(span, class, None),
                Err(error) => spans.not_delivered(span, demander, error),
            }
        });
        self.ask(SpanId(span), class, patience, sources, avoid, sink);
    }

    fn ask(
        &self,
        span: SpanId,
        class: Class,
        patience: Patience,
        sources: Arc<[Source]>,
        avoid: Option<Arc<str>>,
        sink: Sink,
    ) {
        let Some(ztoc) = self.data.ztoc() else { return };
        self.context.fetch.demand(Demand {
            blob: *self.data.digest(),
            range: ztoc.spans().compressed(span),
            class,
            image: self.data.image(),
            // Layers are completed one after the other.
            order: match class {
                Class::All => self.data.files.number.0,
                Class::Now | Class::Next => 0,
            },
            sources,
            avoid,
            patience,
            watch: None,
            sink,
        });
    }

    fn has_other_sources(&self, asked: &Arc<[Source]>) -> bool {
        !self.is_closed() && !Arc::ptr_eq(&self.named.sources(), asked)
    }

    /// Raises the demand for a readahead span, because a reader waits for it now.
    pub(super) fn promote(&self, span: u32) {
        if let Some(ztoc) = self.data.ztoc() {
            let range = ztoc.spans().compressed(SpanId(span));
            let scheduler = &self.context.fetch;
            scheduler.promote(self.data.digest(), range, Class::Now);
        }
    }

    fn not_delivered(self: &Arc<Self>, span: u32, demander: Demander, error: DemandError) {
        let error = ReadError::Fetch {
            subject: self.data.subject(Some(span)),
            source: Arc::new(error),
        };
        match demander {
            Demander::Patient => self.trouble.pause(&error),
            Demander::Urgent => self.trouble.note(&error),
        }
        if let Effect::Fail(waiters) = self.step(span, Event::Failed(demander)) {
            self.fail_all(waiters, error);
            self.times.forget(span);
        }
        self.look_again();
    }

    /// Downloads the compressed bytes of a span, present or not, without changing its state.
    pub(in crate::layer) async fn fetch_again(
        &self,
        span: SpanId,
    ) -> Result<Delivery, DemandError> {
        let (tell, told) = oneshot::channel();
        let sink = Box::new(move |outcome| drop(tell.send(outcome)));
        let sources = self.named.sources();
        self.ask(span, Class::All, Patience::Budget, sources, None, sink);
        told.await.unwrap_or(Err(DemandError::Closed))
    }
}
