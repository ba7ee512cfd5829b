//! Selects which of several hosts an operation asks, and which failure it reports.

use std::{collections::VecDeque, sync::Arc};

use futures_util::future::BoxFuture;

use crate::{
    breaker::Turn,
    endpoint::Endpoint,
    fetch::FetchError,
    retry::{Attempts, RetryPolicy},
};

/// The hosts to ask, in order of preference, and how often.
pub(crate) struct At {
    pub(crate) hosts: Vec<Arc<Endpoint>>,
    pub(crate) retry: RetryPolicy,
}

/// The hosts of an operation by index, in order of preference; the last one is the origin.
///
/// Each round asks each host once. The next round contains only the hosts that may succeed later,
/// so that a transient failure of one host does not repeat requests that other hosts have refused.
/// What the origin does not have does not exist, even if mirrors fail for other reasons.
#[derive(Debug)]
pub(crate) struct Rounds {
    origin: usize,
    left: Vec<usize>,
    again: Vec<usize>,
    not_there: Option<FetchError>,
    other: Option<FetchError>,
}

impl Rounds {
    /// Starts with this number of hosts.
    pub(crate) fn over(hosts: usize) -> Rounds {
        Rounds {
            origin: hosts.saturating_sub(1),
            left: (0..hosts).collect(),
            again: Vec::new(),
            not_there: None,
            other: None,
        }
    }

    /// The hosts to ask in this round.
    pub(crate) fn order(&self) -> Order {
        Order {
            hosts: self.left.iter().copied().collect(),
            avoided: VecDeque::new(),
        }
    }

    /// Records the failure of a host.
    pub(crate) fn failed(&mut self, host: usize, error: FetchError) {
        tracing::debug!(error = &error as &dyn std::error::Error, "host passed over");
        if host == self.origin && matches!(error, FetchError::Status { status: 404, .. }) {
            self.not_there = Some(error);
            return;
        }
        let may_do_better = error.is_worth_repeating();
        if may_do_better {
            self.again.push(host);
        }
        let kept = self.other.as_ref();
        if may_do_better || kept.is_none_or(|kept| !kept.is_worth_repeating()) {
            self.other = Some(error);
        }
    }

    /// Ends a round and returns the failure to report: "not found" if the origin said so, else a
    /// failure that may not persist, else the last one. Start another round if the failure is worth
    /// a retry.
    pub(crate) fn end(&mut self) -> FetchError {
        self.left = std::mem::take(&mut self.again);
        self.left.sort_unstable();
        let other = self.other.take();
        let reported = self.not_there.take().or(other);
        reported.unwrap_or(FetchError::NoHost)
    }
}

/// The hosts of one round.
#[derive(Debug)]
pub(crate) struct Order {
    hosts: VecDeque<usize>,
    avoided: VecDeque<usize>,
}

impl Order {
    /// Moves a host to the front.
    pub(crate) fn prefer(&mut self, host: usize) {
        if let Some(at) = self.hosts.iter().position(|&it| it == host) {
            self.hosts.remove(at);
            self.hosts.push_front(host);
        }
    }

    /// The next host to ask, with its turn. Hosts without a turn, because they have failed lately,
    /// come last. A turn is taken only when its host is asked.
    pub(crate) fn next<T>(
        &mut self,
        turn: impl Fn(usize) -> Option<T>,
    ) -> Option<(usize, Option<T>)> {
        while let Some(host) = self.hosts.pop_front() {
            match turn(host) {
                None => self.avoided.push_back(host),
                turn => return Some((host, turn)),
            }
        }
        self.avoided.pop_front().map(|host| (host, None))
    }
}

