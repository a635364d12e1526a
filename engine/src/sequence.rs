//! The scheduler's record of one request: its tokens, how many of them are computed, and the blocks that hold them.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use passerelle_models::{BlockId, TokenId};

use crate::admission::Ticket;
use crate::constraint::{Allowed, AnswerEnd, Constraint};
use crate::event::{FinishReason, RequestError, TokenLogprobs};
use crate::event_stream::EventSender;
use crate::prefix::{BlockContents, BlockHash};
use crate::random::mix;
use crate::request::{Class, Request, RequestId, SamplingParams, ShareKey, ShareWeight};

/// Names a sequence and says who goes first: the better class, then the older request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SequenceId {
    pub(crate) class: Class,
    pub(crate) arrival: u64,
    pub(crate) choice: u32,
}

/// Whose time a sequence takes. Classes are shared apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Share {
    pub(crate) class: Class,
    pub(crate) key: ShareKey,
}

/// ```text
/// tokens:  [ prompt ............ | generated ... ]
///          [ computed ...... | remaining ....... ]    a step moves the border to the right
/// ```
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    pub(crate) request_id: RequestId,
    pub(crate) share: Share,
    pub(crate) share_weight: ShareWeight,
    pub(crate) sampling: SamplingParams,
    /// The request's own, or drawn for it. Choices derive theirs from it.
    seed: u64,
    pub(crate) events: EventSender,
    has_started: bool,
    /// Its choices share the request's place.
    pub(crate) ticket: Arc<Ticket>,
    /// One for each group of layers, none while it holds no blocks. They cover `num_computed` tokens and those of the
    /// present step.
    pub(crate) block_tables: Vec<Vec<BlockId>>,
    /// Leading blocks of the tables that became full, and findable.
    pub(crate) num_registered_blocks: usize,
    /// Names the block whose beginning was copied when it got its blocks.
    pub(crate) copied_from: Option<BlockHash>,
    /// Tokens whose K/V stand in the cache.
    pub(crate) num_computed: usize,
    /// Tokens of the present step.
    pub(crate) num_scheduled: usize,
    /// Since when it runs and no step had a token for it.
    pub(crate) idle_since: Option<Duration>,
    /// Tokens that its share has paid for, or that were found computed. What is computed again is not paid again.
    num_charged: usize,
    /// One entry per prompt token whose distribution was seen. Stays empty unless asked for.
    pub(crate) prompt_logprobs: Vec<Option<TokenLogprobs>>,
    tokens: Vec<TokenId>,
    prompt_len: usize,
    root_hash: BlockHash,
    block_hashes: Vec<BlockHash>,
    counts: Option<TokenCounts>,
    constraint: Option<Box<dyn Constraint>>,
}

/// What makes a [`Sequence`].
#[derive(Debug)]
pub(crate) struct NewSequence {
    pub(crate) arrival: u64,
    pub(crate) request: Request,
    pub(crate) seed: u64,
    pub(crate) events: EventSender,
    pub(crate) ticket: Ticket,
}

/// How often each token occurs, for the penalties. Kept only for requests that use one.
#[derive(Debug, Clone, Default)]
pub(crate) struct TokenCounts {
    /// How often each token was generated, in the order of tokens.
    occurrences: Vec<(TokenId, u32)>,
}

impl Sequence {
    pub(crate) fn new(new: NewSequence) -> Self {
        let Request { id, prompt, mut sampling, share_key: key, share_weight, class, cache_salt, constraint, .. } =
            new.request;
        // As a constraint looks for them.
        sampling.stop_token_ids.sort_unstable();
        let counts = TokenCounts::for_request(&sampling, &prompt);
        let prompt_logprobs = if sampling.prompt_logprobs.is_some() { vec![None] } else { Vec::new() };
        Self {
            id: SequenceId { class, arrival: new.arrival, choice: 0 },
            request_id: id,
            share: Share { class, key },
            share_weight,
            seed: new.seed,
            events: new.events,
            has_started: false,
            ticket: Arc::new(new.ticket),
            block_tables: Vec::new(),
            num_registered_blocks: 0,
            copied_from: None,
            num_computed: 0,
            num_scheduled: 0,
            idle_since: None,
            num_charged: 0,
            prompt_logprobs,
            prompt_len: prompt.len(),
            tokens: prompt,
            root_hash: BlockHash::root(&cache_salt),
            block_hashes: Vec::new(),
            counts,
            constraint,
            sampling,
        }
    }

