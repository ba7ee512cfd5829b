//! A layer that several images name uses the sources of all of them.

use super::*;
use crate::layer::named::MOST_SOURCES;

fn of(repository: &str, fetcher: Arc<dyn Fetcher>) -> Source {
    Source::new("registry.example", repository, fetcher)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_layer_in_another_repository_is_another_source() {
    let made = Made::new(Form::Gzip, 20, 16 << 10);
    let node = Node::new();
    let life = node.start();
    let good = Arc::new(MemoryBlob::new(made.layer.clone()));
    let layer = life.open(&made, good).await;
    // A second image names the layer, and its repository refuses access.
    let gone = Arc::new(FaultyFetcher::new(
        made.layer.clone(),
        std::iter::repeat_n(FetchFault::Forbid, 1000),
    ));
    layer.add_source(of("gone", gone));
    let bytes = read(&layer, FIRST).await.expect("the first image's bytes");
    assert_eq!(
        &bytes[..],
        &made.data()[FIRST.start as usize..FIRST.end as usize]
    );
    let names = || {
        let sources = layer.named.sources();
        let names = sources.iter().map(|source| source.name.to_string());
        names.collect::<Vec<_>>()
    };
    assert_eq!(names(), ["registry.example/gone", "registry.example/app"]);
    // The same repository again, for example with newer credentials, replaces its older source.
    layer.add_source(of("app", Arc::new(MemoryBlob::new(made.layer.clone()))));
    assert_eq!(names(), ["registry.example/app", "registry.example/gone"]);
    for i in 0..100 {
        let blob = Arc::new(MemoryBlob::new(made.layer.clone()));
        layer.add_source(of(&format!("build-{i}"), blob));
    }
    assert_eq!(names().len(), MOST_SOURCES);
    assert_eq!(names()[0], "registry.example/build-99");
}
