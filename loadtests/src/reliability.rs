//! Promises under abuse. Each check states a promise, tries to break it, and ends with a [`Verdict`].

mod billed;
pub mod bombs;
pub mod disconnects;
pub mod full_disk;
pub mod idle_connections;
pub mod ledger;
pub mod long_prompts;
pub mod neighbour;
pub mod overload;
pub mod poison;
pub mod rolling_restart;
pub mod slow_readers;
pub mod soak;
pub mod storm;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::arrivals::Arrivals;
use crate::clock::now;
use crate::figures::{Figures, RunFigures, short};
use crate::generate::{Call, Route, generate};
use crate::http::{Connect, HttpError};
use crate::lengths::Lengths;
use crate::metrics_page::{MetricsPage, Occupancy};
use crate::plan::{BodyTemplate, Plan, PlanError};
use crate::record::{Ending, Expect};
use crate::rng::Rng;
use crate::run::{Run, RunOptions, run};
use crate::scenario::{Leave, Objectives, RequestFields, Scenario, Traffic, Workload};
use crate::session::Session;
use crate::tokens::TokensError;
use crate::verdict::Verdict;

const POLL_EVERY: Duration = Duration::from_millis(50);
const PROBE_TIMEOUT: Duration = Duration::from_secs(60);
const REQUEST_TIMEOUT_S: f64 = 300.0;

/// What a check works with.
#[derive(Debug)]
pub struct Context<'a, C: Connect> {
    pub session: &'a Session<C>,
    pub options: CheckOptions,
    /// On this machine, where it is known.
    pub server_pid: Option<u32>,
    /// How many phases there were: each has words of its own, or a server's prefix cache would help the later ones.
    num_phases: AtomicU64,
}

#[derive(Debug, Clone)]
pub struct CheckOptions {
    /// Of each phase of a check.
    pub duration: Duration,
    /// Users at once, where a check has a fixed number.
    pub users: u32,
    /// Requests per second of the users who should not notice.
    pub rate: f64,
    /// How many times what it can do an overloaded server is asked, one after the other.
    pub factors: Vec<f64>,
    pub connections: usize,
    /// How long a connection may be idle and is not closed.
    pub kept: Duration,
    /// What counts as served in time.
    pub objectives: Objectives,
    pub lengths: ChatLengths,
    /// How long a server may take to let go of what nobody waits for.
    pub settle: Duration,
    /// How much worse others may fare.
    pub max_ratio: f64,
    /// Of those whose prompts hold others up.
    pub long_prompt_tokens: u32,
    /// Between two tokens of a stream beside them.
    pub max_added_ms: f64,
    pub run: RunOptions,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChatLengths {
    pub prompt_tokens: u32,
    pub output_tokens: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Tokens(#[from] TokensError),
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error("the check cannot be made: {0}")]
    CannotTry(String),
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(20),
            users: 16,
            rate: 1.0,
            factors: vec![2.0, 4.0, 10.0],
            connections: 10_000,
            kept: Duration::from_secs(25),
            objectives: Objectives { ttft_ms: Some(5000.0), tpot_ms: Some(250.0), e2e_ms: None },
            lengths: ChatLengths { prompt_tokens: 64, output_tokens: 48 },
            settle: Duration::from_secs(2),
            max_ratio: 3.0,
            long_prompt_tokens: 1500,
            max_added_ms: 250.0,
            run: RunOptions::default(),
        }
    }
}

impl<'a, C: Connect> Context<'a, C> {
    pub fn new(session: &'a Session<C>, options: CheckOptions, server_pid: Option<u32>) -> Self {
        Self { session, options, server_pid, num_phases: AtomicU64::new(0) }
    }

    /// One kind of chat for the phase's duration.
    fn chats(&self, name: &str, arrivals: Arrivals, lengths: ChatLengths) -> Traffic {
        Traffic {
            name: name.to_owned(),
            tenant: None,
            arrivals,
            requests: None,
            workload: Workload::Chat {
                prompt_tokens: Lengths::fixed(lengths.prompt_tokens),
                output_tokens: Lengths::fixed(lengths.output_tokens),
            },
            request: RequestFields { temperature: Some(0.0), ignore_eos: true, ..RequestFields::default() },
            leave: None,
        }
    }

    fn scenario(&self, traffic: Vec<Traffic>) -> Scenario {
        let names: Vec<&str> = traffic.iter().map(|traffic| traffic.name.as_str()).collect();
        Scenario {
            // Words hang on it, and on the phase, so that checks find little of each other in a prefix cache.
            description: names.join(", "),
            duration_s: self.options.duration.as_secs_f64(),
            warmup_s: 0.0,
            seed: 1,
            wording: self.num_phases.fetch_add(1, Ordering::Relaxed),
            timeout_s: REQUEST_TIMEOUT_S,
            rate_scale: 1.0,
            objectives: self.options.objectives,
            traffic,
        }
    }

    async fn run(&self, traffic: Vec<Traffic>) -> Result<(Plan, Run, RunFigures), CheckError> {
        let plan = self.plan(traffic).await?;
        let (run, figures) = self.carry_out(&plan).await;
        Ok((plan, run, figures))
    }

    async fn plan(&self, traffic: Vec<Traffic>) -> Result<Plan, CheckError> {
        Ok(self.session.plan_watched(&self.scenario(traffic), &self.options.run.progress).await?)
    }

