//! One worker's stream, at the gateway's end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use passerelle_engine::{Fault, FaultCounts, StepObserver, StepReport};
use tokio::sync::{Notify, mpsc};
use tonic::Status;

use super::calls::{Calls, Job, Occupancy};
use super::facts::{OfferedModel, WorkerFacts};
use super::wire::{self, FromGateway, Goodbye, Report, Step, Violation, from_gateway, nanoseconds};
use crate::gateway::Load;

/// Steps that count for how long a step takes.
const STEPS_OF_LATE: u64 = 8;

/// How far the clocks of a gateway and a worker may be apart in what they measured of the same time.
const CLOCKS_APART: Duration = Duration::from_secs(1);

/// The requests of one worker, from both sides: whoever submits, and the stream.
pub(super) struct Link {
    facts: WorkerFacts,
    /// Hear the steps of the worker's models, in its order.
    observers: Vec<Arc<dyn StepObserver>>,
    bell: Arc<Notify>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    calls: Calls,
    /// As last reported, of each model.
    reported: Vec<Reported>,
    /// Of each model as well.
    told: Vec<TimeTold>,
    phase: Phase,
    /// When the worker said something last, on the gateway's clock.
    heard_at: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Open,
    /// Takes nothing new; the worker is told once everything is sent.
    Leaving,
    /// The worker was told; it finishes what it has.
    ToldGoodbye,
    Closed,
}

/// Its worker leaves, or is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NotTaken;

/// How a worker went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parting {
    Announced,
    Lost,
}

/// What a model of the worker reported last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Reported {
    pub(super) progress: u64,
    pub(super) distrusted_ns: u64,
    pub(super) pace: Pace,
}

/// How long a model is told to have computed. It does one step after the other, so all of them together last no longer than
/// its link, whatever a broken worker says: the use of a partition's hours is reckoned from it.
#[derive(Debug, Clone, Copy)]
struct TimeTold {
    link_began: Duration,
    in_all: Duration,
}

impl TimeTold {
    fn since(link_began: Duration) -> Self {
        Self { link_began, in_all: Duration::ZERO }
    }

    fn bound(&mut self, reports: &mut [Report], now: Duration) {
        for Report { duration_ns, .. } in reports {
            let left = (now.saturating_sub(self.link_began) + CLOCKS_APART).saturating_sub(self.in_all);
            let duration = Duration::from_nanos(*duration_ns).min(left);
            self.in_all += duration;
            *duration_ns = nanoseconds(duration);
        }
    }
}

/// Of a model's steps, of late; 0 before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Pace {
    pub(super) step_ns: u64,
    /// Of the steps that read prompts, and what they read: a late step counts for more than an early one.
    prompt_ns: u64,
    prompt_tokens: u64,
}

impl Pace {
    /// For so many tokens of prompts, in nanoseconds. Whatever else those steps did is in it.
    pub(super) fn reading_ns(self, tokens: usize) -> u64 {
        let takes = u128::from(self.prompt_ns) * tokens as u128 / u128::from(self.prompt_tokens.max(1));
        u64::try_from(takes).unwrap_or(u64::MAX)
    }
}

impl Reported {
    fn update(&mut self, load: Option<wire::Load>, reports: &[Report]) {
        if let Some(wire::Load { progress, distrusted_ns }) = load {
            (self.progress, self.distrusted_ns) = (progress, distrusted_ns);
        }
        for report in reports.iter().filter(|report| report.num_sequences > 0) {
            let pace = &mut self.pace;
            pace.step_ns = of_late(pace.step_ns, report.duration_ns);
            if report.prompt_tokens > 0 {
                pace.prompt_ns = faded(pace.prompt_ns).saturating_add(report.duration_ns);
                pace.prompt_tokens = faded(pace.prompt_tokens).saturating_add(report.prompt_tokens);
            }
        }
    }
}

fn faded(before: u64) -> u64 {
    before - before / STEPS_OF_LATE
}

fn of_late(before: u64, now: u64) -> u64 {
    match before {
        0 => now,
        before => faded(before).saturating_add(now / STEPS_OF_LATE),
    }
}

impl Link {
    /// `now`: when it has come, on the gateway's clock.
    pub(super) fn new(facts: WorkerFacts, observers: Vec<Arc<dyn StepObserver>>, now: Duration) -> Self {
        let num_models = facts.models.len();
        let (reported, told) = (vec![Reported::default(); num_models], vec![TimeTold::since(now); num_models]);
        let state = Mutex::new(State { calls: Calls::default(), reported, told, phase: Phase::Open, heard_at: now });
        Self { facts, observers, bell: Arc::default(), state }
    }

    pub(super) fn facts(&self) -> &WorkerFacts {
        &self.facts
    }

    pub(super) fn offered(&self, model: u32) -> Option<&OfferedModel> {
        self.facts.models.get(model as usize)
    }

    pub(super) fn occupancy(&self, model: u32) -> (Occupancy, Reported) {
        let state = self.lock();
        let reported = state.reported.get(model as usize).copied().unwrap_or_default();
        (state.calls.occupancy(model), reported)
    }

