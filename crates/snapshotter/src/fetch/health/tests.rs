use soci_registry::{testing::MemoryBlob, url::RedactedUrl};

use super::*;

const BUDGET: Duration = Duration::from_secs(60);

fn source(host: &str, repository: &str) -> Source {
    Source::new(
        host,
        repository,
        std::sync::Arc::new(MemoryBlob::new(vec![0])),
    )
}

fn blob(number: u8) -> Digest {
    Digest::sha256(&[number])
}

fn status(status: u16, retry_after: Option<Duration>) -> FetchError {
    FetchError::Status {
        status,
        detail: String::new(),
        retry_after,
        url: RedactedUrl::new("https://registry.example/v2/"),
    }
}

fn no_connection() -> FetchError {
    FetchError::Transport {
        url: RedactedUrl::new("https://registry.example/v2/"),
        connected: false,
        transient: true,
        source: std::sync::Arc::new(std::io::Error::other("refused")),
    }
}

fn at(start: Instant, seconds: u64) -> Instant {
    start + Duration::from_secs(seconds)
}

fn is_well(health: &Health, source: &Source, blob: Digest, now: Instant) -> bool {
    matches!(health.standing(source, blob, now), Standing::Well)
}

/// Whether each of these is healthy: the same blob, another blob of the repository, another
/// repository, another host.
fn who_is_well(error: FetchError) -> [bool; 4] {
    let start = Instant::now();
    let mut health = Health::new(BUDGET);
    let app = source("host", "app");
    health.failed(&app, blob(1), start, start, error);
    let well = |source: &Source, number| is_well(&health, source, blob(number), start);
    [
        well(&app, 1),
        well(&app, 2),
        well(&source("host", "other"), 1),
        well(&source("elsewhere", "app"), 1),
    ]
}

#[test]
fn a_failure_affects_only_its_scope() {
    assert_eq!(who_is_well(no_connection()), [false, false, false, true]);
    assert_eq!(who_is_well(status(401, None)), [false, false, true, true]);
    assert_eq!(who_is_well(status(500, None)), [false, true, true, true]);
    let minute = Some(Duration::from_secs(60));
    assert_eq!(
        who_is_well(status(503, minute)),
        [false, false, false, true]
    );
}

#[test]
fn the_clock_starts_with_the_first_request_that_waited() {
    let (start, app) = (Instant::now(), source("host", "app"));
    let mut health = Health::new(BUDGET);
    health.failed(&app, blob(1), start, at(start, 15), no_connection());
    health.failed(&app, blob(2), at(start, 15), at(start, 30), no_connection());
    let standing = |health: &Health, seconds| health.standing(&app, blob(3), at(start, seconds));
    assert!(matches!(standing(&health, 59), Standing::Failing(_)));
    let Standing::Spent { lasted, scope, .. } = standing(&health, 60) else {
        panic!("the budget is spent");
    };
    assert_eq!(
        (lasted, &scope),
        (BUDGET, &Scope::Host(Arc::clone(&app.host)))
    );
    assert!(health.knows(&scope));
    assert!(health.answered_before(&app, blob(4), Concern::Blob));
    assert!(matches!(standing(&health, 61), Standing::Well));
}

#[test]
fn a_narrower_failure_proves_that_wider_scopes_respond() {
    let (start, app) = (Instant::now(), source("host", "app"));
    let mut health = Health::new(BUDGET);
    health.failed(&app, blob(1), start, start, no_connection());
    health.failed(&app, blob(1), start, start, status(401, None));
    assert!(is_well(&health, &source("host", "other"), blob(1), start));
    health.failed(&app, blob(1), start, start, status(500, None));
    assert!(is_well(&health, &app, blob(2), start));
    assert!(!is_well(&health, &app, blob(1), start));
    // The first bytes do not end an outage of the blob: a source may send a few bytes forever.
    health.answered_before(&app, blob(1), Concern::Blob);
    assert!(!is_well(&health, &app, blob(1), start));
    assert!(health.delivered(&app, blob(1)));
    assert!(is_well(&health, &app, blob(1), start));
}

#[test]
fn a_requested_pause_spends_no_budget() {
    let (start, app) = (Instant::now(), source("host", "app"));
    let mut health = Health::new(BUDGET);
    for minute in 0..5 {
        let now = at(start, minute * 60);
        let rest = Some(Duration::from_secs(3600));
        health.failed(&app, blob(1), now, now, status(429, rest));
        assert!(!health.take_turn(&app, blob(1), now));
        let Standing::Failing(until) = health.standing(&app, blob(1), now) else {
            panic!("the host is paused");
        };
        assert_eq!(until, now + LONGEST_BUSY);
        assert!(health.reason(&app, blob(1)).is_some());
    }
    assert!(is_well(&health, &app, blob(1), at(start, 301)));
}

#[test]
fn waiting_reads_wake_at_the_end_of_the_budget() {
    let (start, app) = (Instant::now(), source("host", "app"));
    let mut health = Health::new(BUDGET);
    let mut now = start;
    for _ in 0..1000 {
        health.failed(&app, blob(1), start, now, no_connection());
        let Standing::Failing(until) = health.standing(&app, blob(1), now) else {
            break;
        };
        assert!(until > now && until <= start + BUDGET);
        now = until;
        assert!(health.take_turn(&app, blob(1), now) || now == start + BUDGET);
    }
    assert_eq!(now, start + BUDGET);
}

#[test]
fn a_failing_scope_gets_one_request_at_a_time() {
    let (start, app) = (Instant::now(), source("host", "app"));
    let mut health = Health::new(BUDGET);
    assert!(health.take_turn(&app, blob(1), start));
    health.failed(&app, blob(1), start, start, no_connection());
    assert!(!health.take_turn(&app, blob(1), start));
    assert!(health.take_turn(&app, blob(1), at(start, 1)));
    assert!(
        !health.take_turn(&app, blob(2), at(start, 20)),
        "the first request is still in progress"
    );
    health.release(&app, blob(1), at(start, 20));
    assert!(health.take_turn(&app, blob(2), at(start, 23)));
}

#[test]
fn outages_of_unused_scopes_are_forgotten() {
    let (start, app) = (Instant::now(), source("host", "app"));
    let mut health = Health::new(BUDGET);
    health.failed(&app, blob(1), start, start, no_connection());
    health.forget_unwanted(start + FORGET / 2);
    health.wanted(&app, blob(1), start + FORGET / 2);
    health.forget_unwanted(start + FORGET);
    assert!(!is_well(&health, &app, blob(1), start + FORGET));
    health.forget_unwanted(start + FORGET * 2);
    assert!(is_well(&health, &app, blob(1), start + FORGET * 2));
}
