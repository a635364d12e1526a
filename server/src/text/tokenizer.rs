//! Text to token ids and back, for any `tokenizer.json`.

mod bounds;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use serde::de::IgnoredAny;
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer as Hf;

use super::TextError;
use super::detokenizer::Detokenizer;
use super::pieces::Pieces;
use super::special::SpecialStrings;

/// The largest `tokenizer.json` that is read. The largest known, of vocabularies of 262,144 tokens, have about 35 MB.
pub const MAX_TOKENIZER_FILE_BYTES: usize = 128 << 20;
/// The longest text that one call encodes: about half a million tokens of prose, and a few seconds for the worst text.
pub const MAX_TEXT_BYTES: usize = 2 << 20;

/// Whether the tokenizer's own frame (for example a leading BOS) is added around the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddSpecialTokens {
    Yes,
    No,
}

/// What a special token's string inside the text becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// The special token: for text written by a template or by someone trusted with the whole prompt.
    Parse,
    /// The ordinary tokens that spell it: for text written by a user.
    AsText,
}

/// Whether special tokens leave a trace in decoded text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkipSpecialTokens {
    Yes,
    No,
}

/// A tokenizer. Clones share everything.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// `None` for a model that reads and writes token ids alone.
    hf: Option<Hf>,
    /// Built when the first text arrives that holds a special token's string: most processes never need it.
    as_text: OnceLock<AsText>,
    pieces: Option<Pieces>,
    special_strings: SpecialStrings,
    /// Sorted.
    special_ids: Vec<u32>,
    vocab_size: usize,
    /// Over every id and its token. Built when the first two vocabularies are compared.
    vocabulary_digest: OnceLock<[u8; 32]>,
}

/// The same tokenizer with special tokens taken for ordinary text.
struct AsText {
    hf: Hf,
    /// Some vocabularies hold their special tokens as ordinary pieces too, so that even this tokenizer may produce them.
    produces_special: bool,
}

