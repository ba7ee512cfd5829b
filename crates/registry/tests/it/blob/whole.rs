//! Registries that send the whole blob instead of a range.

use super::*;

#[tokio::test]
async fn a_200_is_the_whole_blob_and_the_range_is_cut_from_it() {
    let case = plain();
    case.always(Wrong::IgnoreRange);
    case.assert_right(0..100).await;
    case.assert_right(150_000..150_100).await;
    case.assert_right(0..SIZE).await;
}

#[tokio::test]
async fn ranges_come_from_a_registry_that_knows_none_and_in_order_nearly_once() {
    const SIZE: u64 = 96 << 20;
    let registry = TestRegistry::start();
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.as_file().set_len(SIZE).expect("a sparse file");
    let far = noise(9, 1000);
    std::os::unix::fs::FileExt::write_all_at(file.as_file(), &far, SIZE - 1000).expect("written");
    let digest = Digest::sha256(b"any name will do");
    registry.add_file("app", &digest, file.path());
    registry.fault(Fault::always(On::Blob(digest), Wrong::IgnoreRange));
    let layer = soci_oci::Descriptor::new("layer", digest, SIZE);
    let blob = client(quick())
        .blob(&registry.reference("app", "v1"), &layer)
        .expect("a blob");
    let mut body = blob.fetch(SIZE - 1000..SIZE).await.expect("begins");
    let chunk = body.next().await.expect("comes").expect("a chunk");
    assert!(body.carried() > 90 << 20, "who waits sees what goes on");
    assert!(chunk[..] == far[..chunk.len()]);
    drop(body);
    let before = registry.bytes_sent(&digest);
    for start in (0..SIZE).step_by(8 << 20) {
        let range = start..start + (8 << 20);
        let bytes = blob.fetch(range).await.expect("begins").collect().await;
        assert_eq!(bytes.expect("comes").len(), 8 << 20);
    }
    let carried = registry.bytes_sent(&digest) - before;
    assert!(
        carried <= SIZE + (8 << 20),
        "the blob once, not {carried} bytes"
    );
}

#[tokio::test]
async fn a_whole_blob_that_is_cut_short_is_gone_on_with() {
    let case = plain();
    case.fault(Wrong::IgnoreRangeAndCut(250_000));
    case.assert_right(200_000..SIZE).await;
    case.fault(Wrong::IgnoreRangeAndCut(100_000));
    case.assert_right(200_000..SIZE).await;
}
