//! Small tokenizers of every kind, and a seeded source of chance, for the tests of this room.

use serde_json::{Value, json};

use super::tokenizer::Tokenizer;

/// Text that breaks careless decoders: accents, a combining mark, CJK, emoji with modifiers and joiners.
pub(super) const TEXTS: [&str; 6] = [
    "Où est l'été ? Ça va, merci — à bientôt…",
    "e\u{301}te\u{301}",
    "日本語の文章と中文。",
    "👩‍👩‍👧 says 👍🏽!",
    "hello  world\n\n\ttabs and spaces ",
    "mixed: añb日c👍d",
];

pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// Evenly from `0..bound`, nearly.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % bound
    }

    /// The text cut at random character borders.
    pub(super) fn cut<'t>(&mut self, text: &'t str) -> Vec<&'t str> {
        let longest = 1 + self.below(12);
        let mut pieces = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let wanted = 1 + self.below(longest);
            let end = rest.char_indices().nth(wanted).map_or(rest.len(), |(at, _)| at);
            pieces.push(&rest[..end]);
            rest = &rest[end..];
        }
        pieces
    }
}

pub(super) fn tokenizer(json: &Value) -> Tokenizer {
    Tokenizer::from_bytes(json.to_string().as_bytes()).unwrap()
}

/// GPT-2's way: ids 0 to 255 are the bytes in order, then a few merges, then added tokens.
pub(super) fn byte_level_json() -> Value {
    let mut stand_in = 255;
    let mut vocab = serde_json::Map::new();
    for byte in 0..=255_u32 {
        let printable = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
        stand_in += u32::from(!printable);
        let symbol = char::from_u32(if printable { byte } else { stand_in }).unwrap();
        vocab.insert(symbol.to_string(), byte.into());
    }
    let merges = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ã ©", "u s", "us e", "use r"];
    for merge in merges {
        vocab.insert(merge.replace(' ', ""), vocab.len().into());
    }
    let first_added = vocab.len();
    let added = [
        ("<|im_start|>", true),
        ("<|im_end|>", true),
        ("<|bos|>", true),
        ("<tool_call>", false),
        ("<<|im_start|>", true),
    ];
    let added =
        added.into_iter().enumerate().map(|(n, (content, special))| added_token(first_added + n, content, special));
    json!({
        "version": "1.0",
        "added_tokens": added.collect::<Vec<_>>(),
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": template_processor("<|bos|>", first_added + 2),
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    })
}

/// Sentencepiece as converted for Llama 2: spaces are ▁, unknown characters fall back to bytes, one leading space is
/// dropped.
pub(super) fn byte_fallback_json() -> Value {
    let mut pieces: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    pieces.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    pieces.extend("▁abcdefghijklmnopqrstuvwxyz.,!é".chars().map(String::from));
    let merges = ["▁ h", "▁h e", "l l", "▁he ll", "▁hell o", "▁ w"];
    pieces.extend(merges.map(|merge| merge.replace(' ', "")));
    let vocab: Value = pieces.into_iter().enumerate().map(|(id, piece)| (piece, Value::from(id))).collect();
    json!({
        "version": "1.0",
        "added_tokens": [added_token(0, "<unk>", true), added_token(1, "<s>", true), added_token(2, "</s>", true)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "post_processor": template_processor("<s>", 1),
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "unk_token": "<unk>", "byte_fallback": true,
            "fuse_unk": true},
    })
}

/// A decoder that looks at neighbours: no table of bytes describes it.
pub(super) fn word_piece_json() -> Value {
    let pieces = ["[UNK]", "[SEP]", "the", "stream", "##ing", "##s", "cat", ".", "don", "'", "t", "very"];
    let vocab: Value = pieces.into_iter().enumerate().map(|(id, piece)| (piece.to_owned(), Value::from(id))).collect();
    json!({
        "version": "1.0",
        "added_tokens": [added_token(1, "[SEP]", true)],
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab},
    })
}

/// A unigram vocabulary whose end-of-text token is also an ordinary piece.
pub(super) fn unigram_json() -> Value {
    let mut pieces = vec![json!(["<unk>", -20.0]), json!(["</s>", 0.0]), json!(["▁", -3.0])];
    pieces.extend("abcdefghijklmnopqrstuvwxyz</>".chars().map(|c| json!([c.to_string(), -5.0])));
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    json!({
        "version": "1.0",
        "added_tokens": [added_token(0, "<unk>", true), added_token(1, "</s>", true)],
        "pre_tokenizer": metaspace,
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces},
    })
}

pub(super) fn added_token(id: usize, content: &str, special: bool) -> Value {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": special})
}

fn template_processor(bos: &str, id: usize) -> Value {
    let mut tokens = serde_json::Map::new();
    tokens.insert(bos.to_owned(), json!({"id": bos, "ids": [id], "tokens": [bos]}));
    let bos = json!({"SpecialToken": {"id": bos, "type_id": 0}});
    json!({"type": "TemplateProcessing", "special_tokens": tokens,
        "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}]})
}
