//! Where layers come from, as soon as this machine can mount them: from the start, or later where the disk was full then.

use tokio::sync::{mpsc, oneshot};

use crate::image::Images;
use crate::sync::{Arc, OnceLock};

/// Layers can be mounted.
#[derive(Debug)]
pub(crate) struct Ready {
    /// Where they come from.
    pub(crate) images: Images,
    /// Overlay mounts on them take `xino=on`.
    pub(crate) xino: bool,
}

/// Who waits for one more attempt to make them ready; told when it is over, either way.
pub(crate) type Asked = mpsc::Receiver<oneshot::Sender<()>>;

/// Set once, when layers can be mounted.
#[derive(Clone, Debug)]
pub struct Late(Arc<Slot>);

#[derive(Debug)]
struct Slot {
    ready: OnceLock<Ready>,
    ask: mpsc::Sender<oneshot::Sender<()>>,
}

impl Late {
    /// Nothing yet. Who makes them ready answers what is asked; dropping the receiver says that nobody tries.
    pub(crate) fn new() -> (Self, Asked) {
        let (ask, asked) = mpsc::channel(16);
        let ready = OnceLock::new();
        (Self(Arc::new(Slot { ready, ask })), asked)
    }

    /// No layers, ever.
    #[must_use]
    pub fn never() -> Self {
        Self::new().0
    }

    /// From here on layers are mounted. The first call counts.
    pub(crate) fn set(&self, ready: Ready) {
        drop(self.0.ready.set(ready));
    }

    /// The images, if layers can be mounted.
    pub(crate) fn get(&self) -> Option<&Images> {
        self.0.ready.get().map(|ready| &ready.images)
    }

    pub(super) fn xino(&self) -> bool {
        self.0.ready.get().is_some_and(|ready| ready.xino)
    }

    /// The images, after one more attempt where somebody makes them.
    pub(super) async fn wanted(&self) -> Option<&Images> {
        if self.get().is_none() {
            let (tell, told) = oneshot::channel();
            if self.0.ask.send(tell).await.is_ok() {
                // Dropped unanswered is over as well.
                let _ = told.await;
            }
        }
        self.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_wants_layers_has_it_tried_again_and_waits_for_the_outcome() {
        assert!(Late::never().wanted().await.is_none());
        let (late, mut asked) = Late::new();
        let other = late.clone();
        let wants = other.wanted();
        let answers = async {
            let tell = asked.recv().await.expect("asked");
            tell.send(()).expect("somebody waits");
        };
        let (found, ()) = tokio::join!(wants, answers);
        assert!(found.is_none());
    }
}
