//! What is answered, as JSON schema: the parts that a client may rely on.

use serde_json::{Value, json};

pub(super) fn schemas() -> Value {
    let mut schemas = asked();
    for more in [generated(), kept()] {
        if let (Value::Object(schemas), Value::Object(more)) = (&mut schemas, more) {
            schemas.extend(more);
        }
    }
    schemas
}

/// What requests are made of, and what belongs to every answer.
fn asked() -> Value {
    let usage = object(
        &["prompt_tokens", "completion_tokens", "total_tokens"],
        json!({
            "prompt_tokens": count(),
            "completion_tokens": count(),
            "total_tokens": count(),
            "prompt_tokens_details": {"type": "object"},
        }),
    );
    json!({
        "Any": {"type": "object"},
        "Status": object(&["status"], json!({"status": {"type": "string"}})),
        "Usage": usage,
        "Message": message(),
        "Tool": tool(),
        "FlatTool": object(&["type", "name"], json!({
            "type": {"const": "function"},
            "name": {"type": "string"},
            "description": {"type": ["string", "null"]},
            "parameters": {"type": ["object", "null"]},
            "strict": {"type": ["boolean", "null"]},
        })),
        "Limit": limit(),
        "Error": error(),
    })
}

/// As administration states it.
fn limit() -> Value {
    let mut limit = object(
        &["limit", "value"],
        json!({
            "limit": {"type": "string", "description": "as `passerelle quota set --help` lists them"},
            "value": {"type": "number"},
            "model": {"type": ["string", "null"]},
            "from": {"type": ["integer", "null"], "description": "of a grant, in seconds since 1970"},
            "until": {"type": ["integer", "null"]},
            "dry_run": {"type": "boolean", "description": "on trial, beside the one that is enforced: counted, and refuses nothing"},
        }),
    );
    limit["additionalProperties"] = json!(false);
    limit
}

fn comparison() -> Value {
    object(
        &["id", "object", "created", "models", "text", "differences", "usage"],
        json!({
            "id": {"type": "string"},
            "object": {"const": "comparison"},
            "seed": {"type": "integer"},
            "created": count(),
            "models": {"type": "array", "items": object(&["index", "model", "text", "token_ids", "usage"], json!({
                "index": count(),
                "model": {"type": "string"},
                "digest": {"type": "string"},
                "text": {"type": "string"},
                "usage": {"$ref": "#/components/schemas/Usage"},
            }))},
            "text": object(&["token_ids", "tokens", "num_prompt_tokens"], json!({})),
            "differences": {"type": "array", "items": object(&["models", "kl", "logprob_differences"], json!({
                "answers_part_at": {"type": ["integer", "null"]},
                "mean_kl": {"type": ["number", "null"]},
                "kl": {"type": "array", "items": {"type": ["number", "null"]}},
            }))},
            "usage": {"$ref": "#/components/schemas/Usage"},
        }),
    )
}

fn generated() -> Value {
    json!({
        "ChatCompletion": completion("chat.completion", &["index", "message", "finish_reason"]),
        "Completion": completion("text_completion", &["index", "text", "finish_reason"]),
        "Response": object(&["id", "object", "created_at", "status", "model", "output"], json!({
            "id": {"type": "string"},
            "object": {"const": "response"},
            "created_at": count(),
            "status": {"enum": ["completed", "incomplete", "in_progress", "failed"]},
            "model": {"type": "string"},
            "output": {"type": "array", "items": {"type": "object", "required": ["type", "id", "status"]}},
        })),
        "Comparison": comparison(),
        "Embeddings": object(&["object", "data", "model", "usage"], json!({
            "object": {"const": "list"},
            "data": {"type": "array", "items": object(&["object", "index", "embedding"], json!({
                "object": {"const": "embedding"},
                "index": count(),
                "embedding": {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}]},
            }))},
            "model": {"type": "string"},
            "usage": {"type": "object", "required": ["prompt_tokens", "total_tokens"]},
        })),
        "Ranking": {"anyOf": [
            object(&["id", "model", "results"], json!({
                "results": {"type": "array", "items": {"type": "object", "required": ["index", "relevance_score"]}},
            })),
            // For those who ask with `texts`.
            {"type": "array", "items": {"type": "object", "required": ["index", "score"]}},
        ]},
        "Scores": object(&["id", "object", "model", "data"], json!({
            "data": {"type": "array", "items": {"type": "object", "required": ["index"]}},
        })),
        "Model": object(&["id", "object", "created", "owned_by"], json!({
            "id": {"type": "string"},
            "object": {"const": "model"},
            "created": count(),
            "owned_by": {"type": "string"},
            "max_model_len": {"type": ["integer", "null"]},
            "state": {"enum": ["available", "loading", "ready", "unready", "unloading", "failed"]},
            "error": {"type": "string"},
            "digest": {"type": ["string", "null"], "pattern": "^sha256:[0-9a-f]{64}$"},
            "digest_state": {"enum": ["loaded", "on_disk", "manifest", "not_hashed", "elsewhere", "several"]},
        })),
        "ModelList": list("Model"),
        "Tokens": object(&["count", "max_model_len", "tokens"], json!({
            "count": count(),
            "max_model_len": count(),
            "tokens": {"type": "array", "items": count()},
        })),
        "Text": object(&["prompt"], json!({"prompt": {"type": "string"}})),
    })
}

