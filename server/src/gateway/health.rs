//! Whether a replica gets anywhere, read from its own count of progress and not from what it says of itself.

use std::time::Duration;

use super::replica::{Load, Presence};

/// A replica with work and without progress for this long hangs. A busy one moves its count many times within a step, and
/// also while it waits for another engine on the same threads, so no load makes it look like this.
pub const STUCK_AFTER: Duration = Duration::from_millis(1500);
/// Replicas are looked at this often, also while nobody asks for them: together with [`STUCK_AFTER`] below 2 seconds.
pub const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Better ones first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    Ready,
    /// Its worker has left: what comes is kept for the next one. Passed over while another one is ready.
    HandingOver,
    /// Several of its requests failed within a minute. Passed over while another one is ready.
    Distrusted,
    /// It has work and made no progress for [`STUCK_AFTER`]; it is ready again when it does.
    Stuck,
    /// An upstream that failed, or that asked for a pause. Gets no requests until its rest is over.
    Resting,
    /// Its worker is gone, and gets no requests until another one has come.
    Away,
    /// It takes no more requests, ever.
    Closed,
}

/// What was seen of a replica so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    count: u64,
    /// Since when it was seen with work and without progress.
    waiting_since: Option<Duration>,
}

impl Health {
    /// Whether requests may go there at all.
    pub fn serves(self) -> bool {
        self <= Self::Distrusted
    }
}

impl Progress {
    /// How long it has had work and made no progress, as last observed.
    pub fn stands_still_for(&self, now: Duration) -> Duration {
        self.waiting_since.map_or(Duration::ZERO, |since| now.saturating_sub(since))
    }

    pub fn observe(&mut self, now: Duration, load: &Load) -> Health {
        let stands_still = load.progress == self.count && load.has_work();
        self.count = load.progress;
        self.waiting_since = match self.waiting_since {
            Some(since) if stands_still => Some(since),
            _ => load.has_work().then_some(now),
        };
        let is_stuck = self.waiting_since.is_some_and(|since| now.saturating_sub(since) >= STUCK_AFTER);
        let is_distrusted = load.distrusted_until.is_some_and(|until| now < until);
        match (load.presence, is_stuck, is_distrusted) {
            (Presence::Away, _, _) => Health::Away,
            (Presence::HandingOver, _, _) => Health::HandingOver,
            (Presence::Here, true, _) => Health::Stuck,
            (Presence::Here, false, true) => Health::Distrusted,
            (Presence::Here, false, false) => Health::Ready,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const NANOSECOND: Duration = Duration::from_nanos(1);

    fn working(progress: u64) -> Load {
        Load { running_requests: 1, progress, ..Load::default() }
    }

    #[test]
    fn work_without_progress_makes_a_replica_stuck_until_it_moves() {
        let mut progress = Progress::default();
        assert_eq!(progress.observe(SECOND, &working(5)), Health::Ready);
        assert_eq!(progress.observe(SECOND + STUCK_AFTER - NANOSECOND, &working(5)), Health::Ready);
        assert_eq!(progress.observe(SECOND + STUCK_AFTER, &working(5)), Health::Stuck);
        assert_eq!(progress.observe(10 * SECOND, &working(5)), Health::Stuck);
        assert_eq!(progress.stands_still_for(10 * SECOND), 9 * SECOND);
        assert_eq!(progress.observe(10 * SECOND, &working(6)), Health::Ready);
    }

    #[test]
    fn a_hang_is_seen_within_two_seconds_and_a_long_step_that_gets_on_never_is() {
        assert!(STUCK_AFTER + LOOK_EVERY < 2 * SECOND);
        let mut progress = Progress::default();
        for look in 0..1000_u32 {
            // The count moves with every task of every op.
            assert_eq!(progress.observe(LOOK_EVERY * look, &working(u64::from(look / 5))), Health::Ready);
        }
    }

    #[test]
    fn an_idle_replica_is_ready_however_long_nobody_looked() {
        let mut progress = Progress::default();
        let idle = Load { progress: 5, ..Load::default() };
        assert_eq!(progress.observe(SECOND, &idle), Health::Ready);
        assert_eq!(progress.observe(1000 * SECOND, &idle), Health::Ready);
        assert_eq!(progress.observe(2000 * SECOND, &working(5)), Health::Ready, "its first step has only begun");
        assert_eq!(progress.observe(2000 * SECOND + STUCK_AFTER, &working(5)), Health::Stuck, "and never got on");
    }

    #[test]
    fn a_replica_is_distrusted_until_its_failures_are_long_ago() {
        let mut progress = Progress::default();
        let failing = Load { distrusted_until: Some(60 * SECOND), ..Load::default() };
        assert_eq!(progress.observe(59 * SECOND, &failing), Health::Distrusted);
        assert_eq!(progress.observe(60 * SECOND, &failing), Health::Ready);
    }

    #[test]
    fn requests_go_to_ready_and_distrusted_replicas_only() {
        let all = [Health::Ready, Health::Distrusted, Health::Stuck, Health::Resting, Health::Closed];
        assert_eq!(all.map(Health::serves), [true, true, false, false, false]);
    }
}
