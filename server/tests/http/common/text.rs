//! A tokenizer of bytes: token `n` is byte `n`, then three special tokens. So every character beyond ASCII spans tokens.

use passerelle::text::TextModel;
use serde_json::{Value, json};

pub(crate) const START: u32 = 256;
pub(crate) const END: u32 = 257;
pub(crate) const VOCAB: usize = 259;

/// ChatML, with the tools named before the messages, for a model that thinks in `<think>`.
const TEMPLATE: &str = "\
{%- if tools %}<|im_start|>system\ntools for <tool_call>:{% for tool in tools %} {{ tool.function.name }}{% endfor %}<|im_end|>\n{% endif %}\
{#- <think> -#}
{%- for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}\
{%- if not loop.last or add_generation_prompt %}<|im_end|>\n{% endif %}{% endfor %}\
{%- if add_generation_prompt %}<|im_start|>assistant\n\
{% if enable_thinking is defined and not enable_thinking %}<no_think>{% endif %}{% endif %}";

pub(crate) fn text_model() -> TextModel {
    text_model_with("<|pad|>")
}

/// `last`: the name of the last token, which nobody uses.
pub(crate) fn text_model_with(last: &str) -> TextModel {
    let files = [("tokenizer.json", tokenizer_json(last)), ("tokenizer_config.json", config_json())];
    TextModel::load(|name| {
        let file = files.iter().find(|(file, _)| *file == name);
        Ok(file.map(|(_, json)| json.to_string().into_bytes()))
    })
    .unwrap()
}

pub(crate) fn tokens_of(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

fn config_json() -> Value {
    json!({"chat_template": TEMPLATE, "eos_token": "<|im_end|>"})
}

fn tokenizer_json(last: &str) -> Value {
    let vocab: serde_json::Map<String, Value> =
        (0..=u8::MAX).map(|byte| (stand_in(byte).to_string(), json!(byte))).collect();
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [special(START, "<|im_start|>"), special(END, "<|im_end|>"), special(258, last)],
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": null,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []},
    })
}

/// GPT-2's printable stand-in for a byte.
fn stand_in(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|earlier| !printable(*earlier)).count();
    char::from_u32(256 + before as u32).unwrap()
}
