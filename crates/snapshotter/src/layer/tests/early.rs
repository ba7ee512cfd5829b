//! Spans that are decoded while they arrive.

use async_trait::async_trait;
use soci_registry::fetch::{ByteRange, FetchError, RangeBody};
use soci_ztoc::SpanId;
use tokio::sync::Semaphore;

use super::*;
use crate::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that may still wait for a job.
const BATCH: u64 = 64 << 10;

/// A source that sends small chunks. It stops before one byte until it is opened, and inverts that
/// byte in its first responses.
#[derive(Debug)]
struct Drip {
    bytes: Bytes,
    stop: u64,
    wrong: AtomicUsize,
    open: Arc<Semaphore>,
}

impl Drip {
    fn new(made: &Made, stop: u64, wrong: usize) -> Arc<Drip> {
        Arc::new(Drip {
            bytes: made.layer.clone().into(),
            stop,
            wrong: wrong.into(),
            open: Arc::new(Semaphore::new(0)),
        })
    }

    fn open(&self) {
        self.open.close();
    }
}

#[async_trait]
impl Fetcher for Drip {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    async fn fetch(&self, range: Range<u64>) -> Result<RangeBody, FetchError> {
        let (at, stop) = (ByteRange::within(range.clone(), self.size())?, self.stop);
        let mut bytes = self.bytes[..range.end as usize].to_vec();
        let less = |count: usize| count.checked_sub(1);
        let spoils = range.contains(&stop)
            && self
                .wrong
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less)
                .is_ok();
        if spoils {
            bytes[stop as usize] ^= 0xff;
        }
        let (bytes, open) = (Bytes::from(bytes), Arc::clone(&self.open));
        let chunks = futures_util::stream::unfold(range.start, move |at| {
            let (bytes, open) = (bytes.clone(), Arc::clone(&open));
            async move {
                let end = (at + 10_000).min(bytes.len() as u64);
                let end = if at < stop { end.min(stop) } else { end };
                if at == stop {
                    // Fails when it is closed, which is what this waits for.
                    drop(open.acquire().await);
                }
                let part = bytes.slice(at as usize..end as usize);
                (at < end).then_some((Ok(part), end))
            }
        });
        Ok(RangeBody::new(at, chunks))
    }
}

/// A span: the second one, which shares a byte with the first one, and a file that lies in it.
struct Place {
    compressed: Range<u64>,
    wanted: Range<u64>,
}

const SPAN: u32 = 1;

fn large(form: Form) -> Made {
    let made = Made::new(form, 400, 1 << 20);
    assert!(made.spans() > 3, "{} spans", made.spans());
    made
}

fn place(layer: &Layer) -> Place {
    let spans = layer.data.ztoc().expect("a zTOC").spans().clone();
    let (compressed, tar) = (
        spans.compressed(SpanId(SPAN)),
        spans.uncompressed(SpanId(SPAN)),
    );
    assert!(compressed.end - compressed.start > 4 * BATCH);
    let files = (0..layer.places().files()).filter_map(|index| layer.places().file(index));
    // The header of the file lies in the same span.
    let inside = |start: u64, end: u64| start > tar.start + 1024 && end < tar.end;
    let file = files
        .filter(|file| file.size > 4096)
        .find(|file| inside(file.tar, file.tar + file.size))
        .expect("a file in the span");
    let wanted = file.data..file.data + file.size;
    Place { compressed, wanted }
}

/// Where the last byte of the span is.
fn last_byte(made: &Made) -> u64 {
    let ztoc = soci_ztoc::Ztoc::parse(&made.ztoc).expect("a zTOC");
    ztoc.spans().compressed(SpanId(SPAN)).end - 1
}

