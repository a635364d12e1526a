//! Random requests of every kind, from a seed.

use crate::pattern::Pattern;
use passerelle_engine::{CacheSalt, Class, Request, RequestId, SamplingParams, ShareKey, ShareWeight};

/// Knuth's MMIX generator (The Art of Computer Programming 2, 3.3.4); its high bits are good enough here.
#[derive(Debug, Clone)]
pub(crate) struct Chance(pub(crate) u64);

/// What the requests of a world may be.
pub(crate) struct Kinds {
    pub(crate) longest_prompt: usize,
    pub(crate) most_tokens: usize,
    pub(crate) most_choices: usize,
    /// Prompts are made of ids below this, but for one token now and then.
    pub(crate) usual_ids: usize,
    pub(crate) ids: usize,
}

impl Chance {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 32
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.next() as usize % bound
    }

    pub(crate) fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// Prompts share prefixes: each is a stretch of one of two long texts, and now and then something of its own.
    pub(crate) fn request(&mut self, kinds: &Kinds, id: u64) -> Request {
        let text = self.below(2);
        let length = 1 + self.below(kinds.longest_prompt - 1);
        let mut prompt: Vec<u32> = (0..length).map(|i| ((i * 7 + text * 13) % kinds.usual_ids) as u32).collect();
        if self.one_in(3) {
            prompt.push(self.below(kinds.ids) as u32);
        }
        let num_choices = if self.one_in(3) { 1 + self.below(kinds.most_choices) as u32 } else { 1 };
        let sampling = self.sampling(kinds);
        let granted_tokens = self.one_in(3).then(|| self.below(6) as u32);
        Request {
            share_key: ShareKey(self.below(3) as u64),
            share_weight: ShareWeight((1 + self.below(3) as u32).try_into().expect("at least one")),
            class: [Class::Interactive, Class::Standard, Class::Standard, Class::Batch][self.below(4)],
            cache_salt: CacheSalt([self.below(2) as u8; 32]),
            num_choices: num_choices.try_into().expect("at least one"),
            granted_tokens,
            constraint: self.one_in(4).then(|| Pattern::boxed(self.next(), kinds.ids)),
            ..Request::new(RequestId(id), prompt, sampling)
        }
    }

    fn sampling(&mut self, kinds: &Kinds) -> SamplingParams {
        SamplingParams {
            max_tokens: self.below(kinds.most_tokens + 1) as u32,
            min_tokens: self.below(4) as u32,
            temperature: [0.0, 0.7, 1.0, 1.5][self.below(4)],
            top_k: self.one_in(3).then_some(5),
            top_p: [1.0, 0.9, 0.3][self.below(3)],
            min_p: [0.0, 0.05][self.below(2)],
            typical_p: [1.0, 1.0, 0.8][self.below(3)],
            frequency_penalty: [0.0, 0.5][self.below(2)],
            presence_penalty: [0.0, -0.5][self.below(2)],
            repetition_penalty: [1.0, 1.2][self.below(2)],
            logit_bias: self.some_ids(kinds).into_iter().zip([-100.0, 2.0]).collect(),
            bad_words: vec![self.some_ids(kinds), self.some_ids(kinds)],
            seed: Some(self.next()),
            stop_token_ids: (0..self.below(3)).map(|_| self.below(kinds.usual_ids) as u32).collect(),
            logprobs: self.one_in(3).then_some(2),
            prompt_logprobs: self.one_in(5).then_some(1),
        }
    }

    fn some_ids(&mut self, kinds: &Kinds) -> Vec<u32> {
        (0..1 + self.below(2)).map(|_| self.below(kinds.usual_ids) as u32).collect()
    }
}
