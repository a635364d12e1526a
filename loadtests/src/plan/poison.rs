//! Requests that no server should answer, and that none may be harmed by.

use serde_json::{Value, json};

const STOP_STRINGS: usize = 10_000;
const NESTING: usize = 10_000;

/// Each with the name of what is wrong with it.
pub fn poison_bodies(model: &str) -> Vec<(&'static str, String)> {
    let chat = |changes: Value| {
        let mut body = json!({"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4});
        let fields = body.as_object_mut().expect("it was made as an object");
        for (name, value) in changes.as_object().into_iter().flatten() {
            fields.insert(name.clone(), value.clone());
        }
        body.to_string()
    };
    let stops: Vec<String> = (0..STOP_STRINGS).map(|number| format!("stop {number}")).collect();
    vec![
        ("no body", String::new()),
        ("invalid JSON", r#"{"model": "#.to_owned()),
        ("not an object", "[1, 2, 3]".to_owned()),
        ("deep nesting", "[".repeat(NESTING)),
        ("messages of the wrong type", chat(json!({"messages": "Hello"}))),
        ("no messages", chat(json!({"messages": []}))),
        ("an unknown role", chat(json!({"messages": [{"role": "nobody", "content": "Hello"}]}))),
        ("an unknown model", chat(json!({"model": "no/such-model"}))),
        ("negative max_tokens", chat(json!({"max_tokens": -1}))),
        ("temperature of the wrong type", chat(json!({"temperature": "hot"}))),
        ("top_p out of range", chat(json!({"top_p": 7}))),
        ("stream of the wrong type", chat(json!({"stream": [true]}))),
        ("many stop strings", chat(json!({"stop": stops}))),
    ]
}
