//! The reference's series about operations, by layer and `operation_type`.
//!
//! Series exist for layers in the store, and for an hour after the last event of any other label.
//! Nothing is recorded unless metrics are served.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use prometheus::{
    Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
};
use soci_oci::Digest;

use super::definitions as all;
use super::values::Value;
use crate::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

/// How long the series of a label remain that no stored layer has.
const LASTS: Duration = Duration::from_secs(3600);
/// The reference reports the failure state at most this often.
const FAILURE_STATE: Duration = Duration::from_secs(300);

/// Operations in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timed {
    /// A request of containerd for a layer that was mounted.
    Mount,
    /// A range request, until its answer began.
    RegistryGet,
    /// The tree of a layer and its EROFS image.
    MetadataStore,
    /// The background download of a layer, until it is complete.
    BackgroundFetch,
    /// Storing and checking a zTOC.
    ZtocUnmarshal,
    /// The mount of a layer.
    FuseMount,
    /// Finding and reading an index. The label is its digest.
    IndexFetch,
    /// Reading a zTOC.
    ZtocFetch,
}

impl Value for Timed {
    const TABLE: &'static [(Self, &'static str)] = &[
        (Self::Mount, "mount"),
        (Self::RegistryGet, "remote_registry_get"),
        (Self::MetadataStore, "init_metadata_store"),
        (Self::BackgroundFetch, "background_fetch"),
        (Self::ZtocUnmarshal, "ztoc_unmarshal"),
        (Self::FuseMount, "fuse_mount"),
        (Self::IndexFetch, "soci_index_fetch"),
        (Self::ZtocFetch, "ztoc_fetch"),
    ];
}

/// Events of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerEvent {
    /// The layer was open when it was requested.
    ResolveHit,
    /// The layer had to be opened.
    ResolveMiss,
    /// A read failed.
    ReadFailure,
}

impl Value for LayerEvent {
    const TABLE: &'static [(Self, &'static str)] = &[
        (Self::ResolveHit, "resolve_cache_hit"),
        (Self::ResolveMiss, "resolve_cache_miss"),
        (Self::ReadFailure, "fuse_file_read_failure_count"),
    ];
}

/// Events of the node, which have an empty layer label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeEvent {
    /// A layer cannot be mounted before its bytes are present.
    MountFailure,
    /// A layer is left to containerd although its image has an index.
    LocalMountFailure,
    /// A read failed. Counted at most once in five minutes.
    FailureState,
    /// Does not occur.
    PreresolveDrop,
    /// The queue of paced background downloads dropped a layer.
    BackgroundEvicted,
}

impl Value for NodeEvent {
    const TABLE: &'static [(Self, &'static str)] = &[
        (Self::MountFailure, "fuse_mount_failure_count"),
        (Self::LocalMountFailure, "local_mount_failure_count"),
        (Self::FailureState, "fuse_failure_state"),
        (Self::PreresolveDrop, "preresolve_queue_drop"),
        (
            Self::BackgroundEvicted,
            "background_fetch_work_queue_evicted",
        ),
    ];
}

pub(super) const READ: &str = "synchronous_read";
pub(super) const READ_COUNT: &str = "synchronous_read_count";
pub(super) const READ_FETCHES: &str = "synchronous_read_remote_registry_fetch_count";
pub(super) const READ_BYTES: &str = "synchronous_bytes_served";
pub(super) const BACKGROUND_SPANS: &str = "background_span_fetch_count";
pub(super) const BACKGROUND_FAILURES: &str = "background_span_fetch_failure_count";
pub(super) const BACKGROUND_QUEUE: &str = "background_fetch_work_queue_size";

/// The frequent events of one open layer.
#[derive(Clone, Debug)]
pub struct LayerSeries {
    took: Histogram,
    reads: IntCounter,
    bytes: IntGauge,
    /// Spans downloaded for a reader.
    pub(crate) on_demand: IntCounter,
    /// Spans downloaded in the background.
    pub(crate) background: IntCounter,
    /// Failed background downloads of a span.
    pub(crate) background_failures: IntCounter,
}

impl LayerSeries {
    /// A read was answered with this many bytes.
    pub(crate) fn read(&self, took: Duration, bytes: usize) {
        self.reads.inc();
        self.bytes.add(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.took.observe(took.as_secs_f64() * 1e6);
    }
}

/// See the module documentation.
#[derive(Debug)]
pub struct Operations {
    millis: HistogramVec,
    micros: HistogramVec,
    counts: IntCounterVec,
    bytes: IntGaugeVec,
    served: AtomicBool,
    /// When each label was last used.
    labels: Mutex<HashMap<String, Instant>>,
    failed: Mutex<Option<Instant>>,
}

impl Operations {
    pub(super) fn register(registry: &Registry) -> Self {
        let operations = Self {
            millis: super::histograms(registry, &all::OPERATION_MILLISECONDS),
            micros: super::histograms(registry, &all::OPERATION_MICROSECONDS),
            counts: super::counters(registry, &all::OPERATION_COUNT),
            bytes: super::gauges(registry, &all::BYTES_SERVED),
            served: AtomicBool::new(false),
            labels: Mutex::default(),
            failed: Mutex::default(),
        };
        // As in the reference, these exist from the start.
        for (event, _) in NodeEvent::TABLE {
            operations.node(*event);
        }
        operations
    }

