//! Every series: name, type, labels, and meaning. The registry and `docs/metrics.md` are made from
//! these definitions.

/// The type of a series in Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises, from 0 at the start of the process.
    Counter,
    /// Rises and falls.
    Gauge,
    /// Counts observations in buckets.
    Histogram,
}

impl Kind {
    /// The name in the text format.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// Who defines a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The reference implementation. Name, type, labels, buckets, and help are equal.
    Reference,
    /// This project.
    Own,
    /// Prometheus clients of any program.
    Common,
}

/// One series.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// The names of its labels, in alphabetical order.
    pub labels: &'static [&'static str],
    /// Its help text.
    pub help: &'static str,
    /// Upper bounds of the buckets of a histogram.
    pub buckets: &'static [f64],
    /// Who defines it.
    pub origin: Origin,
    /// The first release with it.
    pub since: &'static str,
}

const SINCE: &str = "0.16.0";

const fn define(name: &'static str, kind: Kind, help: &'static str) -> Definition {
    Definition {
        name,
        kind,
        labels: &[],
        help,
        buckets: &[],
        origin: Origin::Own,
        since: SINCE,
    }
}

const fn counter(name: &'static str, help: &'static str) -> Definition {
    define(name, Kind::Counter, help)
}

const fn gauge(name: &'static str, help: &'static str) -> Definition {
    define(name, Kind::Gauge, help)
}

impl Definition {
    const fn by(self, labels: &'static [&'static str]) -> Self {
        Self { labels, ..self }
    }

    const fn of(self, origin: Origin) -> Self {
        Self { origin, ..self }
    }

    const fn buckets(self, buckets: &'static [f64]) -> Self {
        Self {
            kind: Kind::Histogram,
            buckets,
            ..self
        }
    }
}

/// Labels of the reference's series about operations.
const OPERATION: &[&str] = &["layer", "operation_type"];
/// Buckets of the reference.
const MILLISECONDS: &[f64] = &[
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0,
    16384.0,
];
const MICROSECONDS: &[f64] = &[
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0,
];
/// From one span on a fast network to the end of the read budget.
const WAITS: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
];

pub(super) const OPERATION_MILLISECONDS: Definition = define(
    "soci_fs_operation_duration_milliseconds",
    Kind::Histogram,
    "Latency in milliseconds of soci snapshotter operations. Broken down by operation type and layer sha.",
)
.by(OPERATION)
.buckets(MILLISECONDS)
.of(Origin::Reference);
pub(super) const OPERATION_MICROSECONDS: Definition = define(
    "soci_fs_operation_duration_microseconds",
    Kind::Histogram,
    "Latency in microseconds of soci snapshotter operations. Broken down by operation type and layer sha.",
)
.by(OPERATION)
.buckets(MICROSECONDS)
.of(Origin::Reference);
pub(super) const OPERATION_COUNT: Definition = counter(
    "soci_fs_operation_count",
    "The count of soci snapshotter operations. Broken down by operation type and layer sha.",
)
.by(OPERATION)
.of(Origin::Reference);
pub(super) const BYTES_SERVED: Definition = gauge(
    "soci_fs_bytes_served",
    "The number of bytes served per soci snapshotter operations. Broken down by operation type and layer sha.",
)
.by(OPERATION)
.of(Origin::Reference);
pub(super) const IMAGE_OPERATION_COUNT: Definition = gauge(
    "soci_fs_image_operation_count_key",
    "The count of soci snapshotter operations. Broken down by operation type and image digest.",
)
.by(&["image", "operation_type"])
.of(Origin::Reference);
pub(super) const LAYER_FETCHED: Definition = counter(
    "soci_fs_layer_fetched_size_bytes",
    "Total fetched size of the layer",
)
.by(MOUNTED)
.of(Origin::Reference);
pub(super) const LAYER_SIZE: Definition =
    counter("soci_fs_layer_size_bytes", "Total size of the layer")
        .by(MOUNTED)
        .of(Origin::Reference);
const MOUNTED: &[&str] = &["digest", "mountpoint"];

pub(super) const PREPARED: Definition = counter(
    "soci_prepared_layers_total",
    "Layers that containerd requested, by how they were provided.",
)
.by(&["result"]);
pub(super) const IMAGE_VERDICTS: Definition = counter(
    "soci_image_verdict_total",
    "Verdicts on images: how an image is provided and why. Counted when the verdict is known, when it changes, and when the image is pulled again.",
)
.by(&["reason", "verdict"]);
pub(super) const MOUNTED_LAYERS: Definition = gauge(
    "soci_mounted_layers",
    "Mounted layers, by whether every byte is on disk.",
)
.by(&["state"]);
pub(super) const STORED_LAYERS: Definition =
    gauge("soci_stored_layers", "Layers in the state directory.");
pub(super) const QUARANTINED: Definition = counter(
    "soci_quarantined_layers_total",
    "Snapshots from which no container starts any more, because their layer does not match its image. The log names image, layer, and index.",
);

