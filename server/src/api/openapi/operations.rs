//! The operations: which route, what it takes, what it gives.

use serde_json::{Value, json};

use crate::api::fields::Field;
use crate::api::routes::batches::{self, BATCH_FIELDS};
use crate::api::routes::files::{self, FILE_FIELDS};
use crate::api::routes::tokens::{DETOKENIZE_FIELDS, TOKENIZE_FIELDS};
use crate::api::wire::chat::CHAT_FIELDS;
use crate::api::wire::compare::COMPARE_FIELDS;
use crate::api::wire::completions::COMPLETION_FIELDS;
use crate::api::wire::embeddings::EMBEDDING_FIELDS;
use crate::api::wire::responses::{PASSED_FIELDS, RESPONSE_FIELDS};
use crate::api::wire::sampling::{ANSWER_FIELDS, SAMPLING_FIELDS};
use crate::api::wire::scores::{CLASSIFY_FIELDS, RERANK_FIELDS, SCORE_FIELDS};
use crate::api::wire::structure::STRUCTURE_FIELDS;
use crate::api::wire::texts::TEXT_FIELDS;

/// One route and method.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) method: &'static str,
    /// As OpenAPI writes it, with parameters in braces.
    pub(super) path: &'static str,
    pub(super) id: &'static str,
    pub(super) summary: &'static str,
    pub(super) parameters: &'static [Parameter],
    pub(super) body: RequestBody,
    pub(super) answer: Answer,
}

