//! Pulls of whole layers in progress: one for each layer, however many requests and images wait for
//! it. It ends early when nobody waits any more.

use std::collections::HashMap;

use soci_oci::digest::Digest;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use crate::layer::{Layer, OpenError, Whole};
use crate::sync::{Arc, Mutex, Weak};

/// A layer, as an image names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    layer: Digest,
    diff_id: Digest,
}

/// The result of a pull. `None` if its task was lost.
pub(super) type Pulled = Result<Arc<Layer>, Option<Arc<OpenError>>>;

type Running = Mutex<HashMap<Key, Weak<Pull>>>;

/// The pulls of this node.
#[derive(Clone, Debug, Default)]
pub(super) struct Pulls(Arc<Running>);

/// One pull. It is cancelled when its last owner drops it.
#[derive(Debug)]
pub(super) struct Pull {
    key: Key,
    /// Names of the sources that it uses.
    sources: Vec<Arc<str>>,
    done: watch::Receiver<Option<Pulled>>,
    running: Weak<Running>,
    _stop: DropGuard,
}

impl Drop for Pull {
    fn drop(&mut self) {
        if let Some(running) = self.running.upgrade() {
            let mut running = running.lock();
            let is_own = |pull: &Weak<Pull>| std::ptr::eq(pull.as_ptr(), self);
            if running.get(&self.key).is_some_and(is_own) {
                running.remove(&self.key);
            }
        }
    }
}

impl Pull {
    /// Waits for the result.
    pub(super) async fn done(&self) -> Pulled {
        let mut done = self.done.clone();
        let pulled = done.wait_for(Option::is_some).await;
        pulled
            .ok()
            .and_then(|pulled| pulled.clone())
            .unwrap_or(Err(None))
    }

    /// Whether it asks the same sources.
    pub(super) fn asks(&self, whole: &Whole) -> bool {
        let names = whole.sources.iter().map(|source| &source.name);
        self.sources.iter().eq(names)
    }
}

impl Pulls {
    /// Joins the pull of a layer, or starts it on `tasks` with `work`. Returns whether it was
    /// started.
    pub(super) fn join<F>(
        &self,
        whole: &Whole,
        tasks: &TaskTracker,
        work: impl FnOnce(Whole) -> F,
    ) -> (Arc<Pull>, bool)
    where
        F: Future<Output = Result<Arc<Layer>, OpenError>> + Send + 'static,
    {
        let key = Key {
            layer: whole.layer.digest,
            diff_id: whole.diff_id,
        };
        let mut running = self.0.lock();
        if let Some(pull) = running.get(&key).and_then(Weak::upgrade) {
            // The lock is not held when the last owner drops it.
            drop(running);
            return (pull, false);
        }
        let (tell, done) = watch::channel(None);
        let stop = CancellationToken::new();
        let pull = Arc::new(Pull {
            key,
            sources: whole.sources.iter().map(|it| it.name.clone()).collect(),
            done,
            running: Arc::downgrade(&self.0),
            _stop: stop.clone().drop_guard(),
        });
        running.insert(key, Arc::downgrade(&pull));
        drop(running);
        let (work, pulls, own) = (work(whole.clone()), self.clone(), Arc::downgrade(&pull));
        tasks.spawn(async move {
            let pulled = tokio::select! {
                pulled = work => pulled,
                () = stop.cancelled() => return,
            };
            // A request that comes after a failure tries again.
            pulls.forget(&key, &own);
            tell.send_replace(Some(pulled.map_err(|error| Some(Arc::new(error)))));
        });
        (pull, true)
    }

    fn forget(&self, key: &Key, own: &Weak<Pull>) {
        let mut running = self.0.lock();
        if running.get(key).is_some_and(|pull| pull.ptr_eq(own)) {
            running.remove(key);
        }
    }
}
