//! Demands whose bytes are followed while they arrive.

use super::*;

/// What a feed received, and whether it is dropped.
#[derive(Default)]
struct Followed {
    bytes: Vec<u8>,
    is_over: bool,
}

struct Follower(Arc<Mutex<Followed>>);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
    }
}

impl Asker {
    fn ask_and_follow(&self, range: Range<u64>, class: Class) -> Arc<Mutex<Followed>> {
        let followed = Arc::<Mutex<Followed>>::default();
        let (tell, key) = (self.tell.clone(), range.clone());
        let follower = Follower(Arc::clone(&followed));
        let watch = move || {
            let feed = move |bytes: Bytes| follower.0.lock().bytes.extend_from_slice(&bytes);
            Some(Box::new(feed) as Feed)
        };
        self.scheduler.demand(Demand {
            blob: self.blob,
            range,
            class,
            image: Arc::clone(&self.image),
            order: 0,
            sources: Arc::clone(&self.sources),
            avoid: None,
            patience: Patience::Budget,
            watch: Some(Box::new(watch)),
            sink: Box::new(move |result| drop(tell.send((key, result)))),
        });
        followed
    }
}

#[tokio::test]
async fn a_demand_of_a_reader_can_follow_its_bytes() {
    let (bytes, digest) = blob();
    let memory = Arc::new(MemoryBlob::new(bytes.clone()));
    let source = source("a", Arc::clone(&memory) as _);
    let mut asker = Asker::new(Options::default(), digest, vec![source]);
    // The second range shares its first byte with the first one.
    let ranges = [0..200_001, 200_000..400_000];
    let followed = ranges
        .clone()
        .map(|range| asker.ask_and_follow(range, Class::Now));
    let background = asker.ask_and_follow(500_000..600_000, Class::All);
    for _ in 0..3 {
        asker.hear().await.1.expect("bytes");
    }
    for (range, followed) in ranges.into_iter().zip(followed) {
        let expected = &bytes[range.start as usize..range.end as usize];
        assert!(followed.lock().bytes == expected, "{range:?}");
    }
    assert!(background.lock().bytes.is_empty(), "no reader waits for it");
    assert_eq!(memory.requests()[0], 0..400_000);
}

#[tokio::test]
async fn only_the_first_request_of_a_demand_is_followed() {
    let (bytes, digest) = blob();
    let faulty = Arc::new(FaultyFetcher::new(bytes.clone(), [FetchFault::Cut(70_000)]));
    let whole = Arc::new(MemoryBlob::new(bytes.clone()));
    let sources = vec![source("a", faulty), source("b", whole)];
    let mut asker = Asker::new(Options::default(), digest, sources);
    let followed = asker.ask_and_follow(0..100_000, Class::Now);
    let delivery = asker.hear().await.1.expect("bytes");
    assert_eq!(&delivery.bytes[..], &bytes[..100_000]);
    let followed = followed.lock();
    assert!(followed.bytes == bytes[..followed.bytes.len()]);
    assert!(followed.is_over && followed.bytes.len() <= 70_000);
}