    /// The same sequence for another choice, which from here on goes its own way. It holds no blocks yet.
    pub(crate) fn fork(&self, events: EventSender) -> Self {
        Self {
            id: SequenceId { choice: events.choice(), ..self.id },
            request_id: self.request_id,
            share: self.share,
            share_weight: self.share_weight,
            sampling: self.sampling.clone(),
            seed: self.seed,
            events,
            has_started: self.has_started,
            ticket: Arc::clone(&self.ticket),
            block_tables: Vec::new(),
            num_registered_blocks: 0,
            copied_from: self.copied_from,
            num_computed: 0,
            num_scheduled: 0,
            idle_since: None,
            num_charged: self.num_charged,
            prompt_logprobs: Vec::new(),
            tokens: self.tokens.clone(),
            prompt_len: self.prompt_len,
            root_hash: self.root_hash,
            block_hashes: self.block_hashes.clone(),
            counts: self.counts.clone(),
            constraint: self.constraint.clone(),
        }
    }

    /// It had its first step, or is about to have it.
    pub(crate) fn has_started(&self) -> bool {
        self.has_started
    }

    /// Its blocks are there: it leaves the queue. True if this is its first step and somebody still waits for it.
    pub(crate) fn start(&mut self) -> bool {
        self.ticket.leave_queue();
        !std::mem::replace(&mut self.has_started, true) && self.events.start(self.num_computed)
    }

    /// It left the queue before: where it waits once more, it does so after it was parked or preempted.
    pub(crate) fn is_resuming(&self) -> bool {
        !self.ticket.is_queued()
    }

    /// The choices that this sequence stands for: all of the request's until their prompt is computed, then one.
    pub(crate) fn choices(&self) -> Range<u32> {
        self.id.choice..self.id.choice + self.events.num_choices()
    }

    /// What `choice` draws with. Choice 0 has the request's own seed.
    pub(crate) fn seed_of(&self, choice: u32) -> u64 {
        if choice == 0 { self.seed } else { mix(self.seed ^ mix(u64::from(choice))) }
    }

    /// It has generated what it may for now.
    pub(crate) fn is_parked(&self) -> bool {
        let generated = self.num_generated();
        generated < self.sampling.max_tokens as usize && generated >= self.events.granted_tokens()
    }

    pub(crate) fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    pub(crate) fn prompt_len(&self) -> usize {
        self.prompt_len
    }

    pub(crate) fn generated(&self) -> &[TokenId] {
        &self.tokens[self.prompt_len..]
    }

    pub(crate) fn num_generated(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Of prompt and answer, if nothing ends it sooner.
    pub(crate) fn most_tokens(&self) -> usize {
        self.prompt_len + self.sampling.max_tokens as usize
    }

    /// The lists of tokens, of their blocks and of how often they occur grow no more.
    pub(crate) fn make_room(&mut self, most_blocks: usize) {
        let further_tokens = self.most_tokens().saturating_sub(self.tokens.len());
        self.tokens.reserve_exact(further_tokens);
        self.block_hashes.reserve_exact(most_blocks.saturating_sub(self.block_hashes.len()));
        if let Some(counts) = &mut self.counts {
            counts.occurrences.reserve_exact(further_tokens);
        }
    }

    /// Tokens that are known but not computed.
    pub(crate) fn num_remaining(&self) -> usize {
        self.tokens.len() - self.num_computed
    }

    /// The step in flight computes the last known token, whose logits choose the next one.
    pub(crate) fn samples_next(&self) -> bool {
        self.num_computed + self.num_scheduled == self.tokens.len() && self.sampling.max_tokens > 0
    }

    /// Positions of the step in flight whose logits say how likely the *next prompt token* was. A position seen before
    /// a preemption is not asked for again.
    pub(crate) fn prompt_logprob_positions(&self) -> Range<usize> {
        if self.sampling.prompt_logprobs.is_none() {
            return 0..0;
        }
        let start = (self.prompt_logprobs.len() - 1).max(self.num_computed);
        let end = (self.num_computed + self.num_scheduled).min(self.prompt_len - 1);
        start..end.max(start)
    }

    /// Which tokens of the step in flight want logits, by index.
    pub(crate) fn sampled(&self) -> impl Iterator<Item = usize> {
        let scored = self.prompt_logprob_positions().map(|position| position - self.num_computed);
        scored.chain(self.samples_next().then(|| self.num_scheduled - 1))
    }

    /// A prefix hit would skip positions whose logits were asked for.
    pub(crate) fn may_reuse_prefix(&self) -> bool {
        self.sampling.prompt_logprobs.is_none()
    }

    /// The scheduled tokens that are computed for the first time; from now on they count as paid.
    pub(crate) fn charge_scheduled(&mut self) -> Option<Range<usize>> {
        let unpaid = self.num_charged.max(self.num_computed)..self.num_computed + self.num_scheduled;
        self.num_charged = self.num_charged.max(unpaid.end);
        (!unpaid.is_empty()).then_some(unpaid)
    }

    pub(crate) fn counts(&self) -> Option<&TokenCounts> {
        self.counts.as_ref()
    }

    pub(crate) fn allowed(&self) -> Option<Allowed<'_>> {
        self.constraint.as_deref().map(Constraint::allowed)
    }

