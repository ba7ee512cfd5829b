//! Keys of HTTP requests: `[http]` for all requests, `[blob]` for layers.

use super::declare::table;

/// Value for a negative `max_span_verification_retries`.
const SPAN_RETRIES_WHEN_NEGATIVE: i64 = 3;

table! {
    /// All requests to registries. Times are in milliseconds.
    pub struct Http {
        /// Time limit of a TCP connection attempt.
        dial_timeout_msec as "DialTimeoutMsec": i64 = 3_000, zero_is_default;
        /// Time limit for the headers of an answer.
        response_header_timeout_msec as "ResponseHeaderTimeoutMsec": i64 = 3_000, zero_is_default;
        /// Time limit without any byte of a body. In the reference, it limits the whole body. Values
        /// above 20 seconds have no effect.
        request_timeout_msec as "RequestTimeoutMsec": i64 = 300_000, zero_is_default;
        /// Retries after the first attempt; negative means none.
        max_retries as "MaxRetries": i64 = 8, zero_is_default;
        /// First wait between attempts.
        min_wait_msec as "MinWaitMsec": i64 = 30, zero_is_default;
        /// Longest wait between attempts.
        max_wait_msec as "MaxWaitMsec": i64 = 300_000, zero_is_default;
    }
}

table! {
    /// Downloads of layers. The retry settings do not follow those of `[http]`: set both.
    ///
    /// The limits of `[pull_modes.parallel_pull_unpack]` are accepted here too, because published
    /// guides put them here. A limit in both tables is taken from `[pull_modes.parallel_pull_unpack]`.
    pub struct Blob {
        /// Seconds for which a layer counts as reachable. Containers start from local data without
        /// asking the registry.
        valid_interval: i64 = 60, zero_is_default, unused;
        /// Time limit without any byte of a layer, in seconds. In the reference, it limits the whole
        /// body. Values above 20 seconds have no effect.
        fetching_timeout_sec: i64 = 300, zero_is_default;
        /// Retries after the first attempt; negative means none.
        max_retries: i64 = 8, zero_is_default;
        /// First wait between attempts, in milliseconds.
        min_wait_msec: i64 = 30, zero_is_default;
        /// Longest wait between attempts, in milliseconds.
        max_wait_msec: i64 = 300_000, zero_is_default;
        /// Asks the registry for a layer before every use, which means `valid_interval = 0`.
        check_always: bool = false, unused;
        /// Never asks for several ranges at once, which the daemon does not do anyway.
        force_single_range_mode: bool = false, unused;
        /// Additional downloads of a span with a wrong digest; negative means 3. There is always one.
        max_span_verification_retries: i64 = 0;
        /// How long reads of missing bytes wait during an outage, in seconds, counted from its start.
        // Longer than a registry restart or a lease renewal, but not so long that it seems to hang.
        read_budget_sec: i64 = 300, zero_is_default, ours;
    }
}

impl Blob {
    /// Brings values into their effective form.
    pub(super) fn settle(&mut self) {
        if self.check_always {
            self.valid_interval = 0;
        }
        if self.max_span_verification_retries < 0 {
            self.max_span_verification_retries = SPAN_RETRIES_WHEN_NEGATIVE;
        }
    }
}