    async fn carry_out(&self, plan: &Plan) -> (Run, RunFigures) {
        let done = run(&self.session.client, plan, &self.options.run).await;
        let figures = RunFigures::of(&done, plan);
        (done, figures)
    }

    /// The promise includes that the server still serves: one short chat, by a stranger.
    async fn require_alive(&self, verdict: &mut Verdict, when: &str) {
        self.session.client.forget_idle();
        match self.probe(PROBE_TIMEOUT).await {
            Ok(call) => {
                let ending = generate(&self.session.client, &call).await.ending;
                match ending {
                    Ending::Failed(kind) if kind.is_of_generator() => {
                        verdict.cannot_tell(format!("whether it serves {when}: {}", kind.name()));
                    }
                    _ => verdict.require(ending == Ending::Finished, || format!("{when} a chat ends with {ending:?}")),
                }
            }
            Err(error) => verdict.require(false, || format!("{when} no chat can be asked: {error}")),
        }
    }

    /// A short chat that shows whether the server serves.
    async fn probe(&self, timeout: Duration) -> Result<Call, CheckError> {
        let call = self.call(ChatLengths { prompt_tokens: 8, output_tokens: 4 }, 0).await?;
        Ok(Call { timeout, ..call })
    }

    /// A chat outside of any scenario.
    async fn call(&self, lengths: ChatLengths, seed: u64) -> Result<Call, CheckError> {
        let prompt = self.session.maker.text(lengths.prompt_tokens, &mut Rng::new(seed)).await?;
        let fields = RequestFields { temperature: Some(0.0), ignore_eos: true, ..RequestFields::default() };
        let template = BodyTemplate::new(&self.session.target, &fields);
        let message = serde_json::json!({"role": "user", "content": prompt});
        Ok(Call {
            route: Route::Chat,
            body: template.chat(&[message], lengths.output_tokens),
            api_key: self.session.target.keys.of(None)?,
            leave_after: None,
            timeout: Duration::from_secs_f64(REQUEST_TIMEOUT_S),
            expect: Expect::Answer,
        })
    }

    async fn occupancy(&self) -> Result<Occupancy, CheckError> {
        let key = self.session.target.keys.of(None)?;
        let page = MetricsPage::fetch(&self.session.client, key.as_deref()).await.unwrap_or_default();
        let occupancy = page.occupancy();
        if occupancy.is_known() {
            Ok(occupancy)
        } else {
            Err(CheckError::CannotTry("/metrics tells neither running sequences nor used KV blocks".to_owned()))
        }
    }

    /// How long until nothing is held any more, and what was held at last.
    async fn settle(&self) -> Result<(Duration, Occupancy), CheckError> {
        let start = now();
        loop {
            let occupancy = self.occupancy().await?;
            let waited = start.elapsed();
            if occupancy.is_idle() || waited > self.options.settle {
                return Ok((waited, occupancy));
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    }
}

/// A share of users who leave.
fn leaving(share: f64, after_events: u32) -> Option<Leave> {
    Some(Leave { share, after_events })
}

/// How many requests failed by the server. Those that this program itself did not send tell nothing of it, and the verdict
/// says so.
fn failures(verdict: &mut Verdict, figures: &Figures) -> u64 {
    let own = figures.own_errors;
    if own > 0 {
        let errors = &figures.errors;
        verdict.cannot_tell(format!("what became of {own} requests that this program could not send: {errors:?}"));
    }
    figures.error_count() - own
}

/// Where nobody was answered, what was to be judged did not happen.
fn require_answers(figures: &Figures) -> Result<(), CheckError> {
    if figures.finished > 0 {
        return Ok(());
    }
    let (refused, errors) = (&figures.refused, &figures.errors);
    Err(CheckError::CannotTry(format!("no request was answered; refused: {refused:?}, errors: {errors:?}")))
}

fn milliseconds(value: Option<f64>) -> String {
    value.map_or_else(|| "none".to_owned(), |value| format!("{} ms", short(value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::ErrorKind;
    use crate::verdict::Outcome;

    #[test]
    fn a_check_whose_requests_are_all_refused_says_how() {
        let refused = [("401 invalid_api_key".to_owned(), 7)].into();
        let error = require_answers(&Figures { requests: 7, refused, ..Figures::default() }).unwrap_err();
        assert!(error.to_string().contains("\"401 invalid_api_key\": 7"), "{error}");
        assert!(require_answers(&Figures { requests: 7, finished: 1, ..Figures::default() }).is_ok());
    }

    #[test]
    fn what_this_program_could_not_send_is_no_failure_of_the_server() {
        let figures = |unsent: u64, cut: u64| {
            let errors = [(ErrorKind::NotSent.name(), unsent), (ErrorKind::StreamCut.name(), cut)].into();
            Figures { requests: 9, own_errors: unsent, errors, ..Figures::default() }
        };
        let judged = |figures: Figures| {
            let mut verdict = Verdict::new("example", "it answers everybody");
            (failures(&mut verdict, &figures), verdict.outcome())
        };
        assert_eq!(judged(figures(0, 1)), (1, Outcome::Holds), "the caller says what it makes of it");
        assert_eq!(judged(figures(3, 1)), (1, Outcome::CannotTell));
    }
}
