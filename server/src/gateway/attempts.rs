//! How often, and after what, a request is tried on another replica. All tries run under one reservation, and only
//! before the client was sent anything.

use super::replica::{ReplicaId, ReplicaRefusal};
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
    /// Not to be asked again: those that were tried, and those that cannot serve this request.
    passed: Vec<ReplicaId>,
    tries: usize,
    broken: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    TryAnother,
    GiveUp,
}

impl Attempts {
    pub fn new(bounds: RetryBounds) -> Self {
        Self { bounds, passed: Vec::new(), tries: 0, broken: 0 }
    }

    /// Not to be asked again.
    pub fn passed(&self) -> &[ReplicaId] {
        &self.passed
    }

    /// It is of a kind that this request is not for. Costs no try: there is one such replica less.
    pub fn cannot_serve(&mut self, replica: ReplicaId) -> Verdict {
        self.passed.push(replica);
        Verdict::TryAnother
    }

    pub fn upstream_failed(&mut self, replica: ReplicaId, failure: &Failure) -> Verdict {
        self.broken += usize::from(failure.may_be_poison());
        let hopeless = matches!(failure, Failure::Refused(_)) || self.broken >= self.bounds.max_broken;
        self.next(replica, hopeless)
    }

    pub fn engine_refused(&mut self, replica: ReplicaId, error: &ReplicaRefusal) -> Verdict {
        let hopeless = matches!(error, ReplicaRefusal::ExceedsContext(_) | ReplicaRefusal::Refused { .. });
        self.next(replica, hopeless)
    }

    /// Another request took the upstream's one trial in between. Costs a try, so that this ends.
    pub fn not_let_in(&mut self, replica: ReplicaId) -> Verdict {
        self.next(replica, false)
    }

    fn next(&mut self, replica: ReplicaId, hopeless: bool) -> Verdict {
        self.passed.push(replica);
        self.tries += 1;
        if hopeless || self.tries >= self.bounds.max_tries { Verdict::GiveUp } else { Verdict::TryAnother }
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
        assert_eq!(attempts.engine_refused(ReplicaId(0), &ReplicaRefusal::QueueFull), Verdict::TryAnother);
        let long = ReplicaRefusal::ExceedsContext("9".into());
        assert_eq!(attempts.engine_refused(ReplicaId(1), &long), Verdict::GiveUp);
        assert_eq!(attempts.passed(), [ReplicaId(0), ReplicaId(1)]);
    }

    /// As `n` above 1, which upstreams are not asked for, where an engine here and several upstreams have the model.
    #[test]
    fn replicas_that_cannot_serve_a_request_cost_it_no_try() {
        let mut attempts = Attempts::new(RetryBounds { max_tries: 1, max_broken: 1 });
        for upstream in 0..5 {
            assert_eq!(attempts.cannot_serve(ReplicaId(upstream)), Verdict::TryAnother);
        }
        assert_eq!(attempts.passed().len(), 5);
        assert_eq!(attempts.engine_refused(ReplicaId(5), &ReplicaRefusal::QueueFull), Verdict::GiveUp);
    }
}
