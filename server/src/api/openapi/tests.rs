use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::operations::{
    BATCH, CHAT, CLASSIFY, COMPARISON, COMPLETION, DETOKENIZE, EMBEDDING, FILE, Parameter, RERANK, RESPONSE, SCORE,
    TOKENIZE,
};
use super::*;
use crate::api::all_routes;
use crate::api::errors::{ApiError, ErrorKind};
use crate::api::fields::Reader;
use crate::api::routes::batches::read_batch;
use crate::api::routes::tokens::{read_detokenize, read_tokenize};
use crate::api::wire::chat::read_chat;
use crate::api::wire::compare::read_compare;
use crate::api::wire::completions::read_completions;
use crate::api::wire::embeddings::read_embeddings;
use crate::api::wire::request::RequestBounds;
use crate::api::wire::responses::read_response;
use crate::api::wire::scores::{read_classify, read_rerank, read_score};
use nested::inside;

mod nested;

type Read = fn(Value, Reader, &RequestBounds) -> Result<(), ApiError>;

/// The doors that read JSON, with a body that each of them takes.
fn doors() -> Vec<(&'static str, Body, Value, Read)> {
    let messages = json!([{"role": "user", "content": "hi"}]);
    let batch = json!({"input_file_id": "f", "endpoint": "/v1/embeddings", "completion_window": "24h"});
    vec![
        ("POST /v1/chat/completions", CHAT, json!({"model": "m", "messages": messages}), |body, reader, bounds| {
            read_chat(body, reader, bounds).map(drop)
        }),
        ("POST /v1/completions", COMPLETION, json!({"model": "m", "prompt": "hi"}), |body, reader, bounds| {
            read_completions(body, reader, bounds).map(drop)
        }),
        ("POST /v1/responses", RESPONSE, json!({"model": "m", "input": "hi"}), |body, reader, bounds| {
            read_response(body, reader, bounds).map(drop)
        }),
        ("POST /v1/compare", COMPARISON, json!({"models": ["m", "o"], "prompt": "hi"}), |body, reader, bounds| {
            read_compare(body, reader, bounds).map(drop)
        }),
        ("POST /v1/embeddings", EMBEDDING, json!({"model": "m", "input": "hi"}), |body, reader, _| {
            read_embeddings(body, reader, 8).map(drop)
        }),
        ("POST /v1/rerank", RERANK, json!({"model": "m", "query": "q", "documents": ["a"]}), |body, reader, _| {
            read_rerank(body, reader, 8).map(drop)
        }),
        ("POST /v1/score", SCORE, json!({"model": "m", "text_1": "a", "text_2": "b"}), |body, reader, _| {
            read_score(body, reader, 8).map(drop)
        }),
        ("POST /v1/classify", CLASSIFY, json!({"model": "m", "input": "hi"}), |body, reader, _| {
            read_classify(body, reader, 8).map(drop)
        }),
        ("POST /tokenize", TOKENIZE, json!({"model": "m", "prompt": "hi"}), |body, mut reader, bounds| {
            read_tokenize(body, &mut reader, bounds).map(drop)
        }),
        ("POST /detokenize", DETOKENIZE, json!({"model": "m", "tokens": [1]}), |body, mut reader, _| {
            read_detokenize(body, &mut reader).map(drop)
        }),
        ("POST /v1/batches", BATCH, batch, |body, mut reader, _| read_batch(body, &mut reader).map(drop)),
    ]
}

/// What a field needs beside it to have a meaning.
fn needs(door: &str, name: &str) -> Value {
    match (door, name) {
        ("chat", "top_logprobs") => json!({"logprobs": true}),
        ("chat" | "completions", "stream_options") => json!({"stream": true}),
        ("completions", "max_tokens") => json!({"echo": true}),
        ("completions", "prompt_scores_against") => json!({"max_tokens": 0}),
        (
            "compare",
            "messages"
            | "add_generation_prompt"
            | "continue_final_message"
            | "chat_template_kwargs"
            | "reasoning_effort",
        ) => {
            json!({"prompt": null, "messages": [{"role": "user", "content": "hi"}]})
        }
        ("tokenize", name) if !matches!(name, "model" | "prompt" | "add_special_tokens") => {
            json!({"prompt": null, "messages": [{"role": "user", "content": "hi"}]})
        }
        ("completions" | "compare", "min_tokens") => json!({"max_tokens": u32::MAX}),
        ("rerank", "texts") => json!({"documents": null}),
        ("rerank", "return_text" | "truncate") => json!({"documents": null, "texts": ["a"]}),
        ("score", "text_1") => json!({"text_2": ["a"]}),
        _ => json!({}),
    }
}

