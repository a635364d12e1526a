//! Request bodies.

use serde_json::{Map, Value, json};

use super::{Target, Vocabulary};
use crate::scenario::RequestFields;

/// The fields that all requests of one kind share.
#[derive(Debug, Clone)]
pub struct BodyTemplate {
    fields: Map<String, Value>,
    vocabulary: Vocabulary,
}

pub(super) fn user(text: &str) -> Value {
    json!({"role": "user", "content": text})
}

pub(super) fn system(text: &str) -> Value {
    json!({"role": "system", "content": text})
}

impl BodyTemplate {
    pub fn new(target: &Target, request: &RequestFields) -> Self {
        let vocabulary = target.vocabulary;
        let mut fields = Map::new();
        fields.insert("model".to_owned(), target.model.as_str().into());
        fields.insert("stream".to_owned(), true.into());
        fields.insert("stream_options".to_owned(), json!({"include_usage": true}));
        if let Some(temperature) = request.temperature {
            fields.insert("temperature".to_owned(), temperature.into());
        }
        if request.ignore_eos && vocabulary == Vocabulary::Extended {
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
        // Options of a stream without a stream are an error to many servers.
        if fields["stream"] == false && !request.extra.contains_key("stream_options") {
            fields.remove("stream_options");
        }
        Self { fields, vocabulary }
    }

    pub fn chat(&self, messages: &[Value], max_tokens: u32) -> String {
        // OpenAI's newer models refuse the older name.
        let limit = match self.vocabulary {
            Vocabulary::Extended => "max_tokens",
            Vocabulary::Plain => "max_completion_tokens",
        };
        self.body(("messages", messages.into()), (limit, max_tokens))
    }

    pub fn completions(&self, prompt: Value, max_tokens: u32) -> String {
        self.body(("prompt", prompt), ("max_tokens", max_tokens))
    }

    pub(super) fn with_schema(mut self, schema: &toml::Table) -> Self {
        let format =
            json!({"type": "json_schema", "json_schema": {"name": "answer", "strict": true, "schema": schema}});
        self.fields.insert("response_format".to_owned(), format);
        self
    }

    fn body(&self, (name, prompt): (&str, Value), (limit, max_tokens): (&str, u32)) -> String {
        let mut fields = self.fields.clone();
        fields.insert(name.to_owned(), prompt);
        fields.insert(limit.to_owned(), max_tokens.into());
        Value::Object(fields).to_string()
    }
}
