//! From items to token ids: what is scored, and after what.

use anyhow::{Context, Result, ensure};
use passerelle::evaluation::{Item, Task};
use passerelle::text::{AddSpecialTokens, SpecialTokens, Tokenizer};
use passerelle_models::TokenId;

use crate::serve::Loaded;

/// An item with all that the engine is asked for it.
#[derive(Debug)]
pub(super) struct Planned<'a> {
    pub(super) item: &'a Item,
    /// In the order of the choices; of a document in the order of its windows.
    pub(super) passages: Vec<Passage>,
    /// The prompt that is to be answered, greedily.
    pub(super) answer: Option<Asked>,
}

/// A text of which the tokens from `scored_from` on are scored.
#[derive(Debug, Clone)]
pub(super) struct Passage {
    pub(super) tokens: Vec<TokenId>,
    pub(super) scored_from: usize,
}

#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) prompt: Vec<TokenId>,
    pub(super) max_tokens: u32,
}

/// Errors name the first item that the checkpoint cannot take.
pub(super) fn all<'a>(loaded: &Loaded, items: &[&'a Item], max_tokens: u32) -> Result<Vec<Planned<'a>>> {
    let planner = Planner {
        tokenizer: &loaded.text.tokenizer,
        longest: loaded.description.max_position,
        vocabulary: loaded.model.input_vocab_size(),
        max_tokens,
    };
    let plan = |item: &&'a Item| planner.plan(item).with_context(|| format!("item {:?}", item.id));
    items.iter().map(plan).collect()
}

impl Planned<'_> {
    /// The longest sequence that it makes.
    pub(super) fn longest(&self) -> usize {
        let answer = self.answer.iter().map(|asked| asked.prompt.len() + asked.max_tokens as usize);
        self.passages.iter().map(|passage| passage.tokens.len()).chain(answer).max().unwrap_or(0)
    }
}

struct Planner<'a> {
    tokenizer: &'a Tokenizer,
    /// Tokens of a sequence.
    longest: usize,
    vocabulary: usize,
    max_tokens: u32,
}

impl Planner<'_> {
    fn plan<'i>(&self, item: &'i Item) -> Result<Planned<'i>> {
        let (passages, answer) = match &item.task {
            Task::Document { text } => (self.windows(&self.encode(text)?), None),
            Task::Prompt { prompt, reference } => {
                let asked = Asked { prompt: self.encode(prompt)?, max_tokens: self.max_tokens };
                self.check_length(asked.prompt.len() + asked.max_tokens as usize)?;
                (vec![self.continuation(&asked.prompt, &[prompt, reference])?], Some(asked))
            }
            Task::Choice { prompt, choices, .. } => {
                let before = self.encode(prompt)?;
                let passage = |choice: &String| self.continuation(&before, &[prompt, choice]);
                (choices.iter().map(passage).collect::<Result<_>>()?, None)
            }
        };
        Ok(Planned { item, passages, answer })
    }

    /// As `/v1/completions` reads a prompt.
    fn encode(&self, text: &str) -> Result<Vec<TokenId>> {
        let tokens = self.tokenizer.encode(text, AddSpecialTokens::Yes, SpecialTokens::Parse)?;
        ensure!(!tokens.is_empty(), "the tokenizer makes no token of its text");
        let unknown = tokens.iter().find(|token| **token as usize >= self.vocabulary);
        ensure!(unknown.is_none(), "the tokenizer has the token {unknown:?}, and the model does not");
        Ok(tokens)
    }

    /// A document that is longer than the context is cut into windows, each but the first after one token of the one
    /// before. Every token but the document's first is scored once.
    fn windows(&self, tokens: &[TokenId]) -> Vec<Passage> {
        let mut windows = Vec::new();
        let mut start = 0;
        loop {
            let end = tokens.len().min(start + self.longest);
            windows.push(Passage { tokens: tokens[start..end].to_vec(), scored_from: usize::from(start > 0) });
            if end == tokens.len() {
                return windows;
            }
            start = end - 1;
        }
    }

    /// Scored from where the whole text's tokens leave those of the prompt alone: a token across the seam is the
    /// continuation's.
    fn continuation(&self, prompt: &[TokenId], parts: &[&String; 2]) -> Result<Passage> {
        let tokens = self.encode(&[parts[0].as_str(), parts[1].as_str()].concat())?;
        self.check_length(tokens.len())?;
        let scored_from = tokens.iter().zip(prompt).take_while(|(one, other)| one == other).count();
        ensure!(scored_from < tokens.len(), "the tokenizer makes no token of {:?} after the prompt", parts[1]);
        Ok(Passage { tokens, scored_from })
    }

    fn check_length(&self, tokens: usize) -> Result<()> {
        let longest = self.longest;
        ensure!(tokens <= longest, "makes {tokens} tokens with its answer, and the checkpoint takes {longest}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_of_a_long_document_but_the_first_is_scored_once() {
        let tokenizer = Tokenizer::absent();
        let planner = Planner { tokenizer: &tokenizer, longest: 4, vocabulary: 100, max_tokens: 1 };
        for length in 1..20 {
            let tokens: Vec<TokenId> = (0..length).collect();
            let windows = planner.windows(&tokens);
            let scored = windows.iter().flat_map(|window| &window.tokens[window.scored_from..]);
            assert_eq!(scored.copied().collect::<Vec<_>>(), tokens, "{length}");
            assert!(windows.iter().all(|window| window.tokens.len() <= 4), "{length}");
            assert!(windows.iter().skip(1).all(|window| window.scored_from == 1), "each has something before it");
        }
    }
}
