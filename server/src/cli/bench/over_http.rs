//! One answer at a time, straight from the engine and over HTTP, in turns: what HTTP costs on this machine.

use std::io::{BufRead, BufReader};
use std::num::NonZeroUsize;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use passerelle::config::{Config, Environment, Listen, WrittenModel};
use passerelle_engine::clock::{Clock, SystemClock};
use passerelle_engine::{EngineHandle, Event};
use serde::Serialize;
use serde_json::{Value, json};
use ureq::Agent;

use super::measure::{Workload, per_second, prompt, request};
use super::saturation::agent;
use crate::cli::model_args::ModelArgs;
use crate::cli::numbers::count;
use crate::cli::output::{self, OutputArgs};
use crate::serve::{self, Door};

/// As long as a server lets one take.
const LONGEST_ANSWER: Duration = Duration::from_secs(1800);
/// The time of fewer is mostly that of the way of the first one.
const FEWEST_TOKENS: usize = 16;
/// Between the first and the last of an answer whose tokens did not come all at once.
const LEAST_SPREAD: Duration = Duration::from_millis(1);

#[derive(Debug, Args)]
pub(super) struct OverHttpArgs {
    /// Instead of batches: serve the model in this process and generate one answer at a time, straight from the engine
    /// and over HTTP in turns, ROUNDS times; say how much of the speed is left over HTTP.
    #[arg(
        long, value_name = "ROUNDS", value_parser = count::<NonZeroUsize>,
        conflicts_with_all = ["batch", "profile", "tariff", "suite"]
    )]
    over_http: Option<NonZeroUsize>,
}

/// How an answer is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Straight,
    OverHttp,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Answer {
    /// From before it was asked for.
    to_first_token: Duration,
    to_its_end: Duration,
    /// Tokens that could be told apart from the next one.
    heard: usize,
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    threads: usize,
    kernels: String,
    prompt_tokens: usize,
    generate_tokens: usize,
    rounds: usize,
    straight: Figures,
    over_http: Figures,
    left_over_http: Left,
}

/// Medians.
#[derive(Debug, Serialize)]
struct Figures {
    first_token_s: f64,
    /// Behind the first token. `None` where an answer does not tell ([`Answer::has_pace`]).
    tokens_per_s: Option<f64>,
}

/// Of the speed straight from the engine: of each round's two answers, times over times.
#[derive(Debug, Clone, Copy, Serialize)]
struct Left {
    /// From before the request to the end of the answer.
    whole: Quartiles,
    /// From the first token on; by how much that one comes later is not in it. `None` as above.
    generating: Option<Quartiles>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Quartiles {
    first: f64,
    median: f64,
    third: f64,
}

impl OverHttpArgs {
    pub(super) fn rounds(&self) -> Option<usize> {
        self.over_http.map(NonZeroUsize::get)
    }
}

/// `load` is of one sequence.
pub(super) fn run(
    rounds: usize,
    load: Workload,
    source: &str,
    model_args: &ModelArgs,
    output: OutputArgs,
) -> Result<()> {
    ensure!(load.generate_tokens > 1, "--generate: behind the first token there must be another");
    let config = config(source, model_args, &Environment::read())?;
    super::warn_of_figures(&config.engine);
    let (threads, kernels) = {
        // The server makes its own.
        let compute = serve::compute(&config.engine)?;
        (compute.num_threads(), compute.kernels().to_string())
    };
    let runtime = serve::runtime()?;
    let server = serve::start(&config, Door::Open, &runtime)?;
    let engine =
        server.first_generator().context("--model: makes vectors; --over-http measures a model that generates")?;
    let vocab = engine.rules().input_vocab_size;
    let answers = server.serve_while(&runtime, |url| {
        let (agent, url) = (agent(LONGEST_ANSWER), format!("{url}/v1/completions"));
        Clients { agent, url, engine, load, vocab, clock: &SystemClock::new() }.in_turns(rounds)
    })?;
    let unheard: usize = answers.iter().map(|[_, http]| load.generate_tokens.saturating_sub(http.heard)).sum();
    if unheard > 0 {
        tell!(
            "warning: {unheard} tokens had no text of their own over HTTP, so that first tokens may seem later than they were"
        );
    }
    let has_pace = answers.iter().flatten().all(Answer::has_pace);
    if !has_pace {
        tell!(
            "warning: fewer than {FEWEST_TOKENS} tokens of an answer came one by one, which does not tell how fast they come; \
             raise --generate"
        );
    }
    let report = Report {
        model: config.models[0].name.clone(),
        threads,
        kernels,
        prompt_tokens: load.prompt_tokens,
        generate_tokens: load.generate_tokens,
        rounds,
        straight: Figures::of(load, answers.iter().map(|[straight, _]| straight)),
        over_http: Figures::of(load, answers.iter().map(|[_, http]| http)),
        left_over_http: Left {
            whole: left(&answers, |answer| answer.to_its_end),
            generating: has_pace.then(|| left(&answers, Answer::generating)),
        },
    };
    if output.json { output::json(&report) } else { print(&report) }
}

/// Of a server on a loopback port that nobody else is told.
fn config(source: &str, model_args: &ModelArgs, environment: &Environment) -> Result<Config> {
    let mut written = model_args.clone().written();
    written.server.listen = Some(Listen::ANY_LOOPBACK_PORT);
    written.models = Some(vec![WrittenModel::of(source)]);
    Ok(Config::check(written, environment)?)
}

struct Clients<'a> {
    agent: Agent,
    url: String,
    engine: EngineHandle,
    load: Workload,
    /// Token ids that the model reads.
    vocab: usize,
    clock: &'a dyn Clock,
}