fn try_field(door: &(&str, Body, Value, Read), name: &str, value: &Value) -> Result<(), ApiError> {
    let (_, body, base, read) = door;
    let mut full = base.clone();
    for (name, value) in needs(body.door, name).as_object().unwrap().iter().chain([(&name.to_owned(), value)]) {
        full[name] = value.clone();
    }
    read(full, Reader::new(UnknownFields::Error), &RequestBounds::default())
}

fn honoured(body: &Body) -> impl Iterator<Item = &'static str> {
    let fields = body.tables.iter().flat_map(|table| table.iter());
    fields.filter(|field| matches!(field.support, Support::Honoured)).map(|field| field.name)
}

/// Values that a schema allows, and values that it does not.
fn samples(schema: &Value) -> (Vec<Value>, Vec<Value>) {
    let mut good: Vec<Value> = schema["examples"].as_array().cloned().unwrap_or_default();
    let mut bad = vec![json!([[true]])];
    match schema["type"].as_str() {
        Some(kind @ ("integer" | "number")) => {
            let bounds = [(&schema["minimum"], -1.0), (&schema["maximum"], 1.0)];
            for (bound, beyond) in bounds {
                good.push(bound.clone());
                let at = bound.as_f64().unwrap();
                // A number ends where it is said to.
                let step = if kind == "number" { 1e-4 } else { 1.0 + at.abs() };
                bad.push(json!(at + beyond * step));
            }
            bad.extend([json!("1"), json!(true)]);
            if kind == "integer" {
                bad.push(json!(0.5));
            }
        }
        Some("boolean") => {
            good.extend(if good.is_empty() { vec![json!(true), json!(false)] } else { Vec::new() });
            bad.extend([json!("true"), json!(1)]);
        }
        Some("string") => {
            good.push(json!("x"));
            bad.extend([json!(1), json!({})]);
            bad.extend(schema.get("minLength").map(|_| json!("")));
        }
        Some("array") => bad.extend([json!("x"), json!({}), json!(1)]),
        Some("object") => bad.extend([json!("x"), json!([]), json!(1)]),
        _ => bad.push(json!(1.5)),
    }
    (good, bad)
}

#[test]
fn every_field_that_is_honoured_is_described() {
    for (route, body, ..) in doors() {
        let missing: Vec<&str> = honoured(&body).filter(|name| shapes::shape(body.door, name).is_none()).collect();
        assert!(
            missing.is_empty(),
            "describe these fields of {route} in server/src/api/openapi/shapes.rs: {missing:?}"
        );
    }
}

#[test]
fn what_the_document_says_is_what_the_readers_do() {
    for door in doors() {
        for name in honoured(&door.1) {
            let Some(schema) = shapes::shape(door.1.door, name) else { continue };
            let (good, bad) = samples(&schema);
            assert!(!good.is_empty() || schema["type"] == "array", "{}: {name} has no example", door.0);
            for value in good {
                try_field(&door, name, &value).unwrap_or_else(|error| panic!("{}: {name}: {value}: {error:?}", door.0));
            }
            for value in bad {
                let error = try_field(&door, name, &value).expect_err(&format!("{}: {name}: {value}", door.0));
                let expected = [ErrorKind::InvalidType, ErrorKind::InvalidValue, ErrorKind::UnsupportedParameter];
                assert!(expected.contains(&error.kind()), "{}: {name}: {value}: {error:?}", door.0);
            }
        }
    }
}

#[test]
fn every_shape_is_a_schema() {
    for shape in shapes::all() {
        assert!(serde_json::from_str::<Value>(shape).is_ok_and(|shape| shape.is_object()), "{shape}");
    }
}

