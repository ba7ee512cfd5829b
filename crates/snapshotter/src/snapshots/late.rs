//! The layers of this machine, available from the start, or later if the disk was full at the
//! start.

use tokio::sync::{mpsc, oneshot};

use crate::image::Images;
use crate::sync::{Arc, OnceLock};

/// Mounting layers works.
#[derive(Debug)]
pub(crate) struct Ready {
    /// The images.
    pub(crate) images: Images,
    /// Whether overlay mounts on layers support `xino=on`.
    pub(crate) xino: bool,
}

/// Requests to try again to make layers available. Each is answered when the attempt is over.
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
    /// Creates an empty value. The owner of the receiver answers requests; dropping it ends all
    /// attempts.
    pub(crate) fn new() -> (Self, Asked) {
        let (ask, asked) = mpsc::channel(16);
        let ready = OnceLock::new();
        (Self(Arc::new(Slot { ready, ask })), asked)
    }

    /// Layers are never available.
    #[must_use]
    pub fn never() -> Self {
        Self::new().0
    }

    /// Makes layers available. Only the first call has an effect.
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

    /// The images, after one more attempt to make them available if necessary.
    pub(super) async fn wanted(&self) -> Option<&Images> {
        if self.get().is_none() {
            let (tell, told) = oneshot::channel();
            if self.0.ask.send(tell).await.is_ok() {
                // A request that is dropped unanswered is over too.
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
    async fn a_request_for_layers_triggers_an_attempt_and_waits_for_it() {
        assert!(Late::never().wanted().await.is_none());
        let (late, mut asked) = Late::new();
        let other = late.clone();
        let wants = other.wanted();
        let answers = async {
            let tell = asked.recv().await.expect("asked");
            tell.send(()).expect("the request still waits");
        };
        let (found, ()) = tokio::join!(wants, answers);
        assert!(found.is_none());
    }
}
