//! What each field takes, as JSON schema. A name means the same behind every door, but for those that a door has of its
//! own. `examples` are values that the door takes.

use serde_json::Value;

/// `None`: nobody has described this field yet, which a test tells.
pub(super) fn shape(door: &str, name: &str) -> Option<Value> {
    let own = OWN.iter().find(|(of, field, _)| *of == door && *field == name).map(|(_, _, shape)| *shape);
    let shape = own.or_else(|| SHARED.iter().find(|(field, _)| *field == name).map(|(_, shape)| *shape))?;
    Some(serde_json::from_str(shape).expect("every shape is JSON, which a test checks"))
}

const BOOLEAN: &str = r#"{"type": "boolean"}"#;
const STRING: &str = r#"{"type": "string"}"#;
const TOKENS: &str = r#"{"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 4294967295}}"#;

const STRING_OR_STRINGS: &str = r#"{"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"type": "string"}}], "examples": ["a", ["a"]]}"#;
/// Texts, or texts as tokens.
const TEXTS: &str = r#"{"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"type": "string"}}, {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}, {"type": "array", "minItems": 1, "items": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}}], "examples": ["a", ["a", "b"], [1, 2], [[1], [2]]]}"#;

#[rustfmt::skip]
const SHARED: &[(&str, &str)] = &[
    ("model", STRING),
    ("models", r#"{"type": "array", "minItems": 2, "items": {"type": "string"}, "description": "the first is what the others are compared with", "examples": [["a", "b"]]}"#),
    ("messages", r##"{"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Message"}, "examples": [[{"role": "user", "content": "hi"}]]}"##),
    ("max_tokens", r#"{"type": "integer", "minimum": 0, "maximum": 4294967295}"#),
    ("max_completion_tokens", r#"{"type": "integer", "minimum": 1, "maximum": 4294967295}"#),
    ("max_output_tokens", r#"{"type": "integer", "minimum": 1, "maximum": 4294967295}"#),
    ("min_tokens", r#"{"type": "integer", "minimum": 0, "maximum": 4294967295, "description": "at most `max_tokens`"}"#),
    ("temperature", r#"{"type": "number", "minimum": 0, "maximum": 2}"#),
    ("top_p", r#"{"type": "number", "minimum": 0, "maximum": 1}"#),
    ("top_k", r#"{"type": "integer", "minimum": -1, "maximum": 4294967295, "description": "-1 and 0: the whole vocabulary"}"#),
    ("min_p", r#"{"type": "number", "minimum": 0, "maximum": 1}"#),
    ("typical_p", r#"{"type": "number", "minimum": 0.001, "maximum": 1}"#),
    ("bad_words", r#"{"type": "array", "maxItems": 64, "items": {"type": "string", "minLength": 1}, "examples": [["x"]]}"#),
    ("response_format", r#"{"type": "object", "required": ["type"], "properties": {"type": {"enum": ["text", "json_object", "json_schema"]}}, "examples": [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}]}"#),
    ("structured_outputs", r#"{"type": "object", "description": "one of `json`, `regex`, `choice`, `grammar`, `json_object`", "examples": [{"regex": "a+"}]}"#),
    ("guided_json", r#"{"anyOf": [{"type": "object"}, {"type": "boolean"}, {"type": "string"}], "examples": [{"type": "object"}]}"#),
    ("guided_regex", STRING),
    ("guided_choice", r#"{"type": "array", "minItems": 1, "items": {"type": "string"}, "examples": [["a", "b"]]}"#),
    ("guided_grammar", r#"{"type": "string", "description": "Lark"}"#),
    ("regex", STRING),
    ("json_schema", r#"{"anyOf": [{"type": "object"}, {"type": "boolean"}, {"type": "string"}], "examples": [{"type": "object"}]}"#),
    ("reasoning_effort", r#"{"enum": ["none", "minimal", "low", "medium", "high", "xhigh", "max"], "description": "if the model's chat template has a name for it", "examples": ["none", "max"]}"#),
    ("frequency_penalty", r#"{"type": "number", "minimum": -2, "maximum": 2}"#),
    ("presence_penalty", r#"{"type": "number", "minimum": -2, "maximum": 2}"#),
    ("repetition_penalty", r#"{"type": "number", "minimum": 0.01, "maximum": 10}"#),
    ("logit_bias", r#"{"type": "object", "propertyNames": {"pattern": "^[0-9]+$"}, "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}, "examples": [{"3": -100}]}"#),
    ("seed", r#"{"type": "integer", "minimum": -9223372036854775808, "maximum": 9223372036854775807}"#),
    ("stop", r#"{"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "maxItems": 16, "items": {"type": "string", "minLength": 1}}], "examples": ["x", ["x", "y"]]}"#),
    ("stop_token_ids", TOKENS),
    ("n", r#"{"type": "integer", "minimum": 1, "maximum": 16, "description": "answers to each prompt"}"#),
    ("best_of", r#"{"type": "integer", "minimum": 1, "maximum": 16, "description": "generated, of which the `n` likeliest are shown; not below `n`, and not streamed above it", "examples": [1]}"#),
    ("ignore_eos", BOOLEAN),
    ("skip_special_tokens", BOOLEAN),
    ("stream", BOOLEAN),
    ("stream_options", r#"{"type": "object", "properties": {"include_usage": {"type": "boolean"}, "continuous_usage_stats": {"type": "boolean"}, "include_obfuscation": {"const": false}}, "additionalProperties": false, "description": "only with `stream`", "examples": [{"include_usage": true}]}"#),
    ("return_token_ids", BOOLEAN),
    ("cache_salt", r#"{"type": "string", "minLength": 1, "maxLength": 256}"#),
    ("user", STRING),
    ("safety_identifier", STRING),
    ("prompt_cache_key", STRING),
    ("metadata", r#"{"type": "object", "maxProperties": 16, "additionalProperties": {"type": "string", "maxLength": 512}, "examples": [{"a": "b"}]}"#),
    ("logprobs", BOOLEAN),
    ("top_logprobs", r#"{"type": "integer", "minimum": 0, "maximum": 20, "description": "only with `logprobs`"}"#),
    ("tools", r##"{"type": "array", "maxItems": 128, "items": {"$ref": "#/components/schemas/Tool"}, "examples": [[{"type": "function", "function": {"name": "f"}}]]}"##),
    ("tool_choice", r#"{"anyOf": [{"enum": ["auto", "none"]}, {"type": "object"}], "examples": ["auto", "none"]}"#),
    ("chat_template_kwargs", r#"{"type": "object", "description": "further variables of the chat template", "examples": [{}]}"#),
    ("add_generation_prompt", BOOLEAN),
    ("continue_final_message", r#"{"type": "boolean", "description": "only after an assistant's message", "examples": [false]}"#),
    ("add_special_tokens", BOOLEAN),
    ("prompt", r#"{"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"type": "string"}}, {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}, {"type": "array", "minItems": 1, "items": {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}}], "examples": ["a", ["a", "b"], [1], [[1], [2]]]}"#),
    ("echo", BOOLEAN),
    ("prompt_logprobs", r#"{"type": "integer", "minimum": 0, "maximum": 20}"#),
    ("tokens", TOKENS),
    ("input", r#"{"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"type": "object"}}], "examples": ["a", [{"role": "user", "content": "a"}]]}"#),
    ("instructions", STRING),
    ("parallel_tool_calls", BOOLEAN),
    ("prompt_scores", BOOLEAN),
    ("prompt_scores_against", r#"{"type": "string", "description": "a second model of the same vocabulary: scores of both at each prompt position, and the divergence between them; only with a `max_tokens` of 0"}"#),
    ("service_tier", r#"{"enum": ["auto", "default", "flex", "priority"], "description": "flex: when there is room; priority: first, if the key may; auto: as the key has it", "examples": ["auto", "flex"]}"#),
    ("priority", r#"{"type": "integer", "minimum": -2147483648, "maximum": 2147483647, "description": "below 0 as the tier `priority`, above it as `flex`; not against `service_tier`", "examples": [0]}"#),
    ("encoding_format", r#"{"enum": ["float", "base64"], "examples": ["float", "base64"]}"#),
    ("dimensions", r#"{"type": "integer", "minimum": 1, "maximum": 4294967295, "description": "if the model can be cut"}"#),
    ("prompt_name", r#"{"type": "string", "description": "of the prompts that come with the model"}"#),
    ("normalize", BOOLEAN),
    ("truncate_prompt_tokens", r#"{"anyOf": [{"const": -1}, {"type": "integer", "minimum": 1, "maximum": 4294967295}], "description": "-1: to what the model reads", "examples": [-1, 5]}"#),
    ("query", STRING),
    ("documents", r#"{"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"anyOf": [{"type": "string"}, {"type": "object", "required": ["text"], "properties": {"text": {"type": "string"}}, "additionalProperties": false}]}}], "examples": ["a", ["a", {"text": "b"}]]}"#),
    ("texts", r#"{"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"type": "string"}}], "description": "as TEI calls `documents`; the answer is then TEI's too", "examples": [["a"]]}"#),
    ("return_text", r#"{"type": "boolean", "description": "only with `texts`"}"#),
    ("truncate", r#"{"type": "boolean", "description": "only with `texts`; as a `truncate_prompt_tokens` of -1"}"#),
    ("max_tokens_per_doc", r#"{"type": "integer", "minimum": 1, "maximum": 4294967295, "description": "documents are cut to this many tokens"}"#),
    ("top_n", r#"{"type": "integer", "minimum": 1, "maximum": 4294967295}"#),
    ("return_documents", BOOLEAN),
    ("raw_scores", BOOLEAN),
    ("use_activation", BOOLEAN),
    ("text_1", STRING_OR_STRINGS),
    ("text_2", STRING_OR_STRINGS),
    ("purpose", r#"{"type": "string", "enum": ["batch"]}"#),
    ("file", r#"{"type": "string", "format": "binary", "description": "requests, one a line"}"#),
    ("input_file_id", STRING),
    ("endpoint", r#"{"enum": ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"], "examples": ["/v1/embeddings"]}"#),
    ("completion_window", r#"{"enum": ["24h"], "examples": ["24h"]}"#),
    ("text", r#"{"type": "object", "properties": {"format": {"type": "object"}, "verbosity": {"const": "medium"}}, "additionalProperties": false, "examples": [{"format": {"type": "text"}}]}"#),
    ("reasoning", r#"{"type": "object", "properties": {"effort": {"type": ["string", "null"]}, "summary": {"enum": ["auto", null]}, "generate_summary": {"enum": ["auto", null]}, "context": {"type": "null"}, "mode": {"type": "null"}}, "additionalProperties": false, "examples": [{}]}"#),
    ("include", r#"{"type": "array", "items": {"enum": ["message.output_text.logprobs", "reasoning.encrypted_content"]}, "examples": [["message.output_text.logprobs", "reasoning.encrypted_content"]]}"#),
    ("client_metadata", r#"{"type": "object", "description": "what a client says of itself; changes nothing, and is not kept", "examples": [{"session": "a"}]}"#),
];

/// Where a door gives a name another meaning.
#[rustfmt::skip]
const OWN: &[(&str, &str, &str)] = &[
    ("chat", "max_tokens", r#"{"type": "integer", "minimum": 1, "maximum": 4294967295}"#),
    ("completions", "max_tokens", r#"{"type": "integer", "minimum": 0, "maximum": 4294967295, "description": "16 if absent; 0 only where the prompt is asked about"}"#),
    ("compare", "prompt", r#"{"anyOf": [{"type": "string"}, {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}], "description": "either this or `messages`", "examples": ["a", [1]]}"#),
    ("compare", "max_tokens", r#"{"type": "integer", "minimum": 0, "maximum": 4294967295, "description": "64 if absent, or what fits if that is less"}"#),
    ("accounts", "path", r#"{"type": "string", "description": "like `acme/vision`"}"#),
    ("accounts", "limits", r##"{"type": "array", "items": {"$ref": "#/components/schemas/Limit"}}"##),
    ("apply", "accounts", r##"{"type": "array", "items": {"type": "object", "required": ["path"], "properties": {"path": {"type": "string"}, "weight": {"type": "integer", "minimum": 1}, "limits": {"type": "array", "items": {"$ref": "#/components/schemas/Limit"}}}, "additionalProperties": false}}"##),
    ("apply", "dry_run", BOOLEAN),
    ("limits", "account", STRING),
    ("limits", "set", r##"{"$ref": "#/components/schemas/Limit"}"##),
    ("limits", "remove", r#"{"type": "object", "required": ["limit"], "properties": {"limit": {"type": "string"}, "model": {"type": ["string", "null"]}, "dry_run": {"type": "boolean"}}, "additionalProperties": false}"#),
    ("weights", "account", STRING),
    ("weights", "weight", r#"{"type": "integer", "minimum": 1, "maximum": 4294967295}"#),
    ("keys", "account", r#"{"type": "string", "description": "the key's own if absent"}"#),
    ("keys", "name", STRING),
    ("keys", "scopes", r#"{"type": "array", "minItems": 1, "items": {"enum": ["inference", "batch", "admin", "read-only", "gateway"]}}"#),
    ("keys", "models", r#"{"type": "array", "items": {"type": "string"}, "description": "every model if absent"}"#),
    ("keys", "class", r#"{"enum": ["interactive", "standard", "batch"]}"#),
    ("keys", "valid_for_seconds", r#"{"type": "integer", "minimum": 0}"#),
    ("rotate", "overlap_seconds", r#"{"type": "integer", "minimum": 0}"#),
    ("explain", "key", r#"{"type": "string", "description": "its name or id"}"#),
    ("explain", "prompt_tokens", r#"{"type": "integer", "minimum": 0, "maximum": 4294967295}"#),
    ("explain", "output_tokens", r#"{"type": "integer", "minimum": 0, "maximum": 4294967295}"#),
    ("completions", "logprobs", r#"{"type": "integer", "minimum": 0, "maximum": 20}"#),
    ("tokenize", "prompt", STRING),
    ("embeddings", "input", TEXTS),
    ("classify", "input", TEXTS),
    ("responses", "stream_options", r#"{"type": "object", "properties": {"include_obfuscation": {"const": false}}, "additionalProperties": false, "examples": [{"include_obfuscation": false}]}"#),
    ("responses", "tools", r##"{"type": "array", "maxItems": 128, "items": {"$ref": "#/components/schemas/FlatTool"}, "examples": [[{"type": "function", "name": "f"}]]}"##),
    ("responses", "top_logprobs", r#"{"type": "integer", "minimum": 0, "maximum": 20}"#),
];

#[cfg(test)]
pub(super) fn all() -> impl Iterator<Item = &'static str> {
    SHARED.iter().map(|(_, shape)| *shape).chain(OWN.iter().map(|(_, _, shape)| *shape))
}
