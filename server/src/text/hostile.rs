//! Hostile tokenizers, templates and their configurations: each is refused by name, in seconds, or does no harm.

use std::time::Duration;

use passerelle_engine::clock::{Clock, SystemClock};
use serde_json::{Value, json};

use super::TextError;
use super::fixtures::{Random, byte_fallback_json, byte_level_json, tokenizer, unigram_json, word_piece_json};
use super::model::TextModel;
use super::tokenizer::{AddSpecialTokens, SkipSpecialTokens, SpecialTokens, Tokenizer};

const MOST_TIME: Duration = Duration::from_secs(5);

fn load(files: &[(&str, &[u8])]) -> Result<TextModel, TextError> {
    TextModel::load(|wanted| Ok(files.iter().find(|(name, _)| *name == wanted).map(|(_, bytes)| bytes.to_vec())))
}

/// Refused as a fault of this file, in time.
fn refused(files: &[(&str, &[u8])], file: &str) -> String {
    let clock = SystemClock::new();
    let error = load(files).expect_err(file);
    assert!(clock.now() < MOST_TIME, "{file}: {:?}", clock.now());
    assert!(matches!(&error, TextError::File { file: found, .. } if found == file), "{error}");
    error.to_string()
}

fn refused_tokenizer(json: &Value, wanted: &str) {
    let error = refused(&[("tokenizer.json", json.to_string().as_bytes())], "tokenizer.json");
    assert!(error.contains(wanted), "{error}");
}

#[test]
fn a_tokenizer_cut_anywhere_is_refused() {
    for json in [byte_level_json(), byte_fallback_json(), unigram_json(), word_piece_json()] {
        let whole = json.to_string();
        for cut in (0..whole.len()).step_by(whole.len() / 12) {
            let said = refused(&[("tokenizer.json", &whole.as_bytes()[..cut])], "tokenizer.json");
            assert!(said.contains("is no valid JSON, at line 1, column "), "{said}");
        }
    }
}

#[test]
fn a_tokenizer_that_asks_for_too_much_is_refused_with_the_part() {
    let mut json = byte_level_json();
    json["model"]["vocab"]["bomb"] = json!(u32::MAX);
    refused_tokenizer(&json, "model.vocab");
    let mut json = word_piece_json();
    json["model"]["max_input_chars_per_word"] = json!(1_000_000_000);
    refused_tokenizer(&json, "max_input_chars_per_word");
    let mut json = unigram_json();
    json["model"]["vocab"].as_array_mut().unwrap().push(json!(["a".repeat(5000), -1.0]));
    refused_tokenizer(&json, "a piece of 5000 bytes");
    let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    for (part, list, kind) in [("normalizer", "normalizers", "Sequence"), ("decoder", "decoders", "Sequence")] {
        let mut json = byte_fallback_json();
        json[part] = json!({"type": kind, list: vec![double.clone(); 30]});
        refused_tokenizer(&json, part);
        json[part] = json!({"type": "Replace", "pattern": {"Regex": ""}, "content": "x".repeat(1 << 20)});
        refused_tokenizer(&json, part);
    }
}

#[test]
fn json_that_is_deep_or_of_the_wrong_kind_is_refused() {
    let texts = [
        "[".repeat(1 << 20),
        "{\"model\":".repeat(1 << 18),
        "null".to_owned(),
        "{\"version\": \"1.0\", \"model\": {\"type\": \"BPE\", \"vocab\": [], \"merges\": []}}".to_owned(),
        "{\"version\": \"1.0\", \"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": -1}, \"merges\": []}}".to_owned(),
        "{\"version\": \"1.0\", \"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0}, \"merges\": [\"b c\"]}}"
            .to_owned(),
        "{\"version\": \"1.0\", \"model\": {\"type\": \"Unigram\", \"unk_id\": 9, \"vocab\": [[\"a\", 0.0]]}}"
            .to_owned(),
        "{\"version\": \"1.0\", \"model\": {\"type\": \"Nothing\"}}".to_owned(),
    ];
    for text in texts {
        refused(&[("tokenizer.json", text.as_bytes())], "tokenizer.json");
    }
    let whole = byte_level_json().to_string();
    for file in ["tokenizer_config.json", "special_tokens_map.json"] {
        for text in ["[".repeat(1 << 20), "{\"a\":".repeat(1 << 18), "7".to_owned(), "{\"a\": 1".to_owned()] {
            refused(&[("tokenizer.json", whole.as_bytes()), (file, text.as_bytes())], file);
        }
    }
}