/// Runs `attempt` on each host until one succeeds. Repeats this in rounds while a host may succeed
/// later.
pub(crate) async fn over_hosts<T>(
    endpoints: &[Arc<Endpoint>],
    retry: RetryPolicy,
    attempt: impl Fn(Arc<Endpoint>) -> BoxFuture<'static, Result<T, FetchError>> + Send,
) -> Result<T, FetchError> {
    let mut attempts = Attempts::new(retry);
    let mut rounds = Rounds::over(endpoints.len());
    loop {
        let mut order = rounds.order();
        while let Some((host, turn)) = order.next(|host| endpoints[host].turn()) {
            match attempt(Arc::clone(&endpoints[host])).await {
                Ok(done) => {
                    turn.into_iter().for_each(Turn::succeeded);
                    return Ok(done);
                }
                Err(error) => {
                    endpoints[host].note(&error);
                    rounds.failed(host, error);
                }
            }
        }
        let error = rounds.end();
        if !error.is_worth_repeating() {
            return Err(error);
        }
        attempts.wait(error).await?;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::url::RedactedUrl;

    fn status(status: u16) -> FetchError {
        FetchError::Status {
            status,
            detail: String::new(),
            retry_after: None,
            url: RedactedUrl::new("https://registry.example/v2/"),
        }
    }

    /// The order of hosts if these have a turn.
    fn order(rounds: &Rounds, has_turn: impl Fn(usize) -> bool) -> Vec<usize> {
        let mut order = rounds.order();
        let turn = |host| has_turn(host).then_some(());
        std::iter::from_fn(|| order.next(turn).map(|(host, _)| host)).collect()
    }

    /// Runs one round with these responses. Returns the reported status and the hosts of the next
    /// round.
    fn round(rounds: &mut Rounds, answers: &[u16]) -> (u16, Vec<usize>) {
        for (host, &answer) in order(rounds, |_| true).into_iter().zip(answers) {
            rounds.failed(host, status(answer));
        }
        match rounds.end() {
            FetchError::Status { status, .. } => (status, rounds.left.clone()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_the_origin_does_not_have_is_not_there() {
        let reported = |answers: &[u16]| round(&mut Rounds::over(answers.len()), answers).0;
        assert_eq!(reported(&[503, 404]), 404);
        assert_eq!(
            reported(&[404, 503]),
            503,
            "a mirror need not have everything"
        );
        assert_eq!(reported(&[503, 403]), 503, "the mirror may let us in later");
        assert_eq!(reported(&[403, 404]), 404);
        assert_eq!(reported(&[404, 403]), 403);
    }

    #[test]
    fn only_hosts_that_may_do_better_are_asked_again() {
        let mut rounds = Rounds::over(4);
        assert_eq!(
            round(&mut rounds, &[503, 404, 429, 500]),
            (500, vec![0, 2, 3])
        );
        assert_eq!(round(&mut rounds, &[403, 503, 503]), (503, vec![2, 3]));
        assert_eq!(order(&rounds, |host| host != 2), [3, 2]);
        assert_eq!(round(&mut rounds, &[503, 404]).0, 404);
    }

    #[test]
    fn only_hosts_that_are_asked_take_their_turn() {
        let taken = RefCell::new(Vec::new());
        let turn = |host| {
            taken.borrow_mut().push(host);
            (host > 0).then_some(host)
        };
        let mut order = Rounds::over(3).order();
        assert_eq!(order.next(turn), Some((1, Some(1))));
        assert_eq!(*taken.borrow(), [0, 1], "the last one is not asked yet");
        assert_eq!(order.next(turn), Some((2, Some(2))));
        assert_eq!(order.next(turn), Some((0, None)));
        assert_eq!(order.next(turn), None);
        let mut order = Rounds::over(3).order();
        order.prefer(2);
        let all = std::iter::from_fn(|| order.next(Some).map(|(host, _)| host));
        assert_eq!(all.collect::<Vec<_>>(), [2, 0, 1]);
    }

    #[test]
    fn without_hosts_there_is_nobody_to_ask() {
        assert!(matches!(Rounds::over(0).end(), FetchError::NoHost));
    }
}
