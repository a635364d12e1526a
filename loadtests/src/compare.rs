//! Servers side by side: the same requests at the same times, one server after the other, round after round in
//! changing order, so that what disturbs the machine disturbs all of them.

mod bootstrap;

use serde::Serialize;

use crate::figures::{ms, quantile};
use crate::http::Connect;
use crate::plan::{Plan, PlanError};
use crate::record::Record;
use crate::run::{RunOptions, run};
use crate::scenario::Scenario;
use crate::session::Session;

pub use bootstrap::Ratio;

#[derive(Debug)]
pub struct Contender<C: Connect> {
    pub name: String,
    pub session: Session<C>,
}

#[derive(Debug, Clone)]
pub struct CompareOptions {
    pub rounds: usize,
    /// How far token counts of one request may be apart: 0 unless servers wrap prompts differently.
    pub token_tolerance: u64,
    pub run: RunOptions,
}

/// Every figure of every contender; the ratios are to the first contender.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    pub contenders: Vec<String>,
    pub rounds: usize,
    /// Requests that every contender answered, over all rounds.
    pub requests: usize,
    pub unanswered: Vec<usize>,
    pub rows: Vec<Row>,
}

#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub figure: &'static str,
    pub better: Better,
    pub values: Vec<f64>,
    /// One for each contender after the first.
    pub ratios: Vec<Ratio>,
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
    #[error("`{0}` told no usage, so nothing shows that the servers did the same work")]
    NoUsage(String),
    #[error(
        "request {index}: `{first}` counted {first_tokens} tokens in and out and `{other}` {other_tokens}; different \
         work is not compared (see --token-tolerance)"
    )]
    CountsDiffer { index: usize, first: String, first_tokens: String, other: String, other_tokens: String },
    #[error("in round {round} no request was answered by all servers")]
    NothingInCommon { round: usize },
}

/// One round: the same requests, as each contender answered them.
#[derive(Debug, Clone)]
pub(crate) struct Round {
    /// `[contender][request]`; request for request the same.
    observed: Vec<Vec<Observed>>,
    /// Of each contender.
    tokens_per_s: Vec<f64>,
}

#[derive(Debug, Clone, Copy)]
struct Observed {
    ttft_ms: f64,
    tpot_ms: Option<f64>,
    e2e_ms: f64,
}

/// How a figure is taken from the requests of some rounds.
struct Measure {
    name: &'static str,
    better: Better,
    of: fn(&[Observed], &[f64]) -> f64,
}

const MEASURES: [Measure; 8] = [
    lower("time to first token, p50 ms", |seen, _| of(seen, 0.5, |one| Some(one.ttft_ms))),
    lower("time to first token, p90 ms", |seen, _| of(seen, 0.9, |one| Some(one.ttft_ms))),
    lower("time to first token, p99 ms", |seen, _| of(seen, 0.99, |one| Some(one.ttft_ms))),
    lower("time per output token, p50 ms", |seen, _| of(seen, 0.5, |one| one.tpot_ms)),
    lower("time per output token, p99 ms", |seen, _| of(seen, 0.99, |one| one.tpot_ms)),
    lower("end to end, p50 ms", |seen, _| of(seen, 0.5, |one| Some(one.e2e_ms))),
    lower("end to end, p99 ms", |seen, _| of(seen, 0.99, |one| Some(one.e2e_ms))),
    Measure {
        name: "output tokens per second",
        better: Better::Higher,
        of: |_, rates| rates.iter().sum::<f64>() / rates.len() as f64,
    },
];

const fn lower(name: &'static str, of: fn(&[Observed], &[f64]) -> f64) -> Measure {
    Measure { name, better: Better::Lower, of }
}

/// NaN where no request has such a value.
fn of(observed: &[Observed], share: f64, value: impl Fn(&Observed) -> Option<f64>) -> f64 {
    let mut values: Vec<f64> = observed.iter().filter_map(value).collect();
    values.sort_by(f64::total_cmp);
    if values.is_empty() { f64::NAN } else { quantile(&values, share) }
}

/// Runs `scenario` against each of `contenders` (at least two) `rounds` times, and compares.
pub async fn compare<C: Connect>(
    contenders: &[Contender<C>],
    scenario: &Scenario,
    options: &CompareOptions,
) -> Result<Comparison, CompareError> {
    let mut rounds = Vec::with_capacity(options.rounds);
    let mut unanswered = vec![0; contenders.len()];
    for number in 0..options.rounds {
        let scenario = Scenario { seed: scenario.seed + number as u64, ..scenario.clone() };
        let mut answers = vec![Answers::default(); contenders.len()];
        for turn in 0..contenders.len() {
            let which = (turn + number) % contenders.len();
            answers[which] = Answers::of(&contenders[0], &contenders[which], &scenario, &options.run).await?;
            unanswered[which] += answers[which].unanswered;
        }
        let names: Vec<&str> = contenders.iter().map(|contender| contender.name.as_str()).collect();
        let round = Round::pair(&names, &answers, options.token_tolerance)?;
        rounds.push(round.ok_or(CompareError::NothingInCommon { round: number + 1 })?);
    }
    let rows = MEASURES.iter().map(|measure| measure.row(&rounds, scenario.seed)).collect();
    Ok(Comparison {
        contenders: contenders.iter().map(|contender| contender.name.clone()).collect(),
        rounds: rounds.len(),
        requests: rounds.iter().map(|round| round.observed[0].len()).sum(),
        unanswered,
        rows,
    })
}