#[test]
fn a_template_that_cannot_be_compiled_is_refused_in_time() {
    let whole = byte_level_json().to_string();
    let deep = |open: &str, close: &str| open.repeat(5_000) + &close.repeat(5_000);
    let templates = [
        "{{ ".to_owned() + &deep("(", ")") + " }}",
        "{{ ".to_owned() + &deep("[", "]") + " }}",
        deep("{% if 1 %}", "{% endif %}"),
        deep("{% for a in b %}", "{% endfor %}"),
        "{% macro".repeat(1000),
        "{{ 'a".to_owned(),
        "{% include 'x' %}{% extends".to_owned(),
        "x".repeat(2 << 20),
        "{{ a".to_owned() + &"|upper".repeat(100_000),
    ];
    for template in templates {
        let files = [("tokenizer.json", whole.as_bytes()), ("chat_template.jinja", template.as_bytes())];
        refused(&files, "chat_template.jinja");
    }
    refused(&[("tokenizer.json", whole.as_bytes()), ("chat_template.jinja", b"\xff{{ 1 }}")], "chat_template.jinja");
}

#[test]
fn patterns_that_backtrack_do_not_hold_a_request_up() {
    let mut tried = 0;
    for pattern in ["(a+)+$", "(a|aa)+$", "(?=(a+))*b", "(a*)*\\1b"] {
        let mut json = byte_level_json();
        json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]});
        let clock = SystemClock::new();
        // Refused or encoded, but soon.
        if let Ok(tokenizer) = Tokenizer::from_bytes(json.to_string().as_bytes()) {
            let _ = tokenizer.encode(&("a".repeat(5_000) + "!"), AddSpecialTokens::No, SpecialTokens::Parse);
            tried += 1;
        }
        assert!(clock.now() < MOST_TIME, "{pattern}: {:?}", clock.now());
    }
    assert!(tried > 0, "every tokenizer was refused");
}

/// Whatever single damage a tokenizer takes, it is refused, or it encodes and decodes without a panic.
#[test]
fn random_damages_to_a_tokenizer_never_panic() {
    let kinds =
        [byte_level_json(), byte_fallback_json(), unigram_json(), word_piece_json()].map(|json| json.to_string());
    let mut random = Random::new(41);
    let mut refusals = 0;
    const CASES: usize = 300;
    for case in 0..CASES {
        let mut bytes = kinds[case % kinds.len()].clone().into_bytes();
        let at = random.below(bytes.len());
        match random.below(4) {
            0 => bytes.truncate(at),
            1 => bytes[at] ^= 1 << random.below(8),
            2 => drop(bytes.remove(at)),
            _ => bytes.insert(at, b"0123456789\"{}[],:-."[random.below(19)]),
        }
        match Tokenizer::from_bytes(&bytes) {
            Err(TextError::File { .. }) => refusals += 1,
            Err(other) => panic!("case {case}: {other}"),
            Ok(tokenizer) => {
                if let Ok(ids) = tokenizer.encode("l'été <|im_end|> 12", AddSpecialTokens::Yes, SpecialTokens::AsText)
                {
                    tokenizer.decode(&ids, SkipSpecialTokens::No);
                }
            }
        }
    }
    assert!(refusals > CASES / 4, "only {refusals} damages were noticed");
    // The undamaged ones still work.
    assert!(!tokenizer(&byte_level_json()).is_absent());
}
