//! Servers side by side: requests of the same lengths at the same times, one server after the other, round after round in
//! changing order, so that what disturbs the machine disturbs all of them.

mod interval;
mod measures;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;

use crate::figures::{Quantiles, ms};
use crate::http::Connect;
use crate::plan::{Plan, PlanError};
use crate::process::{MachineFigures, Watch};
use crate::prompts::PromptMaker;
use crate::record::{Record, Usage};
use crate::report::{Overhead, count_out_of_files};
use crate::run::{Run, RunOptions, run};
use crate::scenario::{Objectives, Scenario};
use crate::session::Session;
use crate::tokens::TokensError;

pub use interval::Ratio;

#[derive(Debug)]
pub struct Contender<C: Connect> {
    pub name: String,
    pub session: Session<C>,
    /// Of its process, where that is on this machine.
    pub pid: Option<u32>,
}

#[derive(Debug, Clone)]
pub struct CompareOptions {
    pub rounds: usize,
    /// How far token counts of one request may be apart: 0 unless servers wrap prompts differently.
    pub token_tolerance: u64,
    pub run: RunOptions,
    /// Of the generator.
    pub threads: usize,
}

/// Every figure of every contender; the ratios are to the first contender.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    pub contenders: Vec<String>,
    pub rounds: usize,
    /// Requests that every contender answered, over all rounds.
    pub requests: usize,
    pub unanswered: Vec<usize>,
    /// How those ended, for each contender.
    pub endings: Vec<BTreeMap<String, usize>>,
    /// Whose answers came without usage: the tokenizer counted their texts.
    pub without_usage: Vec<String>,
    /// Of each contender.
    pub prompts: Vec<PromptTokens>,
    pub rows: Vec<Row>,
    /// The same of each tenant's requests.
    pub tenants: BTreeMap<String, Vec<Row>>,
    /// Each contender's process, in its own turns.
    pub servers: Vec<ServerFigures>,
    /// Over all rounds of all contenders.
    pub generator: Overhead,
    /// The same; unknown where a server's process is, which could be any.
    pub machine: Option<MachineFigures>,
    /// Why there are fewer rounds than were asked for.
    pub stopped: Option<Stopped>,
}

/// Of all answers of a contender, as far as it told usage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct PromptTokens {
    pub all: u64,
    /// From a cache; none where a server does not tell.
    pub cached: u64,
}

/// Unknown where the process is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct ServerFigures {
    pub cpu_cores: Option<f64>,
    pub rss_max_bytes: Option<u64>,
}

/// What ended a comparison in the middle of a round, which is left out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stopped {
    pub round: usize,
    pub why: String,
}

#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub figure: &'static str,
    pub better: Better,
    pub values: Vec<f64>,
    /// One for each contender after the first; none where the requests or rounds are too few to tell how sure it is.
    pub ratios: Vec<Option<Ratio>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Better {
    Lower,
    Higher,
}

#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("an answer's tokens could not be counted: {0}")]
    Tokens(#[from] TokensError),
    #[error(
        "request {index}: `{first}` counted {first_tokens} tokens in and out and `{other}` {other_tokens}; different \
         work is not compared (see --token-tolerance)"
    )]
    CountsDiffer { index: usize, first: String, first_tokens: String, other: String, other_tokens: String },
    #[error("in round {round} no request was answered by all servers")]
    NothingInCommon { round: usize },
    #[error("stopped before its end")]
    Interrupted,
}

/// One round: the same requests, as each contender answered them.
#[derive(Debug, Clone)]
pub(crate) struct Round {
    /// `[contender][request]`; request for request the same.
    observed: Vec<Vec<Observed>>,
    /// Of each contender.
    rates: Vec<Rates>,
    /// The part of each tenant.
    tenants: BTreeMap<String, Round>,
}

