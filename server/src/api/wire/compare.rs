//! `POST /v1/compare`: its fields, and the JSON of what models say side by side and of how they differ.

use passerelle_engine::{ComparedPosition, Usage};
use passerelle_models::ModelDigest;
use serde_json::{Map, Value, json};

use super::chat::read_chat_prompt;
use super::choices::Choices;
use super::completions::read_prompts;
use super::request::{GenerateRequest, Output, Prompt, RequestBounds, StreamOptions};
use super::sampling::{SAMPLING_FIELDS, Sampling, check_min_tokens, read_attribution, read_caching};
use super::tier::read_class;
use super::usage::{ReasoningTokens, logprob_json, usage_json};
use crate::api::errors::ApiError;
use crate::api::fields::{
    Field, Fields, Reader, honoured, invalid, neutral, required, required_either, too_many, wrong_type,
};

/// Beside those of sampling.
pub(crate) const COMPARE_FIELDS: &[Field] = &[
    honoured("models"),
    honoured("prompt"),
    honoured("add_special_tokens"),
    honoured("messages"),
    honoured("add_generation_prompt"),
    honoured("continue_final_message"),
    honoured("chat_template_kwargs"),
    honoured("reasoning_effort"),
    honoured("max_tokens"),
    neutral("n", "[1]"),
];

/// Two are needed to differ.
const LEAST_MODELS: usize = 2;

/// A checked request. Its `model` is the first of `models`.
#[derive(Debug)]
pub(crate) struct ReadCompare {
    /// The first is what the others are compared with.
    pub(crate) models: Vec<String>,
    pub(crate) prompt: Prompt,
    pub(crate) generate: GenerateRequest,
    pub(crate) ignored: Vec<String>,
}

pub(crate) fn read_compare(body: Value, mut reader: Reader, bounds: &RequestBounds) -> Result<ReadCompare, ApiError> {
    let mut fields = reader.open(body, "", &[SAMPLING_FIELDS, COMPARE_FIELDS])?;
    let models = read_models(required(fields.array("models")?, "models")?, bounds)?;
    let prompt = read_prompt(&mut fields, &mut reader, bounds)?;
    let sampling = Sampling::read(&mut fields, bounds)?;
    check_min_tokens(&sampling)?;
    let stream = fields.boolean("stream")?.unwrap_or(false).then(StreamOptions::default);
    let generate = GenerateRequest {
        model: models[0].clone(),
        sampling,
        output: Output { stream, logprobs: Some(0), ..Output::default() },
        structure: None,
        choices: Choices::ONE,
        class: read_class(&mut fields)?,
        caching: read_caching(&mut fields)?,
        attribution: read_attribution(&mut fields)?,
    };
    reader.finish(fields)?;
    Ok(ReadCompare { models, prompt, generate, ignored: reader.into_ignored() })
}

fn read_models(written: Vec<Value>, bounds: &RequestBounds) -> Result<Vec<String>, ApiError> {
    if written.len() > bounds.max_compared_models {
        return Err(too_many("models", bounds.max_compared_models, written.len()));
    }
    let mut models: Vec<String> = Vec::with_capacity(written.len());
    for (index, name) in written.into_iter().enumerate() {
        let at = format!("models[{index}]");
        let Value::String(name) = name else { return Err(wrong_type(&at, "a string", &name)) };
        if models.contains(&name) {
            return Err(invalid(&at, "is there twice"));
        }
        models.push(name);
    }
    if models.len() < LEAST_MODELS {
        return Err(invalid("models", format!("must name at least {LEAST_MODELS}")));
    }
    Ok(models)
}

fn read_prompt(fields: &mut Fields, reader: &mut Reader, bounds: &RequestBounds) -> Result<Prompt, ApiError> {
    if fields.has("messages") && fields.has("prompt") {
        return Err(invalid("messages", "cannot be combined with `prompt`"));
    }
    if fields.has("messages") {
        return Ok(Prompt::Chat(read_chat_prompt(fields, reader, bounds)?));
    }
    let prompts = read_prompts(required_either(fields.value("prompt"), ["prompt", "messages"])?, bounds)?;
    if prompts.len() != 1 {
        return Err(invalid("prompt", "is one text, or one list of token ids"));
    }
    let add_special_tokens = fields.boolean("add_special_tokens")?.unwrap_or(true);
    Ok(Prompt::Completions { prompts, add_special_tokens })
}

/// What one model said, as far as it has come.
#[derive(Debug, Clone, Default)]
pub(crate) struct SaidText {
    pub(crate) text: String,
    pub(crate) reasoning: String,
    pub(crate) token_ids: Vec<u32>,
    pub(crate) finish_reason: Option<&'static str>,
}

/// What the whole answer repeats of a model.
#[derive(Debug, Clone)]
pub(crate) struct ComparedModel {
    pub(crate) name: String,
    pub(crate) fingerprint: Option<String>,
    pub(crate) digest: ModelDigest,
}

