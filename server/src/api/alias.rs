//! Names that stand for models: which of them a request gets. Decided before anything else is read, so that all that
//! follows (its tokenizer, its limits, what is billed, the `model` of the answer) is that of the real model.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::state::AppState;
use crate::gateway::Caller;

/// What clients name their sessions by, the closest first.
const SESSION_FIELDS: [&str; 3] = ["prompt_cache_key", "user", "safety_identifier"];
/// Where a request says what it is about.
const CONTENT_FIELDS: [&str; 5] = ["messages", "input", "prompt", "query", "text_1"];

/// Writes a model's own name in the place of an alias for it, in `model` and in each of `models`. Anything else is left to
/// whoever reads the request.
pub(crate) fn settle(state: &AppState, caller: &Caller, mut body: Value) -> Value {
    let serving = state.serving();
    let names = || body.get("model").into_iter().chain(body["models"].as_array().into_iter().flatten());
    if !names().any(|name| name.as_str().is_some_and(|name| serving.alias(name).is_some())) {
        return body;
    }
    let session = session_of(caller, &body);
    let settle = |name: &mut Value| {
        let alias = name.as_str().and_then(|name| serving.alias(name));
        if let Some(model) = alias.and_then(|alias| alias.choose(session, |model| state.sees(caller, model))) {
            *name = model.into();
        }
    };
    body.get_mut("model").into_iter().for_each(settle);
    body.get_mut("models").and_then(Value::as_array_mut).into_iter().flatten().for_each(settle);
    body
}

/// The same of a name alone.
pub(crate) fn model_of(state: &AppState, caller: &Caller, name: String) -> String {
    let settled = settle(state, caller, json!({"model": &name}));
    settled["model"].as_str().map_or(name, str::to_owned)
}

/// The same for every turn of a conversation: what its client calls it, else how it began.
fn session_of(caller: &Caller, body: &Value) -> u64 {
    let mut hash = Sha256::new();
    hash.update(caller.account.path.as_str());
    let named = SESSION_FIELDS.iter().find_map(|field| body[*field].as_str());
    match named {
        Some(name) => hash.update(format!("={name}")),
        None => CONTENT_FIELDS.iter().map(|field| &body[*field]).for_each(|content| hash_beginning(content, &mut hash)),
    }
    let [b0, b1, b2, b3, b4, b5, b6, b7, ..] = <[u8; 32]>::from(hash.finalize());
    u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7])
}

/// Of a conversation, everything up to what its user said first.
fn hash_beginning(content: &Value, hash: &mut Sha256) {
    let Some(parts) = content.as_array() else { return hash.update(content.to_string()) };
    for part in parts {
        hash.update(part.to_string());
        if part["role"] == "user" {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::gateway::{Account, Quota};

    fn session(body: &Value) -> u64 {
        session_of(&Caller::at_open_door(Account::local(Quota::unlimited())), body)
    }

    #[test]
    fn a_conversation_is_one_session_however_long_it_grows() {
        let system = json!({"role": "system", "content": "Be brief."});
        let user = |text: &str| json!({"role": "user", "content": text});
        let reply = json!({"role": "assistant", "content": "Yes?"});
        let first = json!({"model": "chat", "messages": [system, user("hi")]});
        let later = json!({"model": "chat", "messages": [system, user("hi"), reply, user("What now?")], "seed": 7});
        assert_eq!(session(&first), session(&later));
        assert_ne!(session(&first), session(&json!({"messages": [system, user("ho")]})));
        assert_ne!(session(&json!({"prompt": "a"})), session(&json!({"prompt": "b"})));
    }

    #[test]
    fn what_a_client_calls_its_session_is_the_session() {
        let named = |user: &str, text: &str| session(&json!({"user": user, "prompt": text}));
        assert_eq!(named("u1", "a"), named("u1", "b"));
        assert_ne!(named("u1", "a"), named("u2", "a"));
    }

    #[test]
    fn two_accounts_that_say_the_same_are_two_sessions() {
        let of = |path: &str| {
            let account = Account::alone(path.parse().unwrap(), Quota::unlimited());
            session_of(&Caller::at_open_door(account), &json!({"user": "u"}))
        };
        assert_ne!(of("a"), of("b"));
    }
}
