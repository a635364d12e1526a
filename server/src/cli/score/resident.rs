//! One checkpoint in memory, and the items that run through it: as many at once as its engine likes.

use std::collections::VecDeque;
use std::sync::Arc;

use anyhow::{Context, Result};
use passerelle::config::EngineConfig;
use passerelle::evaluation::items::MAX_CHOICES;
use passerelle::evaluation::{Answer, Continuation, Item, Outcome, Scored, Task, TokenScore, TokenScores};
use passerelle::placement::KvDemand;
use passerelle::text::{Detokenizer, SkipSpecialTokens, TextModel};
use passerelle_engine::clock::Clock;
use passerelle_engine::{
    ComparisonConfig, ComparisonLane, ComparisonParts, ComparisonReply, ComparisonRequest, CostModel, Engine,
    EngineParts, EventStream, Heard, NullObserver, Request, RequestId, SamplingParams, ShareKey, SharedModel,
    StepTurns, TokenLogprobs,
};
use passerelle_models::TokenId;

use super::plan::{Asked, Passage, Planned};
use crate::serve::{EngineBounds, KV_CACHE_MEMORY, Loaded, share_kv_memory};

/// Requests in the engine for each sequence that it runs at once, so that it never waits for the next one.
const REQUESTS_PER_SEQUENCE: usize = 2;

/// Dropping it frees the model and its cache.
pub(super) struct Resident {
    /// Dropped before the engine that it borrows the model of.
    against: Option<Against>,
    engine: Engine,
    text: Arc<TextModel>,
    eos_token_ids: Vec<TokenId>,
    most_in_flight: usize,
}

/// Where texts are read by the checkpoint and a second model, side by side.
struct Against {
    lane: ComparisonLane,
    first: SharedModel,
    second: SharedModel,
}

/// What the memory and the queues of a run are made for.
struct Room {
    /// Tokens of the longest sequence.
    longest: usize,
    most_in_flight: usize,
}

/// An item whose requests the engine has.
struct InFlight<'a> {
    item: &'a Item,
    passages: Vec<(Passage, Reading)>,
    answer: Option<EventStream>,
}

/// A passage that is being read.
enum Reading {
    Alone(EventStream),
    Against(ComparisonReply),
}

/// What is known of a token that has something before it.
struct Read {
    scores: TokenLogprobs,
    kl: Option<f64>,
}

impl Resident {
    /// With a KV cache for the longest of `items`, as often as sequences run at once, within `config.kv_cache_memory`.
    pub(super) fn start(
        loaded: Loaded,
        items: &[Planned],
        config: &EngineConfig,
        clock: Arc<dyn Clock>,
        against: Option<SharedModel>,
    ) -> Result<Self> {
        let longest = items.iter().map(Planned::longest).max().unwrap_or(1);
        let room = Room { longest, most_in_flight: config.steps.max_num_seqs * REQUESTS_PER_SEQUENCE };
        let bounds = room.bounds(&loaded, config)?;
        let (text, eos_token_ids) = (loaded.text, loaded.description.eos_token_ids);
        let turns = StepTurns::new();
        let engine = Engine::spawn(EngineParts {
            name: loaded.name,
            model: loaded.model,
            config: bounds,
            turns: turns.clone(),
            clock: Arc::clone(&clock),
            observer: Arc::new(NullObserver),
        })?;
        let against = against.map(|second| {
            let (config, observer) = (room.lane(config), Arc::new(NullObserver));
            let lane = ComparisonLane::spawn(ComparisonParts { config, turns, clock, observer })?;
            let first = engine.handle().model().context("the engine has just ended")?;
            anyhow::Ok(Against { lane, first, second })
        });
        Ok(Self { against: against.transpose()?, engine, text, eos_token_ids, most_in_flight: room.most_in_flight })
    }

    /// Results come in the order of the items.
    pub(super) fn run(&self, items: Vec<Planned>, mut done: impl FnMut(Scored) -> Result<()>) -> Result<()> {
        let mut running: VecDeque<InFlight> = VecDeque::new();
        let mut next_id = 0;
        for planned in items {
            while running.iter().map(InFlight::requests).sum::<usize>() >= self.most_in_flight {
                self.finish_first(&mut running, &mut done)?;
            }
            running.push_back(self.begin(planned, &mut next_id)?);
        }
        while !running.is_empty() {
            self.finish_first(&mut running, &mut done)?;
        }
        Ok(())
    }

