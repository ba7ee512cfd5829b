//! Sources that fail, hang, or send slowly must not affect other readers.

use std::sync::atomic::{AtomicUsize, Ordering};

use soci_registry::url::RedactedUrl;

use super::*;

/// The behavior of a source.
#[derive(Clone, Debug)]
pub(super) enum Does {
    Gives,
    Fails(FetchError),
    /// Never responds.
    Hangs,
    /// Responds, sends this many bytes, and then nothing.
    Stalls(usize),
    /// Sends this many bytes, and as many again after each pause.
    Drips(usize, Duration),
    /// Sends this many bytes, then fails.
    Breaks(usize),
}

#[derive(Debug)]
pub(super) struct Other {
    bytes: Bytes,
    does: Mutex<Does>,
    asked: AtomicUsize,
}

impl Other {
    pub(super) fn new(bytes: Vec<u8>, does: Does) -> Arc<Other> {
        Arc::new(Other {
            bytes: bytes.into(),
            does: Mutex::new(does),
            asked: AtomicUsize::new(0),
        })
    }

    pub(super) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Fetcher for Other {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    async fn fetch(&self, range: Range<u64>) -> Result<RangeBody, FetchError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let bytes = self.bytes.slice(range.start as usize..range.end as usize);
        let range = ByteRange::within(range, self.size())?;
        let does = self.does.lock().clone();
        let (part, pause) = match does {
            Does::Gives => return Ok(RangeBody::ready(range, bytes)),
            Does::Fails(error) => return Err(error),
            Does::Hangs => return std::future::pending().await,
            Does::Stalls(part) => (part, Duration::from_secs(1 << 30)),
            Does::Drips(part, pause) => (part, pause),
            Does::Breaks(part) => (part, Duration::ZERO),
        };
        let breaks = matches!(does, Does::Breaks(_));
        let chunks =
            futures_util::stream::unfold((bytes, 0), move |(mut rest, count)| async move {
                if rest.is_empty() || breaks && count > 0 {
                    return None;
                }
                if count > 0 {
                    tokio::time::sleep(pause).await;
                }
                let part = rest.split_to(part.min(rest.len()));
                Some((Ok(part), (rest, count + 1)))
            });
        Ok(RangeBody::new(range, chunks))
    }
}

fn url() -> RedactedUrl {
    RedactedUrl::new("https://a/v2/")
}

fn refused_credentials() -> FetchError {
    FetchError::Unauthorized {
        host: "a".to_owned(),
        repository: "app".to_owned(),
        reason: "a test".to_owned(),
    }
}

fn status(status: u16, retry_after: Option<Duration>) -> FetchError {
    FetchError::Status {
        status,
        detail: String::new(),
        retry_after,
        url: url(),
    }
}

fn no_connection() -> FetchError {
    FetchError::Transport {
        url: url(),
        connected: false,
        transient: true,
        source: std::sync::Arc::new(std::io::Error::other("refused")),
    }
}

/// Sets the blob, the image, and the sources of subsequent demands.
pub(super) fn aim(asker: &mut Asker, blob: u8, sources: Vec<Source>) {
    asker.blob = Digest::sha256(&[blob]);
    asker.image = format!("image-{blob}").into();
    asker.sources = sources.into();
}

pub(super) fn at(host: &str, repository: &str, fetcher: &Arc<Other>) -> Source {
    Source::new(host, repository, Arc::clone(fetcher) as _)
}

/// After `error` has lasted for longer than the budget: does a reader of another blob of the
/// repository, and of another repository of the host, get its bytes immediately?
async fn others_after(error: FetchError) -> [bool; 2] {
    let (bytes, _) = blob();
    let bad = Other::new(bytes.clone(), Does::Fails(error));
    let good = Other::new(bytes, Does::Gives);
    let mut asker = Asker::new(Options::default(), Digest::sha256(b""), vec![]);
    aim(&mut asker, 1, vec![at("a", "app", &bad)]);
    let begun = Instant::now();
    asker.ask(0..1000, Class::Now, Patience::Budget);
    let error = asker.hear().await.1.expect_err("the budget is spent");
    assert!(matches!(error, DemandError::OutOfTime { .. }), "{error}");
    assert!((299..303).contains(&begun.elapsed().as_secs()));
    // The failing blob remains in demand.
    asker.ask(0..1000, Class::All, Patience::Forever);
    let mut got = [false; 2];
    for (got, (blob, repository)) in got.iter_mut().zip([(2, "app"), (3, "other")]) {
        let begun = Instant::now();
        aim(&mut asker, blob, vec![at("a", repository, &good)]);
        asker.ask(5000..6000, Class::Now, Patience::Budget);
        *got = asker.hear().await.1.is_ok() && begun.elapsed() < Duration::from_millis(1);
    }
    got
}

