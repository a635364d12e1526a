//! Any text and any tokens, with a tokenizer of each kind: what is streamed is what is decoded whole.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use passerelle::text::{AddSpecialTokens, Detokenizer, SkipSpecialTokens, SpecialTokens, Tokenizer};

static TOKENIZERS: LazyLock<Vec<Tokenizer>> = LazyLock::new(|| {
    let files: [&[u8]; 4] = [
        include_bytes!("../../server/tests/goldens/tokenizers/byte_level.json"),
        include_bytes!("../../server/tests/goldens/tokenizers/byte_fallback.json"),
        include_bytes!("../../server/tests/goldens/tokenizers/unigram.json"),
        include_bytes!("../../server/tests/goldens/tokenizers/word_piece.json"),
    ];
    files.map(|file| Tokenizer::from_bytes(file).expect("a golden tokenizer")).into()
});

fuzz_target!(|input: (&str, Vec<u16>)| {
    let (text, tokens) = input;
    for tokenizer in TOKENIZERS.iter() {
        let encoded = tokenizer.encode(text, AddSpecialTokens::No, SpecialTokens::AsText).unwrap_or_default();
        assert!(encoded.iter().all(|id| !tokenizer.is_special(*id) || !tokenizer.special_strings().occurs_in(text)));
        let size = tokenizer.vocab_size() as u32;
        let random: Vec<u32> = tokens.iter().map(|token| u32::from(*token) % size).collect();
        for ids in [encoded, random] {
            let mut detokenizer = Detokenizer::new(tokenizer, SkipSpecialTokens::No);
            let mut streamed: String = ids.iter().map(|id| detokenizer.push(*id)).collect();
            streamed.push_str(&detokenizer.finish());
            assert_eq!(streamed, tokenizer.decode(&ids, SkipSpecialTokens::No));
        }
    }
});
