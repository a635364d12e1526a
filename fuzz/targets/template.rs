//! A chat template that is anything: refused, or it renders or fails within its limits.
#![no_main]

use std::collections::BTreeMap;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use passerelle::text::{ChatTemplate, PromptEnd, TemplateInput};
use serde_json::{Map, json};

fuzz_target!(|source: &str| {
    let sources = BTreeMap::from([("default".to_owned(), source.to_owned())]);
    let Ok(template) = ChatTemplate::new(sources, Map::new()) else { return };
    let messages = [
        json!({"role": "system", "content": "Sois bref."}),
        json!({"role": "user", "content": "Bonjour"}),
        json!({"role": "assistant", "content": "", "tool_calls": [
            {"id": "a1b2c3d4e", "type": "function", "function": {"name": "now", "arguments": {"in": "Paris"}}}]}),
    ];
    for end in [PromptEnd::GenerationPrompt, PromptEnd::AsIs, PromptEnd::ContinueFinalMessage] {
        let (variables, now) = (Map::new(), Duration::from_secs(1_767_225_600));
        let prompt =
            TemplateInput { messages: &messages, tools: None, documents: None, end, variables: &variables, now };
        let _ = template.render(&prompt);
    }
});
