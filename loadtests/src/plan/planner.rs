//! From one entry of a scenario's traffic to its jobs.

use std::sync::Arc;
use std::time::Duration;

use super::{BodyTemplate, Conversation, Job, MAX_JOBS, PlanError, Script, Target, TrafficLabel, body, poison_bodies};
use crate::arrivals::Arrivals;
use crate::dataset::{self, DatasetError, Deck, Entry};
use crate::generate::Call;
use crate::http::Connect;
use crate::lengths::{Lengths, MAX_TOKENS};
use crate::progress::Progress;
use crate::prompts::PromptMaker;
use crate::record::Expect;
use crate::rng::Rng;
use crate::scenario::{Scenario, Traffic, Workload};
use crate::tokens::TokensError;
use crate::trace::{self, BLOCK_TOKENS, TraceLine, TracePrompt};

/// Different requests that are made for each closed user and second; who is answered sooner asks some again, which a
/// server's prefix cache knows.
const CLOSED_RATE: f64 = 16.0;
/// More different requests than this are not made for closed users: making them takes time, too.
const MAX_CLOSED_SUPPLY: usize = 4096;

/// Makes the jobs of one entry of the traffic.
pub(super) struct Planner<'a, C: Connect> {
    pub(super) scenario: &'a Scenario,
    pub(super) traffic: &'a Traffic,
    pub(super) index: usize,
    pub(super) maker: &'a PromptMaker<C>,
    pub(super) target: &'a Target,
    pub(super) progress: &'a Progress,
    /// Of times and lengths.
    pub(super) rng: Rng,
    pub(super) words: Rng,
    pub(super) shared: Shared,
    /// Of a data set.
    pub(super) deck: Deck,
    /// Those of the scenario's entries, then what a trace adds.
    pub(super) labels: &'a mut Vec<TrafficLabel>,
}

/// What prompts have in common.
#[derive(Default)]
pub(super) struct Shared {
    prefixes: Vec<String>,
    /// Those of prompts that are ids.
    ids: Vec<u32>,
}

impl<C: Connect> Planner<'_, C> {
    pub(super) async fn jobs(&mut self) -> Result<Vec<Job>, PlanError> {
        if let Workload::Trace { file } = &self.traffic.workload {
            return self.jobs_of_trace(trace::read(file)?).await;
        }
        if let Workload::Dataset { file, .. } = &self.traffic.workload {
            self.deck = Deck::new(dataset::read(file)?);
        }
        let arrivals = self.traffic.arrivals.scaled(self.scenario.rate_scale);
        let limit = self.traffic.requests.unwrap_or(MAX_JOBS + 1).min(MAX_JOBS + 1);
        let offsets = arrivals.offsets(self.scenario.duration(), limit, &mut self.rng);
        let offsets = offsets.unwrap_or_else(|| {
            let supply = match arrivals {
                Arrivals::Closed { concurrency } => self.closed_supply(concurrency),
                _ => MAX_JOBS,
            };
            vec![Duration::ZERO; limit.min(supply)]
        });
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
            Workload::Completions { prompt_tokens, output_tokens, token_ids, shared_tokens } => {
                let tokens = prompt_tokens.draw(&mut self.rng);
                let prompt = if *token_ids {
                    if self.shared.ids.is_empty() {
                        self.shared.ids = self.maker.ids(*shared_tokens, &mut self.words);
                    }
                    serde_json::json!([&self.shared.ids[..], &self.maker.ids(tokens, &mut self.words)].concat())
                } else {
                    self.maker.text(tokens, &mut self.words).await?.into()
                };
                let tokens = output_tokens.draw(&mut self.rng);
                self.call(template.completions(prompt, tokens))?
            }
            Workload::SharedPrefix { prefixes, prefix_tokens, prompt_tokens, output_tokens } => {
                while self.shared.prefixes.len() < *prefixes {
                    self.shared.prefixes.push(self.maker.text(*prefix_tokens, &mut self.words).await?);
                }
                let system = body::system(&self.shared.prefixes[self.rng.below(*prefixes)]);
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
                Call { expect: Expect::Json { schema: Arc::new(serde_json::json!(schema)) }, ..call }
            }
            Workload::Poison => {
                let bodies = poison_bodies(&self.target.model);
                let call = self.call(bodies[number % bodies.len()].1.clone())?;
                Call { expect: Expect::Refusal, ..call }
            }
            Workload::Dataset { output_tokens, max_prompt_tokens, .. } => {
                let entry = self.draw(*max_prompt_tokens).await?;
                let tokens = self.answer_tokens(&entry, output_tokens.as_ref()).await?;
                self.call(template.chat(&entry.messages, tokens))?
            }
            Workload::Trace { .. } => unreachable!("a trace makes its own jobs"),
        };
        Ok(Script::Single(call))
    }

    /// The next of the data set, of at most so many tokens. Drawn as lengths are, for it says how long the prompt is: in a
    /// comparison all get the same.
    async fn draw(&mut self, max_prompt_tokens: Option<u32>) -> Result<Entry, PlanError> {
        while let Some((number, entry)) = self.deck.draw(&mut self.rng) {
            let is_too_long = match max_prompt_tokens {
                Some(most) => self.maker.count(&entry.text()).await? > u64::from(most),
                None => false,
            };
            if !is_too_long {
                return Ok(entry);
            }
            self.deck.discard(number);
        }
        Err(max_prompt_tokens.map_or(DatasetError::Empty, DatasetError::AllTooLong).into())
    }

    /// How long its answer shall be: as the scenario says, or its line, or as long as the answer that the file has.
    async fn answer_tokens(&mut self, entry: &Entry, wanted: Option<&Lengths>) -> Result<u32, PlanError> {
        let tokens = match (wanted, entry.output_tokens, &entry.answer) {
            (Some(wanted), ..) => wanted.draw(&mut self.rng),
            (None, Some(tokens), _) => tokens.min(MAX_TOKENS),
            (None, None, Some(answer)) => self.maker.count(answer).await?.min(MAX_TOKENS.into()) as u32,
            (None, None, None) => 0,
        };
        if tokens == 0 { Err(DatasetError::NoLength.into()) } else { Ok(tokens) }
    }

    async fn jobs_of_trace(&mut self, lines: Vec<TraceLine>) -> Result<Vec<Job>, PlanError> {
        // One more than may be: a trace that is too long is refused, and not replayed in part.
        let limit = self.traffic.requests.unwrap_or(MAX_JOBS + 1);
        let of_blocks = self.words.next_u64();
        let mut jobs = Vec::new();
        for line in lines.into_iter().take(limit) {
            let at = line.at.div_f64(self.scenario.rate_scale);
            if at >= self.scenario.duration() {
                break;
            }
            let messages = match line.prompt {
                TracePrompt::Messages(messages) => messages,
                TracePrompt::Words { tokens, blocks } => {
                    let blocks = (of_blocks, &blocks[..]);
                    let text = self.maker.text_of_blocks(blocks, BLOCK_TOKENS, tokens, &mut self.words).await?;
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
        BodyTemplate::new(self.target, &self.traffic.request)
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
