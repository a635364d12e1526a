//! One checkpoint in memory, and the items that run through it: as many at once as its engine likes.

use std::collections::VecDeque;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use passerelle::config::EngineConfig;
use passerelle::evaluation::items::MAX_CHOICES;
use passerelle::evaluation::{Answer, Continuation, Item, Outcome, Scored, Task, TokenScores};
use passerelle::text::{Detokenizer, SkipSpecialTokens, TextModel};
use passerelle_engine::clock::Clock;
use passerelle_engine::{
    CostModel, Engine, EngineHandle, EngineParts, Event, EventStream, NullObserver, Request, RequestId, SamplingParams,
    StepTurns, TokenLogprobs,
};
use passerelle_models::TokenId;

use super::plan::{Asked, Passage, Planned};
use crate::serve::{EngineBounds, KvDemand, Loaded, share_kv_memory};

/// Requests in the engine for each sequence that it runs at once, so that it never waits for the next one.
const REQUESTS_PER_SEQUENCE: usize = 2;
/// JSON has no infinity; `/v1/completions` writes impossible tokens like this too.
const FLOOR: f32 = -9999.0;

/// Dropping it frees the model and its cache.
pub(super) struct Resident {
    engine: Engine,
    text: Arc<TextModel>,
    eos_token_ids: Vec<TokenId>,
    most_in_flight: usize,
}

/// An item whose requests the engine has.
struct InFlight<'a> {
    item: &'a Item,
    passages: Vec<(Passage, EventStream)>,
    answer: Option<EventStream>,
}

/// What came of one request.
#[derive(Default)]
struct Came {
    prompt: Vec<Option<TokenLogprobs>>,
    tokens: Vec<TokenId>,
    logprobs: Vec<f64>,
}

impl Resident {
    /// With a KV cache for the longest of `items`, as often as sequences run at once, within `config.kv_cache_memory`.
    pub(super) fn start(
        loaded: Loaded,
        items: &[Planned],
        config: &EngineConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let longest = items.iter().map(Planned::longest).max().unwrap_or(1);
        let spec = loaded.model.kv_cache_spec();
        let most_blocks = spec.most_blocks(longest, config.max_num_batched_tokens) * config.max_num_seqs;
        let blocks = share_kv_memory(config.kv_cache_memory, &[KvDemand { spec, most_blocks }])?;
        let num_kv_blocks = blocks.into_iter().sum();
        let most_in_flight = config.max_num_seqs * REQUESTS_PER_SEQUENCE;
        let mut bounds = EngineBounds { num_kv_blocks, max_model_len: loaded.description.max_position }.with(config)?;
        bounds.max_waiting_requests = most_in_flight + MAX_CHOICES;
        bounds.max_waiting_tokens = bounds.max_waiting_requests * longest;
        // Nobody shares this engine, so nothing needs a price.
        bounds.costs = Some(CostModel::default());
        let (text, eos_token_ids) = (loaded.text, loaded.description.eos_token_ids);
        let engine = Engine::spawn(EngineParts {
            name: loaded.name,
            model: loaded.model,
            config: bounds,
            turns: StepTurns::new(),
            clock,
            observer: Arc::new(NullObserver),
        })?;
        Ok(Self { engine, text, eos_token_ids, most_in_flight })
    }

    /// Results come in the order of the items.
    pub(super) fn run(&self, items: Vec<Planned>, mut done: impl FnMut(Scored) -> Result<()>) -> Result<()> {
        let handle = self.engine.handle();
        let mut running: VecDeque<InFlight> = VecDeque::new();
        let mut next_id = 0;
        for planned in items {
            while running.iter().map(InFlight::requests).sum::<usize>() >= self.most_in_flight {
                self.finish_first(&mut running, &mut done)?;
            }
            running.push_back(self.begin(&handle, planned, &mut next_id)?);
        }
        while !running.is_empty() {
            self.finish_first(&mut running, &mut done)?;
        }
        Ok(())
    }

