//! What a tokenizer may ask for. A file of a few hundred bytes can describe one that takes gigabytes to hold, or hours for
//! a long word; published ones stay far below these bounds.

use serde_json::Value;
use tokenizers::{ModelWrapper, Tokenizer as Hf};

/// The highest id, plus one.
const MAX_VOCAB_SIZE: u32 = 1 << 22;
/// How much longer a text may become before it is cut into words, and a token before it is shown.
const MAX_GROWTH: usize = 64;
/// WordPiece looks at every part of a word.
const MAX_WORD_PIECE_CHARS: usize = 1000;
/// Unigram looks at every piece that begins at a place.
const MAX_UNIGRAM_PIECE_BYTES: usize = 1024;

/// Errors say which part of `tokenizer.json` asks for too much.
pub(super) fn check(hf: &Hf) -> Result<(), String> {
    let vocab = hf.get_vocab(true);
    if let Some((token, id)) = vocab.iter().find(|(_, id)| **id >= MAX_VOCAB_SIZE) {
        let token: String = token.chars().take(40).collect();
        return Err(format!("model.vocab: token {token:?} has id {id}; ids below {MAX_VOCAB_SIZE} are accepted"));
    }
    check_growth("normalizer", &to_value(hf.get_normalizer()))?;
    check_growth("pre_tokenizer", &to_value(hf.get_pre_tokenizer()))?;
    check_growth("decoder", &to_value(hf.get_decoder()))?;
    match hf.get_model() {
        ModelWrapper::WordPiece(model) if model.max_input_chars_per_word > MAX_WORD_PIECE_CHARS => Err(format!(
            "model.max_input_chars_per_word: {}; at most {MAX_WORD_PIECE_CHARS} are accepted",
            model.max_input_chars_per_word
        )),
        ModelWrapper::Unigram(_) => match vocab.keys().map(String::len).max() {
            Some(longest) if longest > MAX_UNIGRAM_PIECE_BYTES => {
                Err(format!("model.vocab: a piece of {longest} bytes; at most {MAX_UNIGRAM_PIECE_BYTES} are accepted"))
            }
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}

fn to_value(part: Option<&impl serde::Serialize>) -> Value {
    part.and_then(|part| serde_json::to_value(part).ok()).unwrap_or_default()
}

fn check_growth(part: &str, written: &Value) -> Result<(), String> {
    match growth(written) {
        Some(growth) if growth <= MAX_GROWTH => Ok(()),
        _ => Err(format!("{part}: makes a text more than {MAX_GROWTH} times as long")),
    }
}

/// How many bytes one byte may become; `None` for more than can be counted.
fn growth(written: &Value) -> Option<usize> {
    let each = |key: &str| written[key].as_array().into_iter().flatten();
    let nested = ["normalizers", "pretokenizers", "decoders"].into_iter().flat_map(each).map(growth);
    let product = nested.into_iter().try_fold(1_usize, |product, growth| product.checked_mul(growth?));
    let content = written["content"].as_str().or(written["prepend"].as_str()).map_or(0, str::len);
    let own = match (written["type"].as_str(), written.pointer("/pattern/String").and_then(Value::as_str)) {
        (Some("Replace"), Some(pattern)) if !pattern.is_empty() => content.div_ceil(pattern.len()).max(1),
        // A pattern may match between any two bytes.
        (Some("Replace" | "Prepend"), _) => content + 1,
        _ => 1,
    };
    product?.checked_mul(own)
}
