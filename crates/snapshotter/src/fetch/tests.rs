#![allow(
    clippy::cast_possible_truncation,
    reason = "offsets of small test blobs"
)]

use std::collections::VecDeque;

use async_trait::async_trait;
use bytes::Bytes;
use soci_registry::fetch::{ByteRange, FetchError, Fetcher, RangeBody};
use soci_registry::testing::{FaultyFetcher, FetchFault, MemoryBlob, noise};
use tokio::sync::{Semaphore, mpsc};

use super::*;

mod behind;
mod fair;
mod follow;

const LEN: usize = 1 << 20;

fn blob() -> (Vec<u8>, Digest) {
    let bytes = noise(1, LEN);
    let digest = Digest::sha256(&bytes);
    (bytes, digest)
}

fn source(name: &str, fetcher: Arc<dyn Fetcher>) -> Source {
    Source::new(name, "app", fetcher)
}

struct Asker {
    scheduler: Arc<Scheduler>,
    blob: Digest,
    sources: Arc<[Source]>,
    image: Arc<str>,
    tell: mpsc::UnboundedSender<(Range<u64>, Result<Delivery, DemandError>)>,
    told: mpsc::UnboundedReceiver<(Range<u64>, Result<Delivery, DemandError>)>,
}

impl Asker {
    fn new(options: Options, blob: Digest, sources: Vec<Source>) -> Asker {
        let (tell, told) = mpsc::unbounded_channel();
        let scheduler = Scheduler::start(options, &tokio::runtime::Handle::current());
        Asker {
            scheduler,
            blob,
            sources: sources.into(),
            image: Arc::from("image"),
            tell,
            told,
        }
    }

    fn ask(&self, range: Range<u64>, class: Class, patience: Patience) {
        let tell = self.tell.clone();
        let key = range.clone();
        self.scheduler.demand(Demand {
            blob: self.blob,
            range,
            class,
            image: Arc::clone(&self.image),
            order: 0,
            sources: Arc::clone(&self.sources),
            avoid: None,
            patience,
            watch: None,
            sink: Box::new(move |result| {
                drop(tell.send((key, result)));
            }),
        });
    }

    async fn hear(&mut self) -> (Range<u64>, Result<Delivery, DemandError>) {
        self.told.recv().await.expect("the asker holds a sender")
    }
}

#[tokio::test]
async fn pieces_arrive_whole_and_neighbours_share_a_request() {
    let (bytes, digest) = blob();
    let memory = Arc::new(MemoryBlob::new(bytes.clone()));
    let mut asker = Asker::new(
        Options::default(),
        digest,
        vec![source("a", Arc::clone(&memory) as _)],
    );
    // Each range shares its first byte with the one before.
    let ranges: Vec<_> = (0..10_u64)
        .map(|i| i * 50_000..i * 50_000 + 50_001)
        .collect();
    for range in &ranges {
        asker.ask(range.clone(), Class::All, Patience::Forever);
    }
    for _ in &ranges {
        let (range, delivery) = asker.hear().await;
        let expected = &bytes[range.start as usize..range.end as usize];
        assert_eq!(&delivery.expect("bytes").bytes[..], expected, "{range:?}");
    }
    assert_eq!(memory.requests(), vec![0..500_001_u64; 1]);
}

#[tokio::test]
async fn a_failed_request_continues_with_the_next_source() {
    let (bytes, digest) = blob();
    let memory = Arc::new(MemoryBlob::new(bytes.clone()));
    let faulty = Arc::new(FaultyFetcher::new(bytes.clone(), [FetchFault::Cut(70_000)]));
    let sources = vec![source("a", faulty), source("b", Arc::clone(&memory) as _)];
    let mut asker = Asker::new(Options::default(), digest, sources);
    asker.ask(0..60_000, Class::Now, Patience::Budget);
    asker.ask(60_000..120_000, Class::Now, Patience::Budget);
    let names = [asker.hear().await, asker.hear().await].map(|(range, delivery)| {
        let delivery = delivery.expect("bytes");
        assert_eq!(
            &delivery.bytes[..],
            &bytes[range.start as usize..range.end as usize]
        );
        delivery.source.to_string()
    });
    assert_eq!(names, ["a/app", "b/app"]);
}

/// A source that refuses while it is switched off. Its responses take no time.
#[derive(Debug)]
struct Switch {
    inner: MemoryBlob,
    off: std::sync::atomic::AtomicBool,
    asked: std::sync::atomic::AtomicUsize,
}

#[async_trait]
impl Fetcher for Switch {
    fn size(&self) -> u64 {
        self.inner.size()
    }

    async fn fetch(&self, range: Range<u64>) -> Result<RangeBody, FetchError> {
        use std::sync::atomic::Ordering;
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.off.load(Ordering::SeqCst) {
            let range = ByteRange::within(range, self.size())?;
            return Err(FetchError::Short { range, received: 0 });
        }
        self.inner.fetch(range).await
    }
}

