//! Keeps bandwidth free for requests that a Prepare waits for and that bypass the scheduler:
//! manifest, index, and zTOC. A registry that stops answering does not slow down other transfers.

use std::time::Duration;

use tokio::sync::Notify;

/// How long to keep the bandwidth free without progress. A response takes a few round trips. Later
/// progress reserves the bandwidth again.
const QUIET: Duration = Duration::from_secs(2);

/// Runs `work` while a guard from `hold` keeps bandwidth free. Drops the guard after [`QUIET`]
/// without a notification of `came`, and takes a new one at the next notification.
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
            // The registry stops answering.
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