#[derive(Debug, Clone)]
struct Observed {
    ttft_ms: f64,
    tpot_ms: Option<f64>,
    e2e_ms: f64,
    /// Between two events.
    gaps_ms: Vec<f64>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Rates {
    tokens_per_s: f64,
    good_per_s: f64,
}

/// Runs `scenario` against each of `contenders` (at least two) `rounds` times, and compares. What goes wrong after the first
/// round ends the comparison with the rounds before.
pub async fn compare<C: Connect>(
    contenders: &[Contender<C>],
    scenario: &Scenario,
    options: &CompareOptions,
) -> Result<Comparison, CompareError> {
    let (mut rounds, mut stopped, mut without_usage) = (Vec::with_capacity(options.rounds), None, Vec::new());
    let mut endings = vec![BTreeMap::new(); contenders.len()];
    let mut machines = vec![Vec::new(); contenders.len()];
    let mut prompts = vec![PromptTokens::default(); contenders.len()];
    let (watch, mut sent) = (Watch::start(contenders.iter().filter_map(|contender| contender.pid)), Sent::default());
    let names: Vec<&str> = contenders.iter().map(|contender| contender.name.as_str()).collect();
    for number in 0..options.rounds {
        let played = match play(contenders, scenario, number, options, &mut sent).await {
            Ok(played) => played,
            Err(error) if rounds.is_empty() => return Err(error),
            Err(error) => {
                stopped = Some(Stopped { round: number + 1, why: error.to_string() });
                break;
            }
        };
        for (which, answers) in played.answers.iter().enumerate() {
            for (ending, count) in &answers.unanswered {
                *endings[which].entry(ending.clone()).or_insert(0) += count;
            }
            machines[which].push(answers.machine.clone());
            prompts[which].add(answers.prompts);
        }
        let told = names.iter().zip(&played.answers);
        without_usage = told.filter(|(_, answers)| !answers.has_usage()).map(|(name, _)| (*name).to_owned()).collect();
        rounds.push(played.round);
    }
    let rows = measures::rows(&rounds);
    let (machine, _) = watch.finish();
    Ok(Comparison {
        generator: sent.overhead(machine.own_cpu_cores, options.threads),
        machine: contenders.iter().all(|contender| contender.pid.is_some()).then_some(machine),
        contenders: names.into_iter().map(str::to_owned).collect(),
        without_usage,
        prompts,
        rounds: rounds.len(),
        requests: rounds.iter().map(|round| round.observed[0].len()).sum(),
        unanswered: endings.iter().map(|endings| endings.values().sum()).collect(),
        endings,
        rows,
        tenants: tenants(&rounds),
        servers: machines.iter().map(|of_contender| ServerFigures::of(of_contender)).collect(),
        stopped,
    })
}

/// The rows of each tenant.
fn tenants(rounds: &[Round]) -> BTreeMap<String, Vec<Row>> {
    let names: BTreeSet<&String> = rounds.iter().flat_map(|round| round.tenants.keys()).collect();
    let rows_of = |name: &String| {
        let parts: Vec<Round> = rounds.iter().filter_map(|round| round.tenants.get(name).cloned()).collect();
        measures::rows(&parts)
    };
    names.into_iter().map(|name| (name.clone(), rows_of(name))).collect()
}

impl PromptTokens {
    fn of(answers: &[Counted]) -> Self {
        let mut sum = Self::default();
        for usage in answers.iter().filter_map(|answer| answer.record.usage) {
            sum.add(Self { all: usage.prompt_tokens, cached: usage.cached_tokens });
        }
        sum
    }