    pub(super) fn serve(&self) {
        self.served.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_served(&self) -> bool {
        self.served.load(Ordering::Relaxed)
    }

    fn label(&self, digest: &Digest) -> Option<String> {
        self.is_served().then(|| {
            let label = digest.to_string();
            self.labels.lock().insert(label.clone(), Instant::now());
            label
        })
    }

    /// The series of an open layer. `None` unless metrics are served.
    pub fn layer(&self, layer: &Digest) -> Option<LayerSeries> {
        let label = self.label(layer)?;
        let counter = |of| self.counts.with_label_values(&[&*label, of]);
        Some(LayerSeries {
            took: self.micros.with_label_values(&[&*label, READ]),
            bytes: self.bytes.with_label_values(&[&*label, READ_BYTES]),
            reads: counter(READ_COUNT),
            on_demand: counter(READ_FETCHES),
            background: counter(BACKGROUND_SPANS),
            background_failures: counter(BACKGROUND_FAILURES),
        })
    }

    /// An operation on a layer took this long.
    pub fn took(&self, what: Timed, layer: &Digest, time: Duration) {
        if let Some(label) = self.label(layer) {
            let series = self.millis.with_label_values(&[&*label, what.name()]);
            series.observe(time.as_secs_f64() * 1e3);
        }
    }

    /// Something happened to a layer.
    pub fn event(&self, event: LayerEvent, layer: &Digest) {
        if let Some(label) = self.label(layer) {
            self.counts
                .with_label_values(&[&*label, event.name()])
                .inc();
        }
    }

    fn node(&self, event: NodeEvent) -> IntCounter {
        self.counts.with_label_values(&["", event.name()])
    }

    /// Something happened on this node.
    pub fn node_event(&self, event: NodeEvent) {
        self.node(event).inc();
    }

    /// A read failed.
    pub(super) fn read_failed(&self, layer: Option<&Digest>) {
        if let Some(layer) = layer {
            self.event(LayerEvent::ReadFailure, layer);
        }
        let now = Instant::now();
        let mut failed = self.failed.lock();
        if failed.is_none_or(|last| now.duration_since(last) >= FAILURE_STATE) {
            *failed = Some(now);
            self.node_event(NodeEvent::FailureState);
        }
    }

    /// Removes the series of labels that are not in `stored` and had no event for a while.
    pub fn forget_old(&self, stored: &HashSet<String>) {
        self.forget_before(stored, Instant::now().checked_sub(LASTS));
    }

    fn forget_before(&self, stored: &HashSet<String>, before: Option<Instant>) {
        let mut old = Vec::new();
        // Locked to the end, so that no series of a label is made while it is removed.
        let mut labels = self.labels.lock();
        labels.retain(|label, used| {
            let keep = stored.contains(label) || before.is_none_or(|before| *used > before);
            if !keep {
                old.push(label.clone());
            }
            keep
        });
        for label in old {
            // An error says that the series does not exist.
            for (_, name) in Timed::TABLE {
                let _ = self.millis.remove_label_values(&[&*label, *name]);
            }
            for (_, name) in LayerEvent::TABLE {
                let _ = self.counts.remove_label_values(&[&*label, *name]);
            }
            for count in [
                READ_COUNT,
                READ_FETCHES,
                BACKGROUND_SPANS,
                BACKGROUND_FAILURES,
            ] {
                let _ = self.counts.remove_label_values(&[&*label, count]);
            }
            let _ = self.micros.remove_label_values(&[&*label, READ]);
            let _ = self.bytes.remove_label_values(&[&*label, READ_BYTES]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(registry: &Registry, digest: &Digest) -> usize {
        let text = prometheus::TextEncoder::new();
        let text = text.encode_to_string(&registry.gather()).unwrap();
        text.lines()
            .filter(|line| line.contains(&digest.to_string()))
            .count()
    }

    #[test]
    fn nothing_is_recorded_until_metrics_are_served() {
        let registry = Registry::new();
        let operations = Operations::register(&registry);
        let layer = Digest::sha256(b"layer");
        assert!(operations.layer(&layer).is_none());
        operations.took(Timed::Mount, &layer, Duration::from_millis(3));
        assert_eq!(lines(&registry, &layer), 0);
    }

    #[test]
    fn series_of_layers_that_are_gone_end() {
        let registry = Registry::new();
        let operations = Operations::register(&registry);
        operations.serve();
        let [stays, goes] = [b"1", b"2"].map(|bytes| Digest::sha256(bytes));
        for layer in [&stays, &goes] {
            operations
                .layer(layer)
                .unwrap()
                .read(Duration::from_micros(3), 7);
            operations.took(Timed::Mount, layer, Duration::from_millis(3));
            operations.event(LayerEvent::ResolveMiss, layer);
        }
        let stored = HashSet::from([stays.to_string()]);
        operations.forget_old(&stored);
        assert!(lines(&registry, &goes) > 0, "it was used just now");
        operations.forget_before(&stored, Some(Instant::now()));
        assert_eq!(lines(&registry, &goes), 0);
        assert!(lines(&registry, &stays) > 0);
        assert_eq!(operations.labels.lock().len(), 1);
    }

    #[test]
    fn the_failure_state_rises_once_for_many_failures() {
        let operations = Operations::register(&Registry::new());
        operations.serve();
        let layer = Digest::sha256(b"layer");
        for _ in 0..3 {
            operations.read_failed(Some(&layer));
        }
        assert_eq!(operations.node(NodeEvent::FailureState).get(), 1);
        let name = LayerEvent::ReadFailure.name();
        let failures = operations
            .counts
            .with_label_values(&[&*layer.to_string(), name]);
        assert_eq!(failures.get(), 3);
    }
}
