//! The bytes before the first file and after the last: always available, whatever the registry
//! does.

use super::*;
use crate::places::TAIL;

/// The answer, if it is given before `read` returns.
fn at_once(layer: &Arc<Layer>, range: Range<u64>) -> Option<Result<Bytes, ReadError>> {
    let (tell, told) = std::sync::mpsc::channel();
    layer.read(
        range,
        Box::new(move |result| {
            drop(tell.send(result));
        }),
    );
    told.try_recv().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn head_and_tail_need_no_download() {
    for count in [0, 20] {
        let made = Made::new(Form::Gzip, count, 16 << 10);
        let node = Node::new();
        let life = node.start();
        let blob = Arc::new(MemoryBlob::new(made.layer.clone()));
        let layer = life.open(&made, Arc::clone(&blob) as _).await;
        // Even if the disk contains something there, because it belongs to no file.
        for at in [0, LEAD - 7] {
            let written = layer.data.files.data.write_all_at(b"garbage", at);
            written.expect("written");
        }
        let (size, contents) = (layer.data_size(), layer.places().contents());
        assert_eq!((contents.start, size - contents.end), (LEAD, TAIL));
        let mut ranges = vec![0..4096, 0..LEAD, LEAD - 4096..LEAD, contents.end..size];
        // A sequential reader must not trigger readahead here.
        ranges.extend(
            (0..LEAD)
                .step_by(1 << 20)
                .map(|start| start..start + (1 << 20)),
        );
        ranges.extend([size - 1..size, contents.end..contents.end + 4096]);
        for range in ranges {
            let bytes = at_once(&layer, range.clone()).expect("at once");
            let bytes = bytes.expect("bytes");
            assert_eq!(bytes.len() as u64, range.end - range.start);
            assert!(bytes.iter().all(|byte| *byte == 0), "{range:?}");
        }
        assert!(blob.requests().is_empty(), "no request was made");
        assert_eq!(layer.spans.under_way(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_across_the_edges_needs_only_the_spans_of_its_files() {
    let made = Made::new(Form::Gzip, 60, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let layer = life
        .open(&made, Arc::new(MemoryBlob::new(made.layer.clone())))
        .await;
    let (data, contents) = (made.data(), layer.places().contents());
    let across = [
        LEAD - 4096..LEAD + 100,
        contents.end - 100..contents.end + 4096,
    ];
    for range in across {
        let wanted = &data[range.start as usize..range.end as usize];
        let bytes = read(&layer, range).await.expect("bytes");
        assert_eq!(&bytes[..], wanted);
    }
    assert!(layer.progress().spans_present < made.spans());
    // The same once the layer is complete.
    life.layers.complete(&layer);
    completes(&layer).await;
    assert_eq!(std::fs::read(layer.data_path()).expect("readable"), data);
    let all = read(&layer, 0..layer.data_size()).await.expect("bytes");
    assert_eq!(&all[..], &data[..]);
}
