//! A `tokenizer.json` that is anything: refused, or it encodes and decodes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use passerelle::text::{AddSpecialTokens, SkipSpecialTokens, SpecialTokens, Tokenizer};

fuzz_target!(|input: (&[u8], &str)| {
    let (file, text) = input;
    let Ok(tokenizer) = Tokenizer::from_bytes(file) else { return };
    for special in [SpecialTokens::Parse, SpecialTokens::AsText] {
        if let Ok(ids) = tokenizer.encode(text, AddSpecialTokens::Yes, special) {
            tokenizer.decode(&ids, SkipSpecialTokens::No);
        }
    }
});
