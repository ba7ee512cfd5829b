//! The state of the node at the time of a scrape. The parts hold it anyway, so it is not counted a
//! second time.

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use soci_oci::Digest;

use super::definitions::{self as all, Definition, Kind};
use super::operations::BACKGROUND_QUEUE;
use super::values::{Pause, State, Value};

/// What the daemon reports for one scrape.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Layers in the store.
    pub stored: usize,
    /// Mounted layers with every byte on disk.
    pub complete: usize,
    /// Other mounted layers.
    pub incomplete: usize,
    /// Layers that wait for their background download.
    pub queued: usize,
    /// Layers whose background download waits for disk space.
    pub paused_by_disk: usize,
    /// Layers whose background download pauses after a failure.
    pub paused_by_failure: usize,
    /// Unanswered reads.
    pub parked: usize,
    /// The cache, if it exists.
    pub cache: Option<CacheFigures>,
    /// Layers that this process mounted, by mount point.
    pub layers: Vec<LayerFigures>,
}

/// The disk space of layers in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheFigures {
    /// Space of the contents of all layers.
    pub used: u64,
    /// The limit of `used`.
    pub max: Option<u64>,
    /// Free space of the file system.
    pub free: u64,
    /// Free space that background downloads leave.
    pub min_free: u64,
}

/// One mount of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerFigures {
    /// Digest of the layer.
    pub digest: Digest,
    /// Where it is mounted.
    pub mountpoint: String,
    /// Compressed size in bytes.
    pub size: u64,
    /// Compressed bytes on disk.
    pub fetched: u64,
}

/// A sample: the values of its labels, and the number.
type Sample<'a> = (&'a [&'a str], f64);

/// The family of a definition with these samples, if there are any.
pub(super) fn family<'a>(
    definition: &Definition,
    samples: impl IntoIterator<Item = Sample<'a>>,
) -> Option<MetricFamily> {
    let metrics: Vec<Metric> = samples
        .into_iter()
        .map(|(values, number)| metric(definition, values, number))
        .collect();
    let mut family = MetricFamily::default();
    family.set_name(definition.name.to_owned());
    family.set_help(definition.help.to_owned());
    family.set_field_type(match definition.kind {
        Kind::Counter => MetricType::COUNTER,
        Kind::Gauge => MetricType::GAUGE,
        Kind::Histogram => MetricType::HISTOGRAM,
    });
    let exists = !metrics.is_empty();
    family.set_metric(metrics);
    exists.then_some(family)
}

fn metric(definition: &Definition, values: &[&str], number: f64) -> Metric {
    let labels = definition.labels.iter().zip(values).map(|(name, value)| {
        let mut label = LabelPair::default();
        label.set_name((*name).to_owned());
        label.set_value((*value).to_owned());
        label
    });
    let mut metric = Metric::from_label(labels.collect());
    match definition.kind {
        Kind::Counter => {
            let mut counter = Counter::default();
            counter.set_value(number);
            metric.set_counter(counter);
        }
        Kind::Gauge | Kind::Histogram => {
            let mut gauge = Gauge::default();
            gauge.set_value(number);
            metric.set_gauge(gauge);
        }
    }
    metric
}

impl Figures {
    pub(super) fn families(&self) -> Vec<MetricFamily> {
        let single = |definition, count: usize| family(definition, [(&[][..], count as f64)]);
        let states = [
            (State::Complete, self.complete),
            (State::Incomplete, self.incomplete),
        ];
        let pauses = [
            (Pause::Disk, self.paused_by_disk),
            (Pause::Failure, self.paused_by_failure),
        ];
        let families = [
            single(&all::STORED_LAYERS, self.stored),
            single(&all::PARKED_READS, self.parked),
            by_value(&all::MOUNTED_LAYERS, states),
            by_value(&all::BACKGROUND_PAUSED, pauses),
            family(
                &all::IMAGE_OPERATION_COUNT,
                [(&["", BACKGROUND_QUEUE][..], self.queued as f64)],
            ),
            self.by_mount(&all::LAYER_SIZE, |layer| layer.size),
            self.by_mount(&all::LAYER_FETCHED, |layer| layer.fetched),
        ];
        let cache = self.cache.iter().flat_map(CacheFigures::families);
        families.into_iter().chain(cache).flatten().collect()
    }

    fn by_mount(
        &self,
        definition: &Definition,
        number: fn(&LayerFigures) -> u64,
    ) -> Option<MetricFamily> {
        let labels: Vec<(String, &LayerFigures)> = self
            .layers
            .iter()
            .map(|layer| (layer.digest.to_string(), layer))
            .collect();
        let values: Vec<([&str; 2], f64)> = labels
            .iter()
            .map(|(digest, layer)| ([&**digest, &*layer.mountpoint], number(layer) as f64))
            .collect();
        family(
            definition,
            values.iter().map(|(values, number)| (&values[..], *number)),
        )
    }
}

fn by_value<V: Value, const N: usize>(
    definition: &Definition,
    counts: [(V, usize); N],
) -> Option<MetricFamily> {
    let samples = counts.map(|(value, count)| ([value.name()], count as f64));
    family(
        definition,
        samples.iter().map(|(name, count)| (&name[..], *count)),
    )
}

impl CacheFigures {
    fn families(&self) -> [Option<MetricFamily>; 4] {
        let single = |definition, bytes: u64| family(definition, [(&[][..], bytes as f64)]);
        [
            single(&all::CACHE_BYTES, self.used),
            single(&all::CACHE_MAX_BYTES, self.max.unwrap_or(0)),
            single(&all::CACHE_FREE_BYTES, self.free),
            single(&all::CACHE_MIN_FREE_BYTES, self.min_free),
        ]
    }
}
