use serde_json::json;

use super::super::fixtures::byte_level_json;
use super::super::tokenizer::{AddSpecialTokens, SkipSpecialTokens, SpecialTokens};
use super::*;

fn load(files: &[(&str, String)]) -> Result<TextModel, TextError> {
    TextModel::load(|wanted| {
        let found = files.iter().find(|(name, _)| *name == wanted);
        Ok(found.map(|(_, content)| content.clone().into_bytes()))
    })
}

fn with_config(config: &Value) -> Result<TextModel, TextError> {
    load(&[("tokenizer.json", byte_level_json().to_string()), ("tokenizer_config.json", config.to_string())])
}

fn specials(config: &Value, map: &Value) -> Value {
    let tokenizer = Tokenizer::from_bytes(byte_level_json().to_string().as_bytes()).unwrap();
    Value::Object(special_tokens(config.as_object().unwrap(), map.as_object().unwrap(), &tokenizer).unwrap())
}

#[test]
fn special_tokens_are_read_in_every_form() {
    let config = json!({"bos_token": "<|bos|>", "eos_token": {"content": "<|im_end|>", "lstrip": false}, "pad_token": null,
        "additional_special_tokens": ["<|im_start|>", {"content": "<|im_end|>"}], "model_max_length": 2048});
    let expected = json!({"bos_token": "<|bos|>", "eos_token": "<|im_end|>",
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"]});
    assert_eq!(specials(&config, &json!({})), expected);
}

#[test]
fn special_tokens_map_fills_what_the_config_leaves_out() {
    let map = json!({"bos_token": "<|bos|>", "eos_token": "<|bos|>"});
    let expected = json!({"bos_token": "<|bos|>", "eos_token": "<|im_end|>"});
    assert_eq!(specials(&json!({"eos_token": "<|im_end|>"}), &map), expected);
}

#[test]
fn a_base_model_has_no_template_and_says_so_when_asked_to_chat() {
    let model = load(&[("tokenizer.json", byte_level_json().to_string())]).unwrap();
    assert!(model.template.is_none());
    assert!(matches!(model.chat_template(), Err(TextError::NoTemplate)));
}

#[test]
fn a_model_without_a_tokenizer_reads_token_ids_alone() {
    let model = load(&[]).unwrap();
    assert!(model.tokenizer.is_absent());
    let refused = model.tokenizer.encode("Bonjour", AddSpecialTokens::No, SpecialTokens::Parse).unwrap_err();
    assert!(refused.is_request_fault() && refused.to_string().contains("--tokenizer SOURCE"), "{refused}");
    assert_eq!(model.tokenizer.token_bytes(7), b"token_id:7");
    assert_eq!(model.tokenizer.decode(&[1, 2], SkipSpecialTokens::No), "");
}

#[test]
fn a_tokenizer_in_another_library_s_form_is_refused_with_the_conversion() {
    for file in ["tekken.json", "tokenizer.model", "sentencepiece.bpe.model", "vocab.json"] {
        let error = load(&[(file, "x".into())]).unwrap_err().to_string();
        assert!(error.starts_with(file) && error.contains("save_pretrained(DIR)"), "{error}");
    }
}

#[test]
fn the_template_is_found_wherever_it_is_kept() {
    assert!(with_config(&json!({"chat_template": "{{ messages }}"})).unwrap().template.is_some());
    let named = json!([{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]);
    let model = with_config(&json!({"chat_template": named})).unwrap();
    assert!(format!("{:?}", model.template).contains("tool_use"));
    let file =
        [("tokenizer.json", byte_level_json().to_string()), ("chat_template.jinja", "{{ messages }}".to_owned())];
    assert!(load(&file).unwrap().template.is_some());
}

#[test]
fn half_of_a_tokenizer_does_not_pass_for_none() {
    let error = load(&[("tokenizer_config.json", "{}".into())]).unwrap_err().to_string();
    assert!(error.starts_with("tokenizer.json: is missing beside tokenizer_config.json"), "{error}");
}

#[test]
fn every_fault_names_its_file_and_field() {
    let tokenizer = || ("tokenizer.json", byte_level_json().to_string());
    let cases = [
        (vec![tokenizer(), ("tokenizer_config.json", "[]".into())], "tokenizer_config.json: is not a JSON object"),
        (
            vec![tokenizer(), ("tokenizer_config.json", r#"{"eos_token": "<end>"}"#.into())],
            "tokenizer_config.json: eos_token",
        ),
        (
            vec![tokenizer(), ("tokenizer_config.json", r#"{"chat_template": 1}"#.into())],
            "tokenizer_config.json: chat_template",
        ),
        (
            vec![
                tokenizer(),
                ("tokenizer_config.json", r#"{"chat_template": [{"name": "x", "template": ""}]}"#.into()),
            ],
            "tokenizer_config.json: chat_template has no template named \"default\"",
        ),
        (
            vec![tokenizer(), ("tokenizer_config.json", r#"{"chat_template": "{% if %}"}"#.into())],
            "tokenizer_config.json: chat_template",
        ),
        (vec![tokenizer(), ("chat_template.jinja", "{{".into())], "chat_template.jinja: chat_template"),
    ];
    for (files, expected) in cases {
        let error = load(&files).unwrap_err();
        assert!(error.to_string().starts_with(expected), "{error}");
    }
    let unreadable = TextModel::load(|_| Err(io::ErrorKind::PermissionDenied.into()));
    assert!(unreadable.unwrap_err().to_string().starts_with("tokenizer.json: cannot be read"));
}
