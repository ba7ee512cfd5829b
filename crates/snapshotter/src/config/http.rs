//! Keys of HTTP requests: `[http]` for all requests, `[blob]` for layers.

use serde::Deserialize;

use super::or_default;

pub(super) const HTTP_KEYS: &[&str] = &[
    "DialTimeoutMsec",
    "ResponseHeaderTimeoutMsec",
    "RequestTimeoutMsec",
    "MaxRetries",
    "MinWaitMsec",
    "MaxWaitMsec",
];
pub(super) const BLOB_KEYS: &[&str] = &[
    "fetching_timeout_sec",
    "max_retries",
    "min_wait_msec",
    "max_wait_msec",
    "max_span_verification_retries",
    "read_budget_sec",
];

const DIAL_TIMEOUT_MSEC: i64 = 3_000;
const RESPONSE_HEADER_TIMEOUT_MSEC: i64 = 3_000;
const REQUEST_TIMEOUT_MSEC: i64 = 300_000;
const FETCHING_TIMEOUT_SEC: i64 = 300;
const MAX_RETRIES: i64 = 8;
const MIN_WAIT_MSEC: i64 = 30;
const MAX_WAIT_MSEC: i64 = 300_000;
/// Value for a negative `max_span_verification_retries`.
const SPAN_RETRIES_WHEN_NEGATIVE: i64 = 3;
/// Five minutes: longer than a registry restart or a lease renewal, but not long enough to appear
/// hung.
const READ_BUDGET_SEC: i64 = 300;

/// `[http]`. Times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Http {
    /// Timeout of a TCP connect.
    #[serde(rename = "DialTimeoutMsec")]
    pub dial_timeout_msec: i64,
    /// Timeout for the response headers.
    #[serde(rename = "ResponseHeaderTimeoutMsec")]
    pub response_header_timeout_msec: i64,
    /// Timeout without any byte of a body.
    #[serde(rename = "RequestTimeoutMsec")]
    pub request_timeout_msec: i64,
    /// Retries after the first attempt; negative means none.
    #[serde(rename = "MaxRetries")]
    pub max_retries: i64,
    /// First wait between attempts.
    #[serde(rename = "MinWaitMsec")]
    pub min_wait_msec: i64,
    /// Longest wait between attempts.
    #[serde(rename = "MaxWaitMsec")]
    pub max_wait_msec: i64,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            dial_timeout_msec: DIAL_TIMEOUT_MSEC,
            response_header_timeout_msec: RESPONSE_HEADER_TIMEOUT_MSEC,
            request_timeout_msec: REQUEST_TIMEOUT_MSEC,
            max_retries: MAX_RETRIES,
            min_wait_msec: MIN_WAIT_MSEC,
            max_wait_msec: MAX_WAIT_MSEC,
        }
    }
}

impl Http {
    pub(super) fn fill(&mut self) {
        or_default(&mut self.dial_timeout_msec, DIAL_TIMEOUT_MSEC);
        or_default(
            &mut self.response_header_timeout_msec,
            RESPONSE_HEADER_TIMEOUT_MSEC,
        );
        or_default(&mut self.request_timeout_msec, REQUEST_TIMEOUT_MSEC);
        or_default(&mut self.max_retries, MAX_RETRIES);
        or_default(&mut self.min_wait_msec, MIN_WAIT_MSEC);
        or_default(&mut self.max_wait_msec, MAX_WAIT_MSEC);
    }
}

/// `[blob]`. Its retry settings are independent of `[http]`, unlike the reference manual says.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Blob {
    /// Timeout without any byte of a layer, in seconds.
    pub fetching_timeout_sec: i64,
    /// Retries after the first attempt; negative means none.
    pub max_retries: i64,
    /// First wait between attempts, in milliseconds.
    pub min_wait_msec: i64,
    /// Longest wait between attempts, in milliseconds.
    pub max_wait_msec: i64,
    /// Additional downloads of a span with a wrong digest; negative means 3.
    pub max_span_verification_retries: i64,
    /// How long reads of missing bytes wait during an outage, in seconds, counted from its start.
    pub read_budget_sec: i64,
}

impl Default for Blob {
    fn default() -> Self {
        Self {
            fetching_timeout_sec: FETCHING_TIMEOUT_SEC,
            max_retries: MAX_RETRIES,
            min_wait_msec: MIN_WAIT_MSEC,
            max_wait_msec: MAX_WAIT_MSEC,
            max_span_verification_retries: 0,
            read_budget_sec: READ_BUDGET_SEC,
        }
    }
}

impl Blob {
    pub(super) fn fill(&mut self) {
        or_default(&mut self.fetching_timeout_sec, FETCHING_TIMEOUT_SEC);
        or_default(&mut self.max_retries, MAX_RETRIES);
        or_default(&mut self.min_wait_msec, MIN_WAIT_MSEC);
        or_default(&mut self.max_wait_msec, MAX_WAIT_MSEC);
        or_default(&mut self.read_budget_sec, READ_BUDGET_SEC);
        if self.max_span_verification_retries < 0 {
            self.max_span_verification_retries = SPAN_RETRIES_WHEN_NEGATIVE;
        }
    }
}
