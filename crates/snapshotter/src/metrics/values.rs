//! The values of the labels that have a fixed set of them. Each value is a counter from the start,
//! so counting is one atomic addition.

use prometheus::{IntCounter, IntCounterVec, Registry};
use soci_status::{Reason, Verdict};

use super::definitions::Definition;

/// A label value.
pub trait Value: Copy + Eq + 'static {
    /// All values with their texts.
    const TABLE: &'static [(Self, &'static str)];

    /// The text of the value.
    fn name(self) -> &'static str {
        let found = Self::TABLE.iter().find(|(value, _)| *value == self);
        found.map_or("", |(_, name)| name)
    }
}

/// How a requested layer was provided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prepared {
    /// Mounted before its bytes were present.
    Lazy,
    /// Downloaded in one pass, then mounted.
    Whole,
    /// Left to containerd: the image has no usable index.
    NoIndex,
    /// Left to containerd, although the image has an index.
    Failed,
}

impl Value for Prepared {
    const TABLE: &'static [(Self, &'static str)] = &[
        (Self::Lazy, "lazy"),
        (Self::Whole, "whole"),
        (Self::NoIndex, "no_index"),
        (Self::Failed, "failed"),
    ];
}

/// The counters of verdicts on images.
#[derive(Debug)]
pub struct ImageVerdicts(IntCounterVec);

impl ImageVerdicts {
    pub(super) fn register(registry: &Registry, definition: &Definition) -> Self {
        let verdicts = Self(super::counters(registry, definition));
        for (verdict, reason) in soci_status::POSSIBLE {
            verdicts.of(*verdict, *reason);
        }
        verdicts
    }

    fn of(&self, verdict: Verdict, reason: Reason) -> IntCounter {
        self.0.with_label_values(&[reason.name(), verdict.name()])
    }

    /// Adds one.
    pub fn inc(&self, verdict: Verdict, reason: Reason) {
        self.of(verdict, reason).inc();
    }
}

/// Why a read failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFailure {
    /// The bytes do not match their digest.
    Corrupt,
    /// The bytes cannot be decompressed.
    Undecodable,
    /// A tar header does not match the zTOC.
    Header,
    /// The bytes could not be downloaded.
    Download,
    /// The state directory cannot be read or written.
    Store,
    /// The layer is being removed, or is not known.
    Removed,
    /// A bug.
    Internal,
}

impl Value for ReadFailure {
    const TABLE: &'static [(Self, &'static str)] = &[
        (Self::Corrupt, "corrupt"),
        (Self::Undecodable, "undecodable"),
        (Self::Header, "header"),
        (Self::Download, "download"),
        (Self::Store, "store"),
        (Self::Removed, "removed"),
        (Self::Internal, "internal"),
    ];
}

/// Why bytes were downloaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A reader waits for them, or will soon.
    OnDemand,
    /// The layer is to be complete.
    Background,
    /// The layer is downloaded in one pass.
    Whole,
}

impl Value for Purpose {
    const TABLE: &'static [(Self, &'static str)] = &[
        (Self::OnDemand, "on_demand"),
        (Self::Background, "background"),
        (Self::Whole, "whole"),
    ];
}

/// What became of a recorded span of a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplayResult {
    /// It was recorded and read.
    Read,
    /// It was recorded and not read.
    Unread,
    /// It was recorded, and its layer was complete before it was read.
    Unknown,
    /// It was not recorded, and a reader waited for it.
    Missed,
}

impl Value for ReplayResult {
    const TABLE: &'static [(Self, &'static str)] = &[
        (Self::Read, "read"),
        (Self::Unread, "unread"),
        (Self::Unknown, "unknown"),
        (Self::Missed, "missed"),
    ];
}

/// The result of an HTTP request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// 2xx.
    Success,
    /// 3xx.
    Redirect,
    /// 401 and 403: credentials are needed, were renewed, or are refused.
    Denied,
    /// 429.
    Throttled,
    /// Any other 4xx.
    ClientError,
    /// 5xx.
    ServerError,
    /// No answer: the connection failed or the host is silent.
    Silence,
}

impl Value for Answer {
    const TABLE: &'static [(Self, &'static str)] = &[
        (Self::Success, "success"),
        (Self::Redirect, "redirect"),
        (Self::Denied, "denied"),
        (Self::Throttled, "throttled"),
        (Self::ClientError, "client_error"),
        (Self::ServerError, "server_error"),
        (Self::Silence, "no_answer"),
    ];
}

impl Answer {
    /// The result for a status code.
    pub fn of(status: u16) -> Self {
        match status {
            300..=399 => Self::Redirect,
            401 | 403 => Self::Denied,
            429 => Self::Throttled,
            400..=499 => Self::ClientError,
            500.. => Self::ServerError,
            _ => Self::Success,
        }
    }
}

/// The state of a mounted layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Every byte is on disk.
    Complete,
    /// Bytes are missing.
    Incomplete,
}

impl Value for State {
    const TABLE: &'static [(Self, &'static str)] = &[
        (Self::Complete, "complete"),
        (Self::Incomplete, "incomplete"),
    ];
}

/// Why a background download is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// The free space or the limit of the cache.
    Disk,
    /// A recent failure of the registry or the disk.
    Failure,
}

impl Value for Pause {
    const TABLE: &'static [(Self, &'static str)] =
        &[(Self::Disk, "disk"), (Self::Failure, "failure")];
}

/// The result of a scrape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scraped {
    /// 200.
    Success,
    /// 500.
    Failure,
    /// 503.
    Unavailable,
}

impl Value for Scraped {
    const TABLE: &'static [(Self, &'static str)] = &[
        (Self::Success, "200"),
        (Self::Failure, "500"),
        (Self::Unavailable, "503"),
    ];
}

/// One counter for each value of a label.
#[derive(Debug)]
pub struct ByValue<V: Value>(Vec<(V, IntCounter)>);

impl<V: Value> ByValue<V> {
    pub(super) fn register(registry: &Registry, definition: &Definition) -> Self {
        let family = super::counters(registry, definition);
        let counters = V::TABLE.iter().map(|(value, name)| {
            let counter = family.with_label_values(&[*name]);
            (*value, counter)
        });
        Self(counters.collect())
    }

    /// Adds one.
    pub fn inc(&self, value: V) {
        self.add(value, 1);
    }

    /// Adds `count`.
    pub fn add(&self, value: V, count: u64) {
        let counter = self.0.iter().find(|(known, _)| *known == value);
        if let Some((_, counter)) = counter {
            counter.inc_by(count);
        }
    }
}

/// The names of all values.
pub(super) fn names<V: Value>() -> Vec<&'static str> {
    V::TABLE.iter().map(|(_, name)| *name).collect()
}
