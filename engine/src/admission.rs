//! Who may enter. The bounds are checked where a request is submitted, so that a full queue refuses at once; the engine
//! gives the room back through the [`Ticket`] that each sequence holds.

use std::sync::{Arc, Mutex, MutexGuard};

use crate::config::EngineConfig;
use crate::error::SubmitError;

#[derive(Debug)]
pub(crate) struct Admission {
    max_waiting_requests: usize,
    max_waiting_tokens: usize,
    state: Mutex<State>,
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
    /// Waiting or running.
    pub(crate) live_requests: usize,
}

/// One live request's place. Given back when dropped.
#[derive(Debug)]
#[must_use = "the place is given back when this is dropped"]
pub(crate) struct Ticket {
    admission: Arc<Admission>,
    /// `None` once the request has left the queue.
    waiting_tokens: Option<usize>,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    occupancy: Occupancy,
}

impl Admission {
    pub(crate) fn new(config: &EngineConfig) -> Self {
        Self {
            max_waiting_requests: config.max_waiting_requests,
            max_waiting_tokens: config.max_waiting_tokens,
            state: Mutex::default(),
        }
    }

    pub(crate) fn enter(self: &Arc<Self>, prompt_tokens: usize) -> Result<Ticket, SubmitError> {
        let mut state = self.lock();
        match state.phase {
            Phase::Open => {}
            Phase::Draining | Phase::Stopping => return Err(SubmitError::ShuttingDown),
            Phase::Dead => return Err(SubmitError::Dead),
        }
        let Occupancy { waiting_requests, waiting_tokens, .. } = state.occupancy;
        // A prompt longer than the bound may still enter an empty queue: it would otherwise never be served.
        let no_room = waiting_requests > 0 && waiting_tokens + prompt_tokens > self.max_waiting_tokens;
        if waiting_requests >= self.max_waiting_requests || no_room {
            return Err(SubmitError::Full { waiting_requests, waiting_tokens });
        }
        state.occupancy.waiting_requests += 1;
        state.occupancy.waiting_tokens += prompt_tokens;
        state.occupancy.live_requests += 1;
        Ok(Ticket { admission: Arc::clone(self), waiting_tokens: Some(prompt_tokens) })
    }

    pub(crate) fn advance(&self, phase: Phase) {
        let mut state = self.lock();
        state.phase = state.phase.max(phase);
    }

    pub(crate) fn phase(&self) -> Phase {
        self.lock().phase
    }

    pub(crate) fn occupancy(&self) -> Occupancy {
        self.lock().occupancy
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds the admission state")
    }
}

impl Ticket {
    /// The request waits for its first step.
    pub(crate) fn is_queued(&self) -> bool {
        self.waiting_tokens.is_some()
    }

    /// The request is about to have its first step. False if it had it before; then nothing changes.
    pub(crate) fn leave_queue(&mut self) -> bool {
        let Some(tokens) = self.waiting_tokens.take() else { return false };
        let mut state = self.admission.lock();
        state.occupancy.waiting_requests -= 1;
        state.occupancy.waiting_tokens -= tokens;
        true
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

    fn admission() -> Arc<Admission> {
        let config = EngineConfig { max_waiting_requests: 3, max_waiting_tokens: 10, ..EngineConfig::default() };
        Arc::new(Admission::new(&config))
    }

    #[test]
    fn a_full_queue_refuses_by_count_and_by_tokens_and_room_comes_back() {
        let admission = admission();
        let mut first = admission.enter(6).unwrap();
        assert_eq!(admission.enter(5).unwrap_err(), SubmitError::Full { waiting_requests: 1, waiting_tokens: 6 });
        first.leave_queue();
        let second = admission.enter(5).unwrap();
        let _third = (admission.enter(1).unwrap(), admission.enter(1).unwrap());
        assert_eq!(admission.enter(1).unwrap_err(), SubmitError::Full { waiting_requests: 3, waiting_tokens: 7 });
        drop(second);
        drop(first);
        assert_eq!(admission.occupancy().live_requests, 2);
        assert_eq!(admission.occupancy().waiting_tokens, 2);
    }

    #[test]
    fn an_empty_queue_takes_a_prompt_above_the_token_bound() {
        assert!(admission().enter(11).is_ok());
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
