//! The operations of administration, and of what a key may do for its own account. Their bodies are described by hand, and a
//! test asks the handlers which fields they know.

use super::operations::{Answer, Body, Operation, Parameter, RequestBody, get, post};
use crate::api::fields::honoured;

const NEW_ACCOUNT: Body =
    Body { door: "accounts", tables: &[&[honoured("path"), honoured("limits")]], required: &["path"] };
const APPLY: Body =
    Body { door: "apply", tables: &[&[honoured("accounts"), honoured("dry_run")]], required: &["accounts"] };
const LIMIT: Body = Body {
    door: "limits",
    tables: &[&[honoured("account"), honoured("set"), honoured("remove")]],
    required: &["account"],
};
const WEIGHT: Body =
    Body { door: "weights", tables: &[&[honoured("account"), honoured("weight")]], required: &["account", "weight"] };
const NEW_KEY: Body = Body {
    door: "keys",
    tables: &[&[
        honoured("account"),
        honoured("name"),
        honoured("scopes"),
        honoured("models"),
        honoured("class"),
        honoured("valid_for_seconds"),
    ]],
    required: &["name"],
};
const ROTATE: Body = Body { door: "rotate", tables: &[&[honoured("overlap_seconds")]], required: &["overlap_seconds"] };
const MODEL: Body = Body { door: "models", tables: &[&[honoured("model")]], required: &["model"] };
const EXPLAIN: Body = Body {
    door: "explain",
    tables: &[&[honoured("key"), honoured("prompt_tokens"), honoured("output_tokens"), honoured("model")]],
    required: &["key", "prompt_tokens"],
};

const WINDOW: &[Parameter] = &[Parameter::Query("by"), Parameter::Query("since"), Parameter::Query("until")];
const OF_ACCOUNT: &[Parameter] =
    &[Parameter::Query("account"), Parameter::Query("by"), Parameter::Query("since"), Parameter::Query("until")];
const ID: &[Parameter] = &[Parameter::Path("id")];

pub(super) const ADMINISTRATION: &[Operation] = &[
    get("/admin/v1/accounts", "accounts", "The accounts that the key governs", &[], Answer::Json("Any")),
    administer("/admin/v1/accounts", "createAccount", "Make an account", &[], NEW_ACCOUNT),
    remove("/admin/v1/accounts/{path}", "removeAccount", "Remove an account", &[Parameter::Path("path")]),
    administer("/admin/v1/apply", "apply", "Make accounts and limits as a file has them", &[], APPLY),
    administer("/admin/v1/limits", "changeLimit", "State or take away a limit", &[], LIMIT),
    administer("/admin/v1/weights", "setWeight", "An account's part of an engine", &[], WEIGHT),
    get("/admin/v1/keys", "keys", "The keys of those accounts, without their secrets", &[], Answer::Json("Any")),
    administer("/admin/v1/keys", "createKey", "Make a key, which is shown once", &[], NEW_KEY),
    remove("/admin/v1/keys/{id}", "revokeKey", "Refuse a key from now on", ID),
    administer("/admin/v1/keys/{id}/rotate", "rotateKey", "Give a key a new secret", ID, ROTATE),
    get("/admin/v1/models", "modelStates", "What is in memory, and what could be", &[], Answer::Json("Any")),
    administer(
        "/admin/v1/models/{act}",
        "actOnModel",
        "Load, unload, pin or unpin a model",
        &[Parameter::Path("act")],
        MODEL,
    ),
    get(
        "/admin/v1/usage",
        "usage",
        "Sums by account and model, or by account and user",
        OF_ACCOUNT,
        Answer::Json("Any"),
    ),
    get("/admin/v1/usage/hours", "hours", "Where the server's time went", &[], Answer::Json("Any")),
    get("/admin/v1/usage/export", "exportUsage", "Every settled entry", &[], Answer::Text("text/csv")),
    administer("/admin/v1/explain", "explain", "Which limit would refuse a request, or be overrun by it", &[], EXPLAIN),
    get("/admin/v1/backup", "backup", "A copy of everything", &[], Answer::Text("application/vnd.sqlite3")),
    get("/admin/v1/audit", "audit", "Who changed what", &[], Answer::Json("Any")),
    Operation {
        method: "post",
        ..get("/admin/v1/reload", "reload", "Read the configuration again", &[], Answer::Json("Any"))
    },
    get("/v1/me/keys", "ownKeys", "The keys of the account and below", &[], Answer::Json("Any")),
    administer("/v1/me/keys", "createOwnKey", "Make a key for the account or below", &[], NEW_KEY),
    remove("/v1/me/keys/{id}", "revokeOwnKey", "Refuse one of these keys from now on", ID),
    administer("/v1/me/keys/{id}/rotate", "rotateOwnKey", "Give one of these keys a new secret", ID, ROTATE),
    get(
        "/v1/me/limits",
        "ownLimits",
        "The limits on the key, and what is left of them and beyond grants",
        &[],
        Answer::Json("Any"),
    ),
    administer("/v1/me/limits", "changeOwnLimit", "State or take away a limit below the account", &[], LIMIT),
    get("/v1/me/usage", "ownUsage", "What the account and those below have used", WINDOW, Answer::Json("Any")),
];

/// Of these bodies nothing unknown is ever accepted.
const fn administer(
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    parameters: &'static [Parameter],
    body: Body,
) -> Operation {
    let body = RequestBody::Exact(body);
    Operation { body, parameters, ..post(path, id, summary, super::operations::NOTHING, Answer::Json("Any")) }
}

const fn remove(
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    parameters: &'static [Parameter],
) -> Operation {
    Operation { method: "delete", ..get(path, id, summary, parameters, Answer::Json("Any")) }
}