#[tokio::test(start_paused = true)]
async fn a_failure_affects_other_readers_only_within_its_scope() {
    assert_eq!(others_after(status(500, None)).await, [true, true]);
    assert_eq!(others_after(refused_credentials()).await, [false, true]);
    assert_eq!(others_after(no_connection()).await, [false, false]);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_asks_for_a_pause_gets_it_and_spends_no_budget() {
    let (bytes, _) = blob();
    let rest = Some(Duration::from_secs(30));
    let busy = Other::new(bytes, Does::Fails(status(429, rest)));
    let mut asker = Asker::new(Options::default(), Digest::sha256(b""), vec![]);
    aim(&mut asker, 1, vec![at("a", "app", &busy)]);
    asker.ask(0..1000, Class::Now, Patience::Budget);
    tokio::time::sleep(Duration::from_secs(280)).await;
    assert!(busy.asked() <= 11, "asked {} times", busy.asked());
    // The demand's own patience ends. No budget is spent, so the next reader waits again.
    let error = asker.hear().await.1.expect_err("too long");
    assert!(matches!(error, DemandError::OutOfTime { .. }), "{error}");
    asker.ask(0..1000, Class::Now, Patience::Budget);
    tokio::time::sleep(Duration::from_secs(10)).await;
    *busy.does.lock() = Does::Gives;
    asker.hear().await.1.expect("bytes after the pause");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_applies_only_to_demands_with_that_source() {
    let (bytes, _) = blob();
    let refuses = Other::new(bytes.clone(), Does::Fails(status(404, None)));
    let good = Other::new(bytes, Does::Gives);
    let mut asker = Asker::new(Options::default(), Digest::sha256(b""), vec![]);
    aim(&mut asker, 1, vec![at("a", "gone", &refuses)]);
    asker.ask(0..1000, Class::Now, Patience::Budget);
    // The same bytes for a demand with another repository of that host.
    asker.sources = Arc::from([at("a", "app", &good)]);
    asker.ask(0..1000, Class::Now, Patience::Budget);
    let outcomes = [asker.hear().await.1, asker.hear().await.1];
    let good = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(good, 1, "{outcomes:?}");
}

#[tokio::test(start_paused = true)]
async fn readers_of_a_host_do_not_wait_for_a_host_that_hangs() {
    let bytes = noise(1, 64 << 20);
    for does in [Does::Hangs, Does::Stalls(1000)] {
        for class in [Class::Now, Class::Next] {
            let hung = Other::new(bytes.clone(), does.clone());
            let good = Other::new(bytes.clone(), Does::Gives);
            let mut asker = Asker::new(Options::default(), Digest::sha256(b""), vec![]);
            aim(&mut asker, 1, vec![at("a", "app", &hung)]);
            for i in 0..60 {
                let range = (i << 20)..((i + 1) << 20) - 1;
                asker.ask(range, class, Patience::Budget);
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(hung.asked() > 1, "{does:?} {}", hung.asked());
            let begun = Instant::now();
            aim(&mut asker, 2, vec![at("b", "app", &good)]);
            for i in 0..8 {
                asker.ask(i << 20..(i + 1) << 20, class, Patience::Budget);
            }
            for _ in 0..8 {
                asker.hear().await.1.expect("bytes");
            }
            let took = begun.elapsed();
            assert!(
                took < Duration::from_millis(10),
                "{does:?} {class:?} {took:?}"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_dripping_body_times_out_and_a_slow_link_does_not() {
    let (bytes, _) = blob();
    let drip = Other::new(bytes.clone(), Does::Drips(1, Duration::from_secs(19)));
    let good = Other::new(bytes.clone(), Does::Gives);
    let mut asker = Asker::new(Options::default(), Digest::sha256(b""), vec![]);
    aim(
        &mut asker,
        1,
        vec![at("a", "app", &drip), at("b", "app", &good)],
    );
    let begun = Instant::now();
    asker.ask(0..1000, Class::Now, Patience::Budget);
    let delivery = asker.hear().await.1.expect("bytes");
    assert_eq!(&*delivery.source, "b/app");
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(45), "{took:?}");

    let slow = Other::new(bytes, Does::Drips(500, Duration::from_secs(1)));
    aim(&mut asker, 2, vec![at("c", "app", &slow)]);
    asker.ask(0..60_000, Class::Now, Patience::Budget);
    asker.hear().await.1.expect("bytes after two minutes");
    assert_eq!(slow.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_repeatedly_stalls_is_an_outage() {
    let (bytes, _) = blob();
    let stalls = Other::new(bytes, Does::Stalls(10));
    let mut asker = Asker::new(Options::default(), Digest::sha256(b""), vec![]);
    aim(&mut asker, 1, vec![at("a", "app", &stalls)]);
    let begun = Instant::now();
    asker.ask(0..1000, Class::Now, Patience::Budget);
    asker.hear().await.1.expect_err("the budget is spent");
    let took = begun.elapsed();
    assert!((299..330).contains(&took.as_secs()), "{took:?}");
    assert!(
        stalls.asked() < 20,
        "expected few requests, one at a time: {}",
        stalls.asked()
    );
}

#[tokio::test(start_paused = true)]
async fn a_reader_gets_the_next_source_when_the_first_is_slow_to_respond() {
    let (bytes, _) = blob();
    let hung = Other::new(bytes.clone(), Does::Hangs);
    let good = Other::new(bytes, Does::Gives);
    let mut asker = Asker::new(Options::default(), Digest::sha256(b""), vec![]);
    aim(&mut asker, 1, vec![at("a", "app", &hung)]);
    asker.ask(0..1000, Class::All, Patience::Forever);
    tokio::time::sleep(Duration::from_secs(5)).await;
    // A reader joins the hanging request and has another source.
    asker.sources = Arc::from([at("a", "app", &hung), at("b", "app", &good)]);
    let begun = Instant::now();
    asker.ask(0..1000, Class::Now, Patience::Budget);
    for _ in 0..2 {
        asker.hear().await.1.expect("bytes");
    }
    assert!(begun.elapsed() < Duration::from_millis(10));
    // The next reader starts with the source that is not slow.
    asker.ask(1000..2000, Class::Now, Patience::Budget);
    asker.hear().await.1.expect("bytes");
    assert!(begun.elapsed() < Duration::from_millis(20));
    assert_eq!(hung.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_paused_request_does_not_count_as_slow() {
    let (bytes, _) = blob();
    let [near, far, line] = [
        Does::Gives,
        Does::Gives,
        Does::Drips(1000, Duration::from_millis(100)),
    ]
    .map(|does| Other::new(bytes.clone(), does));
    let mut asker = Asker::new(Options::default(), Digest::sha256(b""), vec![]);
    // A reader's bytes arrive for ten seconds. A background request to another host is paused
    // before its first byte.
    aim(&mut asker, 1, vec![at("c", "app", &line)]);
    asker.ask(0..100_000, Class::Now, Patience::Budget);
    tokio::time::sleep(Duration::from_millis(500)).await;
    aim(
        &mut asker,
        2,
        vec![at("a", "app", &near), at("b", "app", &far)],
    );
    asker.ask(0..1000, Class::All, Patience::Forever);
    tokio::time::sleep(Duration::from_secs(5)).await;
    asker.ask(5000..6000, Class::Now, Patience::Budget);
    let (range, delivery) = asker.hear().await;
    assert_eq!(range, 5000..6000);
    assert_eq!(&*delivery.expect("bytes").source, "a/app");
    assert_eq!(far.asked(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_joins_a_request_lifts_the_background_memory_limit() {
    let (bytes, _) = blob();
    let good = Other::new(bytes, Does::Gives);
    let options = Options {
        all_memory: 100_000,
        all_request_bytes: 50_000,
        ..Options::default()
    };
    let mut asker = Asker::new(options, Digest::sha256(b""), vec![]);
    aim(&mut asker, 1, vec![at("a", "app", &good)]);
    for i in 0..3 {
        asker.ask(
            i * 100_000..i * 100_000 + 50_000,
            Class::All,
            Patience::Forever,
        );
    }
    // Hold the bytes, as a busy pool does.
    let held = asker.hear().await.1.expect("bytes");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(asker.told.try_recv().is_err(), "the others wait for memory");
    let begun = Instant::now();
    asker.ask(200_000..250_000, Class::Now, Patience::Budget);
    for _ in 0..2 {
        let (range, delivery) = asker.hear().await;
        delivery.expect("bytes");
        assert_eq!(range, 200_000..250_000);
    }
    assert!(begun.elapsed() < Duration::from_millis(10));
    drop(held);
    asker.hear().await.1.expect("bytes");
}

#[tokio::test(start_paused = true)]
async fn readahead_does_not_use_the_memory_of_readers() {
    let bytes = noise(1, 64 << 20);
    let good = Other::new(bytes, Does::Gives);
    let mut asker = Asker::new(Options::default(), Digest::sha256(b""), vec![]);
    aim(&mut asker, 1, vec![at("a", "app", &good)]);
    for i in 0..40 {
        asker.ask(i << 20..((i + 1) << 20) - 1, Class::Next, Patience::Budget);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut held = Vec::new();
    while let Ok((_, delivery)) = asker.told.try_recv() {
        held.push(delivery.expect("bytes"));
    }
    assert!(held.len() < 40, "the others wait for memory");
    let begun = Instant::now();
    for i in 50..54 {
        asker.ask(i << 20..((i + 1) << 20) - 1, Class::Now, Patience::Budget);
        asker.hear().await.1.expect("bytes");
    }
    assert!(begun.elapsed() < Duration::from_millis(10));
    drop(held);
    for _ in 0..40 {
        if asker.told.try_recv().is_err() {
            break;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_does_not_count_as_an_outage() {
    let (bytes, _) = blob();
    let first = Other::new(bytes.clone(), Does::Drips(1000, Duration::from_secs(1)));
    let paused = Other::new(bytes, Does::Breaks(1000));
    let mut asker = Asker::new(Options::default(), Digest::sha256(b""), vec![]);
    let guard = asker.scheduler.hold_back();
    aim(&mut asker, 1, vec![at("a", "app", &first)]);
    asker.ask(0..800_000, Class::All, Patience::Forever);
    tokio::time::sleep(Duration::from_secs(1)).await;
    // The second request to this host is paused while the first runs, then fails.
    aim(&mut asker, 2, vec![at("a", "app", &paused)]);
    asker.ask(0..2000, Class::All, Patience::Forever);
    tokio::time::sleep(Duration::from_secs(400)).await;
    drop(guard);
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert!(paused.asked() >= 1);
    *paused.does.lock() = Does::Gives;
    asker.ask(5000..6000, Class::Now, Patience::Budget);
    loop {
        let (range, outcome) = asker.hear().await;
        outcome.expect("bytes: no budget is spent");
        if range == (5000..6000) {
            return;
        }
    }
}

#[tokio::test]
async fn pulls_keep_to_the_limits_of_the_node_and_the_image() {
    let (bytes, digest) = blob();
    let step = 64 << 10;
    for (most, per_image, wanted) in [(1, 9, 1), (9, 2, 2), (3, usize::MAX, 3)] {
        let hung = Other::new(bytes.clone(), Does::Hangs);
        let options = Options {
            pull_requests_most: most,
            pull_requests_per_image: per_image,
            pull_request_bytes: step,
            ..Options::default()
        };
        let fetcher: Arc<dyn Fetcher> = Arc::clone(&hung) as _;
        let asker = Asker::new(options, digest, vec![source("a", fetcher)]);
        for i in 0..8 {
            asker.ask(i * step..(i + 1) * step, Class::Pull, Patience::Budget);
        }
        while hung.asked() < wanted {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Readers have slots of their own. When theirs is asked, no more pull was.
        asker.ask(LEN as u64 - 1..LEN as u64, Class::Now, Patience::Budget);
        while hung.asked() < wanted + 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(hung.asked(), wanted + 1, "{most} {per_image}");
    }
}
