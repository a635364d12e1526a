//! Scores of a prompt's tokens: parallel arrays with an entry per token, `null` for the first, which nothing predicts.

use passerelle_engine::{ComparedPosition, TokenLogprobs, Usage};
use passerelle_models::{ModelDigest, TokenId};
use serde_json::{Value, json};

use super::answer::{AnswerHead, AnswerKind};
use super::usage::{ReasoningTokens, logprob_json, usage_json};
use crate::api::delta::TokenLogprob;

/// A few numbers of one model at one position.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Score {
    logprob: f32,
    rank: u32,
    entropy: f32,
    /// The likeliest token.
    top: Option<(TokenId, f32)>,
}

pub(crate) fn scores_json(scores: &[Option<Score>]) -> Value {
    let of = |number: fn(&Score) -> Value| -> Vec<Value> {
        scores.iter().map(|score| score.as_ref().map_or(Value::Null, number)).collect()
    };
    json!({
        "token_logprobs": of(|score| json!(logprob_json(score.logprob))),
        "ranks": of(|score| json!(score.rank)),
        "entropies": of(|score| json!(score.entropy)),
        "top_token_ids": of(|score| json!(score.top.map(|(id, _)| id))),
        "top_logprobs": of(|score| json!(score.top.map(|(_, logprob)| logprob_json(logprob)))),
    })
}

/// One of two models that score a prompt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scorer<'a> {
    pub(crate) name: &'a str,
    pub(crate) digest: ModelDigest,
}

/// The answer to prompts that two models score: the one of `head`, whose digest is `digest`, and the one it is held against.
pub(crate) fn comparison_answer(
    head: &AnswerHead,
    digest: ModelDigest,
    against: Scorer<'_>,
    prompts: &[Vec<Option<ComparedPosition>>],
    usage: Usage,
) -> Value {
    let choice = |(index, compared): (usize, &Vec<Option<ComparedPosition>>)| {
        let of = |side: fn(&ComparedPosition) -> &TokenLogprobs| -> Value {
            let scores = compared.iter().map(|position| position.as_ref().map(|position| Score::from(side(position))));
            scores_json(&scores.collect::<Vec<_>>())
        };
        let mut other = of(|position| &position.second);
        (other["model"], other["digest"]) = (json!(against.name), json!(against.digest));
        other["kl"] = compared.iter().map(|position| position.as_ref().map(|position| kl_json(position.kl))).collect();
        json!({
            "index": index,
            "text": "",
            "logprobs": null,
            "finish_reason": "length",
            "prompt_scores": of(|position| &position.first),
            "prompt_scores_against": other,
        })
    };
    let mut answer = head.to_json(AnswerKind::Completion, "text_completion");
    answer.insert("digest".to_owned(), json!(digest));
    answer.insert("choices".to_owned(), prompts.iter().enumerate().map(choice).collect());
    answer.insert("usage".to_owned(), usage_json(usage, &ReasoningTokens::default()));
    Value::Object(answer)
}

/// JSON has no infinity: no more than if impossible tokens had the log-probability that is shown of them.
fn kl_json(kl: f64) -> f64 {
    kl.min(-logprob_json(f32::NEG_INFINITY))
}

impl From<&TokenLogprob> for Score {
    fn from(token: &TokenLogprob) -> Self {
        let top = token.top.first().map(|top| (top.id, top.logprob));
        Self { logprob: token.logprob, rank: token.rank, entropy: token.entropy, top }
    }
}

impl From<&TokenLogprobs> for Score {
    fn from(token: &TokenLogprobs) -> Self {
        Self { logprob: token.logprob, rank: token.rank, entropy: token.entropy, top: token.top.first().copied() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(logprob: f32) -> TokenLogprobs {
        TokenLogprobs { token: 7, logprob, rank: 9, entropy: 0.5, top: vec![(1, -0.5)] }
    }

    #[test]
    fn scores_of_a_prompt_are_a_few_numbers_for_each_token() {
        let scores = scores_json(&[None, Some(Score::from(&scored(-3.0)))]);
        let expected = json!({"token_logprobs": [null, -3.0], "ranks": [null, 9], "entropies": [null, 0.5],
            "top_token_ids": [null, 1], "top_logprobs": [null, -0.5]});
        assert_eq!(scores, expected);
    }

    #[test]
    fn what_two_models_say_stands_side_by_side_and_infinity_is_a_number() {
        let head = AnswerHead {
            id: "cmpl-1".to_owned(),
            created: 1,
            model: "a".to_owned(),
            fingerprint: None,
            tier: None,
            billing: None,
        };
        let position = |kl| Some(ComparedPosition { first: scored(-3.0), second: scored(f32::NEG_INFINITY), kl });
        let [one, other]: [ModelDigest; 2] =
            ["a1", "b2"].map(|byte| format!("sha256:{}", byte.repeat(32)).parse().unwrap());
        let compared = [vec![None, position(0.25), position(f64::INFINITY)]];
        let against = Scorer { name: "b", digest: other };
        let answer = comparison_answer(&head, one, against, &compared, Usage::default());
        let choice = &answer["choices"][0];
        assert_eq!((&answer["model"], &answer["digest"]), (&json!("a"), &json!(one)));
        let scores = &choice["prompt_scores_against"];
        assert_eq!((&scores["model"], &scores["digest"]), (&json!("b"), &json!(other)));
        assert_eq!(choice["prompt_scores"]["token_logprobs"], json!([null, -3.0, -3.0]));
        assert_eq!(choice["prompt_scores_against"]["token_logprobs"], json!([null, -9999.0, -9999.0]));
        assert_eq!(choice["prompt_scores_against"]["kl"], json!([null, 0.25, 9999.0]));
    }
}
