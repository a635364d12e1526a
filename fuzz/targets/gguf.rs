//! A GGUF file of any bytes: it loads, or it is refused with a typed error. The seeded mutations of
//! models/tests/checkpoint/gguf.rs begin from whole files; a corpus of the fixtures in models/tests/fixtures/gguf does too.
#![no_main]

use libfuzzer_sys::fuzz_target;
use passerelle_models::ops::Compute;
use passerelle_models::{CheckpointFiles, LoadOptions, load, unwatched};

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).expect("the folder is writable");
    let files = CheckpointFiles::gguf(&path).expect("it was just written");
    if let Ok(Some(metadata)) = files.gguf_metadata() {
        for key in ["tokenizer.ggml.tokens", "tokenizer.ggml.merges"] {
            let _ = metadata.texts(key);
        }
        let _ = metadata.numbers("tokenizer.ggml.scores");
    }
    let _ = load(&files, &Compute::cpu(1), &LoadOptions::default(), &mut unwatched);
});