/// One contender's answers of one round, in the order of the plan.
#[derive(Debug, Clone, Default)]
struct Answers {
    records: Vec<Record>,
    unanswered: usize,
    tokens_per_s: f64,
}

impl Answers {
    async fn of<C: Connect>(
        first: &Contender<C>,
        contender: &Contender<C>,
        scenario: &Scenario,
        options: &RunOptions,
    ) -> Result<Self, CompareError> {
        // The first contender's tokenizer makes all prompts: the texts are the same for all.
        let plan = Plan::make(scenario, &first.session.maker, &contender.session.target).await?;
        let done = run(&contender.session.client, &plan, options).await;
        let (mut records, others): (Vec<Record>, Vec<Record>) =
            done.records.into_iter().partition(|record| record.is_finished() && !record.events.is_empty());
        records.sort_by_key(|record| (record.index, record.turn));
        let tokens: u64 = records.iter().map(Record::output_tokens).sum();
        let tokens_per_s = tokens as f64 / done.wall.as_secs_f64().max(f64::EPSILON);
        records.retain(|record| record.intended >= plan.warmup);
        Ok(Self { records, unanswered: others.len(), tokens_per_s })
    }

    fn find(&self, of: &Record) -> Option<&Record> {
        let key = |record: &Record| (record.index, record.turn);
        self.records.binary_search_by_key(&key(of), key).ok().map(|at| &self.records[at])
    }
}

impl Round {
    /// The requests that all answered, after their token counts were seen to agree; `None` where there are none.
    fn pair(names: &[&str], answers: &[Answers], tolerance: u64) -> Result<Option<Self>, CompareError> {
        let mut observed = vec![Vec::new(); answers.len()];
        for first in &answers[0].records {
            let same: Option<Vec<&Record>> = answers.iter().map(|answers| answers.find(first)).collect();
            let Some(same) = same else { continue };
            for (which, record) in same.iter().enumerate() {
                check_counts((names[0], first), (names[which], record), tolerance)?;
                observed[which].push(Observed::of(record));
            }
        }
        let tokens_per_s = answers.iter().map(|answers| answers.tokens_per_s).collect();
        Ok((!observed[0].is_empty()).then_some(Self { observed, tokens_per_s }))
    }
}

fn check_counts(first: (&str, &Record), other: (&str, &Record), tolerance: u64) -> Result<(), CompareError> {
    let usage = |(name, record): (&str, &Record)| record.usage.ok_or_else(|| CompareError::NoUsage(name.to_owned()));
    let (first_usage, other_usage) = (usage(first)?, usage(other)?);
    let apart = first_usage.prompt_tokens.abs_diff(other_usage.prompt_tokens);
    if apart.max(first_usage.output_tokens.abs_diff(other_usage.output_tokens)) <= tolerance {
        return Ok(());
    }
    Err(CompareError::CountsDiffer {
        index: first.1.index,
        first: first.0.to_owned(),
        first_tokens: format!("{}+{}", first_usage.prompt_tokens, first_usage.output_tokens),
        other: other.0.to_owned(),
        other_tokens: format!("{}+{}", other_usage.prompt_tokens, other_usage.output_tokens),
    })
}

impl Observed {
    fn of(record: &Record) -> Self {
        Self {
            ttft_ms: record.time_to_first_token().map_or(f64::NAN, ms),
            tpot_ms: record.time_per_output_token().map(ms),
            e2e_ms: ms(record.end_to_end()),
        }
    }
}

impl Measure {
    fn row(&self, rounds: &[Round], seed: u64) -> Row {
        let contenders = rounds[0].observed.len();
        let values: Vec<f64> = (0..contenders).map(|which| self.value(rounds, which)).collect();
        let ratios = (1..contenders)
            .map(|which| bootstrap::ratio(rounds, (0, which), seed, |seen, rates| (self.of)(seen, rates)))
            .collect();
        Row { figure: self.name, better: self.better, values, ratios }
    }

    fn value(&self, rounds: &[Round], which: usize) -> f64 {
        let observed: Vec<Observed> = rounds.iter().flat_map(|round| round.observed[which].clone()).collect();
        let rates: Vec<f64> = rounds.iter().map(|round| round.tokens_per_s[which]).collect();
        (self.of)(&observed, &rates)
    }
}

impl Comparison {
    pub fn table(&self) -> String {
        let mut text = format!("{:<32}", "");
        for (which, name) in self.contenders.iter().enumerate() {
            text.push_str(&format!("{name:>12}"));
            if which > 0 {
                text.push_str(&format!("{:>26}", format!("{name}/{}", self.contenders[0])));
            }
        }
        text.push('\n');
        for row in &self.rows {
            text.push_str(&format!("{:<32}", row.figure));
            for (which, value) in row.values.iter().enumerate() {
                text.push_str(&format!("{value:>12.1}"));
                if which > 0 {
                    text.push_str(&format!("{:>26}", row.ratios[which - 1].to_string()));
                }
            }
            text.push('\n');
        }
        text.push_str(&format!(
            "{} requests in {} rounds; ratios with 95 % intervals (bootstrap over rounds and requests)\n",
            self.requests, self.rounds
        ));
        for (name, count) in self.contenders.iter().zip(&self.unanswered).filter(|(_, count)| **count > 0) {
            text.push_str(&format!("warning: {name} did not answer {count} requests; they are left out for all\n"));
        }
        text
    }
}