pub(super) const READ_WAIT: Definition = define(
    "soci_read_wait_seconds",
    Kind::Histogram,
    "Container reads that waited for bytes, and how long.",
)
.buckets(WAITS);
pub(super) const READ_FAILURES: Definition = counter(
    "soci_read_failures_total",
    "Container reads that failed with an I/O error, by cause.",
)
.by(&["cause"]);
pub(super) const PARKED_READS: Definition = gauge(
    "soci_parked_reads",
    "Container reads that wait for an answer now.",
);

pub(super) const FETCHED: Definition = counter(
    "soci_fetched_bytes_total",
    "Compressed bytes of layers downloaded from registries, by purpose.",
)
.by(&["purpose"]);
pub(super) const REPLAYED: Definition = counter(
    "soci_replayed_spans_total",
    "Spans of recorded starts one minute after the first read: recorded and read, recorded and unread, recorded in a \
     layer that was complete before (unknown), and not recorded although a reader waited (missed).",
)
.by(&["use"]);
pub(super) const REGISTRY_REQUESTS: Definition = counter(
    "soci_registry_requests_total",
    "HTTP requests to registries and their storage, by result.",
)
.by(&["result"]);
pub(super) const BACKGROUND_PAUSED: Definition = gauge(
    "soci_background_paused_layers",
    "Incomplete layers whose background download is paused, by reason.",
)
.by(&["reason"]);

pub(super) const CACHE_BYTES: Definition = gauge(
    "soci_cache_bytes",
    "Disk space of the contents of all layers in bytes, measured every few seconds.",
);
pub(super) const CACHE_MAX_BYTES: Definition = gauge(
    "soci_cache_max_bytes",
    "Limit of soci_cache_bytes ([cache] max_bytes). 0 means no limit.",
);
pub(super) const CACHE_FREE_BYTES: Definition = gauge(
    "soci_cache_free_bytes",
    "Free space of the file system with the state directory in bytes.",
);
pub(super) const CACHE_MIN_FREE_BYTES: Definition = gauge(
    "soci_cache_min_free_bytes",
    "Free space below which background downloads pause and unused layers are evicted ([cache] min_free_bytes).",
);
pub(super) const EVICTED_LAYERS: Definition = counter(
    "soci_evicted_layers_total",
    "Evictions of unused layers, whole or in part.",
);
pub(super) const EVICTED_SPANS: Definition = counter(
    "soci_evicted_spans_total",
    "Spans removed from disk by evictions.",
);
pub(super) const EVICTED_BYTES: Definition = counter(
    "soci_evicted_bytes_total",
    "Disk space released by evictions in bytes.",
);

pub(super) const WORKER_RESTARTS: Definition = counter(
    "soci_worker_restarts_total",
    "Workers that the keeper started after the first one, because a worker ended or was replaced.",
);

pub(super) const SCRAPES: Definition = counter(
    "promhttp_metric_handler_requests_total",
    "Total number of scrapes by HTTP status code.",
)
.by(&["code"])
.of(Origin::Common);
pub(super) const SCRAPES_IN_FLIGHT: Definition = gauge(
    "promhttp_metric_handler_requests_in_flight",
    "Current number of scrapes being served.",
)
.of(Origin::Common);
pub(super) const CPU_SECONDS: Definition = counter(
    "process_cpu_seconds_total",
    "Total user and system CPU time spent in seconds.",
)
.of(Origin::Common);
pub(super) const OPEN_FDS: Definition =
    gauge("process_open_fds", "Number of open file descriptors.").of(Origin::Common);
pub(super) const MAX_FDS: Definition = gauge(
    "process_max_fds",
    "Maximum number of open file descriptors.",
)
.of(Origin::Common);
pub(super) const VIRTUAL_MEMORY: Definition = gauge(
    "process_virtual_memory_bytes",
    "Virtual memory size in bytes.",
)
.of(Origin::Common);
pub(super) const RESIDENT_MEMORY: Definition = gauge(
    "process_resident_memory_bytes",
    "Resident memory size in bytes.",
)
.of(Origin::Common);
pub(super) const START_TIME: Definition = gauge(
    "process_start_time_seconds",
    "Start time of the process since unix epoch in seconds.",
)
.of(Origin::Common);

/// Every series, in the order of the documentation.
pub const DEFINITIONS: &[Definition] = &[
    PREPARED,
    IMAGE_VERDICTS,
    MOUNTED_LAYERS,
    STORED_LAYERS,
    QUARANTINED,
    READ_WAIT,
    READ_FAILURES,
    PARKED_READS,
    FETCHED,
    REPLAYED,
    REGISTRY_REQUESTS,
    BACKGROUND_PAUSED,
    CACHE_BYTES,
    CACHE_MAX_BYTES,
    CACHE_FREE_BYTES,
    CACHE_MIN_FREE_BYTES,
    EVICTED_LAYERS,
    EVICTED_SPANS,
    EVICTED_BYTES,
    WORKER_RESTARTS,
    OPERATION_MILLISECONDS,
    OPERATION_MICROSECONDS,
    OPERATION_COUNT,
    BYTES_SERVED,
    IMAGE_OPERATION_COUNT,
    LAYER_FETCHED,
    LAYER_SIZE,
    CPU_SECONDS,
    OPEN_FDS,
    MAX_FDS,
    VIRTUAL_MEMORY,
    RESIDENT_MEMORY,
    START_TIME,
    SCRAPES,
    SCRAPES_IN_FLIGHT,
];