impl Tokenizer {
    /// From the bytes of `tokenizer.json`. The file's own truncation and padding are dropped: a prompt is never cut
    /// silently.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TextError> {
        let fault = |problem: String| TextError::File { file: "tokenizer.json".into(), problem };
        if bytes.len() > MAX_TOKENIZER_FILE_BYTES {
            return Err(fault(format!("has {} bytes; at most {MAX_TOKENIZER_FILE_BYTES} are read", bytes.len())));
        }
        // A damaged file can trip an assertion in the library; it must cost this model, not the process.
        let hf = catch_unwind(AssertUnwindSafe(|| Hf::from_bytes(bytes)))
            .map_err(|_| fault(no_tokenizer(bytes, "damaged: the tokenizers library panicked on it")))?
            .map_err(|error| {
                fault(no_tokenizer(bytes, &format!("not a tokenizer of the tokenizers library: {error}")))
            })?;
        bounds::check(&hf).map_err(fault)?;
        Self::from_hf(hf).map_err(|error| fault(error.to_string()))
    }

    /// For a model without one: no text can be encoded, and a token's text is its number.
    pub fn absent() -> Self {
        Self { inner: Arc::default() }
    }

    pub fn is_absent(&self) -> bool {
        self.inner.hf.is_none()
    }

    fn from_hf(mut hf: Hf) -> Result<Self, tokenizers::Error> {
        hf.with_truncation(None)?;
        hf.with_padding(None);
        hf.set_encode_special_tokens(false);
        let added = hf.get_added_tokens_decoder();
        let mut special: Vec<(u32, String)> =
            added.into_iter().filter(|(_, token)| token.special).map(|(id, token)| (id, token.content)).collect();
        special.sort_unstable();
        let highest_id = hf.get_vocab(true).into_values().max();
        let vocab_size = highest_id.map_or(0, |id| id as usize + 1);
        let pieces = Pieces::new(&hf, vocab_size);
        let special_ids = special.iter().map(|(id, _)| *id).collect();
        let special_strings = SpecialStrings::new(special.into_iter().map(|(_, string)| string));
        let hf = Some(hf);
        let inner = Inner { hf, pieces, special_strings, special_ids, vocab_size, ..Inner::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Whether the two have the same tokens under the same ids. The first time, this takes time that grows with both.
    pub fn has_vocabulary_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner) || self.vocabulary_digest() == other.vocabulary_digest()
    }

    fn vocabulary_digest(&self) -> &[u8; 32] {
        self.inner.vocabulary_digest.get_or_init(|| {
            let vocabulary = self.inner.hf.as_ref().map(|hf| hf.get_vocab(true)).unwrap_or_default();
            let mut tokens: Vec<(u32, String)> = vocabulary.into_iter().map(|(token, id)| (id, token)).collect();
            tokens.sort_unstable();
            let mut hash = Sha256::new();
            for (id, token) in tokens {
                hash.update(id.to_le_bytes());
                hash.update((token.len() as u64).to_le_bytes());
                hash.update(token);
            }
            hash.finalize().into()
        })
    }

    /// Token ids of `text`. Takes time that grows with the text, of which [`MAX_TEXT_BYTES`] are accepted.
    pub fn encode(&self, text: &str, add: AddSpecialTokens, special: SpecialTokens) -> Result<Vec<u32>, TextError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(TextError::TooLong { bytes: text.len(), limit: MAX_TEXT_BYTES });
        }
        let hf = self.hf()?;
        if special == SpecialTokens::Parse || !self.inner.special_strings.occurs_in(text) {
            return encode(hf, text, add);
        }
        let as_text = self.inner.as_text.get_or_init(|| AsText::new(hf, &self.inner.special_strings));
        if as_text.produces_special { self.encode_in_parts(text, add) } else { encode(&as_text.hf, text, add) }
    }

    /// Token ids of two texts in the frame of a pair, and for each token the number of its text as encoders count them.
    pub fn encode_pair(&self, first: &str, second: &str) -> Result<(Vec<u32>, Vec<u32>), TextError> {
        let encoding = self.hf()?.encode_fast((first, second), true);
        let encoding = encoding.map_err(|error| TextError::Encode(error.to_string()))?;
        Ok((encoding.get_ids().to_vec(), encoding.get_type_ids().to_vec()))
    }

    /// The text of `ids`; bytes that are not UTF-8 become U+FFFD, ids outside the vocabulary nothing.
    pub fn decode(&self, ids: &[u32], skip: SkipSpecialTokens) -> String {
        if self.inner.pieces.is_none() {
            return self.decode_whole(ids, skip);
        }
        let mut detokenizer = Detokenizer::new(self, skip);
        let mut text: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
        text.push_str(&detokenizer.finish());
        text
    }

    /// The bytes that a token stands for: exact for byte-level and byte-fallback vocabularies, else its text alone.
    /// Empty outside the vocabulary. Without a tokenizer `token_id:N`, as the field's servers write it.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        match &self.inner.pieces {
            _ if self.is_absent() => format!("token_id:{id}").into_bytes(),
            Some(pieces) => pieces.bytes(id).to_vec(),
            None => self.decode_whole(&[id], SkipSpecialTokens::No).into_bytes(),
        }
    }

    /// The id of the token written exactly so, special or not.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.hf.as_ref()?.token_to_id(token)
    }

    /// One more than the highest id.
    pub fn vocab_size(&self) -> usize {
        self.inner.vocab_size
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.inner.special_ids.binary_search(&id).is_ok()
    }

    pub fn special_strings(&self) -> &SpecialStrings {
        &self.inner.special_strings
    }

    pub(super) fn pieces(&self) -> Option<&Pieces> {
        self.inner.pieces.as_ref()
    }

    /// Decoding by the library itself: the only way for decoders that look at more than one token.
    pub(super) fn decode_whole(&self, ids: &[u32], skip: SkipSpecialTokens) -> String {
        // The library's decoders fail only inside an interpreter binding that is not compiled in.
        let decoded = self.inner.hf.as_ref().map(|hf| hf.decode(ids, skip == SkipSpecialTokens::Yes));
        decoded.and_then(Result::ok).unwrap_or_default()
    }

    fn hf(&self) -> Result<&Hf, TextError> {
        self.inner.hf.as_ref().ok_or(TextError::NoTokenizer)
    }

    /// Cuts each special string behind its first character, so that no part is one.
    fn encode_in_parts(&self, text: &str, add: AddSpecialTokens) -> Result<Vec<u32>, TextError> {
        let hf = self.hf()?;
        let mut ids = Vec::new();
        let mut begin = 0;
        while let Some(special) = self.inner.special_strings.find_from(text, begin) {
            let first_char = text[special.start..].chars().next().map_or(1, char::len_utf8);
            let cut = special.start + first_char;
            ids.extend(encode(hf, &text[begin..cut], AddSpecialTokens::No)?);
            begin = cut;
        }
        ids.extend(encode(hf, &text[begin..], AddSpecialTokens::No)?);
        if add == AddSpecialTokens::No { Ok(ids) } else { self.frame(ids) }
    }

    /// Puts around `ids` what the tokenizer puts around any text.
    fn frame(&self, ids: Vec<u32>) -> Result<Vec<u32>, TextError> {
        const SAMPLE: &str = "a";
        let bare = encode(self.hf()?, SAMPLE, AddSpecialTokens::No)?;
        let framed = encode(self.hf()?, SAMPLE, AddSpecialTokens::Yes)?;
        let at = framed.windows(bare.len().max(1)).position(|window| window == bare);
        let at = at.ok_or_else(|| TextError::Encode("its frame around a text depends on the text".into()))?;
        Ok([&framed[..at], &ids, &framed[at + bare.len()..]].concat())
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.inner.vocab_size).finish_non_exhaustive()
    }
}

impl AsText {
    fn new(hf: &Hf, special_strings: &SpecialStrings) -> Self {
        let mut hf = hf.clone();
        hf.set_encode_special_tokens(true);
        let produces_special = special_strings.iter().any(|string| {
            let id = hf.token_to_id(string);
            encode(&hf, string, AddSpecialTokens::No).is_ok_and(|ids| id.is_some_and(|id| ids.contains(&id)))
        });
        Self { hf, produces_special }
    }
}

/// What is wrong with a file that is not read as a tokenizer: it is `otherwise`, unless it is not even JSON.
fn no_tokenizer(bytes: &[u8], otherwise: &str) -> String {
    let what = match serde_json::from_slice::<IgnoredAny>(bytes) {
        Ok(_) => otherwise.to_owned(),
        Err(error) => format!("no valid JSON, at line {}, column {}", error.line(), error.column()),
    };
    format!("is {what}; fetch it again")
}

fn encode(hf: &Hf, text: &str, add: AddSpecialTokens) -> Result<Vec<u32>, TextError> {
    // What a damaged file describes may trip the library over some texts only.
    let encoding = catch_unwind(AssertUnwindSafe(|| hf.encode_fast(text, add == AddSpecialTokens::Yes)))
        .map_err(|_| TextError::Encode("the tokenizers library panicked on it".into()))?;
    Ok(encoding.map_err(|error| TextError::Encode(error.to_string()))?.get_ids().to_vec())
}

#[cfg(test)]
mod tests;
