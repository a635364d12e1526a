//! One worker's stream, at the gateway's end.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use passerelle_engine::{Fault, FaultCounts, StepObserver, StepReport};
use tokio::sync::{Notify, mpsc};
use tonic::Status;

use super::calls::{Calls, Job, Occupancy};
use super::facts::{OfferedModel, WorkerFacts};
use super::tap::MAX_REPORTS;
use super::wire::{self, FromGateway, Goodbye, Malformed, Report, Step, Violation, from_gateway, nanoseconds};
use crate::gateway::Load;

/// Steps that count for how long a step takes.
const STEPS_OF_LATE: u64 = 8;

/// A worker's word arrives so soon, or it has given its gateway up: if one came late, what the next one tells of may have
/// lasted so much longer than the time between the two.
const LATEST_WORD: Duration = Duration::from_secs(30);

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
    told: Vec<ToldUntil>,
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

/// Up to when a model is told to have computed, on the gateway's clock. It does one step after the other, so what a message
/// tells of lasts no longer than the time that none has told of, whatever a broken worker says: its pace, the histogram of
/// steps and the use of a partition's hours are reckoned from it.
#[derive(Debug, Clone, Copy)]
struct ToldUntil(Duration);

impl ToldUntil {
    fn bound(&mut self, reports: &mut [Report], now: Duration) {
        for report in reports.iter_mut() {
            let duration = Duration::from_nanos(report.duration_ns).min(now.saturating_sub(self.0));
            self.0 += duration;
            report.duration_ns = nanoseconds(duration);
        }
        // A failure may be told of while a long step runs: only what tells of work ends the time before it.
        if reports.iter().any(|report| report.num_sequences > 0) {
            self.0 = self.0.max(now.saturating_sub(LATEST_WORD));
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
        let (reported, told) = (vec![Reported::default(); num_models], vec![ToldUntil(now); num_models]);
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
        if step.reports.len() > MAX_REPORTS {
            return Err(Malformed("reports").into());
        }
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
