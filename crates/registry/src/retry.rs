//! Decides whether to retry a request, and how long to wait before that.
//!
//! All requests of this package share one kind of policy. Waits grow exponentially from `min_wait`
//! to `max_wait`. A `Retry-After` replaces the computed wait but is capped at `max_asked`. Up to an
//! eighth of the wait is added at random, so that readers that failed together do not retry
//! together.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::fetch::FetchError;

/// Longer waits that a registry requests are logged as warnings.
const NOTICED: Duration = Duration::from_secs(5);

/// Number of retries and the waits between them. The defaults are those of the Go snapshotter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts after the first.
    pub max_retries: u32,
    /// Wait before the first retry.
    pub min_wait: Duration,
    /// Longest computed wait.
    pub max_wait: Duration,
    /// Longest wait that a registry can request. Too early a retry would be rejected again.
    pub max_asked: Duration,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy {
            max_retries: 8,
            min_wait: Duration::from_millis(30),
            max_wait: Duration::from_secs(300),
            max_asked: Duration::from_secs(300),
        }
    }
}

impl RetryPolicy {
    /// For interactive commands: fewer attempts with longer waits, as in the Go tools for pushing.
    /// Registries can request waits of up to a minute, the window of many rate limits.
    pub const COMMAND: RetryPolicy = RetryPolicy {
        max_retries: 5,
        min_wait: Duration::from_millis(250),
        max_wait: Duration::from_secs(3),
        max_asked: Duration::from_secs(60),
    };

    /// One attempt, for requests within an operation that is itself retried.
    pub(crate) const ONCE: RetryPolicy = RetryPolicy {
        max_retries: 0,
        ..RetryPolicy::COMMAND
    };

    /// Wait before retry number `retry` (0 for the first), without jitter.
    fn base(&self, retry: u32, retry_after: Option<Duration>) -> Duration {
        match retry_after {
            Some(asked) => asked.min(self.max_asked),
            None => {
                let factor = 1_u32.checked_shl(retry).unwrap_or(u32::MAX);
                self.min_wait.saturating_mul(factor).min(self.max_wait)
            }
        }
    }

    /// Wait before retry number `retry` (0 for the first): at most `max_wait`, or the requested
    /// wait up to `max_asked`, plus up to an eighth.
    pub fn wait(&self, retry: u32, retry_after: Option<Duration>) -> Duration {
        let base = self.base(retry, retry_after);
        base + base.mul_f64(fastrand::f64() / 8.0)
    }
}

/// Counts the attempts of one operation, and determines the next wait or that the budget is used
/// up.
#[derive(Debug)]
pub(crate) struct Attempts {
    policy: RetryPolicy,
    made: u32,
    /// Attempts since the last progress.
    in_vain: u32,
    /// No retry starts later than this after the last progress.
    patience: Duration,
    since: Instant,
}

impl Attempts {
    pub(crate) fn new(policy: RetryPolicy) -> Attempts {
        Attempts {
            policy,
            made: 1,
            in_vain: 1,
            patience: Duration::MAX,
            since: Instant::now(),
        }
    }

    /// Like [`Attempts::new`], but gives up if the next wait would end after `patience`.
    pub(crate) fn within(policy: RetryPolicy, patience: Duration) -> Attempts {
        Attempts {
            patience,
            ..Attempts::new(policy)
        }
    }

    /// Resets the budget, because the last attempt made progress.
    pub(crate) fn progressed(&mut self) {
        self.in_vain = 1;
        self.since = Instant::now();
    }

    /// Waits before the next attempt, or gives up and returns the failure.
    pub(crate) async fn wait(&mut self, failure: FetchError) -> Result<(), FetchError> {
        match self.next(failure.retry_after()) {
            Some(wait) => {
                match failure.retry_after() {
                    Some(asked) if wait > NOTICED => {
                        tracing::warn!(error = %failure, ?asked, ?wait, "the registry asks for a wait");
                    }
                    _ => tracing::debug!(error = %failure, ?wait, "retrying request"),
                }
                tokio::time::sleep(wait).await;
                Ok(())
            }
            None if self.made == 1 => Err(failure),
            None => Err(FetchError::GaveUp {
                attempts: self.made,
                last: Box::new(failure),
            }),
        }
    }