impl Clients<'_> {
    /// Straight and over HTTP, of each round, behind one that is not measured: it touches memory and wakes threads.
    fn in_turns(&self, rounds: usize) -> Result<Vec<[Answer; 2]>> {
        const SAID_EVERY: Duration = Duration::from_secs(5);
        tell!("one answer straight and one over HTTP, unmeasured, and then {rounds} rounds");
        let mut said = self.clock.now();
        let mut answers = Vec::new();
        for round in 0..=rounds {
            // Whoever is first in one round is second in the next.
            let order = if round % 2 == 0 { [Way::Straight, Way::OverHttp] } else { [Way::OverHttp, Way::Straight] };
            let mut both = [self.ask(order[0], 2 * round as u64)?, self.ask(order[1], 2 * round as u64 + 1)?];
            if order[0] == Way::OverHttp {
                both.swap(0, 1);
            }
            if round > 0 {
                answers.push(both);
            }
            if self.clock.now() - said >= SAID_EVERY {
                said = self.clock.now();
                tell!("{round} of {rounds} rounds");
            }
        }
        Ok(answers)
    }

    /// No two prompts begin alike: `seed` makes each.
    fn ask(&self, way: Way, seed: u64) -> Result<Answer> {
        match way {
            Way::Straight => self.ask_engine(seed),
            Way::OverHttp => self.ask_server(seed),
        }
    }

    fn ask_engine(&self, seed: u64) -> Result<Answer> {
        let request = request(self.load, self.vocab, seed);
        let began = self.clock.now();
        let mut events = self.engine.submit(request).context("the engine refuses")?;
        let (mut first, mut heard) = (None, 0);
        while let Some(event) = events.blocking_next() {
            match event {
                Event::Token(_) => {
                    first.get_or_insert_with(|| self.clock.now() - began);
                    heard += 1;
                }
                Event::Failed { error, .. } => return Err(error).context("the engine failed"),
                Event::PromptLogprobs(_) | Event::Finished { .. } => {}
            }
        }
        let to_its_end = self.clock.now() - began;
        self.check_tokens(heard as u64)?;
        Ok(Answer { to_first_token: first.context("no token came")?, to_its_end, heard })
    }

    /// As a client's library would, but for what it makes of the events.
    fn ask_server(&self, seed: u64) -> Result<Answer> {
        let body = self.body(seed).to_string();
        let began = self.clock.now();
        let response = self.agent.post(&self.url).content_type("application/json").send(body);
        let mut response = response.context("the server does not answer")?;
        let status = response.status();
        if !status.is_success() {
            bail!("{status}: {}", response.body_mut().read_to_string()?);
        }
        let (mut first, mut num_events, mut last) = (None, 0, String::new());
        for line in BufReader::new(response.into_body().into_reader()).lines() {
            let line = line.context("the answer broke off")?;
            let Some(event) = line.strip_prefix("data: ").filter(|event| event.starts_with('{')) else { continue };
            first.get_or_insert_with(|| self.clock.now() - began);
            num_events += 1;
            event.clone_into(&mut last);
        }
        let to_its_end = self.clock.now() - began;
        let usage = &serde_json::from_str::<Value>(&last).unwrap_or_default()["usage"]["completion_tokens"];
        self.check_tokens(usage.as_u64().with_context(|| format!("the answer broke off behind {last}"))?)?;
        // The last two say why it ended, and what it took.
        let heard = usize::saturating_sub(num_events, 2);
        Ok(Answer { to_first_token: first.context("no token came")?, to_its_end, heard })
    }

    /// What the engine is asked for straight, whatever the checkpoint's own choices are, and all of its text.
    fn body(&self, seed: u64) -> Value {
        let Workload { prompt_tokens, generate_tokens, .. } = self.load;
        json!({
            "model": self.engine.name(),
            "prompt": prompt(prompt_tokens, self.vocab, seed),
            "max_tokens": generate_tokens,
            "ignore_eos": true,
            "temperature": 0,
            "repetition_penalty": 1,
            "skip_special_tokens": false,
            "stream": true,
            "stream_options": {"include_usage": true},
        })
    }

    fn check_tokens(&self, came: u64) -> Result<()> {
        let asked = self.load.generate_tokens;
        ensure!(came == asked as u64, "instead of {asked} tokens came {came}");
        Ok(())
    }
}

impl Answer {
    fn generating(&self) -> Duration {
        self.to_its_end.saturating_sub(self.to_first_token)
    }

    /// Whether the time behind its first token is that of generating: a few tokens, or all at once, say nothing of it.
    fn has_pace(&self) -> bool {
        self.heard >= FEWEST_TOKENS && self.generating() >= LEAST_SPREAD
    }
}

