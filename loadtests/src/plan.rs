//! What is sent, and when: made from a scenario before the first request leaves, so that the run itself only sends.

mod body;
mod poison;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::arrivals::Arrivals;
use crate::generate::Call;
use crate::http::Connect;
use crate::lengths::Lengths;
use crate::progress::Progress;
use crate::prompts::PromptMaker;
use crate::record::{Expect, Place};
use crate::rng::Rng;
use crate::scenario::{Objectives, Scenario, Traffic, Workload};
use crate::tokens::TokensError;
use crate::trace::{self, BLOCK_TOKENS, TraceError, TraceLine, TracePrompt};

pub use body::BodyTemplate;
pub use poison::poison_bodies;

/// A scenario's requests are at most so many: they are all made before the run.
pub const MAX_JOBS: usize = 200_000;
/// Different requests that are made for each closed user and second; who is answered sooner asks some again.
const CLOSED_RATE: f64 = 4.0;
/// More different requests than this are not made for closed users: making them takes time, too.
const MAX_CLOSED_SUPPLY: usize = 4096;

#[derive(Debug, Clone)]
pub struct Plan {
    pub traffic: Vec<TrafficLabel>,
    /// Sent at their times, in order.
    pub open: Vec<Job>,
    /// Sent by users who wait for their answers.
    pub closed: Vec<ClosedGroup>,
    pub warmup: Duration,
    /// No request is sent after it.
    pub duration: Duration,
    pub objectives: Objectives,
}

#[derive(Debug, Clone, PartialEq)]
pub struct TrafficLabel {
    pub name: String,
    pub tenant: Option<String>,
}

#[derive(Debug, Clone)]
pub struct ClosedGroup {
    pub concurrency: usize,
    pub jobs: Vec<Job>,
    pub supply: Supply,
}

/// What closed users do when all of their requests are asked.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Supply {
    /// They go: the scenario says how many requests there are.
    Once,
    /// They ask them again from the first, until the scenario's end.
    Again,
}

#[derive(Debug, Clone)]
pub struct Job {
    pub index: usize,
    pub traffic: usize,
    /// Zero where the arrivals are closed.
    pub at: Duration,
    pub script: Script,
}

impl Job {
    /// Of its first turn, when it is asked for the first time.
    pub(crate) fn place(&self, intended: Duration) -> Place {
        Place { index: self.index, lap: 0, turn: 0, traffic: self.traffic, intended }
    }
}

#[derive(Debug, Clone)]
pub enum Script {
    Single(Call),
    Conversation(Conversation),
}

#[derive(Debug, Clone)]
pub struct Conversation {
    /// What the user says at each turn, and how long the answer may be.
    pub turns: Vec<(String, u32)>,
    pub think: Duration,
    pub template: BodyTemplate,
    /// The call of each turn, but for its body.
    pub call: Call,
}

/// Whom the requests are for.
#[derive(Debug, Clone, Default)]
pub struct Target {
    pub model: String,
    pub keys: Keys,
}

/// API keys, by the names of tenants.
#[derive(Clone, Default)]
pub struct Keys {
    pub default: Option<String>,
    pub by_tenant: BTreeMap<String, String>,
}

