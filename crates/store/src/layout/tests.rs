use super::*;

fn layout() -> (tempfile::TempDir, Layout) {
    let folder = tempfile::tempdir().unwrap();
    let layout = Layout::create(folder.path().join("layout")).unwrap();
    (folder, layout)
}

#[tokio::test]
async fn blobs_come_back_and_leave_nothing_in_ingest() {
    let (_folder, layout) = layout();
    let descriptor = Descriptor::of("t", b"hello");
    let content = || Content::Bytes(Bytes::from_static(b"hello"));
    assert_eq!(layout.size(&descriptor.digest).await.unwrap(), None);
    assert_eq!(
        layout.put(&descriptor, content()).await.unwrap(),
        Put::Stored
    );
    assert_eq!(
        layout.put(&descriptor, content()).await.unwrap(),
        Put::AlreadyThere
    );
    assert_eq!(layout.size(&descriptor.digest).await.unwrap(), Some(5));
    assert_eq!(layout.read(&descriptor.digest, 5).await.unwrap(), "hello");
    let mode = fs::metadata(layout.blob_path(&descriptor.digest))
        .unwrap()
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o444);
    assert_eq!(
        fs::read_dir(layout.root().join("ingest")).unwrap().count(),
        0
    );
    assert_eq!(
        fs::read(layout.root().join(LAYOUT_NAME)).unwrap(),
        LAYOUT_FILE
    );
}

#[tokio::test]
async fn wrong_blobs_are_refused_and_not_kept() {
    let (_folder, layout) = layout();
    let descriptor = Descriptor::of("t", b"hello");
    for (bytes, size) in [(&b"hellO"[..], 5), (b"hell", 5), (b"hello", 6)] {
        let wrong = Descriptor {
            size,
            ..descriptor.clone()
        };
        assert!(
            layout
                .put(&wrong, Content::Bytes(Bytes::from_static(bytes)))
                .await
                .is_err()
        );
    }
    assert_eq!(layout.size(&descriptor.digest).await.unwrap(), None);
    assert_eq!(
        fs::read_dir(layout.root().join("ingest")).unwrap().count(),
        0
    );
    assert!(
        layout
            .open(&descriptor.digest)
            .await
            .unwrap_err()
            .is_not_found()
    );
}

#[tokio::test]
async fn damaged_blobs_are_found_and_replaced() {
    let (_folder, layout) = layout();
    let descriptor = Descriptor::of("t", b"hello");
    let path = layout.blob_path(&descriptor.digest);
    fs::write(&path, b"hellO").unwrap();
    assert!(matches!(
        layout.read(&descriptor.digest, 9).await,
        Err(StoreError::Digest(_))
    ));
    fs::write(&path, b"hell").unwrap();
    let put = layout
        .put(&descriptor, Content::Bytes(Bytes::from_static(b"hello")))
        .await;
    assert_eq!(put.unwrap(), Put::Stored);
    assert_eq!(layout.read(&descriptor.digest, 9).await.unwrap(), "hello");
    let limited = layout.read(&descriptor.digest, 4).await;
    assert!(matches!(
        limited,
        Err(StoreError::TooLarge {
            size: 5,
            limit: 4,
            ..
        })
    ));
}

#[tokio::test]
async fn a_damaged_blob_of_the_right_length_is_replaced_too() {
    let (_folder, layout) = layout();
    let descriptor = Descriptor::of("t", b"hello");
    let path = layout.blob_path(&descriptor.digest);
    let damage = || {
        fs::remove_file(&path).unwrap_or_default();
        fs::write(&path, b"hellO").unwrap();
    };
    damage();
    let content = Content::Bytes(Bytes::from_static(b"hello"));
    let put = layout.put(&descriptor, content).await.unwrap();
    assert_eq!(
        (put, fs::read(&path).unwrap()),
        (Put::Stored, b"hello".into())
    );
    damage();
    let put = layout.receive(&descriptor, &b"hello"[..], &|_| {}).unwrap();
    assert_eq!(
        (put, fs::read(&path).unwrap()),
        (Put::Stored, b"hello".into())
    );
    let put = layout.receive(&descriptor, &b""[..], &|_| {}).unwrap();
    assert_eq!(put, Put::AlreadyThere);
}

#[tokio::test]
async fn a_file_is_streamed_in_from_its_start() {
    let (_folder, layout) = layout();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"hello").unwrap();
    let descriptor = Descriptor::of("t", b"hello");
    assert_eq!(
        layout.put(&descriptor, Content::File(file)).await.unwrap(),
        Put::Stored
    );
}

#[tokio::test]
async fn parts_are_read_by_place() {
    let (_folder, layout) = layout();
    let descriptor = Descriptor::of("t", b"hello");
    let content = Content::Bytes(Bytes::from_static(b"hello"));
    layout.put(&descriptor, content).await.unwrap();
    let digest = descriptor.digest;
    assert_eq!(layout.read_range(&digest, 1..3).await.unwrap(), "el");
    assert_eq!(layout.read_range(&digest, 5..5).await.unwrap(), "");
    let beyond = layout.read_range(&digest, 3..6).await.unwrap_err();
    assert!(matches!(
        beyond,
        StoreError::Size {
            expected: 6,
            actual: 5,
            ..
        }
    ));
    let absent = layout.read_range(&Digest::sha256(b"x"), 0..1).await;
    assert!(absent.unwrap_err().is_not_found());
}

#[tokio::test]
async fn blobs_are_listed_and_other_files_are_not() {
    let (folder, layout) = layout();
    assert_eq!(layout.list().await.unwrap(), []);
    let descriptor = Descriptor::of("t", b"hello");
    let content = Content::Bytes(Bytes::from_static(b"hello"));
    layout.put(&descriptor, content).await.unwrap();
    fs::write(layout.root().join("blobs/sha256/short"), "x").unwrap();
    fs::write(layout.root().join("blobs/note"), "x").unwrap();
    assert_eq!(layout.list().await.unwrap(), [(descriptor.digest, 5)]);
    let nowhere = Layout::at(folder.path().join("nowhere"));
    assert_eq!(nowhere.list().await.unwrap(), []);
}

#[tokio::test]
async fn a_folder_in_a_blobs_place_is_no_blob() {
    let (_folder, layout) = layout();
    let digest = Digest::sha256(b"x");
    fs::create_dir(layout.blob_path(&digest)).unwrap();
    assert_eq!(layout.size(&digest).await.unwrap(), None);
    assert!(layout.open(&digest).await.unwrap_err().is_not_found());
}
