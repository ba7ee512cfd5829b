//! Keeps a layer from removal while a request uses it and no record names it yet: from the start of
//! the request until its snapshot is committed.
//!
//! Removal marks a layer first and then reads the records. It therefore sees every earlier commit,
//! and later requests wait.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use soci_oci::digest::Digest;
use tokio::sync::Notify;

use crate::sync::{Arc, Mutex};

/// The state of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The number of requests that hold it.
    Held(usize),
    /// Removal is checking or removing it.
    Removing,
}

#[derive(Debug, Default)]
struct Shared {
    layers: Mutex<HashMap<Digest, State>>,
    changed: Notify,
}

/// The layers that requests hold or removal has marked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Holds(Arc<Shared>);

/// Keeps a layer from removal until dropped.
#[derive(Debug)]
pub(crate) struct Hold {
    layer: Digest,
    shared: Arc<Shared>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut layers = self.shared.layers.lock();
        if let Some(State::Held(count)) = layers.get_mut(&self.layer) {
            *count -= 1;
            if *count == 0 {
                layers.remove(&self.layer);
            }
        }
    }
}

/// Marks a layer that no request holds. New requests wait until this is dropped.
#[derive(Debug)]
pub(crate) struct Removing {
    layer: Digest,
    shared: Arc<Shared>,
}

impl Drop for Removing {
    fn drop(&mut self) {
        self.shared.layers.lock().remove(&self.layer);
        self.shared.changed.notify_waiters();
    }
}

impl Holds {
    /// Holds a layer. Waits while it is marked for removal.
    pub(crate) async fn hold(&self, layer: Digest) -> Hold {
        loop {
            let changed = self.0.changed.notified();
            tokio::pin!(changed);
            // Register first, so that no notification is missed.
            changed.as_mut().enable();
            if let Some(hold) = self.try_hold(layer) {
                return hold;
            }
            changed.await;
        }
    }

    fn try_hold(&self, layer: Digest) -> Option<Hold> {
        match self.0.layers.lock().entry(layer).or_insert(State::Held(0)) {
            State::Held(count) => *count += 1,
            State::Removing => return None,
        }
        Some(Hold {
            layer,
            shared: Arc::clone(&self.0),
        })
    }

    /// Marks a layer for removal, unless it is held or marked.
    pub(crate) fn begin_removal(&self, layer: Digest) -> Option<Removing> {
        match self.0.layers.lock().entry(layer) {
            Entry::Occupied(_) => None,
            Entry::Vacant(entry) => {
                entry.insert(State::Removing);
                Some(Removing {
                    layer,
                    shared: Arc::clone(&self.0),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_held_layer_is_not_removed_and_a_removed_one_is_waited_for() {
        let holds = Holds::default();
        let [one, two] = [b"1", b"2"].map(|bytes| Digest::sha256(bytes));
        let first = holds.hold(one).await;
        let again = holds.hold(one).await;
        assert!(holds.begin_removal(one).is_none());
        let removing = holds.begin_removal(two).expect("nobody works with it");
        assert!(holds.begin_removal(two).is_none());
        drop(first);
        drop(again);
        assert!(holds.begin_removal(one).is_some());
        let waiting = holds.hold(two);
        tokio::pin!(waiting);
        let soon = tokio::time::timeout(Duration::from_millis(20), &mut waiting).await;
        assert!(soon.is_err(), "the layer is being removed");
        drop(removing);
        drop(waiting.await);
        assert!(holds.begin_removal(two).is_some());
    }
}
