//! The choices of `/v1/completions`, with OpenAI's legacy log-probabilities.
//!
//! Under `echo` the arrays start with the prompt: its first token has no log-probability (`null`), and every other
//! one stands in its own dictionary with the very float of `token_logprobs`, also when it is not among the top.

use passerelle_models::TokenId;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::chat_answer::add_end;
use super::prompt_scores::{Score, scores_json};
use super::request::Output;
use super::usage::logprob_json;
use crate::api::delta::{
    Candidate, Choice, ChoiceDelta, Delta, PromptPart, PromptToken, TextPart, TokenLogprob, TokenText, display_bytes,
};

/// A choice of a chunk, written without a detour: each token of each stream comes this way.
#[derive(Debug, Default, Serialize)]
pub(crate) struct ChunkChoice<'a> {
    index: usize,
    text: &'a str,
    logprobs: Option<Value>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_scores: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<&'a [TokenId]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<&'a [TokenId]>,
}

pub(crate) fn chunk_choice<'a>(piece: &'a ChoiceDelta, output: &Output) -> Option<ChunkChoice<'a>> {
    let choice = match &piece.delta {
        Delta::Prompt(prompt) => of_prompt(prompt, output)?,
        Delta::Text(part) => of_text(part, output)?,
        Delta::Reasoning(_) | Delta::ToolCall(_) => return None,
        Delta::Finished(end) => {
            let (finish_reason, stop_reason) = (Some(end.as_str()), end.stop_reason());
            ChunkChoice { finish_reason, stop_reason, ..ChunkChoice::default() }
        }
    };
    Some(ChunkChoice { index: piece.index, ..choice })
}

pub(crate) fn whole_choice(index: usize, choice: &Choice, output: &Output) -> Value {
    let echoed = choice.prompt.text.as_deref().unwrap_or_default();
    let mut whole = json!({"index": index, "text": format!("{echoed}{}", choice.text.text), "logprobs": null});
    if let Some(top) = output.logprobs {
        let mut arrays = Arrays::new(top);
        if output.echo {
            arrays.push_prompt(&choice.prompt);
        }
        arrays.push_tokens(&choice.text.logprobs);
        whole["logprobs"] = arrays.into_json();
    }
    whole["finish_reason"] = Value::Null;
    if let Some(end) = choice.finish {
        add_end(&mut whole, end);
    }
    if let Some(top) = output.prompt_logprobs {
        whole["prompt_logprobs"] = prompt_logprobs_json(&choice.prompt, top);
    }
    if output.prompt_scores {
        whole["prompt_scores"] = prompt_scores_json(&choice.prompt);
    }
    if output.return_token_ids {
        whole["prompt_token_ids"] = json!(choice.prompt.token_ids);
        whole["token_ids"] = json!(choice.text.token_ids);
    }
    whole
}

/// Nothing where the caller asked to see nothing of the prompt.
fn of_prompt<'a>(prompt: &'a PromptPart, output: &Output) -> Option<ChunkChoice<'a>> {
    let shown = output.echo || output.prompt_logprobs.is_some() || output.prompt_scores || output.return_token_ids;
    if !shown {
        return None;
    }
    let mut choice = ChunkChoice::default();
    if output.echo {
        choice.text = prompt.text.as_deref().unwrap_or_default();
        choice.logprobs = output.logprobs.map(|top| {
            let mut arrays = Arrays::new(top);
            arrays.push_prompt(prompt);
            arrays.into_json()
        });
    }
    choice.prompt_logprobs = output.prompt_logprobs.map(|top| prompt_logprobs_json(prompt, top));
    choice.prompt_scores = output.prompt_scores.then(|| prompt_scores_json(prompt));
    choice.prompt_token_ids = output.return_token_ids.then_some(&prompt.token_ids);
    Some(choice)
}

fn of_text<'a>(part: &'a TextPart, output: &Output) -> Option<ChunkChoice<'a>> {
    if part.text.is_empty() && part.logprobs.is_empty() && !output.return_token_ids {
        return None;
    }
    let logprobs = output.logprobs.map(|top| {
        let mut arrays = Arrays::new(top);
        arrays.push_tokens(&part.logprobs);
        arrays.into_json()
    });
    let token_ids = output.return_token_ids.then_some(&*part.token_ids);
    Some(ChunkChoice { text: &part.text, logprobs, token_ids, ..ChunkChoice::default() })
}

/// The four parallel arrays of the legacy format.
struct Arrays {
    num_top: usize,
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f64>>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<usize>,
}

impl Arrays {
    fn new(num_top: u8) -> Self {
        Self {
            num_top: usize::from(num_top),
            tokens: Vec::new(),
            token_logprobs: Vec::new(),
            top_logprobs: Vec::new(),
            text_offset: Vec::new(),
        }
    }

