//! Who may enter. The bounds are checked where a request is submitted, so that a full queue refuses at once; the engine
//! gives the room back through the [`Ticket`] that each sequence holds.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::error::SubmitError;

#[derive(Debug)]
pub(crate) struct Admission {
    bounds: AdmissionBounds,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct AdmissionBounds {
    pub(crate) max_waiting_requests: usize,
    pub(crate) max_waiting_tokens: usize,
    /// Running or parked.
    pub(crate) max_running_requests: usize,
}

/// An engine only moves forward through these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum Phase {
    #[default]
    Open,
    /// Admits nothing; what was admitted finishes.
    Draining,
    /// What was admitted is failed.
    Stopping,
    Dead,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Occupancy {
    pub(crate) waiting_requests: usize,
    pub(crate) waiting_tokens: usize,
    /// Waiting, running or parked.
    pub(crate) live_requests: usize,
}

/// One live request's place. Given back when dropped.
#[derive(Debug)]
#[must_use = "the place is given back when this is dropped"]
pub(crate) struct Ticket {
    admission: Arc<Admission>,
    prompt_tokens: usize,
    is_queued: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    occupancy: Occupancy,
}

impl Admission {
    pub(crate) fn new(bounds: AdmissionBounds) -> Self {
        Self { bounds, state: Mutex::default() }
    }

    pub(crate) fn enter(self: &Arc<Self>, prompt_tokens: usize) -> Result<Ticket, SubmitError> {
        let mut state = self.lock();
        match state.phase {
            Phase::Open => {}
            Phase::Draining | Phase::Stopping => return Err(SubmitError::ShuttingDown),
            Phase::Dead => return Err(SubmitError::Dead),
        }
        let bounds = &self.bounds;
        let Occupancy { waiting_requests, waiting_tokens, .. } = state.occupancy;
        // A prompt longer than the bound may still enter an empty queue: it would otherwise never be served.
        let no_room = waiting_requests > 0 && waiting_tokens + prompt_tokens > bounds.max_waiting_tokens;
        if bounds.are_reached_by(state.occupancy) || no_room {
            return Err(SubmitError::Full { waiting_requests, waiting_tokens });
        }
        state.occupancy.waiting_requests += 1;
        state.occupancy.waiting_tokens += prompt_tokens;
        state.occupancy.live_requests += 1;
        Ok(Ticket { admission: Arc::clone(self), prompt_tokens, is_queued: AtomicBool::new(true) })
    }

    pub(crate) fn advance(&self, phase: Phase) {
        let mut state = self.lock();
        state.phase = state.phase.max(phase);
    }

    pub(crate) fn phase(&self) -> Phase {
        self.lock().phase
    }

    /// Nobody may enter now, however short the prompt.
    pub(crate) fn is_full(&self) -> bool {
        self.bounds.are_reached_by(self.occupancy())
    }

    /// Nothing will ever run again.
    pub(crate) fn is_dead(&self) -> bool {
        self.phase() == Phase::Dead
    }

    /// Nothing waits, runs or is parked.
    pub(crate) fn is_idle(&self) -> bool {
        self.occupancy().live_requests == 0
    }

    /// Why somebody who was admitted is not taken in: there is a place for every ticket, so the engine is gone.
    pub(crate) fn refusal(&self) -> SubmitError {
        if self.is_dead() { SubmitError::Dead } else { SubmitError::ShuttingDown }
    }

    pub(crate) fn occupancy(&self) -> Occupancy {
        self.lock().occupancy
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds the admission state")
    }
}

impl AdmissionBounds {
    fn are_reached_by(&self, occupancy: Occupancy) -> bool {
        let Occupancy { waiting_requests, live_requests, .. } = occupancy;
        let most_live = self.max_waiting_requests + self.max_running_requests;
        waiting_requests >= self.max_waiting_requests || live_requests >= most_live
    }
}

impl Ticket {
    /// The request waits for the engine, and has done so from the start.
    pub(crate) fn is_queued(&self) -> bool {
        self.is_queued.load(Ordering::Relaxed)
    }

    /// The request waits for the engine no longer. Once is enough.
    pub(crate) fn leave_queue(&self) {
        if self.is_queued.swap(false, Ordering::Relaxed) {
            let mut state = self.admission.lock();
            state.occupancy.waiting_requests -= 1;
            state.occupancy.waiting_tokens -= self.prompt_tokens;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.leave_queue();
        self.admission.lock().occupancy.live_requests -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EngineConfig;

    fn admission() -> Arc<Admission> {
        let config = EngineConfig { max_waiting_requests: 3, max_waiting_tokens: 10, ..EngineConfig::default() };
        Arc::new(Admission::new(config.admission()))
    }

    #[test]
    fn a_full_queue_refuses_by_count_and_by_tokens_and_room_comes_back() {
        let admission = admission();
        let first = admission.enter(6).unwrap();
        assert_eq!(admission.enter(5).unwrap_err(), SubmitError::Full { waiting_requests: 1, waiting_tokens: 6 });
        first.leave_queue();
        let second = admission.enter(5).unwrap();
        let _third = (admission.enter(1).unwrap(), admission.enter(1).unwrap());
        assert_eq!(admission.enter(1).unwrap_err(), SubmitError::Full { waiting_requests: 3, waiting_tokens: 7 });
        assert!(admission.is_full());
        drop(second);
        assert!(!admission.is_full());
        drop(first);
        assert_eq!(admission.occupancy().live_requests, 2);
        assert_eq!(admission.occupancy().waiting_tokens, 2);
    }

    #[test]
    fn an_empty_queue_takes_a_prompt_above_the_token_bound() {
        assert!(admission().enter(11).is_ok());
    }

    #[test]
    fn parked_requests_count_though_they_neither_wait_nor_run() {
        let config = EngineConfig { max_waiting_requests: 2, max_num_seqs: 1, ..EngineConfig::default() };
        let admission = Arc::new(Admission::new(config.admission()));
        let started = || {
            let ticket = admission.enter(1).unwrap();
            ticket.leave_queue();
            ticket
        };
        let _parked = [started(), started(), started()];
        assert_eq!(admission.enter(1).unwrap_err(), SubmitError::Full { waiting_requests: 0, waiting_tokens: 0 });
    }

    #[test]
    fn phases_only_move_forward() {
        let admission = admission();
        admission.advance(Phase::Stopping);
        admission.advance(Phase::Draining);
        assert_eq!(admission.phase(), Phase::Stopping);
        assert_eq!(admission.enter(1).unwrap_err(), SubmitError::ShuttingDown);
    }
}