#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error(transparent)]
    Tokens(#[from] TokensError),
    #[error("trace: {0}")]
    Trace(#[from] TraceError),
    #[error("the scenario would send more than {MAX_JOBS} requests; shorten it or lower its rates")]
    TooMany,
    #[error("tenant `{0}` has no key in the file of keys")]
    NoKey(String),
}

impl Keys {
    /// The key of `tenant`; without any keys at all everyone goes without.
    pub fn of(&self, tenant: Option<&str>) -> Result<Option<String>, PlanError> {
        match tenant.map(|tenant| (tenant, self.by_tenant.get(tenant))) {
            None => Ok(self.default.clone()),
            Some((_, Some(key))) => Ok(Some(key.clone())),
            Some((tenant, None)) if !self.by_tenant.is_empty() => Err(PlanError::NoKey(tenant.to_owned())),
            Some((_, None)) => Ok(self.default.clone()),
        }
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        let names: Vec<&String> = self.by_tenant.keys().collect();
        formatter.debug_struct("Keys").field("tenants", &names).finish_non_exhaustive()
    }
}

impl Plan {
    pub async fn make<C: Connect>(
        scenario: &Scenario,
        maker: &PromptMaker<C>,
        target: &Target,
        progress: &Progress,
    ) -> Result<Self, PlanError> {
        let label = |traffic: &Traffic| TrafficLabel { name: traffic.name.clone(), tenant: traffic.tenant.clone() };
        let mut plan = Self {
            traffic: scenario.traffic.iter().map(label).collect(),
            open: Vec::new(),
            closed: Vec::new(),
            warmup: Duration::from_secs_f64(scenario.warmup_s),
            duration: scenario.duration(),
            objectives: scenario.objectives,
        };
        for (index, traffic) in scenario.traffic.iter().enumerate() {
            let rng = Rng::for_part(scenario.seed, index as u64);
            // Where answers end when they will, other words are another load.
            let wording = if traffic.request.ignore_eos { scenario.wording } else { 0 };
            let words = Rng::for_part(scenario.seed, ((1 + wording) << 32) | index as u64);
            let labels = &mut plan.traffic;
            let prefixes = Vec::new();
            let mut planner =
                Planner { scenario, traffic, index, maker, target, progress, rng, words, prefixes, labels };
            let jobs = planner.jobs().await?;
            match traffic.arrivals.scaled(scenario.rate_scale) {
                Arrivals::Closed { concurrency } => {
                    let supply = if traffic.requests.is_some() { Supply::Once } else { Supply::Again };
                    plan.closed.push(ClosedGroup { concurrency: concurrency as usize, jobs, supply });
                }
                _ => plan.open.extend(jobs),
            }
            if plan.open.len() > MAX_JOBS {
                return Err(PlanError::TooMany);
            }
        }
        plan.number();
        Ok(plan)
    }

    /// Every job, whatever its arrival.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.open.iter().chain(self.closed.iter().flat_map(|group| &group.jobs))
    }

    /// Puts open jobs in the order of their times and numbers all.
    fn number(&mut self) {
        self.open.sort_by_key(|job| job.at);
        let closed = self.closed.iter_mut().flat_map(|group| &mut group.jobs);
        for (index, job) in self.open.iter_mut().chain(closed).enumerate() {
            job.index = index;
        }
    }
}

/// Makes the jobs of one entry of the traffic.
struct Planner<'a, C: Connect> {
    scenario: &'a Scenario,
    traffic: &'a Traffic,
    index: usize,
    maker: &'a PromptMaker<C>,
    target: &'a Target,
    progress: &'a Progress,
    /// Of times and lengths.
    rng: Rng,
    words: Rng,
    prefixes: Vec<String>,
    /// Those of the scenario's entries, then what a trace adds.
    labels: &'a mut Vec<TrafficLabel>,
}

