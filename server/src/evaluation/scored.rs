//! What one checkpoint made of one item.

use serde::{Deserialize, Serialize};

use super::metric::Share;

/// JSON has no infinity; `/v1/completions` writes impossible tokens like this too.
const FLOOR: f32 = -9999.0;

/// One line of a score file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scored {
    pub id: String,
    pub outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Document(Continuation),
    Prompt {
        reference: Continuation,
        wanted: String,
        answer: Answer,
    },
    /// One continuation for each choice. `answer` counts from 0.
    Choice {
        choices: Vec<Continuation>,
        answer: usize,
    },
}

/// A text, and how likely each of its tokens was after all before it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Continuation {
    /// Of the text, in UTF-8.
    pub bytes: u64,
    pub tokens: TokenScores,
}

/// Lists of one entry for each token. A token that nothing stands before has no scores: the first of a document, unless the
/// tokenizer puts one in front.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TokenScores {
    pub ids: Vec<u32>,
    /// The text that each token completes. Joined, they are the whole text.
    pub texts: Vec<String>,
    /// Natural logarithms: what `/v1/completions` gives for the same tokens, to the last bit.
    pub logprobs: Vec<Option<f64>>,
    /// 1 for the most likely token.
    pub ranks: Vec<Option<u32>>,
    /// Of the whole distribution, in nats.
    pub entropies: Vec<Option<f64>>,
    /// From this checkpoint's distribution to that of the one it is compared against, in nats.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kls: Vec<Option<f64>>,
}

/// How likely one token was after all before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenScore {
    pub logprob: f32,
    pub rank: u32,
    pub entropy: f32,
}

/// What the model says by itself, at temperature 0.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    pub text: String,
    pub ids: Vec<u32>,
    /// The text that each token completes.
    pub texts: Vec<String>,
    pub logprobs: Vec<f64>,
}

impl TokenScores {
    /// `None`: nothing stands before it.
    pub fn push(&mut self, id: u32, text: String, score: Option<TokenScore>) {
        self.ids.push(id);
        self.texts.push(text);
        self.logprobs.push(score.map(|score| f64::from(score.logprob.max(FLOOR))));
        self.ranks.push(score.map(|score| score.rank));
        self.entropies.push(score.map(|score| f64::from(score.entropy)));
    }
}

impl Answer {
    /// One text and one log-probability for each token.
    pub fn new(ids: &[u32], texts: Vec<String>, logprobs: &[f32]) -> Self {
        let logprobs = logprobs.iter().map(|logprob| f64::from(logprob.max(FLOOR))).collect();
        Self { text: texts.concat(), ids: ids.to_vec(), texts, logprobs }
    }
}

impl Continuation {
    pub fn logprob(&self) -> f64 {
        self.tokens.logprobs.iter().flatten().sum()
    }

    /// Whether a token of it counts: of a text of one token none does, and it would cost nothing.
    pub fn is_scored(&self) -> bool {
        self.tokens.logprobs.iter().any(Option::is_some)
    }

    pub fn bits(&self) -> f64 {
        -self.logprob() / std::f64::consts::LN_2
    }

    pub fn bits_per_byte(&self) -> f64 {
        self.bits() / self.bytes.max(1) as f64
    }

    /// Over the tokens. `None` for a text that was not scored against anything.
    pub fn divergence(&self) -> Option<Share> {
        let known = || self.tokens.kls.iter().flatten();
        let (amount, tokens) = (known().sum(), known().count());
        (tokens > 0).then_some(Share { amount, weight: tokens as f64 })
    }

    fn logprob_per_byte(&self) -> f64 {
        self.logprob() / self.bytes.max(1) as f64
    }
}

impl Outcome {
    /// What stands beside itself under two checkpoints. Choices are of interest as a set, not one by one.
    pub fn text(&self) -> Option<&Continuation> {
        match self {
            Self::Document(text) | Self::Prompt { reference: text, .. } => Some(text),
            Self::Choice { .. } => None,
        }
    }

    /// Whether the greedy answer is the reference, white space around both apart. `None` without a reference.
    pub fn is_match(&self) -> Option<bool> {
        match self {
            Self::Prompt { wanted, answer, .. } => Some(wanted.trim() == answer.text.trim()),
            Self::Document(_) | Self::Choice { .. } => None,
        }
    }

    /// Whether the likeliest choice is the right one: by the sum of its log-probabilities, and by the same for each byte.
    /// The first of equals counts.
    pub fn is_right(&self) -> Option<(bool, bool)> {
        let Self::Choice { choices, answer } = self else { return None };
        let is_best = |likelihood: fn(&Continuation) -> f64| best(choices, likelihood) == Some(*answer);
        Some((is_best(Continuation::logprob), is_best(Continuation::logprob_per_byte)))
    }
}

fn best(choices: &[Continuation], likelihood: fn(&Continuation) -> f64) -> Option<usize> {
    let values = choices.iter().map(likelihood).enumerate();
    values.reduce(|best, other| if other.1 > best.1 { other } else { best }).map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::Metric;

    fn continuation(bytes: u64, logprobs: &[f64]) -> Continuation {
        let logprobs = logprobs.iter().map(|logprob| Some(*logprob)).collect();
        Continuation { bytes, tokens: TokenScores { logprobs, ..TokenScores::default() } }
    }

    #[test]
    fn bits_per_byte_counts_every_token_with_a_score_and_every_byte() {
        let mut document = continuation(4, &[-std::f64::consts::LN_2, -3.0 * std::f64::consts::LN_2]);
        document.tokens.logprobs.insert(0, None);
        assert!((document.bits_per_byte() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_text_of_which_no_token_counts_says_nothing() {
        let mut document = continuation(1, &[]);
        document.tokens.logprobs.push(None);
        assert!(Metric::BitsPerByte.of(&Outcome::Document(document.clone())).is_none());
        document.tokens.logprobs.push(Some(-1.0));
        assert!(Metric::BitsPerByte.of(&Outcome::Document(document)).is_some());
    }

    #[test]
    fn a_long_choice_is_right_by_its_bytes_and_wrong_by_its_sum() {
        let choices = vec![continuation(1, &[-1.0]), continuation(4, &[-1.0, -1.0])];
        assert_eq!(Outcome::Choice { choices: choices.clone(), answer: 1 }.is_right(), Some((false, true)));
        assert_eq!(Outcome::Choice { choices, answer: 0 }.is_right(), Some((true, false)));
        let equal = vec![continuation(1, &[-1.0]), continuation(1, &[-1.0])];
        assert_eq!(Outcome::Choice { choices: equal, answer: 1 }.is_right(), Some((false, false)));
    }

    #[test]
    fn an_answer_matches_up_to_the_white_space_around_it() {
        let outcome = |text: &str| Outcome::Prompt {
            reference: continuation(1, &[]),
            wanted: " 19 ".into(),
            answer: Answer { text: text.into(), ids: vec![], texts: vec![], logprobs: vec![] },
        };
        assert_eq!(outcome("19\n").is_match(), Some(true));
        assert_eq!(outcome("1 9").is_match(), Some(false));
    }
}
