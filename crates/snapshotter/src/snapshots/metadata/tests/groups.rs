//! Waiting changes form one transaction, and changes that need not be durable are answered early.

use std::fs;

use super::*;

/// The records that would survive a power failure now, read from a copy of the file.
fn on_disk(fixture: &Fixture) -> Vec<String> {
    let file = fixture.root.path().join("snapshots.redb");
    let copy = tempfile::tempdir().unwrap();
    fs::copy(&file, copy.path().join("snapshots.redb")).unwrap();
    let metadata = Metadata::open(&copy.path().join("snapshots.redb"), 0).unwrap();
    let all = metadata.list(|_| true).unwrap();
    all.into_iter().map(|info| info.name).collect()
}

fn repeatable(fixture: &Fixture, name: &str) -> Record {
    let id = fixture.metadata.reserve_id();
    let created = fixture.metadata.create(
        id,
        Kind::Active,
        name,
        None,
        Labels::new(),
        Lasts::UnlessRepeated,
    );
    wait(created).unwrap()
}

#[test]
fn a_repeatable_change_is_stored_with_the_next_durable_one() {
    let fixture = Fixture::new();
    repeatable(&fixture, "layer-1");
    assert!(
        fixture.metadata.get("layer-1").is_ok(),
        "readers see the change"
    );
    fixture.create(Kind::Active, "container", "").unwrap();
    assert_eq!(on_disk(&fixture), ["container", "layer-1"]);
    fixture.remove("layer-1").unwrap();
    wait(fixture.metadata.sync()).unwrap();
    assert_eq!(on_disk(&fixture), ["container"]);
}

#[test]
fn a_repeatable_change_is_stored_soon_and_on_drop() {
    let fixture = Fixture::new();
    repeatable(&fixture, "soon");
    let begin = std::time::Instant::now();
    while on_disk(&fixture) != ["soon"] {
        assert!(begin.elapsed().as_secs() < 30);
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    repeatable(&fixture, "at the end");
    let fixture = fixture.reopened(0);
    assert!(fixture.metadata.get("at the end").is_ok());
}

#[test]
fn only_invalid_changes_of_a_group_fail() {
    let fixture = Fixture::new();
    let create = async |n: u64| {
        let name = format!("name-{}", n / 2);
        let id = fixture.metadata.reserve_id();
        let created =
            fixture
                .metadata
                .create(id, Kind::Active, &name, None, Labels::new(), Lasts::Always);
        created.await.is_ok()
    };
    let made = wait(futures_of((0..200).map(create).collect()));
    assert_eq!(made.iter().filter(|made| **made).count(), 100);
    assert_eq!(fixture.metadata.list(|_| true).unwrap().len(), 100);
}

/// Runs all futures concurrently.
async fn futures_of<T>(all: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut all: Vec<_> = all
        .into_iter()
        .map(|future| (Box::pin(future), None))
        .collect();
    std::future::poll_fn(|context| {
        let mut pending = false;
        for (future, done) in &mut all {
            if done.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *done = Some(value),
                    std::task::Poll::Pending => pending = true,
                }
            }
        }
        match pending {
            true => std::task::Poll::Pending,
            false => std::task::Poll::Ready(()),
        }
    })
    .await;
    all.into_iter().filter_map(|(_, done)| done).collect()
}
