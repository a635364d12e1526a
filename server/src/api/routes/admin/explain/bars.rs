//! What keeps a request out however much room its limits have: what its key may do, which models it sees, and how long
//! their context is.

use serde_json::{Value, json};

use crate::api::admin_backend::AdminBackend;
use crate::api::prepare::{AskedLength, context_overflow};
use crate::api::routes::models::{max_model_len, shown};
use crate::api::state::AppState;
use crate::api::wire::sampling::LengthField;
use crate::gateway::account::ModelAccess;
use crate::gateway::{Ask, Caller, Scope};

/// Something that refuses the request, or that nobody could look at.
pub(super) enum Bar {
    Refuses { by: &'static str, message: String },
    NotLookedAt { by: &'static str, of: String, why: &'static str },
}

impl Bar {
    /// Every one, in the order in which a request meets them. An empty name is no model's.
    pub(super) fn all(backend: &impl AdminBackend, caller: &Caller, model: &str, ask: &Ask) -> Vec<Self> {
        let of_key = of_scopes(caller);
        let of_model = if model.is_empty() {
            unnamed(caller)
        } else {
            let hidden = of_visibility(backend, caller, model);
            // Of a model that is not there for the key, nothing else is told.
            if hidden.is_some() {
                Vec::from_iter(hidden)
            } else {
                Vec::from_iter(of_context(backend.server(), model, ask))
            }
        };
        of_key.into_iter().chain(of_model).collect()
    }

    pub(super) fn refusal(&self) -> Option<Value> {
        match self {
            Self::Refuses { by, message } => Some(json!({"by": by, "message": message})),
            Self::NotLookedAt { .. } => None,
        }
    }

    pub(super) fn not_looked_at(&self) -> Option<Value> {
        match self {
            Self::Refuses { .. } => None,
            Self::NotLookedAt { by, of, why } => Some(json!({"limit": by, "scope": of, "why": why})),
        }
    }
}

const SCOPES: &str = "scopes";
const MODELS: &str = "models";
const CONTEXT_LENGTH: &str = "context_length";

fn of_scopes(caller: &Caller) -> Option<Bar> {
    let may_run = caller.may(Scope::Inference) || caller.may(Scope::Batch);
    let message = "The key has neither the scope `inference` nor `batch`, without which it runs no model.";
    (!may_run).then(|| Bar::Refuses { by: SCOPES, message: message.to_owned() })
}

fn unnamed(caller: &Caller) -> Vec<Bar> {
    let listed = (caller.models != ModelAccess::All).then_some(MODELS);
    let needs = |by| Bar::NotLookedAt { by, of: caller.account.path.to_string(), why: "needs_model" };
    listed.into_iter().chain([CONTEXT_LENGTH]).map(needs).collect()
}

/// One that belongs to others is not told from one that nobody serves: whoever asks may be below them.
fn of_visibility(backend: &impl AdminBackend, caller: &Caller, model: &str) -> Option<Bar> {
    let refuses = |message| Some(Bar::Refuses { by: MODELS, message });
    if matches!(&caller.models, ModelAccess::Only(listed) if !listed.contains(model)) {
        return refuses(format!("The key is for a list of models, and `{model}` is not among them."));
    }
    let is_served = backend.server().is_none_or(|state| !shown(state, |name| name == model).is_empty());
    if is_served && backend.shows(caller, model) {
        return None;
    }
    refuses(format!("No model `{model}` is served to `{}`.", caller.account.path))
}

fn of_context(server: Option<&AppState>, model: &str, ask: &Ask) -> Option<Bar> {
    let unknown = |why| Some(Bar::NotLookedAt { by: CONTEXT_LENGTH, of: model.to_owned(), why });
    let Some(state) = server else { return unknown("needs_server") };
    let Some(longest) = max_model_len(state, model) else {
        // Of one that another server runs, that server may refuse.
        let why = if state.serving().remote(model).is_some() { "not_known_here" } else { "not_in_memory" };
        return unknown(why);
    };
    let (prompt, answer) = (ask.prompt_tokens as usize, ask.max_output_tokens);
    let asked = AskedLength { tokens: Some(answer), field: LengthField::Common, prompt: "prompt" };
    let message = || context_overflow(longest, prompt, asked).message().to_owned();
    (prompt + answer as usize > longest).then(|| Bar::Refuses { by: CONTEXT_LENGTH, message: message() })
}
