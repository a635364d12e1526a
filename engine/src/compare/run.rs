//! The loop: one comparison at a time, chunk by chunk.

use std::time::Duration;

use passerelle_models::LogitRows;

use super::lane::{ComparisonConfig, ComparisonParts};
use super::pair::{Pair, Side};
use super::{ComparedPosition, ComparisonRequest};
use crate::event::RequestError;
use crate::lane::{BatchBudget, Inbox, Job};
use crate::stats::StepReport;

/// Nobody knows yet how fast the models are.
const FIRST_CHUNK_TOKENS: usize = 8;

type Answer = Vec<Option<ComparedPosition>>;

pub(super) struct CompareLoop {
    parts: ComparisonParts,
    inbox: Inbox<ComparisonRequest, Answer>,
}

/// How long the next chunk is.
#[derive(Debug)]
struct Pace {
    next: usize,
    most: usize,
    latency: Duration,
}

impl CompareLoop {
    pub(super) fn new(parts: ComparisonParts, inbox: Inbox<ComparisonRequest, Answer>) -> Self {
        Self { parts, inbox }
    }

    /// Runs until shut down, sleeping while idle.
    pub(super) fn run_until_stopped(mut self) {
        while self.inbox.wait() {
            if self.inbox.refresh() {
                let budget = BatchBudget { tokens: self.parts.config.max_text_tokens, requests: 1 };
                self.inbox.take_batch(budget).into_iter().for_each(|job| self.run(job));
            }
        }
        self.inbox.fail_all("no comparison succeeds");
    }

    fn run(&mut self, job: Job<ComparisonRequest, Answer>) {
        let answer = self.with_pair(&job);
        if let Err(error) = &answer {
            tracing::error!(request = job.request.id.0, %error, "a comparison failed");
        }
        job.end(answer);
    }

    /// Caches come and go in turns, as steps do: a step that is recorded on their device would record that, too.
    fn with_pair(&mut self, job: &Job<ComparisonRequest, Answer>) -> Result<Answer, RequestError> {
        let turns = self.parts.turns.clone();
        let turn = turns.take();
        let mut pair = Pair::new(&job.request)?;
        drop(turn);
        let answer = self.compare(job, &mut pair);
        let turn = turns.take();
        drop(pair);
        drop(turn);
        answer
    }

    fn compare(&mut self, job: &Job<ComparisonRequest, Answer>, pair: &mut Pair) -> Result<Answer, RequestError> {
        let tokens = &job.request.tokens;
        let mut pace = Pace::new(&self.parts.config);
        let mut compared = Vec::with_capacity(tokens.len());
        compared.push(None);
        let mut start = 0;
        while start < tokens.len() {
            if self.inbox.is_closing() {
                return Err(RequestError::ShuttingDown);
            }
            // Whoever left the line meanwhile keeps no model in memory.
            self.inbox.refresh();
            let chunk = start..(start + pace.next).min(tokens.len());
            if !job.reply.owe(chunk.len()) {
                // Whoever would read the rest has gone.
                return Ok(compared);
            }
            let run = |side: &mut Side| self.in_turn(chunk.len(), || side.run(tokens, chunk.clone()));
            let (first, first_took) = run(&mut pair.first)?;
            let (second, second_took) = run(&mut pair.second)?;
            let successors = &tokens[chunk.start + 1..(chunk.end + 1).min(tokens.len())];
            compared.extend(pair.compare(&first, &second, successors)?);
            pace.note(chunk.len(), first_took.max(second_took));
            start = chunk.end;
        }
        Ok(compared)
    }

    /// One model's part of a chunk, and how long it took.
    fn in_turn(
        &self,
        prompt_tokens: usize,
        step: impl FnOnce() -> Result<LogitRows, RequestError>,
    ) -> Result<(LogitRows, Duration), RequestError> {
        let ComparisonParts { turns, clock, observer, .. } = &self.parts;
        let turn = turns.take();
        let started = clock.now();
        let result = step();
        let duration = clock.now().saturating_sub(started);
        drop(turn);
        let waiting = self.inbox.num_waiting();
        observer.step(&StepReport { duration, num_sequences: 1, prompt_tokens, waiting, ..Default::default() });
        Ok((result?, duration))
    }
}

impl Pace {
    fn new(config: &ComparisonConfig) -> Self {
        let most = config.max_chunk_tokens;
        Self { next: FIRST_CHUNK_TOKENS.min(most), most, latency: config.max_added_latency }
    }

    /// So many tokens took so long; a token of a longer chunk takes no longer.
    fn note(&mut self, num_tokens: usize, took: Duration) {
        let in_time = num_tokens as u128 * self.latency.as_nanos() / took.as_nanos().max(1);
        self.next = in_time.clamp(1, self.most as u128) as usize;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_as_long_as_the_latency_allows_and_never_empty() {
        let config = ComparisonConfig {
            max_chunk_tokens: 64,
            max_added_latency: Duration::from_millis(100),
            ..ComparisonConfig::default()
        };
        let mut pace = Pace::new(&config);
        assert_eq!(pace.next, FIRST_CHUNK_TOKENS);
        for (tokens, millis, next) in
            [(8, 40, 20), (20, 100, 20), (20, 1, 64), (64, 640, 10), (10, 60_000, 1), (1, 0, 64)]
        {
            pace.note(tokens, Duration::from_millis(millis));
            assert_eq!(pace.next, next, "after {tokens} tokens in {millis} ms");
        }
    }
}
