//! What the daemon counts, for Prometheus.
//!
//! Any part of the daemon adds to the counters of [`global`]: on the path of reads with a relaxed
//! atomic operation, elsewhere also under a short lock. State that a part holds anyway is not counted here: `daemon` collects it as
//! [`Figures`] for each scrape. [`DEFINITIONS`] lists every series; `docs/metrics.md` is
//! [`document`].

mod definitions;
mod document;
mod figures;
mod operations;
mod process;
mod values;

use prometheus::core::Collector;
pub use prometheus::proto::MetricFamily;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use soci_oci::Digest;

use self::definitions as all;
pub use self::definitions::{DEFINITIONS, Definition, Kind, Origin};
pub use self::document::document;
pub use self::figures::{CacheFigures, Figures, LayerFigures};
pub use self::operations::{LayerEvent, LayerSeries, NodeEvent, Operations, Timed};
pub use self::values::{
    Answer, ByValue, ImageVerdicts, Pause, Prepared, Purpose, ReadFailure, ReplayResult, Scraped,
};
use crate::sync::OnceLock;

/// The content type of the text format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The counters of this process.
pub fn global() -> &'static Metrics {
    static GLOBAL: OnceLock<Metrics> = OnceLock::new();
    GLOBAL.get_or_init(Metrics::new)
}

/// All counters.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// The reference's series about operations.
    pub operations: Operations,
    /// Requests for layers.
    pub prepared: ByValue<Prepared>,
    /// Verdicts on images.
    pub verdicts: ImageVerdicts,
    /// Snapshots whose layer does not match their image.
    pub quarantined: IntCounter,
    /// Seconds that reads waited.
    pub read_wait: Histogram,
    failures: ByValue<ReadFailure>,
    /// Compressed bytes of layers.
    pub fetched: ByValue<Purpose>,
    /// Spans of recorded starts that are over.
    pub replayed: ByValue<ReplayResult>,
    /// HTTP requests to registries.
    pub requests: ByValue<Answer>,
    /// Evictions.
    pub evicted_layers: IntCounter,
    /// Spans removed by evictions.
    pub evicted_spans: IntCounter,
    /// Bytes released by evictions.
    pub evicted_bytes: IntCounter,
    /// Workers before this one.
    pub restarts: IntCounter,
    /// Scrapes.
    pub scrapes: ByValue<Scraped>,
    /// Scrapes in progress.
    pub scraping: IntGauge,
}

impl Metrics {
    fn new() -> Self {
        let registry = Registry::new();
        let of = &registry;
        Self {
            operations: Operations::register(of),
            prepared: ByValue::register(of, &all::PREPARED),
            verdicts: ImageVerdicts::register(of, &all::IMAGE_VERDICTS),
            quarantined: counter(of, &all::QUARANTINED),
            read_wait: histogram(of, &all::READ_WAIT),
            failures: ByValue::register(of, &all::READ_FAILURES),
            fetched: ByValue::register(of, &all::FETCHED),
            replayed: ByValue::register(of, &all::REPLAYED),
            requests: ByValue::register(of, &all::REGISTRY_REQUESTS),
            evicted_layers: counter(of, &all::EVICTED_LAYERS),
            evicted_spans: counter(of, &all::EVICTED_SPANS),
            evicted_bytes: counter(of, &all::EVICTED_BYTES),
            restarts: counter(of, &all::WORKER_RESTARTS),
            scrapes: ByValue::register(of, &all::SCRAPES),
            scraping: gauge(of, &all::SCRAPES_IN_FLIGHT),
            registry,
        }
    }

    /// Records from now on what only a scrape can release. Call it before layers are opened.
    pub fn serve(&self) {
        self.operations.serve();
    }

    /// Whether metrics are served.
    pub fn is_served(&self) -> bool {
        self.operations.is_served()
    }

    /// Reads failed. The layer is unknown if the daemon does not have it.
    pub fn reads_failed(&self, cause: ReadFailure, layer: Option<&Digest>, count: usize) {
        self.failures.add(cause, count as u64);
        self.operations.read_failed(layer);
    }

    /// Everything for one scrape, by name. Reads `/proc`, and no other file.
    pub fn gather(&self, figures: &Figures) -> Vec<MetricFamily> {
        let mut families = self.registry.gather();
        families.extend(figures.families());
        families.extend(process::families());
        families.sort_by(|one, other| one.name().cmp(other.name()));
        families
    }
}

/// Appends a family in the text format.
///
/// # Errors
/// A family without samples. [`Metrics::gather`] returns none.
pub fn encode(family: &MetricFamily, to: &mut String) -> Result<(), prometheus::Error> {
    TextEncoder::new().encode_utf8(std::slice::from_ref(family), to)
}

/// Adds a collector to the registry.
fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    made: Result<C, prometheus::Error>,
) -> C {
    let collector = made.expect("the names are constants that a test registers");
    let registered = registry.register(Box::new(collector.clone()));
    registered.expect("the names are different");
    collector
}

fn opts(definition: &Definition) -> Opts {
    Opts::new(definition.name, definition.help)
}

fn bucketed(definition: &Definition) -> HistogramOpts {
    HistogramOpts::new(definition.name, definition.help).buckets(definition.buckets.to_vec())
}

fn counter(registry: &Registry, definition: &Definition) -> IntCounter {
    register(registry, IntCounter::with_opts(opts(definition)))
}

fn gauge(registry: &Registry, definition: &Definition) -> IntGauge {
    register(registry, IntGauge::with_opts(opts(definition)))
}

fn histogram(registry: &Registry, definition: &Definition) -> Histogram {
    register(registry, Histogram::with_opts(bucketed(definition)))
}

fn counters(registry: &Registry, definition: &Definition) -> IntCounterVec {
    register(
        registry,
        IntCounterVec::new(opts(definition), definition.labels),
    )
}

fn gauges(registry: &Registry, definition: &Definition) -> IntGaugeVec {
    register(
        registry,
        IntGaugeVec::new(opts(definition), definition.labels),
    )
}

fn histograms(registry: &Registry, definition: &Definition) -> HistogramVec {
    register(
        registry,
        HistogramVec::new(bucketed(definition), definition.labels),
    )
}

#[cfg(test)]
mod tests;
