//! Turns spans into demands of the scheduler.

use soci_ztoc::SpanId;
use tokio::sync::oneshot;

use super::{Arrived, Demander, Effect, Event, Spans};
use crate::{
    fetch::{Class, Delivery, Demand, DemandError, Patience, Sink, Source},
    layer::ReadError,
    sync::{Arc, Weak},
};

impl Spans {
    /// Submits a demand for one span. `avoid` is a source that sent wrong bytes for it.
    pub(super) fn demand(self: &Arc<Self>, span: u32, class: Class, avoid: Option<Arc<str>>) {
        self.times.demanded(span);
        let demander = match class {
            Class::All => Demander::Patient,
            Class::Now | Class::Next | Class::Pull => Demander::Urgent,
        };
        let sources = self.named.sources();
        let (spans, asked): (Weak<Spans>, _) = (Arc::downgrade(self), Arc::clone(&sources));
        let sink = Box::new(move |outcome| {
            let Some(spans) = spans.upgrade() else { return };
            let early = spans.early.lock().remove(&span);
            match outcome {
                Ok(delivery) => spans.delivered(span, Arrived { delivery, early }),
                // The sources changed after the demand was made. Readers that joined since may use
                // the new ones.
                Err(_) if spans.has_other_sources(&asked) => spans.demand(span, class, None),
                Err(error) => spans.not_delivered(span, demander, error),
            }
        });
        let Some(mut demand) = self.demand_for(SpanId(span), class, sources, sink) else {
            return;
        };
        // After wrong bytes, the delivery alone decides.
        if avoid.is_none() {
            demand.watch = self.watch(span);
        }
        demand.avoid = avoid;
        self.context.fetch.demand(demand);
    }

    /// A demand for a span. `None` if the layer has no zTOC.
    fn demand_for(
        &self,
        span: SpanId,
        class: Class,
        sources: Arc<[Source]>,
        sink: Sink,
    ) -> Option<Demand> {
        let (order, patience) = match class {
            Class::All => (self.background_order(span.0), Patience::Forever),
            Class::Now | Class::Next | Class::Pull => (0, Patience::Budget),
        };
        Some(Demand {
            blob: *self.data.digest(),
            range: self.data.ztoc()?.spans().compressed(span),
            class,
            image: self.data.image(),
            order,
            sources,
            avoid: None,
            patience,
            watch: None,
            sink,
        })
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
            Demander::Patient => {
                self.data.count(|series| series.background_failures.inc());
                self.trouble.pause(&error);
            }
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
        let demand = self.demand_for(span, Class::All, self.named.sources(), sink);
        let mut demand = demand.ok_or(DemandError::Closed)?;
        demand.patience = Patience::Budget;
        self.context.fetch.demand(demand);
        told.await.unwrap_or(Err(DemandError::Closed))
    }
}