/// Two models on the prompt and the first one's answer.
#[derive(Debug, Clone)]
pub(crate) struct Difference {
    /// Its index among the models; the other is model 0.
    pub(crate) model: usize,
    pub(crate) positions: Vec<Option<ComparedPosition>>,
}

/// The text that both models were asked about.
#[derive(Debug, Clone, Default)]
pub(crate) struct ComparedText {
    pub(crate) token_ids: Vec<u32>,
    /// What each token completes.
    pub(crate) tokens: Vec<String>,
    pub(crate) num_prompt_tokens: usize,
}

pub(crate) fn model_json(index: usize, model: &ComparedModel, said: &SaidText, usage: Usage) -> Value {
    json!({
        "index": index,
        "model": model.name,
        "system_fingerprint": model.fingerprint,
        "digest": model.digest,
        "text": said.text,
        "reasoning": (!said.reasoning.is_empty()).then_some(&said.reasoning),
        "token_ids": said.token_ids,
        "finish_reason": said.finish_reason,
        "usage": usage_json(usage, &ReasoningTokens::default()),
    })
}

/// Parallel lists with an entry for each token, `null` for the first.
pub(crate) fn difference_json(difference: &Difference, answers_part_at: Option<usize>) -> Value {
    let of = |value: fn(&ComparedPosition) -> Value| -> Vec<Value> {
        difference.positions.iter().map(|at| at.as_ref().map_or(Value::Null, value)).collect()
    };
    let known: Vec<f64> = difference.positions.iter().flatten().map(|at| at.kl).filter(|kl| kl.is_finite()).collect();
    let mean = (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64);
    json!({
        "models": [0, difference.model],
        "answers_part_at": answers_part_at,
        "mean_kl": mean,
        "kl": of(|at| json!(at.kl)),
        "logprob_differences": of(|at| json!(logprob_json(at.first.logprob) - logprob_json(at.second.logprob))),
        "logprobs": [of(|at| json!(logprob_json(at.first.logprob))), of(|at| json!(logprob_json(at.second.logprob)))],
        "ranks": [of(|at| json!(at.first.rank)), of(|at| json!(at.second.rank))],
    })
}

pub(crate) fn compared_text_json(text: &ComparedText) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("token_ids".to_owned(), json!(text.token_ids));
    map.insert("tokens".to_owned(), json!(text.tokens));
    map.insert("num_prompt_tokens".to_owned(), json!(text.num_prompt_tokens));
    map
}

/// The first token at which two answers are not the same; `None` for equal answers.
pub(crate) fn parting(first: &[u32], second: &[u32]) -> Option<usize> {
    let common = first.iter().zip(second).take_while(|(one, other)| one == other).count();
    (common < first.len() || common < second.len()).then_some(common)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::UnknownFields;

    fn read(body: Value) -> Result<ReadCompare, ApiError> {
        read_compare(body, Reader::new(UnknownFields::Error), &RequestBounds::default())
    }

    #[test]
    fn a_prompt_or_messages_go_to_several_models() {
        let read_one = read(json!({"models": ["a", "b"], "prompt": "x", "seed": 3})).unwrap();
        assert_eq!((read_one.models, read_one.generate.sampling.seed), (vec!["a".into(), "b".into()], Some(3)));
        let messages = json!([{"role": "user", "content": "hi"}]);
        assert!(matches!(read(json!({"models": ["a", "b"], "messages": messages})).unwrap().prompt, Prompt::Chat(_)));
    }

    #[test]
    fn what_a_comparison_cannot_mean_is_refused_by_name() {
        for (body, name) in [
            (json!({"prompt": "x"}), "models"),
            (json!({"models": ["a"], "prompt": "x"}), "models"),
            (json!({"models": ["a", "a"], "prompt": "x"}), "models[1]"),
            (json!({"models": ["a", 1], "prompt": "x"}), "models[1]"),
            (json!({"models": ["a", "b", "c", "d", "e"], "prompt": "x"}), "models"),
            (json!({"models": ["a", "b"]}), "prompt"),
            (json!({"models": ["a", "b"], "prompt": ["x", "y"]}), "prompt"),
            (json!({"models": ["a", "b"], "prompt": "x", "messages": []}), "messages"),
            (json!({"models": ["a", "b"], "prompt": "x", "n": 2}), "n"),
            (json!({"models": ["a", "b"], "prompt": "x", "model": "a"}), "model"),
            (json!({"models": ["a", "b"], "prompt": "x", "temperature": 3}), "temperature"),
        ] {
            let error = read(body.clone()).unwrap_err();
            assert_eq!(error.body()["error"]["param"], name, "{body}");
        }
    }

    #[test]
    fn without_any_text_both_fields_that_may_hold_one_are_named() {
        let error = read(json!({"models": ["a", "b"]})).unwrap_err();
        assert_eq!(error.message(), "Missing required parameter: `prompt` or `messages`.");
    }

    #[test]
    fn answers_part_at_their_first_different_token() {
        assert_eq!(parting(&[1, 2, 3], &[1, 9]), Some(1));
        assert_eq!(parting(&[1, 2], &[1]), Some(1));
        assert_eq!(parting(&[1], &[1]), None);
    }
}