    /// Uses one attempt. Returns the wait before it, or `None` if the budget is used up.
    pub(crate) fn next(&mut self, retry_after: Option<Duration>) -> Option<Duration> {
        if self.in_vain > self.policy.max_retries {
            return None;
        }
        let wait = self.policy.wait(self.in_vain - 1, retry_after);
        if self.since.elapsed().saturating_add(wait) > self.patience {
            return None;
        }
        self.in_vain += 1;
        self.made += 1;
        Some(wait)
    }
}

/// Parses `Retry-After`, in seconds or as an HTTP date. A date in the past means no wait.
pub(crate) fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // A number that does not fit is a very long wait; the policy caps it.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let at = httpdate::parse_http_date(value).ok()?;
    Some(at.duration_since(now).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_default_budget_is_nine_attempts_in_about_eight_seconds() {
        let mut attempts = Attempts::new(RetryPolicy::default());
        let mut waited = Duration::ZERO;
        while let Some(wait) = attempts.next(None) {
            waited += wait;
        }
        assert_eq!(attempts.made, 9);
        assert!((Duration::from_millis(7650)..Duration::from_millis(8610)).contains(&waited));
    }

    #[test]
    fn retry_after_is_obeyed_but_never_beyond_the_ceiling() {
        let policy = RetryPolicy {
            max_wait: Duration::from_secs(1),
            max_asked: Duration::from_secs(10),
            ..RetryPolicy::default()
        };
        let wait = |asked| policy.base(0, retry_after(asked, SystemTime::UNIX_EPOCH));
        assert_eq!(wait("0"), Duration::ZERO);
        assert_eq!(wait("3"), Duration::from_secs(3));
        assert_eq!(wait("86400"), Duration::from_secs(10));
        assert_eq!(wait("99999999999999999999999999"), Duration::from_secs(10));
        assert_eq!(
            wait("Thu, 01 Jan 1970 00:00:05 GMT"),
            Duration::from_secs(5)
        );
        assert_eq!(
            wait("Wed, 31 Dec 1969 23:59:59 GMT"),
            policy.min_wait,
            "no date we know"
        );
        assert_eq!(wait("soon"), policy.min_wait);
        let past = "Thu, 01 Jan 1970 00:00:05 GMT";
        assert_eq!(retry_after(past, SystemTime::now()), Some(Duration::ZERO));
        let rate_limited = RetryPolicy::COMMAND.wait(0, Some(Duration::from_secs(30)));
        assert!(rate_limited >= Duration::from_secs(30), "a command as well");
        // Jitter must also work for a wait of zero.
        assert_eq!(policy.wait(0, Some(Duration::ZERO)), Duration::ZERO);
    }

    #[test]
    fn progress_renews_the_budget() {
        let policy = RetryPolicy {
            max_retries: 1,
            ..RetryPolicy::default()
        };
        let mut attempts = Attempts::new(policy);
        assert!(attempts.next(None).is_some());
        assert!(attempts.next(None).is_none());
        attempts.progressed();
        assert!(attempts.next(None).is_some());
        assert_eq!(attempts.made, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn attempts_end_with_their_patience() {
        let patience = Duration::from_secs(5);
        let mut attempts = Attempts::within(RetryPolicy::default(), patience);
        let minute = Some(Duration::from_secs(60));
        assert!(attempts.next(minute).is_none(), "a wait too long");
        tokio::time::advance(Duration::from_millis(4900)).await;
        assert!(attempts.next(None).is_some());
        tokio::time::advance(Duration::from_millis(100)).await;
        assert!(attempts.next(None).is_none());
        attempts.progressed();
        assert!(attempts.next(None).is_some());
    }

    proptest! {
        #[test]
        fn prop_a_wait_is_never_beyond_the_ceiling_and_an_eighth(
            retry in 0_u32..100, min in 0_u64..1 << 40, max in 0_u64..1 << 40, header in ".{0,30}"
        ) {
            let policy = RetryPolicy {
                max_retries: 8,
                min_wait: Duration::from_millis(min),
                max_wait: Duration::from_millis(max),
                max_asked: Duration::from_millis(max),
            };
            let wait = policy.wait(retry, retry_after(&header, SystemTime::now()));
            prop_assert!(wait <= policy.max_wait.mul_f64(1.126));
        }
    }
}