/// Waits until all that arrived is decoded, except for what is too little for a job.
async fn decodes_early(layer: &Layer, place: &Place) {
    let least = place.compressed.end - place.compressed.start - BATCH;
    let begin = std::time::Instant::now();
    while layer.spans.decoded_early(SPAN) < least {
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "{} of {least} bytes",
            layer.spans.decoded_early(SPAN)
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Waits until no span holds memory while it arrives.
async fn settles(life: &Life) {
    let begin = std::time::Instant::now();
    while !life.layers.context.early.is_unused() {
        assert!(begin.elapsed() < Duration::from_secs(20), "memory is held");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn is_blank(layer: &Layer, wanted: &Range<u64>) -> bool {
    let mut stored = vec![0; (wanted.end - wanted.start) as usize];
    let data = &layer.data.files.data;
    data.read_exact_at(&mut stored, wanted.start)
        .expect("readable");
    stored.iter().all(|byte| *byte == 0)
}

fn reading(layer: &Arc<Layer>, place: &Place) -> tokio::task::JoinHandle<Result<Bytes, ReadError>> {
    let (layer, wanted) = (Arc::clone(layer), place.wanted.clone());
    tokio::spawn(async move { read(&layer, wanted).await })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_span_is_decoded_when_its_last_byte_arrives() {
    for form in [Form::Gzip, Form::Members] {
        let made = large(form);
        let node = Node::new();
        let life = node.start();
        let drip = Drip::new(&made, last_byte(&made), 0);
        let layer = life.open(&made, Arc::clone(&drip) as _).await;
        let place = place(&layer);
        let waiting = reading(&layer, &place);
        decodes_early(&layer, &place).await;
        assert!(!waiting.is_finished());
        assert!(is_blank(&layer, &place.wanted));
        drip.open();
        let bytes = waiting.await.expect("no panic").expect("bytes");
        let wanted = place.wanted.start as usize..place.wanted.end as usize;
        assert_eq!(&bytes[..], &made.data()[wanted], "{form:?}");
        settles(&life).await;
        let waits = life.layers.waits();
        let spans: Vec<_> = waits.iter().flat_map(|wait| &wait.spans).collect();
        let length = place.compressed.end - place.compressed.start;
        let early = |span: &&&SpanWait| span.early_bytes >= length - BATCH;
        let early = spans.iter().find(early).expect("recorded");
        assert!(early.span == SPAN && early.early_bytes < length);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_span_with_a_wrong_digest_is_never_visible() {
    let made = large(Form::Gzip);
    let node = Node::new();
    let life = node.start();
    let drip = Drip::new(&made, last_byte(&made), 2);
    let layer = life.open(&made, Arc::clone(&drip) as _).await;
    let place = place(&layer);
    let present = layer.progress().spans_present;
    let waiting = reading(&layer, &place);
    decodes_early(&layer, &place).await;
    assert!(!waiting.is_finished(), "decoded, and not verified");
    assert!(is_blank(&layer, &place.wanted));
    drip.open();
    let error = waiting.await.expect("no panic").expect_err("wrong bytes");
    assert!(matches!(error, ReadError::Corrupt { .. }), "{error}");
    assert_eq!(drip.wrong.load(Ordering::SeqCst), 0, "it was fetched twice");
    assert!(is_blank(&layer, &place.wanted));
    assert_eq!(layer.progress().spans_present, present);
    settles(&life).await;
    // The third response is right.
    let bytes = read(&layer, place.wanted.clone()).await.expect("bytes");
    let wanted = place.wanted.start as usize..place.wanted.end as usize;
    assert_eq!(&bytes[..], &made.data()[wanted]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_get_the_bytes_of_the_tar_whatever_interrupts_their_spans() {
    for form in [Form::Gzip, Form::Members] {
        let made = large(form);
        let node = Node::new();
        let life = node.start();
        let faults = [
            FetchFault::Cut(200_000),
            FetchFault::Flip(150_000),
            FetchFault::Cut(1),
            FetchFault::Cut(350_000),
        ];
        let blob = Arc::new(FaultyFetcher::new(made.layer.clone(), faults));
        let layer = life.open(&made, blob).await;
        let data = made.data();
        let reads: Vec<_> = (0..64_u64)
            .map(|i| {
                let (layer, contents) = (Arc::clone(&layer), layer.places().contents());
                let start = contents.start + i * 777_777 % (contents.end - contents.start);
                let end = (start + 300_000).min(layer.data_size());
                tokio::spawn(async move { (start..end, read(&layer, start..end).await) })
            })
            .collect();
        for reader in reads {
            let (range, bytes) = reader.await.expect("no panic");
            let bytes = bytes.expect("bytes");
            assert!(bytes[..] == data[range.start as usize..range.end as usize]);
        }
        settles(&life).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_that_arrive_at_once_are_read_too() {
    let made = large(Form::Gzip);
    let node = Node::new();
    let life = node.start();
    let blob = Arc::new(MemoryBlob::with_chunk(made.layer.clone(), made.layer.len()));
    let layer = life.open(&made, blob).await;
    let all = 0..layer.data_size();
    assert!(read(&layer, all).await.expect("bytes")[..] == made.data());
    settles(&life).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_is_removed_gives_back_the_memory_of_its_spans() {
    let made = large(Form::Gzip);
    let node = Node::new();
    let life = node.start();
    let drip = Drip::new(&made, last_byte(&made), 0);
    let layer = life.open(&made, Arc::clone(&drip) as _).await;
    let place = place(&layer);
    let waiting = reading(&layer, &place);
    decodes_early(&layer, &place).await;
    layer.spans.close();
    waiting.await.expect("no panic").expect_err("removed");
    drip.open();
    settles(&life).await;
    assert!(is_blank(&layer, &place.wanted));
}