/// A string in the path or in the query.
#[derive(Debug)]
pub(super) enum Parameter {
    Path(&'static str),
    Query(&'static str),
    /// A number between 1 and this.
    Limit(usize),
    /// One of these words, in the query.
    OneOf(&'static str, &'static [&'static str]),
}

#[derive(Debug)]
pub(super) enum RequestBody {
    None,
    Json(Body),
    /// JSON of which nothing unknown is ever accepted.
    Exact(Body),
    /// A form, one part for each field.
    Upload(Body),
}

#[derive(Debug)]
pub(super) struct Body {
    /// The route's name, where a field means something else than elsewhere.
    pub(super) door: &'static str,
    pub(super) tables: &'static [&'static [Field]],
    pub(super) required: &'static [&'static str],
}

#[derive(Debug)]
pub(super) enum Answer {
    /// JSON of a named schema.
    Json(&'static str),
    /// JSON of a named schema, or a stream of events.
    JsonOrEvents(&'static str),
    Text(&'static str),
}

impl Parameter {
    pub(super) fn describe(&self) -> Value {
        match self {
            Self::Path(name) => json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}),
            Self::Limit(most) => {
                let schema = json!({"type": "integer", "minimum": 1, "maximum": most});
                json!({"name": "limit", "in": "query", "required": false, "schema": schema})
            }
            Self::OneOf(name, words) => {
                json!({"name": name, "in": "query", "required": false, "schema": {"type": "string", "enum": words}})
            }
            Self::Query(name) => json!({"name": name, "in": "query", "required": false, "schema": {"type": "string"}}),
        }
    }
}

impl Answer {
    pub(super) fn describe(&self) -> Value {
        let content = match self {
            Self::Json(schema) => json!({"application/json": {"schema": reference(schema)}}),
            Self::JsonOrEvents(schema) => json!({
                "application/json": {"schema": reference(schema)},
                // A stream is no one value that a schema could describe.
                "text/event-stream": {},
            }),
            Self::Text(media) => json!({(*media): {"schema": {"type": "string"}}}),
        };
        json!({"description": "The answer.", "content": content})
    }
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

pub(super) const CHAT: Body = Body {
    door: "chat",
    tables: &[SAMPLING_FIELDS, ANSWER_FIELDS, STRUCTURE_FIELDS, CHAT_FIELDS],
    required: &["model", "messages"],
};
pub(super) const COMPLETION: Body = Body {
    door: "completions",
    tables: &[SAMPLING_FIELDS, ANSWER_FIELDS, STRUCTURE_FIELDS, COMPLETION_FIELDS],
    required: &["model", "prompt"],
};
pub(super) const RESPONSE: Body = Body {
    door: "responses",
    tables: &[SAMPLING_FIELDS, PASSED_FIELDS, RESPONSE_FIELDS],
    required: &["model", "input"],
};
pub(super) const EMBEDDING: Body =
    Body { door: "embeddings", tables: &[TEXT_FIELDS, EMBEDDING_FIELDS], required: &["model", "input"] };
pub(super) const COMPARISON: Body =
    Body { door: "compare", tables: &[SAMPLING_FIELDS, COMPARE_FIELDS], required: &["models"] };
/// With `documents`, or as TEI is asked, with `texts` and perhaps without a model.
pub(super) const RERANK: Body = Body { door: "rerank", tables: &[TEXT_FIELDS, RERANK_FIELDS], required: &["query"] };
pub(super) const SCORE: Body =
    Body { door: "score", tables: &[TEXT_FIELDS, SCORE_FIELDS], required: &["model", "text_1", "text_2"] };
pub(super) const CLASSIFY: Body =
    Body { door: "classify", tables: &[TEXT_FIELDS, CLASSIFY_FIELDS], required: &["model", "input"] };
pub(super) const FILE: Body = Body { door: "files", tables: &[FILE_FIELDS], required: &["purpose", "file"] };
pub(super) const BATCH: Body =
    Body { door: "batches", tables: &[BATCH_FIELDS], required: &["input_file_id", "endpoint", "completion_window"] };
/// For routes whose body is no JSON.
pub(super) const NOTHING: Body = Body { door: "", tables: &[], required: &[] };
pub(super) const TOKENIZE: Body = Body { door: "tokenize", tables: &[TOKENIZE_FIELDS], required: &[] };
pub(super) const DETOKENIZE: Body = Body { door: "detokenize", tables: &[DETOKENIZE_FIELDS], required: &["tokens"] };

pub(super) const OPERATIONS: &[Operation] = &[
    post("/v1/chat/completions", "chat", "Answer a conversation", CHAT, Answer::JsonOrEvents("ChatCompletion")),
    post("/v1/completions", "completions", "Continue texts", COMPLETION, Answer::JsonOrEvents("Completion")),
    post(
        "/v1/responses",
        "responses",
        "Answer a conversation of items; nothing is stored",
        RESPONSE,
        Answer::JsonOrEvents("Response"),
    ),
    post(
        "/v1/compare",
        "compare",
        "One prompt to several models, and how they differ, token by token",
        COMPARISON,
        Answer::JsonOrEvents("Comparison"),
    ),
    post("/v1/embeddings", "embeddings", "Vectors of texts", EMBEDDING, Answer::Json("Embeddings")),
    post("/v1/rerank", "rerank", "Documents by how they answer a query", RERANK, Answer::Json("Ranking")),
    post("/v2/rerank", "rerankAsCohere", "The same", RERANK, Answer::Json("Ranking")),
    post("/rerank", "rerankAtRoot", "The same", RERANK, Answer::Json("Ranking")),
    post("/v1/score", "score", "How well texts go together", SCORE, Answer::Json("Scores")),
    post("/score", "scoreAtRoot", "The same", SCORE, Answer::Json("Scores")),
    post("/v1/classify", "classify", "The classes of texts", CLASSIFY, Answer::Json("Scores")),
    post("/classify", "classifyAtRoot", "The same", CLASSIFY, Answer::Json("Scores")),
    get("/v1/models", "models", "The models that are served", &[], Answer::Json("ModelList")),
    get("/v1/models/{name}", "model", "One of them", &[Parameter::Path("name")], Answer::Json("Model")),
    Operation {
        body: RequestBody::Upload(FILE),
        ..post(
            "/v1/files",
            "uploadFile",
            "Keep a file of requests (a form with `purpose` and `file`)",
            NOTHING,
            Answer::Json("File"),
        )
    },
    get(
        "/v1/files",
        "files",
        "The files of the account, newest first",
        &[
            Parameter::Limit(files::MAX_PAGE),
            Parameter::Query("after"),
            Parameter::Query("purpose"),
            Parameter::OneOf("order", files::ORDERS),
        ],
        Answer::Json("FileList"),
    ),
    get("/v1/files/{id}", "file", "One of them", &[Parameter::Path("id")], Answer::Json("File")),
    Operation {
        method: "delete",
        ..get("/v1/files/{id}", "deleteFile", "Forget a file", &[Parameter::Path("id")], Answer::Json("Any"))
    },
    get(
        "/v1/files/{id}/content",
        "fileContent",
        "What is in a file",
        &[Parameter::Path("id")],
        Answer::Text("application/jsonl"),
    ),
    post("/v1/batches", "createBatch", "Run the requests of a file when there is room", BATCH, Answer::Json("Batch")),
    get(
        "/v1/batches",
        "batches",
        "The batches of the account, newest first",
        &[Parameter::Limit(batches::MAX_PAGE), Parameter::Query("after")],
        Answer::Json("BatchList"),
    ),
    get("/v1/batches/{id}", "batch", "One of them", &[Parameter::Path("id")], Answer::Json("Batch")),
    Operation {
        parameters: &[Parameter::Path("id")],
        body: RequestBody::None,
        ..post("/v1/batches/{id}/cancel", "cancelBatch", "End a batch", NOTHING, Answer::Json("Batch"))
    },
    post("/tokenize", "tokenize", "The tokens of a text or of a conversation", TOKENIZE, Answer::Json("Tokens")),
    post("/detokenize", "detokenize", "The text of tokens", DETOKENIZE, Answer::Json("Text")),
    get(
        "/tokenizer_info",
        "tokenizerInfo",
        "Special tokens and chat template of a model",
        &[Parameter::Query("model")],
        Answer::Json("Any"),
    ),
    get("/health", "health", "The process lives", &[], Answer::Json("Status")),
    get("/ready", "ready", "Requests are admitted", &[], Answer::Json("Status")),
    get("/metrics", "metrics", "Prometheus text", &[], Answer::Text("text/plain")),
    get("/openapi.json", "openapi", "This document", &[], Answer::Json("Any")),
    get("/compare", "comparePage", "A page that compares models in a browser", &[], Answer::Text("text/html")),
    get("/docs", "docs", "This document, for people", &[], Answer::Text("text/html")),
    get("/", "home", "A page to try the models in a browser", &[], Answer::Text("text/html")),
];

pub(super) const fn get(
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    parameters: &'static [Parameter],
    answer: Answer,
) -> Operation {
    Operation { method: "get", path, id, summary, parameters, body: RequestBody::None, answer }
}

pub(super) const fn post(
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    body: Body,
    answer: Answer,
) -> Operation {
    Operation { method: "post", path, id, summary, parameters: &[], body: RequestBody::Json(body), answer }
}
