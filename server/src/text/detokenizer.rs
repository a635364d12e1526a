//! Token ids to text, one token at a time, in constant time a token. However a stream is cut, the pieces joined are the
//! text of the whole; a character is given out only when all its bytes are there.

use super::pieces::{LeadingSpaces, Pieces};
use super::tokenizer::{SkipSpecialTokens, Tokenizer};

/// How many tokens a decoder that is not understood token by token may look back.
const MAX_WINDOW_TOKENS: usize = 32;
/// How many already decoded tokens stay in the window, as the context of the next.
const CONTEXT_TOKENS: usize = 6;

/// The text of one stream of tokens.
#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    skip: SkipSpecialTokens,
    /// Special tokens that are part of the text all the same. A handful at most.
    shown: Vec<u32>,
    state: State,
}

#[derive(Debug)]
enum State {
    Bytes { leading: LeadingSpaces, tail: Utf8Tail },
    Window { ids: Vec<u32>, decoded: usize },
}

impl Detokenizer {
    /// For a text that begins with the first token, as an answer in a chat does.
    pub fn new(tokenizer: &Tokenizer, skip: SkipSpecialTokens) -> Self {
        let state = match tokenizer.pieces() {
            Some(pieces) => State::Bytes { leading: pieces.leading, tail: Utf8Tail::default() },
            None => State::Window { ids: Vec::new(), decoded: 0 },
        };
        Self { tokenizer: tokenizer.clone(), skip, shown: Vec::new(), state }
    }

    /// For a text that goes on from `prompt`, as a completion does: a leading space of the first new token is kept.
    pub fn after(tokenizer: &Tokenizer, skip: SkipSpecialTokens, prompt: &[u32]) -> Self {
        let mut detokenizer = Self::new(tokenizer, skip);
        let has_text = |id: &u32| skip == SkipSpecialTokens::No || !tokenizer.is_special(*id);
        match &mut detokenizer.state {
            State::Bytes { leading, .. } if prompt.iter().any(has_text) => *leading = LeadingSpaces::Keep,
            State::Bytes { .. } => {}
            State::Window { ids, decoded } => {
                ids.extend(prompt.iter().rev().copied().filter(has_text).take(CONTEXT_TOKENS));
                ids.reverse();
                *decoded = ids.len();
            }
        }
        detokenizer
    }

    /// Leaves these special tokens in the text, also where others are skipped.
    #[must_use]
    pub fn showing<'t>(mut self, tokens: impl IntoIterator<Item = &'t str>) -> Self {
        self.shown.extend(tokens.into_iter().filter_map(|token| self.tokenizer.token_id(token)));
        self
    }

    /// The text that this token completes; often a word, sometimes nothing.
    pub fn push(&mut self, id: u32) -> String {
        if self.skip == SkipSpecialTokens::Yes && self.tokenizer.is_special(id) && !self.shown.contains(&id) {
            return String::new();
        }
        match &mut self.state {
            State::Bytes { leading, tail } => match self.tokenizer.pieces() {
                Some(pieces) => push_bytes(pieces, id, leading, tail),
                None => String::new(),
            },
            State::Window { ids, decoded } => {
                ids.push(id);
                let end = if ids.len() >= MAX_WINDOW_TOKENS { WindowEnd::Force } else { WindowEnd::WholeCharacters };
                advance_window(&self.tokenizer, ids, decoded, end)
            }
        }
    }

    /// The text that each token completes. What is held back at the end belongs to the last, so that the texts joined are
    /// the whole.
    pub fn spell(mut self, ids: &[u32]) -> Vec<String> {
        let mut texts: Vec<String> = ids.iter().map(|id| self.push(*id)).collect();
        let rest = self.finish();
        if let Some(last) = texts.last_mut() {
            last.push_str(&rest);
        }
        texts
    }

    /// What was held back, with U+FFFD for an unfinished character.
    pub fn finish(&mut self) -> String {
        match &mut self.state {
            State::Bytes { tail, .. } => tail.finish(),
            State::Window { ids, decoded } => advance_window(&self.tokenizer, ids, decoded, WindowEnd::Force),
        }
    }
}

fn push_bytes(pieces: &Pieces, id: u32, leading: &mut LeadingSpaces, tail: &mut Utf8Tail) -> String {
    let bytes = pieces.bytes(id);
    match *leading {
        LeadingSpaces::Keep => tail.push(bytes),
        LeadingSpaces::DropFromFirstToken => {
            *leading = LeadingSpaces::Keep;
            let kept: Vec<u8> = bytes.iter().copied().filter(|&byte| byte != b' ').collect();
            tail.push(&kept)
        }
        LeadingSpaces::Strip(at_most) => {
            let spaces = bytes.iter().take(at_most).take_while(|&&byte| byte == b' ').count();
            let ends_here = spaces < bytes.len() || spaces == at_most;
            *leading = if ends_here { LeadingSpaces::Keep } else { LeadingSpaces::Strip(at_most - spaces) };
            tail.push(&bytes[spaces..])
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WindowEnd {
    WholeCharacters,
    Force,
}

/// `ids[..decoded]` was given out and is context; the difference it makes to decode the rest too is the new text.
fn advance_window(tokenizer: &Tokenizer, ids: &mut Vec<u32>, decoded: &mut usize, end: WindowEnd) -> String {
    if *decoded == ids.len() {
        return String::new();
    }
    let before = tokenizer.decode_whole(&ids[..*decoded], SkipSpecialTokens::No);
    let after = tokenizer.decode_whole(ids, SkipSpecialTokens::No);
    let unfinished = after.ends_with(char::REPLACEMENT_CHARACTER) || after.len() < before.len();
    if unfinished && end == WindowEnd::WholeCharacters {
        return String::new();
    }
    ids.drain(..ids.len().saturating_sub(CONTEXT_TOKENS));
    *decoded = ids.len();
    after.get(before.len()..).unwrap_or_default().to_owned()
}

/// Bytes to text like `String::from_utf8_lossy` of the whole, in pieces.
#[derive(Debug, Default)]
struct Utf8Tail {
    /// At most three bytes: the start of a character.
    held: Vec<u8>,
}

impl Utf8Tail {
    fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut text = String::new();
        let mut unfinished = Vec::new();
        let mut chunks = self.held.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            // Only the end of what has arrived can still become a character.
            if chunks.peek().is_none() && is_unfinished(chunk.invalid()) {
                unfinished = chunk.invalid().to_vec();
            } else if !chunk.invalid().is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.held = unfinished;
        text
    }

    fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }
}

fn is_unfinished(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests;