    /// Errors if the constraint cannot be followed past the token.
    pub(crate) fn append(&mut self, token: TokenId) -> Result<(), RequestError> {
        self.tokens.push(token);
        if let Some(counts) = &mut self.counts {
            counts.note(token);
        }
        match &mut self.constraint {
            Some(constraint) if !self.sampling.stop_token_ids.contains(&token) => Ok(constraint.accept(token)?),
            _ => Ok(()),
        }
    }

    /// The log-probabilities of the whole prompt, once every token of it is computed: a prompt that fails tells none,
    /// however it was cut. The request then counts as one that did not ask for them, so a resumed sequence may reuse its
    /// prefix.
    pub(crate) fn take_prompt_logprobs(&mut self) -> Option<Vec<Option<TokenLogprobs>>> {
        let complete = self.num_computed >= self.prompt_len && self.prompt_logprobs.len() == self.prompt_len;
        (complete && self.sampling.prompt_logprobs.is_some()).then(|| {
            self.sampling.prompt_logprobs = None;
            std::mem::take(&mut self.prompt_logprobs)
        })
    }

    /// Whether the request is complete with the tokens it has.
    pub(crate) fn finish_reason(&self) -> Option<FinishReason> {
        let stopped = self.generated().last().is_some_and(|token| self.sampling.stop_token_ids.contains(token));
        if stopped || self.allowed().is_some_and(|allowed| allowed.end == AnswerEnd::Reached) {
            return Some(FinishReason::Stop);
        }
        let computed_prompt = self.num_computed >= self.prompt_len;
        let complete = computed_prompt && self.num_generated() >= self.sampling.max_tokens as usize;
        complete.then_some(FinishReason::Length)
    }

    /// What stands in the block at `index` of the tokens below `end`.
    pub(crate) fn contents(&mut self, block_size: usize, index: usize, end: usize) -> BlockContents<'_> {
        let hashes = self.block_hashes(block_size);
        let parent = if index == 0 { self.root_hash } else { hashes[index - 1] };
        let start = index * block_size;
        let end = end.min(start + block_size).min(self.tokens.len());
        BlockContents { parent, tokens: &self.tokens[start..end] }
    }

    /// The hashes of all full blocks of known tokens, computed or not.
    pub(crate) fn block_hashes(&mut self, block_size: usize) -> &[BlockHash] {
        let full_blocks = self.tokens.len() / block_size;
        for index in self.block_hashes.len()..full_blocks {
            let parent = self.block_hashes.last().unwrap_or(&self.root_hash);
            let hash = parent.child(&self.tokens[index * block_size..(index + 1) * block_size]);
            self.block_hashes.push(hash);
        }
        &self.block_hashes
    }
}

impl TokenCounts {
    /// A prompt token counts as seen, zero times generated, which only the repetition penalty looks at.
    fn for_request(sampling: &SamplingParams, prompt: &[TokenId]) -> Option<Self> {
        if sampling.repetition_penalty != 1.0 {
            let mut occurrences: Vec<_> = prompt.iter().map(|&token| (token, 0)).collect();
            occurrences.sort_unstable();
            occurrences.dedup();
            return Some(Self { occurrences });
        }
        (sampling.frequency_penalty != 0.0 || sampling.presence_penalty != 0.0).then(Self::default)
    }

    fn note(&mut self, token: TokenId) {
        match self.occurrences.binary_search_by_key(&token, |&(token, _)| token) {
            Ok(index) => self.occurrences[index].1 += 1,
            Err(index) => self.occurrences.insert(index, (token, 1)),
        }
    }

    /// Every token that a penalty looks at, with how often it was generated.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (TokenId, u32)> + '_ {
        self.occurrences.iter().copied()
    }
}
