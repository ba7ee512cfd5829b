//! Tests the contract of a [`Fetcher`] for any implementation.

use bytes::Bytes;

use crate::fetch::{FetchError, Fetcher};

/// Panics with the violated rule unless `fetcher` is a correct source of `bytes`, which must have
/// at least 64 bytes.
#[allow(
    clippy::missing_panics_doc,
    reason = "a test suite panics; that is what it is for"
)]
pub async fn fetcher(fetcher: &dyn Fetcher, bytes: &[u8]) {
    let size = bytes.len() as u64;
    assert!(size >= 64, "the suite needs a blob of at least 64 bytes");
    assert_eq!(fetcher.size(), size, "size() is the blob's size");
    for range in [
        0..size,
        0..1,
        size - 1..size,
        1..2,
        7..size - 7,
        size / 2..size / 2 + 17,
    ] {
        let got = all(fetcher, range.clone()).await;
        assert!(
            got == slice(bytes, &range),
            "range {range:?} has the blob's bytes"
        );
    }
    ends_exactly(fetcher, size).await;
    #[allow(
        clippy::reversed_empty_ranges,
        reason = "refusing these is part of the contract"
    )]
    for bad in [
        0..0,
        5..5,
        9..8,
        0..size + 1,
        size..size + 1,
        u64::MAX - 1..u64::MAX,
    ] {
        let answer = fetcher.fetch(bad.clone()).await;
        assert!(
            matches!(answer, Err(FetchError::OutsideBlob { .. })),
            "range {bad:?} is refused as outside the blob, got {answer:?}"
        );
    }
    two_bodies_at_once(fetcher, bytes).await;
    // Dropping a partially read body must not affect the next one.
    let mut dropped = fetcher
        .fetch(0..size)
        .await
        .expect("a correct range is answered");
    dropped.next().await.expect("the first chunk comes");
    drop(dropped);
    assert!(
        all(fetcher, 3..9).await == slice(bytes, &(3..9)),
        "a dropped body harms nobody"
    );
}

async fn ends_exactly(fetcher: &dyn Fetcher, size: u64) {
    let mut body = fetcher
        .fetch(0..size)
        .await
        .expect("a correct range is answered");
    let mut received = 0;
    while let Some(chunk) = body.next().await.expect("the body goes on") {
        assert!(!chunk.is_empty(), "no chunk is empty");
        received += chunk.len() as u64;
    }
    assert_eq!(received, size, "a body ends after exactly its bytes");
    assert!(
        body.next()
            .await
            .expect("an ended body stays ended")
            .is_none()
    );
}

async fn two_bodies_at_once(fetcher: &dyn Fetcher, bytes: &[u8]) {
    let size = bytes.len() as u64;
    let mut one = fetcher
        .fetch(0..size)
        .await
        .expect("a correct range is answered");
    let first = one
        .next()
        .await
        .expect("the body begins")
        .expect("with a chunk");
    let other = all(fetcher, 5..size).await;
    let mut whole = first.to_vec();
    while let Some(chunk) = one.next().await.expect("the body goes on") {
        whole.extend_from_slice(&chunk);
    }
    assert!(
        whole == bytes && other == bytes[5..],
        "two bodies at once do not mix"
    );
}

async fn all(fetcher: &dyn Fetcher, range: std::ops::Range<u64>) -> Bytes {
    let body = fetcher
        .fetch(range)
        .await
        .expect("a correct range is answered");
    body.collect().await.expect("a correct range is delivered")
}

fn slice(bytes: &[u8], range: &std::ops::Range<u64>) -> Bytes {
    let index = |offset| usize::try_from(offset).expect("a blob in memory");
    Bytes::copy_from_slice(&bytes[index(range.start)..index(range.end)])
}
