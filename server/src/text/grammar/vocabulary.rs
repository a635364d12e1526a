//! A model's tokens as the parser sees them: a tree of their bytes.

use llguidance::toktrie::{INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};
use std::sync::Arc;

use crate::text::Tokenizer;

/// Tokens by their bytes. Text is never tokenised here: a grammar allows every spelling of what it allows.
struct Vocabulary {
    trie: TokTrie,
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, text: &[u8]) -> Vec<TokenId> {
        self.trie.greedy_tokenize(text)
    }

    /// So nothing is forced: the model chooses among the spellings.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

/// `None` when the tokenizer cannot say which bytes a token stands for.
///
/// Special tokens, and `end_tokens` whether marked special or not, are no text: a grammar can only name them.
pub(super) fn vocabulary(tokenizer: &Tokenizer, end_tokens: &[u32]) -> Option<TokEnv> {
    tokenizer.pieces()?;
    let highest_end = end_tokens.iter().map(|&id| id as usize + 1).max().unwrap_or(0);
    let size = tokenizer.vocab_size().max(highest_end);
    let words: Vec<Vec<u8>> = (0..size as u32)
        .map(|id| {
            let bytes = tokenizer.token_bytes(id);
            match tokenizer.is_special(id) || end_tokens.contains(&id) {
                true => named(&bytes),
                // The marker is no byte of UTF-8, so no text holds such a token.
                false if bytes.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) => Vec::new(),
                false => bytes,
            }
        })
        .collect();
    // Where an answer may end is told beside the tokens, so the tree needs no end of its own.
    let info = TokRxInfo::new(size as u32, INVALID_TOKEN);
    Some(Arc::new(Vocabulary { trie: TokTrie::from(&info, &words) }))
}

fn named(bytes: &[u8]) -> Vec<u8> {
    [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat()
}