impl Figures {
    fn of<'a>(load: Workload, answers: impl Iterator<Item = &'a Answer> + Clone) -> Self {
        let rate = |answer: &Answer| per_second(load.generate_tokens as f64 - 1.0, answer.generating());
        Self {
            first_token_s: Quartiles::of(answers.clone().map(|answer| answer.to_first_token.as_secs_f64())).median,
            tokens_per_s: answers.clone().all(Answer::has_pace).then(|| Quartiles::of(answers.map(rate)).median),
        }
    }
}

fn left(answers: &[[Answer; 2]], time: impl Fn(&Answer) -> Duration) -> Quartiles {
    Quartiles::of(answers.iter().map(|[straight, http]| time(straight).as_secs_f64() / time(http).as_secs_f64()))
}

impl Quartiles {
    /// Of at least one number.
    fn of(numbers: impl Iterator<Item = f64>) -> Self {
        let mut numbers: Vec<f64> = numbers.collect();
        numbers.sort_by(f64::total_cmp);
        let last = numbers.len() - 1;
        Self { first: numbers[last / 4], median: numbers[last / 2], third: numbers[(last * 3).div_ceil(4)] }
    }
}

fn print(report: &Report) -> Result<()> {
    let Report { model, threads, kernels, prompt_tokens, generate_tokens, rounds, .. } = report;
    output::line(format_args!("{model}: {}, {kernels} kernels", super::in_threads(*threads)))?;
    output::line(format_args!("{prompt_tokens} prompt tokens, {generate_tokens} generated, {rounds} rounds in turns"))?;
    output::line(format_args!("{:<10}{:>16}{:>16}", "", "FIRST TOKEN ms", "DECODE tok/s"))?;
    for (way, figures) in [("straight", &report.straight), ("over HTTP", &report.over_http)] {
        let rate = or_dash(figures.tokens_per_s.map(|rate| format!("{rate:.1}")));
        output::line(format_args!("{way:<10}{:>16.1}{rate:>16}", figures.first_token_s * 1e3))?;
    }
    let Left { whole, generating } = report.left_over_http;
    for (what, left) in [("of whole answers", Some(whole)), ("behind the first token", generating)] {
        let shown = |Quartiles { first, median, third }| format!("{median:.3} [{first:.3}, {third:.3}]");
        output::line(format_args!("left over HTTP {what}: {}", or_dash(left.map(shown))))?;
    }
    Ok(())
}

/// For what cannot be told.
fn or_dash(shown: Option<String>) -> String {
    shown.unwrap_or_else(|| "-".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(to_first_token: u64, to_its_end: u64) -> Answer {
        let [to_first_token, to_its_end] = [to_first_token, to_its_end].map(Duration::from_millis);
        Answer { to_first_token, to_its_end, heard: FEWEST_TOKENS }
    }

    #[test]
    fn what_is_left_is_of_the_two_answers_of_a_round() {
        // In the second round the machine was half as fast, for both; in the third it became so between the two.
        let answers = [
            [answer(100, 1000), answer(100, 1100)],
            [answer(200, 2000), answer(200, 2200)],
            [answer(100, 1100), answer(200, 4200)],
        ];
        assert_eq!(left(&answers, Answer::generating), Quartiles { first: 0.25, median: 0.9, third: 0.9 });
        let whole = left(&answers, |answer| answer.to_its_end);
        assert!((whole.median - 1.0 / 1.1).abs() < 1e-12, "{whole:?}");
    }

    #[test]
    fn rates_are_of_the_tokens_behind_the_first_one() {
        let load = Workload { batch: 1, prompt_tokens: 4, generate_tokens: 19 };
        let figures = Figures::of(load, [answer(100, 1000), answer(300, 3000), answer(100, 1000)].iter());
        assert_eq!((figures.first_token_s, figures.tokens_per_s), (0.1, Some(20.0)));
    }

    #[test]
    fn a_rate_is_of_answers_whose_tokens_came_one_by_one() {
        let load = Workload { batch: 1, prompt_tokens: 4, generate_tokens: 19 };
        let few = Answer { heard: FEWEST_TOKENS - 1, ..answer(100, 1000) };
        for odd in [few, answer(1000, 1000)] {
            let figures = Figures::of(load, [answer(100, 1000), odd].iter());
            assert_eq!(figures.tokens_per_s, None, "{odd:?}");
        }
        assert_eq!(or_dash(None), "-");
    }

    #[test]
    fn quartiles_are_numbers_that_were_measured() {
        let of = |numbers: &[f64]| Quartiles::of(numbers.iter().copied());
        assert_eq!(of(&[5.0, 1.0, 3.0, 2.0, 4.0]), Quartiles { first: 2.0, median: 3.0, third: 4.0 });
        assert_eq!(of(&[3.0, 1.0, 2.0]), Quartiles { first: 1.0, median: 2.0, third: 3.0 });
        assert_eq!(of(&[7.0]), Quartiles { first: 7.0, median: 7.0, third: 7.0 });
    }
}
