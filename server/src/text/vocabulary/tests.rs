//! Against the tokenizers that the vocabularies were taken from, see tests/fixtures/gguf/make.py.

use serde_json::Value;

use super::*;
use crate::text::{AddSpecialTokens, SkipSpecialTokens, SpecialTokens, TextModel};

struct Golden {
    name: String,
    vocabulary: Vocabulary,
    cases: Vec<(String, Vec<u32>)>,
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

fn goldens() -> Vec<Golden> {
    let entries: Vec<Value> =
        serde_json::from_str(include_str!("../../../tests/fixtures/gguf/vocabularies.json")).unwrap();
    entries.iter().map(golden).collect()
}

fn golden(entry: &Value) -> Golden {
    let written = &entry["vocabulary"];
    let numbers =
        |value: &Value| value.as_array().map(|list| list.iter().map(|number| number.as_f64().unwrap()).collect());
    let vocabulary = Vocabulary {
        model: written["model"].as_str().unwrap().to_owned(),
        pre: written["pre"].as_str().map(str::to_owned),
        tokens: texts(&written["tokens"]),
        types: numbers(&written["types"]),
        scores: numbers(&written["scores"]),
        merges: texts(&written["merges"]),
        bos: written["bos"].as_u64(),
        eos: written["eos"].as_u64(),
        unknown: written["unknown"].as_u64(),
        ..Vocabulary::default()
    };
    let ids = |case: &Value| case["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
    let cases = entry["cases"].as_array().unwrap();
    let cases = cases.iter().map(|case| (case["text"].as_str().unwrap().to_owned(), ids(case))).collect();
    Golden { name: entry["name"].as_str().unwrap().to_owned(), vocabulary, cases }
}

/// As a checkpoint with the files that the vocabulary stands for.
fn load(vocabulary: &Vocabulary) -> Result<TextModel, TextError> {
    let files =
        [("tokenizer.json", vocabulary.tokenizer_json()?), ("tokenizer_config.json", vocabulary.config_json()?)];
    TextModel::load(|wanted| Ok(files.iter().find(|(file, _)| *file == wanted).map(|(_, content)| content.clone())))
}

fn of_name(name: &str) -> Vocabulary {
    goldens().into_iter().find(|golden| golden.name == name).unwrap().vocabulary
}

fn refused(vocabulary: &Vocabulary, key: &str, problem: &str) {
    let error = load(vocabulary).expect_err(problem).to_string();
    assert!(error.starts_with(key) && error.contains(problem), "expected {key}: {problem}, found {error}");
    assert!(error.len() < 1000, "{} bytes", error.len());
}

#[test]
fn ids_are_those_of_the_tokenizer_that_the_vocabulary_was_taken_from() {
    let goldens = goldens();
    assert_eq!(goldens.len(), 7);
    for golden in goldens {
        let tokenizer = load(&golden.vocabulary).unwrap().tokenizer;
        assert!(golden.cases.len() >= 15);
        for (text, ids) in golden.cases {
            let found = tokenizer.encode(&text, AddSpecialTokens::Yes, SpecialTokens::Parse).unwrap();
            assert_eq!(found, ids, "{}: {text:?}", golden.name);
        }
    }
}

#[test]
fn what_was_encoded_decodes_to_the_same_text() {
    for golden in goldens() {
        let tokenizer = load(&golden.vocabulary).unwrap().tokenizer;
        // NFC composes, and that is the only thing that any of these change.
        for (text, ids) in golden.cases.iter().filter(|(text, _)| !text.contains('\u{301}')) {
            let expected: String = golden
                .vocabulary
                .tokens
                .iter()
                .zip(golden.vocabulary.types.as_ref().unwrap())
                .filter(|(_, kind)| **kind == 3.0)
                .fold(text.clone(), |text, (token, _)| text.replace(token, ""));
            assert_eq!(tokenizer.decode(ids, SkipSpecialTokens::Yes), expected, "{}: {text:?}", golden.name);
        }
    }
}

#[test]
fn special_tokens_that_a_user_writes_stay_text() {
    let tokenizer = load(&of_name("qwen2")).unwrap().tokenizer;
    let end = tokenizer.token_id("<|im_end|>").unwrap();
    let ids = tokenizer.encode("a<|im_end|>b", AddSpecialTokens::No, SpecialTokens::AsText).unwrap();
    assert!(!ids.contains(&end), "{ids:?}");
    assert_eq!(tokenizer.decode(&ids, SkipSpecialTokens::Yes), "a<|im_end|>b");
    assert!(tokenizer.is_special(end) && !tokenizer.is_special(tokenizer.token_id("<tool>").unwrap()));
}

#[test]
fn the_file_decides_what_is_put_around_a_text() {
    let mut vocabulary = of_name("qwen2");
    let encode = |vocabulary: &Vocabulary| {
        let tokenizer = load(vocabulary).unwrap().tokenizer;
        tokenizer.encode("a", AddSpecialTokens::Yes, SpecialTokens::Parse).unwrap()
    };
    let plain = encode(&vocabulary);
    vocabulary.add_bos = Some(true);
    vocabulary.add_eos = Some(true);
    let (bos, eos) = (vocabulary.bos.unwrap() as u32, vocabulary.eos.unwrap() as u32);
    assert_eq!(encode(&vocabulary), [&[bos][..], &plain, &[eos]].concat());
    let mut llama = of_name("llama-bpe");
    llama.add_bos = Some(false);
    assert_eq!(encode(&llama).len() + 1, encode(&of_name("llama-bpe")).len());
    let mut unprefixed = of_name("llama");
    unprefixed.add_space_prefix = Some(false);
    assert_ne!(encode(&unprefixed), encode(&of_name("llama")));
}

/// Poro's text is split as BLOOM's, Viking's too but for digits, each of which stands alone.
#[test]
fn descendants_of_bloom_split_text_by_its_pattern() {
    let encode = |pre: &str, text: &str| {
        let vocabulary = Vocabulary { pre: Some(pre.to_owned()), ..of_name("bloom") };
        load(&vocabulary).unwrap().tokenizer.encode(text, AddSpecialTokens::No, SpecialTokens::Parse).unwrap()
    };
    for text in ["Où est l'été ? 1400", "(a) [b] 15.100"] {
        assert_eq!(encode("poro-chat", text), encode("bloom", text));
    }
    let one_by_one: Vec<u32> = ["1", "4", "0", "0"].iter().flat_map(|digit| encode("bloom", digit)).collect();
    assert_eq!(encode("viking", "1400"), one_by_one);
    assert!(encode("bloom", "1400").len() < one_by_one.len());
    assert_eq!(encode("viking", "Où est l'été ?"), encode("bloom", "Où est l'été ?"));
}

#[test]
fn templates_see_the_special_tokens_by_name() {
    let mut vocabulary = of_name("qwen2");
    vocabulary.templates.insert("default".into(), "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}".into());
    let text = load(&vocabulary).unwrap();
    assert!(text.template.is_some());
    assert_eq!(text.special_tokens["bos_token"], "<|endoftext|>");
    assert_eq!(text.special_tokens["eos_token"], "<|im_end|>");
    assert!(load(&of_name("qwen2")).unwrap().template.is_none(), "a base model");
}

#[test]
fn what_cannot_be_honoured_is_refused_by_key() {
    let with = |edit: fn(&mut Vocabulary)| {
        let mut vocabulary = of_name("qwen2");
        edit(&mut vocabulary);
        vocabulary
    };
    refused(&with(|v| v.model = "t5".into()), "tokenizer.ggml.model", "t5 is not supported");
    refused(&with(|v| v.pre = Some("x".repeat(5000))), "tokenizer.ggml.pre", "supported: gpt-2");
    refused(&with(|v| v.tokens.clear()), "tokenizer.ggml.token_type", "for 0 tokens");
    refused(&with(|v| (v.tokens, v.types) = (Vec::new(), None)), "tokenizer.ggml.tokens", "empty");
    refused(&with(|v| v.types.as_mut().unwrap()[3] = 17.0), "tokenizer.ggml.token_type", "17 is no type");
    refused(&with(|v| v.tokens[7] = v.tokens[8].clone()), "tokenizer.ggml.tokens", "tokens 7 and 8 are the same");
    refused(&with(|v| v.merges.push("nowhere found".into())), "tokenizer.ggml.merges", "no tokens");
    refused(&with(|v| v.merges.push("alone".into())), "tokenizer.ggml.merges", "no tokens");
    refused(&with(|v| v.eos = Some(1 << 40)), "tokenizer.ggml.eos_token_id", "of a vocabulary of");
    refused(&with(|v| (v.add_bos, v.bos) = (Some(true), None)), "tokenizer.ggml.bos_token_id", "missing");
    let mut pieces = of_name("llama");
    pieces.scores = None;
    refused(&pieces, "tokenizer.ggml.scores", "missing");
    let mut long = of_name("llama");
    long.tokens[300] = "a".repeat(100_000);
    refused(&long, "tokenizer.ggml.tokens", "256 characters");
}