    fn push_prompt(&mut self, prompt: &PromptPart) {
        for token in &prompt.tokens {
            self.push(&token.text, token.logprob.as_ref());
        }
    }

    fn push_tokens(&mut self, tokens: &[TokenLogprob]) {
        for token in tokens {
            self.push(&token.token, Some(token));
        }
    }

    fn push(&mut self, token: &TokenText, logprob: Option<&TokenLogprob>) {
        self.tokens.push(token.display());
        self.text_offset.push(token.offset);
        self.token_logprobs.push(logprob.map(|logprob| logprob_json(logprob.logprob)));
        self.top_logprobs.push(logprob.map_or(Value::Null, |logprob| self.dictionary(logprob)));
    }

    fn dictionary(&self, token: &TokenLogprob) -> Value {
        let mut entries = Map::new();
        for candidate in shown(token, self.num_top) {
            let text = display_bytes(&candidate.bytes);
            // Two ids may spell the same text; the less likely one is told apart by its id.
            let key = if entries.contains_key(&text) { format!("token_id:{}", candidate.id) } else { text };
            entries.insert(key, json!(logprob_json(candidate.logprob)));
        }
        Value::Object(entries)
    }

    fn into_json(self) -> Value {
        json!({
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        })
    }
}

/// The `num_top` most likely candidates, and the token itself if it is not one of them.
fn shown(token: &TokenLogprob, num_top: usize) -> Vec<Candidate> {
    let mut candidates: Vec<Candidate> = token.top.iter().take(num_top).cloned().collect();
    let id: TokenId = token.token.id;
    if !candidates.iter().any(|candidate| candidate.id == id) {
        candidates.push(Candidate { id, bytes: token.token.bytes.clone(), logprob: token.logprob });
    }
    candidates
}

fn prompt_scores_json(prompt: &PromptPart) -> Value {
    let score = |token: &PromptToken| token.logprob.as_ref().map(Score::from);
    scores_json(&prompt.tokens.iter().map(score).collect::<Vec<_>>())
}

/// A list with one dictionary by token id per prompt token, `null` for the first.
fn prompt_logprobs_json(prompt: &PromptPart, num_top: u8) -> Value {
    let entries = prompt.tokens.iter().map(|token| {
        token.logprob.as_ref().map(|logprob| {
            let candidates = shown(logprob, usize::from(num_top)).into_iter().enumerate();
            let entries = candidates.map(|(place, candidate)| {
                let itself = candidate.id == logprob.token.id;
                let rank = if itself { logprob.rank as usize } else { place + 1 };
                let entry = json!({
                    "logprob": logprob_json(candidate.logprob),
                    "rank": rank,
                    "decoded_token": display_bytes(&candidate.bytes),
                });
                (candidate.id.to_string(), entry)
            });
            entries.collect::<Map<String, Value>>()
        })
    });
    json!(entries.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(id: TokenId, text: &str, logprob: f32) -> Candidate {
        Candidate { id, bytes: text.as_bytes().to_vec(), logprob }
    }

    fn token(id: TokenId, text: &str, logprob: f32, top: Vec<Candidate>) -> TokenLogprob {
        let token = TokenText { id, bytes: text.as_bytes().to_vec(), offset: 0 };
        TokenLogprob { token, logprob, rank: 9, entropy: 0.5, top }
    }

    #[test]
    fn the_token_stands_in_its_own_dictionary_with_the_same_float() {
        let logprob = -3.123_456_7_f32;
        let token = token(7, "cat", logprob, vec![candidate(1, "dog", -0.1)]);
        let mut arrays = Arrays::new(1);
        arrays.push_tokens(&[token]);
        let json = arrays.into_json();
        assert_eq!(json["top_logprobs"][0]["cat"], json["token_logprobs"][0]);
        assert_eq!(json["top_logprobs"][0]["dog"], f64::from(-0.1_f32));
    }

    #[test]
    fn ids_of_one_spelling_keep_apart() {
        let token = token(2, "a", -2.0, vec![candidate(1, "a", -0.5)]);
        let dictionary = Arrays::new(1).dictionary(&token);
        assert_eq!(dictionary, json!({"a": -0.5, "token_id:2": -2.0}));
    }

    #[test]
    fn the_first_prompt_token_has_no_logprob() {
        let first = TokenText { id: 3, bytes: b"x".to_vec(), offset: 0 };
        let prompt = PromptPart { tokens: vec![PromptToken { text: first, logprob: None }], ..PromptPart::default() };
        let mut arrays = Arrays::new(1);
        arrays.push_prompt(&prompt);
        let json = arrays.into_json();
        assert_eq!(json["token_logprobs"], json!([null]));
        assert_eq!(json["top_logprobs"], json!([null]));
        assert_eq!(json["tokens"], json!(["x"]));
    }
}