    /// Of each model, whether it has work and gets on with it.
    pub(super) fn loads(&self) -> Vec<Load> {
        let state = self.lock();
        let load = |(model, reported): (u32, &Reported)| {
            let Occupancy { waiting_requests, running_requests, .. } = state.calls.occupancy(model);
            let progress = reported.progress;
            Load { waiting_requests, running_requests, progress, ..Default::default() }
        };
        (0..).zip(&state.reported).map(load).collect()
    }

    /// The worker has said something.
    pub(super) fn note_sign_of_life(&self, now: Duration) {
        self.lock().heard_at = now;
    }

    /// How long the worker has said nothing.
    pub(super) fn silence(&self, now: Duration) -> Duration {
        now.saturating_sub(self.lock().heard_at)
    }

    /// Drops it where nothing new is taken.
    pub(super) fn add(&self, model: u32, job: Job) -> Result<(), NotTaken> {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return Err(NotTaken);
        }
        state.calls.add(model, job, &self.bell);
        drop(state);
        self.bell.notify_one();
        Ok(())
    }

    /// From now on nothing new is taken.
    pub(super) fn leave(&self) {
        let mut state = self.lock();
        state.phase = state.phase.max(Phase::Leaving);
        drop(state);
        self.bell.notify_one();
    }

    /// The stream has ended: what it had is lost.
    pub(super) fn close(&self) -> Parting {
        let mut state = self.lock();
        let parting = if state.phase == Phase::Open { Parting::Lost } else { Parting::Announced };
        state.phase = Phase::Closed;
        let lost = std::mem::take(&mut state.calls);
        drop(state);
        self.bell.notify_one();
        if !lost.is_empty() {
            tracing::warn!(partition = self.facts.partition, "a worker is gone, and with it what it ran");
        }
        for (model, observer) in (0..).zip(&self.observers) {
            let failures = FaultCounts::of(Fault::Worker, lost.num_of(model));
            if failures.total() > 0 {
                observer.step(&StepReport { failures, ..StepReport::default() });
            }
        }
        // Only now do its readers hear of it, so that whoever does finds it counted.
        drop(lost);
        parting
    }

    /// `now`: when it came, on the gateway's clock.
    pub(super) fn hear(&self, mut step: Step, now: Duration) -> Result<(), Violation> {
        let model = step.model as usize;
        let observer = self.observers.get(model).ok_or(Violation::UnknownModel)?;
        let mut state = self.lock();
        if state.phase == Phase::Closed {
            // It was on the way, and nobody waits for it.
            return Ok(());
        }
        if let Some(told) = state.told.get_mut(model) {
            told.bound(&mut step.reports, now);
        }
        if let Some(reported) = state.reported.get_mut(model) {
            reported.update(step.load, &step.reports);
        }
        step.heard.into_iter().try_for_each(|heard| state.calls.hear(heard))?;
        drop(state);
        step.reports.into_iter().for_each(|report| observer.step(&StepReport::from(report)));
        Ok(())
    }

    /// Sends what the worker is to know, until the link is closed or the stream gone.
    pub(super) async fn give_orders(&self, stream: mpsc::Sender<Result<FromGateway, Status>>) {
        while !self.is_closed() {
            self.bell.notified().await;
            loop {
                let Ok(place) = stream.reserve().await else { return };
                let Some(what) = self.next_message() else { break };
                place.send(Ok(FromGateway { what: Some(what) }));
            }
        }
    }

    fn next_message(&self) -> Option<from_gateway::What> {
        let mut state = self.lock();
        if let Some(orders) = state.calls.take_orders() {
            return Some(from_gateway::What::Orders(orders));
        }
        if state.phase == Phase::Leaving && !state.calls.has_unsent() {
            state.phase = Phase::ToldGoodbye;
            return Some(from_gateway::What::Goodbye(Goodbye { why: String::new() }));
        }
        None
    }

    fn is_closed(&self) -> bool {
        self.lock().phase == Phase::Closed
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("facts", &self.facts).field("state", &self.state).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn report(duration_ns: u64) -> Report {
        Report { duration_ns, ..Report::default() }
    }

    #[test]
    fn what_a_worker_says_that_it_computed_lasts_no_longer_than_its_link() {
        let began = Duration::from_secs(100);
        let mut told = TimeTold::since(began);
        let mut hear = |after: u64, durations: &[u64]| {
            let mut reports: Vec<_> = durations.iter().copied().map(report).collect();
            told.bound(&mut reports, began + Duration::from_secs(after));
            reports.iter().map(|report| report.duration_ns).collect::<Vec<_>>()
        };
        assert_eq!(hear(2, &[SECOND, SECOND / 2]), [SECOND, SECOND / 2], "a true word");
        assert_eq!(hear(3, &[u64::MAX, u64::MAX, 5]), [5 * SECOND / 2, 0, 0], "clocks may be a second apart");
        assert_eq!(hear(3, &[SECOND]), [0], "the same time again");
        assert_eq!(hear(9, &[SECOND, SECOND]), [SECOND, SECOND], "messages may come late, and then together");
    }
}