    fn begin<'a>(&self, handle: &EngineHandle, planned: Planned<'a>, next_id: &mut u64) -> Result<InFlight<'a>> {
        let Planned { item, passages, answer } = planned;
        let mut submit = |prompt: Vec<TokenId>, sampling: SamplingParams| {
            *next_id += 1;
            let stream = handle.submit(Request::new(RequestId(*next_id), prompt, sampling));
            stream.with_context(|| format!("item {:?}: the engine refuses it", item.id))
        };
        let with_stream = |passage: Passage| Ok((passage.clone(), submit(passage.tokens, for_scores())?));
        let passages = passages.into_iter().map(with_stream).collect::<Result<_>>()?;
        let answer = answer.map(|Asked { prompt, max_tokens }| submit(prompt, self.for_answer(max_tokens)));
        Ok(InFlight { item, passages, answer: answer.transpose()? })
    }

    fn for_answer(&self, max_tokens: u32) -> SamplingParams {
        SamplingParams {
            max_tokens,
            temperature: 0.0,
            stop_token_ids: self.eos_token_ids.clone(),
            logprobs: Some(0),
            ..SamplingParams::default()
        }
    }

    fn finish_first(
        &self,
        running: &mut VecDeque<InFlight>,
        done: &mut impl FnMut(Scored) -> Result<()>,
    ) -> Result<()> {
        let Some(InFlight { item, passages, answer }) = running.pop_front() else { return Ok(()) };
        let wait = |stream: EventStream| wait_for(stream).with_context(|| format!("item {:?}", item.id));
        let mut scored = Vec::with_capacity(passages.len());
        for (passage, stream) in passages {
            scored.push((passage, wait(stream)?.prompt));
        }
        let outcome = match &item.task {
            Task::Document { text } => Outcome::Document(self.join(text, &scored)),
            Task::Prompt { reference, .. } => {
                let answer = answer.map(wait).transpose()?.unwrap_or_default();
                let (wanted, reference) = (reference.clone(), self.join(reference, &scored));
                Outcome::Prompt { reference, wanted, answer: self.answer(answer) }
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
    fn join(&self, text: &str, passages: &[(Passage, Vec<Option<TokenLogprobs>>)]) -> Continuation {
        let mut tokens = TokenScores::default();
        let before = passages.first().map_or(&[][..], |(passage, _)| &passage.tokens[..passage.scored_from]);
        let mut texts = Texts::after(&self.text, before);
        for (passage, entries) in passages {
            for (token, entry) in passage.tokens.iter().zip(entries).skip(passage.scored_from) {
                tokens.ids.push(*token);
                tokens.texts.push(texts.push(*token));
                tokens.logprobs.push(entry.as_ref().map(|entry| f64::from(entry.logprob.max(FLOOR))));
                tokens.ranks.push(entry.as_ref().map(|entry| entry.rank));
                tokens.entropies.push(entry.as_ref().map(|entry| f64::from(entry.entropy)));
            }
        }
        texts.finish_into(&mut tokens.texts);
        Continuation { bytes: text.len() as u64, tokens }
    }

    /// The token that ends the answer is no part of it.
    fn answer(&self, came: Came) -> Answer {
        let ends = |token: &TokenId| self.eos_token_ids.contains(token);
        let count = came.tokens.iter().position(ends).unwrap_or(came.tokens.len());
        let ids = came.tokens[..count].to_vec();
        let mut texts = Texts::after(&self.text, &[]);
        let mut pieces: Vec<String> = ids.iter().map(|token| texts.push(*token)).collect();
        texts.finish_into(&mut pieces);
        Answer { text: pieces.concat(), ids, texts: pieces, logprobs: came.logprobs[..count].to_vec() }
    }
}

impl InFlight<'_> {
    fn requests(&self) -> usize {
        self.passages.len() + usize::from(self.answer.is_some())
    }
}

/// The text that each token completes, special tokens included.
struct Texts(Detokenizer);

impl Texts {
    fn after(text: &TextModel, before: &[TokenId]) -> Self {
        Self(Detokenizer::after(&text.tokenizer, SkipSpecialTokens::No, before))
    }

    fn push(&mut self, token: TokenId) -> String {
        self.0.push(token)
    }

    /// What was held back belongs to the last token.
    fn finish_into(mut self, texts: &mut [String]) {
        let rest = self.0.finish();
        if let Some(last) = texts.last_mut() {
            last.push_str(&rest);
        }
    }
}

fn for_scores() -> SamplingParams {
    SamplingParams { max_tokens: 0, temperature: 0.0, prompt_logprobs: Some(0), ..SamplingParams::default() }
}

fn wait_for(mut stream: EventStream) -> Result<Came> {
    let mut came = Came::default();
    while let Some(event) = stream.blocking_next() {
        match event {
            Event::PromptLogprobs(entries) => came.prompt = entries,
            Event::Token(token) => {
                came.tokens.push(token.token);
                came.logprobs.extend(token.logprobs.map(|entry| f64::from(entry.logprob.max(FLOOR))));
            }
            Event::Finished { .. } => {}
            Event::Failed { error, .. } => bail!("the request failed: {error}"),
        }
    }
    Ok(came)
}
