//! A tokenizer as large as one wants it.

use serde_json::{Map, Value, json};

/// All bytes, then made-up words of one to five syllables, with and without a space before, some with quotes or
/// brackets; the last of the `tokens` is a special one.
pub(crate) fn tokenizer_of(tokens: usize) -> Value {
    const SYLLABLES: [&str; 20] = [
        "an", "be", "co", "du", "en", "fi", "go", "ha", "il", "jo", "ka", "le", "mi", "no", "ou", "pre", "qua", "ri",
        "st", "tion",
    ];
    const AFTER: [&str; 8] = ["", "", "", "", "\"", ",", "\":", "s"];
    let mut vocab = Map::new();
    for byte in 0..=u8::MAX {
        vocab.insert(stand_in(byte).to_string(), vocab.len().into());
    }
    let mut number = 0_usize;
    while vocab.len() < tokens - 1 {
        number += 1;
        let mut word = if number.is_multiple_of(2) { "Ġ".to_owned() } else { String::new() };
        let mut rest = number / 16 + 1;
        while rest > 0 {
            word.push_str(SYLLABLES[rest % SYLLABLES.len()]);
            rest /= SYLLABLES.len();
        }
        word.push_str(AFTER[number / 2 % AFTER.len()]);
        let next = vocab.len();
        vocab.entry(word).or_insert_with(|| next.into());
    }
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let end = json!({"id": tokens - 1, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true});
    json!({
        "version": "1.0", "added_tokens": [end], "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    })
}

/// GPT-2's printable stand-in for a byte.
fn stand_in(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|earlier| !printable(*earlier)).count() as u32;
    char::from_u32(256 + before).expect("the stand-ins follow each other from 256")
}