impl<C: Connect> Planner<'_, C> {
    async fn jobs(&mut self) -> Result<Vec<Job>, PlanError> {
        if let Workload::Trace { file } = &self.traffic.workload {
            return self.jobs_of_trace(trace::read(file)?).await;
        }
        let arrivals = self.traffic.arrivals.scaled(self.scenario.rate_scale);
        let offsets = arrivals.offsets(self.scenario.duration(), &mut self.rng);
        let limit = self.traffic.requests.unwrap_or(MAX_JOBS + 1);
        let mut offsets = offsets.unwrap_or_else(|| {
            let supply = match arrivals {
                Arrivals::Closed { concurrency } => self.closed_supply(concurrency),
                _ => MAX_JOBS,
            };
            vec![Duration::ZERO; limit.min(supply)]
        });
        offsets.truncate(limit);
        if offsets.len() > MAX_JOBS {
            return Err(PlanError::TooMany);
        }
        let mut jobs = Vec::with_capacity(offsets.len());
        for (number, at) in offsets.into_iter().enumerate() {
            let script = self.script(number).await?;
            jobs.push(Job { index: 0, traffic: self.index, at, script });
            self.progress.count_prepared();
        }
        Ok(jobs)
    }

    /// How many different requests closed users get: all that the scenario says, or else as many as last for a while.
    fn closed_supply(&self, concurrency: u32) -> usize {
        if self.traffic.requests.is_some() {
            return MAX_JOBS;
        }
        let wanted = f64::from(concurrency) * (1.0 + self.scenario.duration_s * CLOSED_RATE);
        (wanted as usize).min(MAX_CLOSED_SUPPLY)
    }

    async fn script(&mut self, number: usize) -> Result<Script, PlanError> {
        let traffic = self.traffic;
        let template = self.template();
        let call = match &traffic.workload {
            Workload::Chat { prompt_tokens, output_tokens } => {
                let prompt = self.words(prompt_tokens).await?;
                let tokens = output_tokens.draw(&mut self.rng);
                self.call(template.chat(&[body::user(&prompt)], tokens))?
            }
            Workload::Completions { prompt_tokens, output_tokens, token_ids } => {
                let tokens = prompt_tokens.draw(&mut self.rng);
                let prompt = if *token_ids {
                    serde_json::json!(self.maker.ids(tokens, &mut self.words))
                } else {
                    self.maker.text(tokens, &mut self.words).await?.into()
                };
                let tokens = output_tokens.draw(&mut self.rng);
                self.call(template.completions(prompt, tokens))?
            }
            Workload::SharedPrefix { prefixes, prefix_tokens, prompt_tokens, output_tokens } => {
                while self.prefixes.len() < *prefixes {
                    self.prefixes.push(self.maker.text(*prefix_tokens, &mut self.words).await?);
                }
                let system = body::system(&self.prefixes[self.rng.below(*prefixes)]);
                let prompt = self.words(prompt_tokens).await?;
                let tokens = output_tokens.draw(&mut self.rng);
                self.call(template.chat(&[system, body::user(&prompt)], tokens))?
            }
            Workload::MultiTurn { turns, think_s, prompt_tokens, output_tokens } => {
                let mut said = Vec::with_capacity(*turns);
                for _ in 0..*turns {
                    said.push((self.words(prompt_tokens).await?, output_tokens.draw(&mut self.rng)));
                }
                let call = self.call(String::new())?;
                let think = Duration::from_secs_f64(*think_s);
                return Ok(Script::Conversation(Conversation { turns: said, think, template, call }));
            }
            Workload::Structured { prompt, schema, output_tokens } => {
                let tokens = output_tokens.draw(&mut self.rng);
                let call = self.call(template.with_schema(schema).chat(&[body::user(prompt)], tokens))?;
                Call { expect: Expect::Json { required: body::required_keys(schema) }, ..call }
            }
            Workload::Poison => {
                let bodies = poison_bodies(&self.target.model);
                let call = self.call(bodies[number % bodies.len()].1.clone())?;
                Call { expect: Expect::Refusal, ..call }
            }
            Workload::Trace { .. } => unreachable!("a trace makes its own jobs"),
        };
        Ok(Script::Single(call))
    }

    async fn jobs_of_trace(&mut self, lines: Vec<TraceLine>) -> Result<Vec<Job>, PlanError> {
        let limit = self.traffic.requests.unwrap_or(MAX_JOBS);
        let mut jobs = Vec::new();
        for line in lines.into_iter().take(limit) {
            let at = line.at.div_f64(self.scenario.rate_scale);
            if at >= self.scenario.duration() {
                break;
            }
            let messages = match line.prompt {
                TracePrompt::Messages(messages) => messages,
                TracePrompt::Words { tokens, blocks } => {
                    let text = self.maker.text_of_blocks(&blocks, BLOCK_TOKENS, tokens, &mut self.words).await?;
                    vec![body::user(&text)]
                }
            };
            let mut call = self.call(self.template().chat(&messages, line.output_tokens))?;
            let traffic = match line.tenant {
                Some(tenant) => {
                    call.api_key = self.target.keys.of(Some(&tenant))?;
                    self.label_of(tenant)
                }
                None => self.index,
            };
            jobs.push(Job { index: 0, traffic, at, script: Script::Single(call) });
            self.progress.count_prepared();
        }
        Ok(jobs)
    }

    /// The label of a trace's tenant.
    fn label_of(&mut self, tenant: String) -> usize {
        let wanted = TrafficLabel { name: self.traffic.name.clone(), tenant: Some(tenant) };
        self.labels.iter().position(|label| *label == wanted).unwrap_or_else(|| {
            self.labels.push(wanted);
            self.labels.len() - 1
        })
    }

    async fn words(&mut self, lengths: &Lengths) -> Result<String, TokensError> {
        let tokens = lengths.draw(&mut self.rng);
        self.maker.text(tokens, &mut self.words).await
    }

    fn template(&self) -> BodyTemplate {
        BodyTemplate::new(&self.target.model, &self.traffic.request)
    }

    fn call(&mut self, body: String) -> Result<Call, PlanError> {
        let leave = self.traffic.leave.as_ref();
        let leave_after = leave.filter(|leave| self.rng.unit() < leave.share).map(|leave| leave.after_events);
        Ok(Call {
            route: self.traffic.workload.route(),
            body,
            api_key: self.target.keys.of(self.traffic.tenant.as_deref())?,
            leave_after,
            timeout: self.scenario.timeout(),
            expect: Expect::Answer,
        })
    }
}