    fn add(&mut self, other: Self) {
        self.all += other.all;
        self.cached += other.cached;
    }
}

impl ServerFigures {
    /// Of turns that are equally long.
    fn of(turns: &[MachineFigures]) -> Self {
        let cores: Option<Vec<f64>> = turns.iter().map(|turn| turn.server_cpu_cores).collect();
        let mean = |cores: Vec<f64>| cores.iter().sum::<f64>() / cores.len() as f64;
        Self {
            cpu_cores: cores.filter(|cores| !cores.is_empty()).map(mean),
            rss_max_bytes: turns.iter().filter_map(|turn| turn.server_rss_max_bytes).max(),
        }
    }
}

/// What came of one round.
struct Played {
    round: Round,
    answers: Vec<Answers>,
}

async fn play<C: Connect>(
    contenders: &[Contender<C>],
    scenario: &Scenario,
    number: usize,
    options: &CompareOptions,
    sent: &mut Sent,
) -> Result<Played, CompareError> {
    let scenario = Scenario { seed: scenario.seed.wrapping_add(number as u64), ..scenario.clone() };
    let order: Vec<usize> = (0..contenders.len()).map(|turn| (turn + number) % contenders.len()).collect();
    // All before the first is sent, so that no server has just been asked to count tokens when its turn comes.
    let mut plans = Vec::with_capacity(order.len());
    for (turn, which) in order.iter().enumerate() {
        let scenario = Scenario { wording: turn as u64, ..scenario.clone() };
        let target = &contenders[*which].session.target;
        // The first contender's tokenizer makes all prompts.
        plans.push(Plan::make(&scenario, &contenders[0].session.maker, target, &options.run.progress).await?);
    }
    let mut answers = vec![Answers::default(); contenders.len()];
    for (which, plan) in order.into_iter().zip(&plans) {
        let (first, contender) = (&contenders[0], &contenders[which]);
        answers[which] = Answers::of(first, contender, plan, &options.run, sent).await?;
    }
    let names: Vec<&str> = contenders.iter().map(|contender| contender.name.as_str()).collect();
    let round = Round::pair(&names, &answers, options.token_tolerance)?;
    Ok(Played { round: round.ok_or(CompareError::NothingInCommon { round: number + 1 })?, answers })
}

/// What the generator did, over all rounds.
#[derive(Debug, Default)]
struct Sent {
    lateness_ms: Vec<f64>,
    events: usize,
    wall_s: f64,
    out_of_files: usize,
}

impl Sent {
    fn add(&mut self, run: &Run) {
        self.lateness_ms.extend(run.records.iter().map(|record| ms(record.lateness())));
        self.events += run.records.iter().map(|record| record.events.len()).sum::<usize>();
        self.wall_s += run.wall.as_secs_f64();
        self.out_of_files += count_out_of_files(&run.records);
    }

    fn overhead(self, cpu_cores: Option<f64>, threads: usize) -> Overhead {
        Overhead {
            lateness_ms: Quantiles::of(self.lateness_ms.into_iter()),
            cpu_cores,
            events_per_s: self.events as f64 / self.wall_s.max(f64::EPSILON),
            threads,
            out_of_files: self.out_of_files,
        }
    }
}

/// One contender's answers of one round, in the order of the plan, without those of the warm-up.
#[derive(Debug, Clone, Default)]
struct Answers {
    answers: Vec<Counted>,
    /// How the others ended, but for those that should end so.
    unanswered: BTreeMap<String, usize>,
    prompts: PromptTokens,
    rates: Rates,
    /// Of each tenant.
    tenants: BTreeMap<String, Rates>,
    /// Meanwhile.
    machine: MachineFigures,
}

#[derive(Debug, Clone)]
struct Counted {
    record: Record,
    tenant: Option<String>,
    /// Known where the server told it.
    prompt_tokens: Option<u64>,
    output_tokens: u64,
}

impl Answers {
    async fn of<C: Connect>(
        first: &Contender<C>,
        contender: &Contender<C>,
        plan: &Plan,
        options: &RunOptions,
        sent: &mut Sent,
    ) -> Result<Self, CompareError> {
        let maker = &first.session.maker;
        let watch = Watch::start(contender.pid);
        let done = run(&contender.session.client, plan, options).await;
        let (machine, _) = watch.finish();
        sent.add(&done);
        if done.was_stopped {
            return Err(CompareError::Interrupted);
        }
        let (wall, counted) = (done.wall, done.records.into_iter().filter(|record| record.intended >= plan.warmup));
        let (mut records, others): (Vec<Record>, Vec<Record>) =
            counted.partition(|record| record.is_finished() && !record.events.is_empty());
        records.sort_by_key(Record::place);
        let mut answers = Vec::with_capacity(records.len());
        for record in records {
            let tenant = plan.traffic[record.traffic].tenant.clone();
            answers.push(Counted { tenant, ..Counted::count(record, maker).await? });
        }
        let window = wall.saturating_sub(plan.warmup);
        let rates = |answers: &[&Counted]| Rates::of(answers, window, &plan.objectives);
        let tenants: BTreeSet<&String> = plan.traffic.iter().filter_map(|label| label.tenant.as_ref()).collect();
        let of_tenant = |name: &String| -> Vec<&Counted> {
            answers.iter().filter(|answer| answer.tenant.as_ref() == Some(name)).collect()
        };
        let tenants = tenants.into_iter().map(|name| (name.clone(), rates(&of_tenant(name)))).collect();
        let rates = rates(&answers.iter().collect::<Vec<&Counted>>());
        let mut unanswered = BTreeMap::new();
        for record in others.iter().filter(|record| !record.ending.is_wanted()) {
            *unanswered.entry(record.ending.to_string()).or_insert(0) += 1;
        }
        Ok(Self { prompts: PromptTokens::of(&answers), answers, unanswered, rates, tenants, machine })
    }

