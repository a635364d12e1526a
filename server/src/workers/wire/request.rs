//! A request on its way to a worker.

use std::num::NonZeroU32;

use passerelle_engine::{
    CacheSalt, Class as EngineClass, EncodeRequest, Request, RequestId, SamplingParams, ShareKey, ShareWeight,
};

use super::{Bias, Class, Malformed, Sampling, Submission, Text, Word};

/// How the gateway and a worker name a request or a text to each other. `call` is its own; `model` says which of the
/// worker's models it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::workers) struct CallId {
    pub(in crate::workers) call: u64,
    pub(in crate::workers) model: u32,
}

/// A request as the worker's engine takes it, once its grammar is made anew.
#[derive(Debug)]
pub(in crate::workers) struct Ordered {
    pub(in crate::workers) id: CallId,
    pub(in crate::workers) request: Request,
    pub(in crate::workers) grammar: Option<Vec<u8>>,
}

impl Submission {
    /// `granted_tokens`: of each choice, as of now.
    pub(in crate::workers) fn of(id: CallId, request: Request, grammar: Option<Vec<u8>>, granted_tokens: u32) -> Self {
        Self {
            call: id.call,
            model: id.model,
            request: request.id.0,
            prompt: request.prompt,
            sampling: Some(request.sampling.into()),
            share_key: request.share_key.0,
            share_weight: request.share_weight.0.get(),
            class: Class::from(request.class).into(),
            cache_salt: request.cache_salt.0.to_vec(),
            num_choices: request.num_choices.get(),
            granted_tokens,
            grammar,
        }
    }
}

impl TryFrom<Submission> for Ordered {
    type Error = Malformed;

    fn try_from(sent: Submission) -> Result<Self, Malformed> {
        let sampling = sent.sampling.ok_or(Malformed("sampling"))?.try_into()?;
        let class = Class::try_from(sent.class).map_err(|_| Malformed("class"))?;
        let request = Request {
            share_key: ShareKey(sent.share_key),
            share_weight: ShareWeight(NonZeroU32::new(sent.share_weight).ok_or(Malformed("share_weight"))?),
            class: class.into(),
            cache_salt: CacheSalt(sent.cache_salt.try_into().map_err(|_| Malformed("cache_salt"))?),
            num_choices: NonZeroU32::new(sent.num_choices).ok_or(Malformed("num_choices"))?,
            granted_tokens: Some(sent.granted_tokens),
            ..Request::new(RequestId(sent.request), sent.prompt, sampling)
        };
        Ok(Self { id: CallId { call: sent.call, model: sent.model }, request, grammar: sent.grammar })
    }
}

impl From<SamplingParams> for Sampling {
    fn from(params: SamplingParams) -> Self {
        Self {
            max_tokens: params.max_tokens,
            min_tokens: params.min_tokens,
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            typical_p: params.typical_p,
            frequency_penalty: params.frequency_penalty,
            presence_penalty: params.presence_penalty,
            repetition_penalty: params.repetition_penalty,
            logit_bias: params.logit_bias.into_iter().map(|(token, bias)| Bias { token, bias }).collect(),
            bad_words: params.bad_words.into_iter().map(|tokens| Word { tokens }).collect(),
            seed: params.seed,
            stop_token_ids: params.stop_token_ids,
            logprobs: params.logprobs.map(u32::from),
            prompt_logprobs: params.prompt_logprobs.map(u32::from),
        }
    }
}

impl TryFrom<Sampling> for SamplingParams {
    type Error = Malformed;

    fn try_from(sent: Sampling) -> Result<Self, Malformed> {
        let count = |sent: Option<u32>, field| sent.map(u8::try_from).transpose().map_err(|_| Malformed(field));
        Ok(Self {
            max_tokens: sent.max_tokens,
            min_tokens: sent.min_tokens,
            temperature: sent.temperature,
            top_k: sent.top_k,
            top_p: sent.top_p,
            min_p: sent.min_p,
            typical_p: sent.typical_p,
            frequency_penalty: sent.frequency_penalty,
            presence_penalty: sent.presence_penalty,
            repetition_penalty: sent.repetition_penalty,
            logit_bias: sent.logit_bias.into_iter().map(|Bias { token, bias }| (token, bias)).collect(),
            bad_words: sent.bad_words.into_iter().map(|word| word.tokens).collect(),
            seed: sent.seed,
            stop_token_ids: sent.stop_token_ids,
            logprobs: count(sent.logprobs, "logprobs")?,
            prompt_logprobs: count(sent.prompt_logprobs, "prompt_logprobs")?,
        })
    }
}

impl Text {
    pub(in crate::workers) fn of(CallId { call, model }: CallId, text: EncodeRequest) -> Self {
        let second_text = text.second_text.map(|place| place as u64);
        Self { call, model, request: text.id.0, tokens: text.tokens, second_text, share_key: text.share_key.0 }
    }
}

impl TryFrom<Text> for EncodeRequest {
    type Error = Malformed;

    fn try_from(sent: Text) -> Result<Self, Malformed> {
        let second_text = sent.second_text.map(usize::try_from).transpose().map_err(|_| Malformed("second_text"))?;
        let share_key = ShareKey(sent.share_key);
        Ok(Self { id: RequestId(sent.request), tokens: sent.tokens, second_text, share_key })
    }
}

impl From<EngineClass> for Class {
    fn from(class: EngineClass) -> Self {
        match class {
            EngineClass::Interactive => Self::Interactive,
            EngineClass::Standard => Self::Standard,
            EngineClass::Batch => Self::Batch,
        }
    }
}

impl From<Class> for EngineClass {
    fn from(class: Class) -> Self {
        match class {
            Class::Interactive => Self::Interactive,
            Class::Standard => Self::Standard,
            Class::Batch => Self::Batch,
        }
    }
}
