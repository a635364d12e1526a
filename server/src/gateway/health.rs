//! Whether a replica gets anywhere, read from its own step counter and not from what it says of itself.

use std::time::Duration;

use super::replica::Load;

/// A replica with work that finishes no step for this long is passed over while another one is ready.
pub const SLOW_AFTER: Duration = Duration::from_secs(2);
/// For this long: it hangs. Until then it may be a long prompt on few cores, and a lone replica goes on serving.
pub const STALLED_AFTER: Duration = Duration::from_secs(120);

/// Better ones first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    Ready,
    /// It has work and finished no step for [`SLOW_AFTER`]; it is ready again at the next finished step.
    Slow,
    /// The same for [`STALLED_AFTER`]. Gets no requests.
    Stalled,
    /// An upstream that failed, or that asked for a pause. Gets no requests until its rest is over.
    Resting,
    /// It takes no more requests, ever.
    Closed,
}

/// What was seen of a replica so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    steps: u64,
    /// Since when it was seen with work and without a finished step.
    waiting_since: Option<Duration>,
}

impl Health {
    /// Whether requests may go there at all.
    pub fn serves(self) -> bool {
        self <= Self::Slow
    }
}

impl Progress {
    pub fn observe(&mut self, now: Duration, load: &Load) -> Health {
        if load.steps != self.steps || !load.has_work() {
            self.steps = load.steps;
            self.waiting_since = load.has_work().then_some(now);
            return Health::Ready;
        }
        let since = *self.waiting_since.get_or_insert(now);
        match now.saturating_sub(since) {
            waited if waited >= STALLED_AFTER => Health::Stalled,
            waited if waited >= SLOW_AFTER => Health::Slow,
            _ => Health::Ready,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const NANOSECOND: Duration = Duration::from_nanos(1);

    fn working(steps: u64) -> Load {
        Load { running_requests: 1, steps, ..Load::default() }
    }

    #[test]
    fn work_without_a_step_makes_a_replica_slow_then_stalled_until_the_next_step() {
        let mut progress = Progress::default();
        assert_eq!(progress.observe(SECOND, &working(5)), Health::Ready);
        assert_eq!(progress.observe(SECOND + SLOW_AFTER - NANOSECOND, &working(5)), Health::Ready);
        assert_eq!(progress.observe(SECOND + SLOW_AFTER, &working(5)), Health::Slow);
        assert_eq!(progress.observe(SECOND + STALLED_AFTER - NANOSECOND, &working(5)), Health::Slow);
        assert_eq!(progress.observe(SECOND + STALLED_AFTER, &working(5)), Health::Stalled);
        assert_eq!(progress.observe(SECOND + STALLED_AFTER, &working(6)), Health::Ready);
        assert_eq!(progress.observe(2 * SECOND + STALLED_AFTER, &working(6)), Health::Ready);
    }

    #[test]
    fn an_idle_replica_is_ready_however_long_nobody_looked() {
        let mut progress = Progress::default();
        let idle = Load { steps: 5, ..Load::default() };
        assert_eq!(progress.observe(SECOND, &idle), Health::Ready);
        assert_eq!(progress.observe(1000 * SECOND, &idle), Health::Ready);
        assert_eq!(progress.observe(2000 * SECOND, &working(5)), Health::Ready, "its first step has only begun");
    }

    #[test]
    fn requests_go_to_ready_and_slow_replicas_only() {
        let all = [Health::Ready, Health::Slow, Health::Stalled, Health::Resting, Health::Closed];
        assert_eq!(all.map(Health::serves), [true, true, false, false, false]);
    }
}
