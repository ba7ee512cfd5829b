#![allow(
    clippy::cast_possible_truncation,
    reason = "offsets of small test layers"
)]
#![allow(
    clippy::disallowed_methods,
    reason = "tests wait for every task that they spawn"
)]

use std::{num::NonZeroUsize, os::unix::fs::FileExt, time::Duration};

use soci_registry::{
    fetch::Fetcher,
    testing::{FaultyFetcher, FetchFault, MemoryBlob},
};
use tempfile::TempDir;

use super::*;
use crate::{
    cpu::Cpu,
    fetch::{self, Scheduler},
    places::LEAD,
    store::{LayerStore, StoreError, proofs::Proof, sources::Origin},
};

mod damage;
mod early;
mod edges;
mod evict;
mod formats;
mod full;
mod indexed;
mod lives;
mod made;
mod opened;
mod paced;
mod programs;
mod prove;
mod reads;
mod replay;
mod scrub;
mod sources;
mod whole;

use made::{Form, Made};

/// A node. Its directory outlives the process, which can be started again.
struct Node {
    root: TempDir,
    boot: String,
}

/// One run of the process.
struct Life {
    layers: Arc<Layers>,
}

impl Node {
    fn new() -> Node {
        Node {
            root: tempfile::tempdir().expect("a directory"),
            boot: "boot-1".to_owned(),
        }
    }

    fn start(&self) -> Life {
        self.start_with(Options::default(), fetch::Options::default())
    }

    fn start_with(&self, options: Options, fetch: fetch::Options) -> Life {
        Life {
            layers: start_in(self.root.path(), &self.boot, options, fetch),
        }
    }

    fn file(&self, layer: &Layer, name: &str) -> PathBuf {
        self.root
            .path()
            .join(crate::store::FOLDER)
            .join(layer.number().to_string())
            .join(name)
    }
}

fn start_in(
    root: &std::path::Path,
    boot: &str,
    options: Options,
    fetch: fetch::Options,
) -> Arc<Layers> {
    let runtime = tokio::runtime::Handle::current();
    let two = NonZeroUsize::new(2).expect("two");
    let cpu = Cpu::with_idle(two, drop_scratch).expect("threads");
    let fetch = Scheduler::start(fetch, &runtime);
    let store = Arc::new(LayerStore::open(root, Some(boot)).expect("a store"));
    let pause = Duration::from_millis(20);
    let options = Options {
        pause: (pause, pause),
        ..options
    };
    Layers::new(store, cpu, fetch, options, &runtime)
}

fn origin() -> Origin {
    Origin {
        reference: "registry.example/app:1".to_owned(),
        manifest: Digest::sha256(b"manifest").to_string(),
        index: None,
        found: "a test".to_owned(),
    }
}

fn source(fetcher: Arc<dyn Fetcher>) -> Source {
    Source::new("registry.example", "app", fetcher)
}

impl Life {
    async fn open(&self, made: &Made, fetcher: Arc<dyn Fetcher>) -> Arc<Layer> {
        self.try_open(made, fetcher).await.expect("the layer opens")
    }

    async fn try_open(
        &self,
        made: &Made,
        fetcher: Arc<dyn Fetcher>,
    ) -> Result<Arc<Layer>, OpenError> {
        let lazy = Lazy {
            layer: made.descriptor(),
            ztoc: made.ztoc_descriptor(),
            bytes: Some(made.ztoc.clone().into()),
            expected: made.expected(),
            origin: origin(),
            source: source(fetcher),
        };
        self.layers.open_lazy(lazy).await
    }
}

/// Bytes of the first file.
const FIRST: Range<u64> = LEAD..LEAD + 100;

async fn read(layer: &Arc<Layer>, range: Range<u64>) -> Result<Bytes, ReadError> {
    let (tell, told) = tokio::sync::oneshot::channel();
    layer.read(
        range,
        Box::new(move |result| {
            drop(tell.send(result));
        }),
    );
    told.await.expect("every read is answered")
}

/// Reads twice, so that the spans are in the store afterwards: the first read is answered from
/// memory before.
async fn store(layer: &Arc<Layer>, range: Range<u64>) {
    for _ in 0..2 {
        read(layer, range.clone()).await.expect("bytes");
    }
}

async fn completes(layer: &Arc<Layer>) {
    let mut complete = layer.completion();
    let wait = complete.wait_for(|complete| *complete);
    tokio::time::timeout(Duration::from_secs(30), wait)
        .await
        .unwrap_or_else(|_| panic!("not complete: {:?}", layer.progress()))
        .expect("the layer exists");
}