#[test]
fn every_route_is_described_and_every_description_has_a_route() {
    let mut routes: Vec<String> = all_routes().map(|(path, _)| path.replace("{*", "{")).collect();
    let operations = OPERATIONS.iter().chain(ADMINISTRATION);
    let mut described: Vec<String> = operations.map(|operation| operation.path.to_owned()).collect();
    routes.sort();
    described.sort();
    described.dedup();
    assert_eq!(routes, described);
}

fn table_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openai-fields.md")
}

/// The documentation's table of fields, from the readers' own tables.
fn fields_table() -> String {
    let mut text = "# Fields of the OpenAI routes\n\n\
        Every field that a route knows: honoured, or known and refused by name at any value but those listed. `null` means\n\
        absent everywhere, in messages and items under any name. A field that is not here is refused as unknown, unless\n\
        `api.unknown_fields = \"warn\"`. Made from the tables that the readers use by\n\
        `cargo test -p passerelle --lib fields_table -- --ignored`; a test compares the two.\n\n\
        A dot leads into an object, `[]` into every entry of a list, and `[name]` into those of that type.\n\n\
        Of `user` and `safety_identifier` the second is accounted where both are given. `prompt_cache_key` changes no answer: with\n\
        the prompt's beginning it chooses the replica, and it names the session that an alias keeps to one model. `client_metadata`, what a\n\
        client says of itself, changes nothing and is not kept.\n"
        .to_owned();
    let most = RequestBounds::default().max_choices;
    write!(text, "\n`n` and `best_of` are at most {most} (`api.max_choices`) where they are honoured.\n").unwrap();
    let tables = doors().into_iter().map(|(route, body, ..)| (route, body));
    let tables: Vec<_> = tables.chain([("POST /v1/files, a form", FILE)]).collect();
    for (route, body) in tables {
        write!(text, "\n## {route}\n\n| field | |\n| --- | --- |\n").unwrap();
        let mut fields: Vec<&Field> = body.tables.iter().flat_map(|table| table.iter()).collect();
        fields.sort_by_key(|field| field.name);
        for field in fields {
            let required = if body.required.contains(&field.name) { ", required" } else { "" };
            writeln!(text, "| `{}` | {}{required} |", field.name, said_of(field)).unwrap();
        }
        for (place, table) in inside(body.door) {
            let mut fields: Vec<&Field> = table.iter().collect();
            fields.sort_by_key(|field| field.name);
            for field in fields {
                writeln!(text, "| `{place}.{}` | {} |", field.name, said_of(field)).unwrap();
            }
        }
    }
    for operation in OPERATIONS {
        let parameters = operation.parameters.iter().map(Parameter::describe);
        let names =
            parameters.filter(|parameter| parameter["in"] == "query").map(|parameter| parameter["name"].clone());
        let mut names: Vec<String> = names.filter_map(|name| name.as_str().map(str::to_owned)).collect();
        names.sort();
        if !names.is_empty() {
            let method = operation.method.to_uppercase();
            write!(text, "\n## {method} {}, in its query\n\n| field | |\n| --- | --- |\n", operation.path).unwrap();
        }
        for name in names {
            writeln!(text, "| `{name}` | honoured |").unwrap();
        }
    }
    text
}

fn said_of(field: &Field) -> String {
    match field.support {
        Support::Honoured => "honoured".to_owned(),
        Support::Neutral("[]") => "refused".to_owned(),
        Support::Neutral(values) => {
            let values: Vec<Value> = serde_json::from_str(values).unwrap();
            let values: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
            format!("refused, except at {}", values.join(", "))
        }
    }
}

#[test]
fn the_documented_table_of_fields_is_the_readers_own() {
    let documented = std::fs::read_to_string(table_file()).unwrap();
    let is_same = documented == fields_table();
    assert!(is_same, "write it again: cargo test -p passerelle --lib fields_table -- --ignored");
}

#[test]
#[ignore = "writes docs/openai-fields.md"]
fn write_the_fields_table() {
    std::fs::write(table_file(), fields_table()).unwrap();
}