/// Files and batches.
fn kept() -> Value {
    json!({
        "File": object(&["id", "object", "bytes", "created_at", "filename", "purpose"], json!({
            "id": {"type": "string"},
            "object": {"const": "file"},
            "bytes": count(),
            "created_at": count(),
            "filename": {"type": "string"},
            "purpose": {"enum": ["batch", "batch_output"]},
        })),
        "FileList": list("File"),
        "Batch": object(&["id", "object", "endpoint", "input_file_id", "status", "request_counts"], json!({
            "id": {"type": "string"},
            "object": {"const": "batch"},
            "endpoint": {"type": "string"},
            "input_file_id": {"type": "string"},
            "status": {"type": "string"},
            "request_counts": {"type": "object", "required": ["total", "completed", "failed"]},
        })),
        "BatchList": list("Batch"),
    })
}

pub(super) fn errors() -> Value {
    let content = json!({"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}});
    json!({
        "Refused": {"description": "The request is refused, for the reason that `code` names.", "content": content},
        "Failed": {"description": "The server could not answer; `Retry-After` says when to come back.", "content": content},
    })
}

fn object(required: &[&str], properties: Value) -> Value {
    json!({"type": "object", "required": required, "properties": properties})
}

fn list(of: &str) -> Value {
    object(
        &["object", "data"],
        json!({
            "object": {"const": "list"},
            "data": {"type": "array", "items": {"$ref": format!("#/components/schemas/{of}")}},
        }),
    )
}

fn count() -> Value {
    json!({"type": "integer", "minimum": 0})
}

fn message() -> Value {
    object(
        &["role"],
        json!({
            "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
            "content": {"anyOf": [
                {"type": ["string", "null"]},
                {"type": "array", "items": {"anyOf": [
                    object(&["type", "text"], json!({"type": {"const": "text"}, "text": {"type": "string"}})),
                    object(&["type", "refusal"], json!({"type": {"const": "refusal"}, "refusal": {"type": "string"}})),
                ]}},
            ]},
            "name": {"type": ["string", "null"]},
            "tool_calls": {"type": ["array", "null"], "items": {"type": "object"}},
            "tool_call_id": {"type": ["string", "null"]},
            "reasoning_content": {"type": ["string", "null"]},
        }),
    )
}

fn tool() -> Value {
    let function = object(
        &["name"],
        json!({
            "name": {"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,64}$"},
            "description": {"type": ["string", "null"]},
            "parameters": {"type": ["object", "null"]},
            "strict": {"type": ["boolean", "null"]},
        }),
    );
    object(&["type", "function"], json!({"type": {"const": "function"}, "function": function}))
}

fn completion(name: &str, choice: &[&str]) -> Value {
    object(
        &["id", "object", "created", "model", "system_fingerprint", "choices", "usage"],
        json!({
            "id": {"type": "string"},
            "object": {"const": name},
            "created": count(),
            "model": {"type": "string"},
            "system_fingerprint": {"type": ["string", "null"]},
            "choices": {"type": "array", "items": {"type": "object", "required": choice}},
            "usage": {"$ref": "#/components/schemas/Usage"},
        }),
    )
}

fn error() -> Value {
    let inner = object(
        &["message", "type", "param", "code"],
        json!({
            "message": {"type": "string"},
            "type": {"type": "string"},
            "param": {"type": ["string", "null"]},
            "code": {"type": "string"},
            "limit": reached_limit(),
        }),
    );
    object(&["error"], json!({"error": inner}))
}

/// Where a limit refuses.
fn reached_limit() -> Value {
    let amount = || json!({"type": "number", "minimum": 0});
    let instant = || json!({"type": ["integer", "null"], "description": "Seconds since 1970; of a budget."});
    object(
        &[
            "name",
            "scope",
            "model",
            "window",
            "window_start",
            "window_end",
            "limit",
            "used",
            "asked",
            "retry_after_seconds",
        ],
        json!({
            "name": {"type": "string", "description": "As `quota set` spells it."},
            "scope": {"type": "string", "description": "The account that the limit stands on."},
            "model": {"type": ["string", "null"], "description": "Null: it is for all models together."},
            "window": {"enum": ["minute", "day", "month", "grant", null]},
            "window_start": instant(),
            "window_end": instant(),
            "limit": amount(),
            "used": amount(),
            "asked": amount(),
            "retry_after_seconds": {"type": ["number", "null"], "minimum": 0},
        }),
    )
}
