//! Background downloads and pulls: limited by the link, and not by hosts that hang.

use super::fair::{Does, Other, aim, at};
use super::*;

#[tokio::test(start_paused = true)]
async fn background_requests_of_one_host_do_not_wait_for_another_host() {
    let (bytes, _) = blob();
    let hung = Other::new(bytes.clone(), Does::Stalls(1));
    let good = Other::new(bytes, Does::Drips(1000, Duration::from_millis(1)));
    let mut asker = Asker::new(Options::default(), Digest::sha256(b""), vec![]);
    let _guard = asker.scheduler.hold_back();
    aim(&mut asker, 1, vec![at("a", "app", &hung)]);
    asker.ask(0..1000, Class::All, Patience::Forever);
    tokio::time::sleep(Duration::from_secs(1)).await;
    aim(&mut asker, 2, vec![at("b", "app", &good)]);
    asker.ask(0..10_000, Class::All, Patience::Forever);
    let begun = Instant::now();
    asker.hear().await.1.expect("bytes");
    assert!(
        begun.elapsed() < Duration::from_secs(1),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_pull_waits_for_neither_a_host_that_hangs_nor_for_readers() {
    let bytes = noise(1, 8 << 20);
    let hung = Other::new(bytes.clone(), Does::Hangs);
    let reader = Other::new(bytes.clone(), Does::Drips(1000, Duration::from_millis(10)));
    let good = Other::new(bytes, Does::Gives);
    let mut asker = Asker::new(Options::default(), Digest::sha256(b""), vec![]);
    // More than the background may have outstanding.
    aim(&mut asker, 1, vec![at("a", "app", &hung)]);
    asker.ask(0..4 << 20, Class::All, Patience::Forever);
    asker.ask(5 << 20..6 << 20, Class::Now, Patience::Budget);
    aim(&mut asker, 2, vec![at("b", "app", &reader)]);
    asker.ask(0..100_000, Class::Now, Patience::Budget);
    tokio::time::sleep(Duration::from_millis(100)).await;
    aim(&mut asker, 3, vec![at("b", "app", &good)]);
    let begun = Instant::now();
    for i in 0..4 {
        asker.ask(i << 20..(i + 1) << 20, Class::Pull, Patience::Budget);
    }
    for _ in 0..4 {
        let (range, delivery) = asker.hear().await;
        delivery.expect("bytes");
        assert_ne!(range, 0..100_000, "the reader still reads");
    }
    assert!(begun.elapsed() < Duration::from_millis(250));
}

#[tokio::test(start_paused = true)]
async fn readers_of_a_host_that_hangs_do_not_limit_the_background_of_others() {
    let (bytes, _) = blob();
    let hung = Other::new(bytes.clone(), Does::Hangs);
    let good = Other::new(bytes, Does::Drips(1000, Duration::from_millis(10)));
    let mut asker = Asker::new(Options::default(), Digest::sha256(b""), vec![]);
    aim(&mut asker, 1, vec![at("a", "app", &hung)]);
    asker.ask(0..1000, Class::Now, Patience::Budget);
    tokio::time::sleep(Duration::from_secs(3)).await;
    aim(&mut asker, 2, vec![at("b", "app", &good)]);
    let begun = Instant::now();
    for i in 0..3 {
        let start = i * 100_000;
        asker.ask(start..start + 50_000, Class::All, Patience::Forever);
    }
    for _ in 0..3 {
        asker.hear().await.1.expect("bytes");
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "side by side");
}

#[tokio::test(start_paused = true)]
async fn a_background_that_hangs_delays_that_of_another_host_for_half_a_second() {
    let bytes = noise(1, 8 << 20);
    let hung = Other::new(bytes.clone(), Does::Hangs);
    let good = Other::new(bytes, Does::Gives);
    let mut asker = Asker::new(Options::default(), Digest::sha256(b""), vec![]);
    // More than may be outstanding before the first measurement.
    aim(&mut asker, 1, vec![at("a", "app", &hung)]);
    asker.ask(0..4 << 20, Class::All, Patience::Forever);
    tokio::time::sleep(Duration::from_millis(10)).await;
    aim(&mut asker, 2, vec![at("b", "app", &good)]);
    let begun = Instant::now();
    asker.ask(0..1 << 20, Class::All, Patience::Forever);
    asker.hear().await.1.expect("bytes");
    let took = begun.elapsed();
    assert!(took < Duration::from_millis(600), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_would_occupy_the_link_is_closed_and_resumed() {
    let (bytes, _) = blob();
    let background = Arc::new(Ranges {
        inner: Other::new(bytes.clone(), Does::Drips(1000, Duration::from_millis(10))),
        asked: Mutex::default(),
    });
    let reader = Other::new(bytes.clone(), Does::Drips(1000, Duration::from_millis(50)));
    let mut asker = Asker::new(Options::default(), Digest::sha256(b""), vec![]);
    let source = Source::new("a", "app", Arc::clone(&background) as _);
    aim(&mut asker, 1, vec![source]);
    asker.ask(0..300_000, Class::All, Patience::Forever);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(*background.asked.lock(), [0..300_000_u64; 1]);
    aim(&mut asker, 2, vec![at("b", "app", &reader)]);
    asker.ask(0..20_000, Class::Now, Patience::Budget);
    asker.hear().await.1.expect("the reader's bytes");
    let (range, delivery) = asker.hear().await;
    let delivery = delivery.expect("bytes");
    assert_eq!(&delivery.bytes[..], &bytes[..range.end as usize]);
    let asked = background.asked.lock().clone();
    assert_eq!(asked.len(), 2, "{asked:?}");
    assert!((50_000..150_000).contains(&asked[1].start), "{asked:?}");
    assert_eq!(asked[1].end, 300_000);
}

#[tokio::test(start_paused = true)]
async fn on_a_fast_link_the_background_goes_on_beside_a_reader() {
    let bytes = noise(1, 24 << 20);
    let background = Other::new(
        bytes.clone(),
        Does::Drips(400_000, Duration::from_millis(10)),
    );
    let reader = Other::new(bytes, Does::Drips(1000, Duration::from_millis(50)));
    let mut asker = Asker::new(Options::default(), Digest::sha256(b""), vec![]);
    aim(&mut asker, 1, vec![at("a", "app", &background)]);
    asker.ask(0..20 << 20, Class::All, Patience::Forever);
    // 40 MB/s are measured meanwhile.
    tokio::time::sleep(Duration::from_millis(250)).await;
    aim(&mut asker, 2, vec![at("b", "app", &reader)]);
    asker.ask(0..40_000, Class::Now, Patience::Budget);
    let (range, delivery) = asker.hear().await;
    delivery.expect("bytes");
    assert_eq!(
        range,
        0..20 << 20,
        "before the reader's two seconds are over"
    );
    asker.hear().await.1.expect("the reader's bytes");
}

/// Records the requested ranges.
#[derive(Debug)]
struct Ranges {
    inner: Arc<Other>,
    asked: Mutex<Vec<Range<u64>>>,
}

#[async_trait]
impl Fetcher for Ranges {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    async fn fetch(&self, range: Range<u64>) -> Result<RangeBody, FetchError> {
        self.asked.lock().push(range.clone());
        self.inner.fetch(range).await
    }
}

#[tokio::test(start_paused = true)]
async fn background_requests_are_limited_by_the_link_rate() {
    let (bytes, _) = blob();
    // At 100 kB/s, a tenth of a second carries less than one piece.
    let slow = Other::new(bytes, Does::Drips(1000, Duration::from_millis(10)));
    let mut asker = Asker::new(Options::default(), Digest::sha256(b""), vec![]);
    aim(&mut asker, 1, vec![at("a", "app", &slow)]);
    asker.ask(0..20_000, Class::All, Patience::Forever);
    asker.hear().await.1.expect("bytes");
    for i in 1..6 {
        let start = i * 100_000;
        asker.ask(start..start + 20_000, Class::All, Patience::Forever);
    }
    for before in 1..6 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(slow.asked(), before + 1, "one at a time");
        asker.hear().await.1.expect("bytes");
    }
}
