//! The line of the node, kept free for what a Prepare waits for and that does not go through the scheduler: manifest,
//! index, zTOC. A registry that answers nothing keeps nobody else waiting for it.

use std::time::Duration;

use tokio::sync::Notify;

/// How long nothing may come until the line is given back. An answer takes a few round trips; what comes later takes the
/// line again.
const QUIET: Duration = Duration::from_secs(2);

/// Does `work` while a guard that `hold` gives keeps the line free, as long as `came` tells that something comes of it.
pub(super) async fn while_it_comes<T, G>(
    hold: impl Fn() -> G,
    came: &Notify,
    work: impl Future<Output = T>,
) -> T {
    let mut held = Some(hold());
    tokio::pin!(work);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = came.notified() => {
                held.get_or_insert_with(&hold);
            }
            () = tokio::time::sleep(QUIET), if held.is_some() => held = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tokio::time::{Instant, sleep_until};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_line_is_kept_only_while_something_comes() {
        let (came, token) = (Notify::new(), Rc::new(()));
        let held = || Rc::strong_count(&token) > 1;
        let begin = Instant::now();
        let at = |millis| sleep_until(begin + Duration::from_millis(millis));
        let work = async {
            for millis in [1500, 3000, 4500] {
                at(millis).await;
                assert!(held(), "something came in the last two seconds: {millis}");
                came.notify_waiters();
            }
            // A registry that says nothing more.
            at(7000).await;
            assert!(!held(), "nothing has come for two seconds");
            at(60_000).await;
            assert!(!held(), "nor since");
            came.notify_waiters();
            at(60_001).await;
            assert!(held(), "it goes on");
        };
        while_it_comes(|| Rc::clone(&token), &came, work).await;
        assert!(!held(), "nobody waits any more");
    }
}