    fn begin<'a>(&self, planned: Planned<'a>, next_id: &mut u64) -> Result<InFlight<'a>> {
        let Planned { item, passages, answer } = planned;
        let refused = || format!("item {:?}: the engine refuses it", item.id);
        let mut id = || {
            *next_id += 1;
            RequestId(*next_id)
        };
        let read = |passage: Passage| {
            let reading = self.read(id(), passage.tokens.clone()).with_context(refused)?;
            Ok((passage, reading))
        };
        let passages = passages.into_iter().map(read).collect::<Result<_>>()?;
        let ask = |Asked { prompt, max_tokens }| {
            let request = Request::new(id(), prompt, SamplingParams::greedy(max_tokens, self.eos_token_ids.clone()));
            self.engine.handle().submit(request).with_context(refused)
        };
        Ok(InFlight { item, passages, answer: answer.map(ask).transpose()? })
    }

    fn read(&self, id: RequestId, tokens: Vec<TokenId>) -> Result<Reading> {
        let Some(Against { lane, first, second }) = &self.against else {
            return Ok(Reading::Alone(self.engine.handle().submit(Request::new(
                id,
                tokens,
                SamplingParams::scores(),
            ))?));
        };
        let (first, second) = (first.clone(), second.clone());
        let request = ComparisonRequest { id, tokens, first, second, share_key: ShareKey(0) };
        Ok(Reading::Against(lane.handle().submit(request)?))
    }

    fn finish_first(
        &self,
        running: &mut VecDeque<InFlight>,
        done: &mut impl FnMut(Scored) -> Result<()>,
    ) -> Result<()> {
        let Some(InFlight { item, passages, answer }) = running.pop_front() else { return Ok(()) };
        let of_item = || format!("item {:?}", item.id);
        let mut scored = Vec::with_capacity(passages.len());
        for (passage, reading) in passages {
            scored.push((passage, reading.wait().with_context(of_item)?));
        }
        let outcome = match &item.task {
            Task::Document { text } => Outcome::Document(self.join(text, &scored)),
            Task::Prompt { reference, .. } => {
                let answer =
                    answer.map(|stream| wait_for(stream).with_context(of_item)).transpose()?.unwrap_or_default();
                let (wanted, reference) = (reference.clone(), self.join(reference, &scored));
                Outcome::Prompt { reference, wanted, answer: self.answer(&answer) }
            }
            Task::Choice { choices, answer, .. } => {
                let each = choices.iter().zip(&scored);
                let choices = each.map(|(text, scored)| self.join(text, std::slice::from_ref(scored))).collect();
                Outcome::Choice { choices, answer: *answer }
            }
        };
        done(Scored { id: item.id.clone(), outcome })
    }

    /// One text from its passages, one after the other.
    fn join(&self, text: &str, passages: &[(Passage, Vec<Option<Read>>)]) -> Continuation {
        let mut tokens = TokenScores::default();
        let before = passages.first().map_or(&[][..], |(passage, _)| &passage.tokens[..passage.scored_from]);
        let ids: Vec<TokenId> =
            passages.iter().flat_map(|(passage, _)| &passage.tokens[passage.scored_from..]).copied().collect();
        let texts = Detokenizer::after(&self.text.tokenizer, SkipSpecialTokens::No, before).spell(&ids);
        let entries = passages.iter().flat_map(|(passage, entries)| entries.iter().skip(passage.scored_from));
        for ((id, text), entry) in ids.into_iter().zip(texts).zip(entries) {
            tokens.push(id, text, entry.as_ref().map(|read| score_of(&read.scores)));
            if self.against.is_some() {
                tokens.kls.push(entry.as_ref().and_then(|read| read.kl).filter(|kl| kl.is_finite()));
            }
        }
        Continuation { bytes: text.len() as u64, tokens }
    }

    /// The token that ends the answer is no part of it.
    fn answer(&self, heard: &Heard) -> Answer {
        let ends = |token: &TokenId| self.eos_token_ids.contains(token);
        let count = heard.tokens.iter().position(ends).unwrap_or(heard.tokens.len());
        let ids = &heard.tokens[..count];
        let texts = Detokenizer::new(&self.text.tokenizer, SkipSpecialTokens::No).spell(ids);
        Answer::new(ids, texts, &heard.logprobs[..count])
    }
}

impl Room {
    fn bounds(&self, loaded: &Loaded, config: &EngineConfig) -> Result<passerelle_engine::EngineConfig> {
        let spec = loaded.model.kv_cache_spec();
        let most_blocks =
            spec.most_blocks(self.longest, config.steps.max_num_batched_tokens) * config.steps.max_num_seqs;
        let demand = KvDemand { spec, most_blocks };
        let blocks = share_kv_memory(config.kv_cache_memory, KV_CACHE_MEMORY, &[demand])?;
        let num_kv_blocks = blocks.into_iter().sum();
        let mut bounds = EngineBounds { num_kv_blocks, max_model_len: loaded.description.max_position }.with(config)?;
        bounds.max_waiting_requests = self.most_waiting();
        bounds.max_waiting_tokens = self.most_waiting() * self.longest;
        // Nobody shares this engine, so nothing needs a price.
        bounds.costs = Some(CostModel::default());
        Ok(bounds)
    }

    fn lane(&self, config: &EngineConfig) -> ComparisonConfig {
        ComparisonConfig {
            max_text_tokens: self.longest,
            max_chunk_tokens: config.prompt_logprobs_chunk_tokens,
            max_added_latency: config.max_added_latency.at_most(),
            max_waiting_texts: self.most_waiting(),
            max_waiting_tokens: self.most_waiting() * self.longest,
        }
    }

    /// An item may bring all its choices at once.
    fn most_waiting(&self) -> usize {
        self.most_in_flight + MAX_CHOICES
    }
}

impl Reading {
    /// One entry for each token.
    fn wait(self) -> Result<Vec<Option<Read>>> {
        match self {
            Self::Alone(stream) => {
                let alone = |scores: TokenLogprobs| Read { scores, kl: None };
                Ok(wait_for(stream)?.prompt.into_iter().map(|scores| scores.map(alone)).collect())
            }
            Self::Against(reply) => {
                let compared = reply.blocking_wait()?.into_iter();
                Ok(compared.map(|at| at.map(|at| Read { scores: at.first, kl: Some(at.kl) })).collect())
            }
        }
    }
}

impl InFlight<'_> {
    fn requests(&self) -> usize {
        self.passages.len() + usize::from(self.answer.is_some())
    }
}

fn score_of(scores: &TokenLogprobs) -> TokenScore {
    TokenScore { logprob: scores.logprob, rank: scores.rank, entropy: scores.entropy }
}

fn wait_for(mut stream: EventStream) -> Result<Heard> {
    let mut heard = Heard::default();
    while let Some(event) = stream.blocking_next() {
        heard.take(event).context("the request failed")?;
    }
    Ok(heard)
}
