//! How often, and after what, a request is tried on another replica. All tries run under one reservation, and only
//! before the client was sent anything.

use super::replica::{ReplicaId, SubmitError};
use super::upstream::Failure;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryBounds {
    /// Replicas that one request is tried on at most.
    pub max_tries: usize,
    /// A request that so many replicas took and broke on is taken for the cause, and is not tried on a further one.
    pub max_broken: usize,
}

impl Default for RetryBounds {
    fn default() -> Self {
        Self { max_tries: 3, max_broken: 2 }
    }
}

/// The tries of one request so far.
#[derive(Debug)]
pub struct Attempts {
    bounds: RetryBounds,
    tried: Vec<ReplicaId>,
    broken: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    TryAnother,
    GiveUp,
}

impl Attempts {
    pub fn new(bounds: RetryBounds) -> Self {
        Self { bounds, tried: Vec::new(), broken: 0 }
    }

    /// Not to be asked again.
    pub fn tried(&self) -> &[ReplicaId] {
        &self.tried
    }

    pub fn upstream_failed(&mut self, replica: ReplicaId, failure: &Failure) -> Verdict {
        self.broken += usize::from(failure.may_be_poison());
        let hopeless = matches!(failure, Failure::Refused(_)) || self.broken >= self.bounds.max_broken;
        self.next(replica, hopeless)
    }

    pub fn engine_refused(&mut self, replica: ReplicaId, error: &SubmitError) -> Verdict {
        let hopeless = matches!(error, SubmitError::ExceedsContext(_) | SubmitError::Refused { .. });
        self.next(replica, hopeless)
    }

    /// Another request took the upstream's one trial in between. Costs a try, so that this ends.
    pub fn not_let_in(&mut self, replica: ReplicaId) -> Verdict {
        self.next(replica, false)
    }

    fn next(&mut self, replica: ReplicaId, hopeless: bool) -> Verdict {
        self.tried.push(replica);
        if hopeless || self.tried.len() >= self.bounds.max_tries { Verdict::GiveUp } else { Verdict::TryAnother }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broke() -> Failure {
        Failure::Broke("reset".into())
    }

    fn verdicts(failures: &[Failure]) -> Vec<Verdict> {
        let mut attempts = Attempts::new(RetryBounds { max_tries: 3, max_broken: 2 });
        failures.iter().zip(0..).map(|(failure, id)| attempts.upstream_failed(ReplicaId(id), failure)).collect()
    }

    #[test]
    fn a_request_is_tried_on_so_many_replicas_and_no_more() {
        use Verdict::{GiveUp, TryAnother};
        let busy = Failure::Busy { retry_after: None };
        assert_eq!(verdicts(&[Failure::Unreachable, busy, Failure::Unreachable]), [TryAnother, TryAnother, GiveUp]);
    }

    #[test]
    fn a_request_that_two_replicas_broke_on_is_not_tried_everywhere() {
        assert_eq!(verdicts(&[broke(), Failure::TimedOut]), [Verdict::TryAnother, Verdict::GiveUp]);
    }

    #[test]
    fn what_is_the_requests_own_fault_is_not_tried_again() {
        assert_eq!(verdicts(&[Failure::Refused(Box::default())]), [Verdict::GiveUp]);
        let mut attempts = Attempts::new(RetryBounds::default());
        assert_eq!(attempts.engine_refused(ReplicaId(0), &SubmitError::QueueFull), Verdict::TryAnother);
        let long = SubmitError::ExceedsContext("9".into());
        assert_eq!(attempts.engine_refused(ReplicaId(1), &long), Verdict::GiveUp);
        assert_eq!(attempts.tried(), [ReplicaId(0), ReplicaId(1)]);
    }
}