fn switch(off: bool) -> (Arc<Switch>, Digest) {
    let (bytes, digest) = blob();
    let inner = MemoryBlob::new(bytes);
    (
        Arc::new(Switch {
            inner,
            off: off.into(),
            asked: 0.into(),
        }),
        digest,
    )
}

#[tokio::test(start_paused = true)]
async fn reads_wait_through_an_outage() {
    let (switch, digest) = switch(true);
    let mut asker = Asker::new(
        Options::default(),
        digest,
        vec![source("a", Arc::clone(&switch) as _)],
    );
    let start = Instant::now();
    asker.ask(0..1000, Class::Now, Patience::Budget);
    asker.ask(5000..6000, Class::All, Patience::Forever);
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert!(asker.told.try_recv().is_err());
    assert!(
        switch.asked.load(std::sync::atomic::Ordering::SeqCst) < 250,
        "a bounded number of attempts"
    );
    switch.off.store(false, std::sync::atomic::Ordering::SeqCst);
    for _ in 0..2 {
        assert!(asker.hear().await.1.is_ok());
    }
    assert!(
        start.elapsed() < Duration::from_secs(204),
        "{:?}",
        start.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn all_reads_share_one_budget_and_a_probe_ends_the_outage() {
    let (switch, digest) = switch(true);
    let mut asker = Asker::new(
        Options::default(),
        digest,
        vec![source("a", Arc::clone(&switch) as _)],
    );
    let start = Instant::now();
    asker.ask(0..1000, Class::Now, Patience::Budget);
    tokio::time::sleep(Duration::from_secs(100)).await;
    asker.ask(1000..2000, Class::Now, Patience::Budget);
    asker.ask(5000..6000, Class::All, Patience::Forever);
    for _ in 0..2 {
        let error = asker.hear().await.1.expect_err("the budget is spent");
        assert!(matches!(error, DemandError::OutOfTime { .. }), "{error}");
    }
    let spent = start.elapsed().as_secs_f32();
    assert!((299.0..303.0).contains(&spent), "{spent}");
    // From now on, reads fail immediately.
    asker.ask(0..1000, Class::Now, Patience::Budget);
    assert!(asker.hear().await.1.is_err());
    assert!(start.elapsed().as_secs_f32() < spent + 0.1);
    // The probe detects the recovery, and the patient demand continues by itself.
    switch.off.store(false, std::sync::atomic::Ordering::SeqCst);
    let (range, delivery) = asker.hear().await;
    assert_eq!(range, 5000..6000);
    delivery.expect("bytes");
    asker.ask(0..1000, Class::Now, Patience::Budget);
    asker.hear().await.1.expect("bytes");
}

#[tokio::test(start_paused = true)]
async fn a_read_without_a_usable_source_fails_immediately() {
    let (bytes, digest) = blob();
    let mut asker = Asker::new(Options::default(), digest, vec![]);
    asker.ask(0..1000, Class::Now, Patience::Budget);
    assert!(matches!(asker.hear().await.1, Err(DemandError::NoSource)));
    let faults = VecDeque::from([FetchFault::Forbid]);
    let forbids = Arc::new(FaultyFetcher::new(bytes, faults));
    asker.sources = Arc::from([source("a", forbids)]);
    asker.ask(0..1000, Class::Now, Patience::Budget);
    assert!(matches!(
        asker.hear().await.1,
        Err(DemandError::Refused { .. })
    ));
    // The refusal applied only to that demand.
    asker.ask(0..1000, Class::Now, Patience::Budget);
    asker.hear().await.1.expect("bytes");
}

/// Sends one chunk per permit.
#[derive(Debug)]
struct Metered {
    bytes: Vec<u8>,
    meter: Arc<Semaphore>,
    chunk: usize,
}

#[async_trait]
impl Fetcher for Metered {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    async fn fetch(&self, range: Range<u64>) -> Result<RangeBody, FetchError> {
        let bytes = Bytes::copy_from_slice(&self.bytes[range.start as usize..range.end as usize]);
        let (meter, chunk) = (Arc::clone(&self.meter), self.chunk);
        let chunks = futures_util::stream::unfold(bytes, move |mut rest| {
            let meter = Arc::clone(&meter);
            async move {
                if rest.is_empty() {
                    return None;
                }
                meter.acquire().await.ok()?.forget();
                let part = rest.split_to(chunk.min(rest.len()));
                Some((Ok(part), rest))
            }
        });
        Ok(RangeBody::new(
            ByteRange::within(range, self.size())?,
            chunks,
        ))
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_does_not_wait_for_the_background() {
    let (bytes, digest) = blob();
    let slow = Arc::new(Semaphore::new(0));
    let background = Metered {
        bytes: bytes.clone(),
        meter: Arc::clone(&slow),
        chunk: 1024,
    };
    let mut asker = Asker::new(
        Options::default(),
        digest,
        vec![source("a", Arc::new(background))],
    );
    for i in 0..10 {
        asker.ask(
            i * 100_000..i * 100_000 + 90_000,
            Class::All,
            Patience::Forever,
        );
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    asker.sources = Arc::from([source(
        "b",
        Arc::new(MemoryBlob::new(bytes)) as Arc<dyn Fetcher>,
    )]);
    asker.ask(95_000..96_000, Class::Now, Patience::Budget);
    assert_eq!(asker.hear().await.0, 95_000..96_000);
    slow.add_permits(10_000);
    for _ in 0..10 {
        asker.hear().await.1.expect("bytes");
    }
}

#[tokio::test(start_paused = true)]
async fn memory_is_bounded_by_what_the_sinks_hold() {
    let (bytes, digest) = blob();
    let options = Options {
        // One host may use half of it.
        all_memory: 400_000,
        all_request_bytes: 50_000,
        ..Options::default()
    };
    let memory = Arc::new(MemoryBlob::new(bytes));
    let mut asker = Asker::new(options, digest, vec![source("a", Arc::clone(&memory) as _)]);
    for i in 0..20 {
        asker.ask(
            i * 50_000..i * 50_000 + 50_000,
            Class::All,
            Patience::Forever,
        );
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    let mut held = Vec::new();
    while let Ok((_, delivery)) = asker.told.try_recv() {
        held.push(delivery.expect("bytes"));
    }
    assert!((3..=4).contains(&held.len()), "{}", held.len());
    drop(held);
    let mut rest = 0;
    while rest < 16 {
        drop(asker.hear().await.1.expect("bytes"));
        rest += 1;
    }
}

#[tokio::test]
async fn close_fails_every_demand() {
    let (bytes, digest) = blob();
    let never = Metered {
        bytes,
        meter: Arc::new(Semaphore::new(0)),
        chunk: 1024,
    };
    let mut asker = Asker::new(
        Options::default(),
        digest,
        vec![source("a", Arc::new(never))],
    );
    asker.ask(0..1000, Class::Now, Patience::Budget);
    asker.ask(0..1000, Class::Now, Patience::Budget);
    tokio::task::yield_now().await;
    asker.scheduler.close();
    for _ in 0..2 {
        assert!(matches!(asker.hear().await.1, Err(DemandError::Closed)));
    }
    asker.ask(0..1000, Class::Now, Patience::Budget);
    assert!(matches!(asker.hear().await.1, Err(DemandError::Closed)));
}

/// Sends one chunk per 100 ms and counts the chunks.
#[derive(Debug)]
struct Counted {
    bytes: Vec<u8>,
    chunks: Arc<std::sync::atomic::AtomicUsize>,
}

#[async_trait]
impl Fetcher for Counted {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    async fn fetch(&self, range: Range<u64>) -> Result<RangeBody, FetchError> {
        let bytes = Bytes::copy_from_slice(&self.bytes[range.start as usize..range.end as usize]);
        let counter = Arc::clone(&self.chunks);
        let chunks = futures_util::stream::unfold(bytes, move |mut rest| {
            let counter = Arc::clone(&counter);
            async move {
                if rest.is_empty() {
                    return None;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let part = rest.split_to(1000.min(rest.len()));
                Some((Ok(part), rest))
            }
        });
        Ok(RangeBody::new(
            ByteRange::within(range, self.size())?,
            chunks,
        ))
    }
}

#[tokio::test(start_paused = true)]
async fn background_bodies_pause_while_a_readers_bytes_arrive() {
    let (bytes, digest) = blob();
    let chunks = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = || chunks.load(std::sync::atomic::Ordering::SeqCst);
    let counted = Counted {
        bytes: bytes.clone(),
        chunks: Arc::clone(&chunks),
    };
    let mut asker = Asker::new(
        Options::default(),
        digest,
        vec![source("a", Arc::new(counted))],
    );
    for i in 0..3 {
        asker.ask(
            i * 300_000..i * 300_000 + 200_000,
            Class::All,
            Patience::Forever,
        );
    }
    tokio::time::sleep(Duration::from_millis(1050)).await;
    let free = count();
    assert!(
        (27..=30).contains(&free),
        "three bodies in parallel: {free}"
    );
    // A reader's body of 50 chunks takes five seconds.
    let own = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let reader = Counted { bytes, chunks: own };
    asker.sources = Arc::from([source("b", Arc::new(reader) as Arc<dyn Fetcher>)]);
    let before = count();
    asker.ask(250_000..300_000, Class::Now, Patience::Budget);
    assert_eq!(asker.hear().await.0, 250_000..300_000);
    let beside = count() - before;
    assert!(beside <= 6, "only chunks already in transit: {beside}");
    tokio::time::sleep(Duration::from_millis(1000)).await;
    assert!(count() - before - beside >= 25, "then they resume");
    // While held back, one of them continues.
    let guard = asker.scheduler.hold_back();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = count();
    tokio::time::sleep(Duration::from_millis(1000)).await;
    assert!(
        (9..=11).contains(&(count() - before)),
        "{}",
        count() - before
    );
    drop(guard);
}
