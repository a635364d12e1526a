//! A server in this process, and clients that keep it full.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use passerelle::config::Config;
use passerelle_engine::clock::Clock;
use serde::Serialize;
use serde_json::{Value, json};
use ureq::Agent;

use super::measure::{Workload, per_second, prompt};
use crate::serve::{self, Door};

/// Requests of each client, one after the other.
const ROUNDS: usize = 2;
/// Of one request.
const LONGEST_ANSWER: Duration = Duration::from_secs(600);

/// What came back over HTTP.
#[derive(Debug, Serialize)]
pub(super) struct Saturation {
    /// At once.
    pub(super) streams: usize,
    pub(super) requests: usize,
    pub(super) prompt_tokens: u64,
    pub(super) generated_tokens: u64,
    pub(super) seconds: f64,
    pub(super) generated_tokens_per_s: f64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Tokens {
    prompt: u64,
    generated: u64,
}

/// Serves the one model of `config` to `load.batch` clients. Its vocabulary has `vocab` tokens.
pub(super) fn saturate(config: &Config, load: Workload, vocab: usize, clock: &dyn Clock) -> Result<Saturation> {
    let runtime = serve::runtime()?;
    let server = serve::start(config, Door::Open, &runtime)?;
    let (tokens, time) = server.serve_while(&runtime, |url| {
        let url = format!("{url}/v1/completions");
        let client = Client { agent: agent(LONGEST_ANSWER), url, model: config.models[0].name.clone(), load, vocab };
        let began = clock.now();
        Ok((client.all()?, clock.now() - began))
    })?;
    let expected = (ROUNDS * load.batch * load.generate_tokens) as u64;
    ensure!(tokens.generated == expected, "{} tokens came back instead of {expected}", tokens.generated);
    Ok(Saturation {
        streams: load.batch,
        requests: ROUNDS * load.batch,
        prompt_tokens: tokens.prompt,
        generated_tokens: tokens.generated,
        seconds: time.as_secs_f64(),
        generated_tokens_per_s: per_second(tokens.generated as f64, time),
    })
}

struct Client {
    agent: Agent,
    url: String,
    model: String,
    load: Workload,
    vocab: usize,
}

impl Client {
    /// A thread for each stream.
    fn all(&self) -> Result<Tokens> {
        let each =
            |stream: usize| (0..ROUNDS).map(|round| self.ask((round * self.load.batch + stream) as u64)).collect();
        let answers: Vec<Result<Vec<Tokens>>> = thread::scope(|scope| {
            let streams: Vec<_> = (0..self.load.batch).map(|stream| scope.spawn(move || each(stream))).collect();
            let joined = |thread: thread::ScopedJoinHandle<'_, _>| thread.join();
            let broken = |_| Err(anyhow!("a client's thread failed"));
            streams.into_iter().map(|thread| joined(thread).unwrap_or_else(broken)).collect()
        });
        let mut sum = Tokens::default();
        for answer in answers {
            for Tokens { prompt, generated } in answer? {
                sum.prompt += prompt;
                sum.generated += generated;
            }
        }
        Ok(sum)
    }

    fn ask(&self, seed: u64) -> Result<Tokens> {
        let Workload { prompt_tokens, generate_tokens, .. } = self.load;
        let body = json!({
            "model": self.model,
            "prompt": prompt(prompt_tokens, self.vocab, seed),
            "max_tokens": generate_tokens,
            "min_tokens": generate_tokens,
            "ignore_eos": true,
            "temperature": 0,
        });
        let request = self.agent.post(&self.url).content_type("application/json");
        let mut response = request.send(body.to_string()).context("the server does not answer")?;
        let status = response.status();
        let text = response.body_mut().read_to_string()?;
        ensure!(status.is_success(), "{status}: {text}");
        let usage = &serde_json::from_str::<Value>(&text)?["usage"];
        let count = |name: &str| usage[name].as_u64().with_context(|| format!("usage.{name}"));
        Ok(Tokens { prompt: count("prompt_tokens")?, generated: count("completion_tokens")? })
    }
}

/// What is said to this machine does not leave it, whatever HTTP_PROXY says.
pub(super) fn agent(longest_answer: Duration) -> Agent {
    let config = Agent::config_builder().http_status_as_error(false).timeout_global(Some(longest_answer)).proxy(None);
    config.build().into()
}