    fn find(&self, of: &Counted) -> Option<&Counted> {
        let at = self.answers.binary_search_by_key(&of.record.place(), |answer| answer.record.place());
        at.ok().map(|at| &self.answers[at])
    }

    fn has_usage(&self) -> bool {
        self.answers.iter().all(|answer| answer.prompt_tokens.is_some())
    }
}

impl Rates {
    /// `window`: from the end of the warm-up.
    fn of(answers: &[&Counted], window: Duration, objectives: &Objectives) -> Self {
        let tokens: u64 = answers.iter().map(|answer| answer.output_tokens).sum();
        let good = answers.iter().filter(|answer| objectives.are_kept_by(&answer.record)).count();
        let seconds = window.as_secs_f64().max(f64::EPSILON);
        Self { tokens_per_s: tokens as f64 / seconds, good_per_s: good as f64 / seconds }
    }
}

impl Counted {
    /// Of nobody.
    async fn count<C: Connect>(record: Record, maker: &PromptMaker<C>) -> Result<Self, TokensError> {
        Ok(match record.usage {
            Some(Usage { prompt_tokens, output_tokens, .. }) => {
                Self { record, tenant: None, prompt_tokens: Some(prompt_tokens), output_tokens }
            }
            None => Self { tenant: None, prompt_tokens: None, output_tokens: maker.count(&record.text).await?, record },
        })
    }

    /// The greatest difference of two counts of the same request; unknown prompts are the same text at least.
    fn apart(&self, other: &Self) -> u64 {
        let prompts = self.prompt_tokens.zip(other.prompt_tokens).map_or(0, |(one, two)| one.abs_diff(two));
        prompts.max(self.output_tokens.abs_diff(other.output_tokens))
    }

    fn tokens(&self) -> String {
        let prompt = self.prompt_tokens.map_or_else(|| "?".to_owned(), |tokens| tokens.to_string());
        format!("{prompt}+{}", self.output_tokens)
    }
}

impl Round {
    /// The requests that all answered, after their token counts were seen to agree; `None` where there are none.
    fn pair(names: &[&str], all: &[Answers], tolerance: u64) -> Result<Option<Self>, CompareError> {
        let mut observed = vec![Vec::new(); all.len()];
        let mut parts: BTreeMap<&String, Vec<Vec<Observed>>> = BTreeMap::new();
        for first in &all[0].answers {
            let same: Option<Vec<&Counted>> = all.iter().map(|answers| answers.find(first)).collect();
            let Some(same) = same else { continue };
            for (which, other) in same.into_iter().enumerate() {
                if first.apart(other) > tolerance {
                    return Err(CompareError::CountsDiffer {
                        index: first.record.index,
                        first: names[0].to_owned(),
                        first_tokens: first.tokens(),
                        other: names[which].to_owned(),
                        other_tokens: other.tokens(),
                    });
                }
                let seen = Observed::of(&other.record);
                if let Some(tenant) = &first.tenant {
                    let part = parts.entry(tenant).or_insert_with(|| vec![Vec::new(); all.len()]);
                    part[which].push(seen.clone());
                }
                observed[which].push(seen);
            }
        }
        let of_tenant = |(name, observed): (&String, Vec<Vec<Observed>>)| {
            let rates = all.iter().map(|answers| answers.tenants.get(name).copied().unwrap_or_default()).collect();
            (name.clone(), Self { observed, rates, tenants: BTreeMap::new() })
        };
        let tenants = parts.into_iter().map(of_tenant).collect();
        let rates = all.iter().map(|answers| answers.rates).collect();
        Ok((!observed[0].is_empty()).then_some(Self { observed, rates, tenants }))
    }
}

impl Observed {
    fn of(record: &Record) -> Self {
        Self {
            ttft_ms: record.time_to_first_token().map_or(f64::NAN, ms),
            tpot_ms: record.time_per_output_token().map(ms),
            e2e_ms: ms(record.end_to_end()),
            gaps_ms: record.inter_token_gaps().map(ms).collect(),
        }
    }
}
