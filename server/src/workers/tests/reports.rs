//! How much a worker's word on its steps counts for.

use super::*;
use crate::workers::link::Link;
use crate::workers::tap::MAX_REPORTS;

const SECOND: Duration = Duration::from_secs(1);
/// That no step takes.
const NEVER: Duration = Duration::from_nanos(u64::MAX);
/// When the worker comes.
const BEGAN: Duration = Duration::from_secs(100);

/// How long the steps took, as far as the gateway believes it.
#[derive(Debug, Default)]
struct Believed(Mutex<Vec<Duration>>);

impl StepObserver for Believed {
    fn step(&self, report: &StepReport) {
        self.0.lock().unwrap().push(report.duration);
    }
}

struct Listener {
    link: Link,
    believed: Arc<Believed>,
}

impl Listener {
    fn new() -> Self {
        let believed = Arc::<Believed>::default();
        let observer: Arc<dyn StepObserver> = Arc::<Believed>::clone(&believed);
        Self { link: Link::new(facts("a", None), vec![observer], BEGAN), believed }
    }

    /// One message, so long after the worker came.
    fn hear<const N: usize>(&self, after: Duration, durations: [Duration; N]) -> Vec<Duration> {
        let report = |duration| StepReport { duration, num_sequences: 1, ..StepReport::default() };
        self.hear_all(after, durations.map(report))
    }

    fn hear_all(&self, after: Duration, reports: impl IntoIterator<Item = StepReport>) -> Vec<Duration> {
        let reports = reports.into_iter().map(wire::Report::from).collect();
        self.link.hear(wire::Step { reports, ..wire::Step::default() }, BEGAN + after).expect("it makes sense");
        std::mem::take(&mut *self.believed.0.lock().unwrap())
    }

    fn step_ns(&self) -> u64 {
        self.link.occupancy(0).1.pace.step_ns
    }
}

#[test]
fn steps_are_believed_to_last_no_longer_than_the_time_that_none_was_told_of() {
    let gateway = Listener::new();
    assert_eq!(gateway.hear(2 * SECOND, [NEVER]), [2 * SECOND]);
    assert_eq!(gateway.step_ns(), 2_000_000_000, "nor is its pace another");
    assert_eq!(gateway.hear(2 * SECOND, [NEVER, SECOND]), [Duration::ZERO; 2], "the same time again");
    assert_eq!(gateway.hear(3 * SECOND, [NEVER; 3]), [SECOND, Duration::ZERO, Duration::ZERO]);
}

#[test]
fn an_honest_worker_s_steps_are_kept_as_they_are_also_when_messages_are_late() {
    let gateway = Listener::new();
    assert_eq!(gateway.hear(3 * SECOND, [SECOND, SECOND / 2]), [SECOND, SECOND / 2]);
    // Of a step that ended long before, and of the next one at once.
    assert_eq!(gateway.hear(20 * SECOND, [SECOND]), [SECOND]);
    assert_eq!(gateway.hear(20 * SECOND, [9 * SECOND]), [9 * SECOND]);
    // What fails beside a long step tells of no work.
    let failed = StepReport { failures: FaultCounts::of(Fault::Worker, 1), ..StepReport::default() };
    assert_eq!(gateway.hear_all(70 * SECOND, [failed]), [Duration::ZERO]);
    assert_eq!(gateway.hear(80 * SECOND, [60 * SECOND]), [60 * SECOND]);
}

#[test]
fn a_worker_that_was_idle_has_no_hours_to_tell_of_later() {
    let gateway = Listener::new();
    assert_eq!(gateway.hear(3600 * SECOND, [SECOND]), [SECOND]);
    assert_eq!(gateway.hear(3601 * SECOND, [NEVER]), [31 * SECOND], "as late as a message may be");
}

#[test]
fn a_worker_that_tells_of_more_steps_at_once_than_one_can_is_sent_away() {
    let gateway = Listener::new();
    let step = |count| wire::Step { reports: vec![wire::Report::default(); count], ..wire::Step::default() };
    assert_eq!(gateway.link.hear(step(MAX_REPORTS), BEGAN), Ok(()));
    let refused = gateway.link.hear(step(MAX_REPORTS + 1), BEGAN);
    assert_eq!(refused, Err(wire::Malformed("reports").into()));
}
