//! Prompts of an exact number of tokens, made of words that are one token each.
//!
//! Random words rather than a real corpus: no two prompts share more than the scenario says, so a server's prefix
//! cache helps exactly where the scenario wants it to.

use crate::http::Connect;
use crate::rng::Rng;
use crate::tokens::{Tokenizer, TokensError};

/// Words that are one token, with the space in front, in most vocabularies of English or French text.
const CANDIDATES: &[&str] = &[
    "a", "the", "and", "of", "to", "in", "is", "it", "on", "as", "for", "we", "he", "she", "you", "one", "two", "that",
    "with", "from", "was", "are", "not", "all", "can", "has", "new", "time", "day", "water", "house", "cat", "dog",
    "bridge", "red", "blue", "old", "man", "city", "river", "tree", "book", "story", "small", "large", "le", "la",
    "de", "et", "un", "une", "les", "des", "est", "en", "dans", "du", "pour", "chat", "pont", "maison", "ville",
];
/// For vocabularies of single characters.
const LETTERS: &[&str] = &["a", "b", "c", "d", "e", "f", "g", "h", "i", "k", "l", "m", "n", "o", "p", "r"];
/// With fewer, prompts would look alike.
const MIN_WORDS: usize = 6;
const REPEATS: usize = 8;
/// How often a prompt is mended before it is given up.
const MAX_MENDS: usize = 8;

#[derive(Debug, Clone)]
pub struct PromptMaker<C: Connect> {
    tokenizer: Tokenizer<C>,
    words: Vec<Word>,
}

#[derive(Debug, Clone)]
struct Word {
    text: String,
    id: u32,
}

impl<C: Connect> PromptMaker<C> {
    pub async fn new(tokenizer: Tokenizer<C>) -> Result<Self, TokensError> {
        let mut words = find_words(&tokenizer, CANDIDATES, " ").await?;
        if words.len() < MIN_WORDS {
            words = find_words(&tokenizer, LETTERS, "").await?;
        }
        if words.len() < MIN_WORDS { Err(TokensError::NoWords) } else { Ok(Self { tokenizer, words }) }
    }

    /// A text of exactly `tokens` tokens.
    pub async fn text(&self, tokens: u32, rng: &mut Rng) -> Result<String, TokensError> {
        let words = self.draw(tokens, rng);
        self.mend(words, tokens, rng).await
    }

    /// A text of exactly `tokens` tokens that starts with the blocks of `blocks`: of one seed, the same block is the same
    /// words.
    pub async fn text_of_blocks(
        &self,
        (seed, blocks): (u64, &[u64]),
        block_tokens: u32,
        tokens: u32,
        rng: &mut Rng,
    ) -> Result<String, TokensError> {
        let drawn = blocks.iter().flat_map(|block| self.draw(block_tokens, &mut Rng::for_part(seed, *block)));
        let mut words: Vec<usize> = drawn.take(tokens as usize).collect();
        words.extend(self.draw(tokens - words.len() as u32, rng));
        self.mend(words, tokens, rng).await
    }

    /// How many tokens `text` is.
    pub async fn count(&self, text: &str) -> Result<u64, TokensError> {
        Ok(self.tokenizer.encode(text).await?.len() as u64)
    }

    /// Token ids, for routes that take them.
    pub fn ids(&self, tokens: u32, rng: &mut Rng) -> Vec<u32> {
        self.draw(tokens, rng).into_iter().map(|word| self.words[word].id).collect()
    }

    fn draw(&self, count: u32, rng: &mut Rng) -> Vec<usize> {
        (0..count).map(|_| rng.below(self.words.len())).collect()
    }

    /// The tokenizer has the last word: words are added or taken until it counts `tokens`.
    async fn mend(&self, mut words: Vec<usize>, tokens: u32, rng: &mut Rng) -> Result<String, TokensError> {
        let mut nearest = 0;
        for _ in 0..MAX_MENDS {
            let text: String = words.iter().map(|word| self.words[*word].text.as_str()).collect();
            let text = text.trim_start().to_owned();
            let count = self.tokenizer.encode(&text).await?.len();
            if count == tokens as usize {
                return Ok(text);
            }
            nearest = count;
            words.truncate(words.len().saturating_sub(count.saturating_sub(tokens as usize)));
            words.extend(self.draw((tokens as usize).saturating_sub(count) as u32, rng));
            if words.len() < 2 {
                words = self.draw(1, rng);
            }
        }
        Err(TokensError::NotExact { wanted: tokens, nearest })
    }
}

/// Those of `candidates` that are one token wherever they stand in a row of words.
async fn find_words<C: Connect>(
    tokenizer: &Tokenizer<C>,
    candidates: &[&str],
    space: &str,
) -> Result<Vec<Word>, TokensError> {
    let mut words = Vec::new();
    for candidate in candidates {
        let text = format!("{space}{candidate}");
        let tokens = tokenizer.encode(&format!("so{}", text.repeat(REPEATS))).await?;
        let id = tokens.last().copied().unwrap_or_default();
        let in_a_row = tokens.iter().rev().take_while(|token| **token == id).count();
        if (REPEATS..=REPEATS + 1).contains(&in_a_row) && tokens.len() <= REPEATS + 2 {
            words.push(Word { text, id });
        }
    }
    Ok(words)
}
