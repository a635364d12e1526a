//! Request bodies.

use serde_json::{Map, Value, json};

use crate::scenario::RequestFields;

/// The fields that all requests of one kind share.
#[derive(Debug, Clone)]
pub struct BodyTemplate {
    fields: Map<String, Value>,
}

pub(super) fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

pub(super) fn system(text: &str) -> Value {
    json!({"role": "system", "content": text})
}

pub(super) fn required_keys(schema: &toml::Table) -> Vec<String> {
    let required = schema.get("required").and_then(toml::Value::as_array);
    let keys = required.into_iter().flatten().filter_map(toml::Value::as_str);
    keys.map(str::to_owned).collect()
}

impl BodyTemplate {
    pub fn new(model: &str, request: &RequestFields) -> Self {
        let mut fields = Map::new();
        fields.insert("model".to_owned(), model.into());
        fields.insert("stream".to_owned(), true.into());
        fields.insert("stream_options".to_owned(), json!({"include_usage": true}));
        if let Some(temperature) = request.temperature {
            fields.insert("temperature".to_owned(), temperature.into());
        }
        if request.ignore_eos {
            fields.insert("ignore_eos".to_owned(), true.into());
            // What comes after the end that was ignored is often a token without text, of which no event would tell.
            fields.insert("skip_special_tokens".to_owned(), false.into());
        }
        if let Some(tier) = &request.service_tier {
            fields.insert("service_tier".to_owned(), tier.as_str().into());
        }
        for (name, value) in &request.extra {
            fields.insert(name.clone(), json!(value));
        }
        Self { fields }
    }

    pub fn chat(&self, messages: &[Value], max_tokens: u32) -> String {
        self.body("messages", messages.into(), max_tokens)
    }

    pub fn completions(&self, prompt: Value, max_tokens: u32) -> String {
        self.body("prompt", prompt, max_tokens)
    }

    pub(super) fn with_schema(mut self, schema: &toml::Table) -> Self {
        let format =
            json!({"type": "json_schema", "json_schema": {"name": "answer", "strict": true, "schema": schema}});
        self.fields.insert("response_format".to_owned(), format);
        self
    }

    fn body(&self, name: &str, prompt: Value, max_tokens: u32) -> String {
        let mut fields = self.fields.clone();
        fields.insert(name.to_owned(), prompt);
        fields.insert("max_tokens".to_owned(), max_tokens.into());
        Value::Object(fields).to_string()
    }
}
