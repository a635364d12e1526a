//! `/openapi.json`, made from the tables that the readers of requests use: a field that is read is described, and one that
//! is refused is described as refused. A test holds the stated ranges and types to what the readers do.

mod administration;
mod answers;
mod operations;
mod shapes;

use serde_json::{Map, Value, json};

use super::UnknownFields;
use super::fields::{Field, Support};
use super::state::{AppState, RouteSwitch};
use administration::ADMINISTRATION;
use operations::{Body, OPERATIONS, Operation, RequestBody};

/// The whole document. It says nothing about models or keys, so everybody may read it.
pub(crate) fn document(state: &AppState) -> Value {
    let unknown = state.config().unknown_fields;
    let mut paths = Map::new();
    let is_off = |operation: &&Operation| {
        operation.path == "/tokenizer_info" && state.config().tokenizer_info == RouteSwitch::Off
    };
    for operation in OPERATIONS.iter().chain(ADMINISTRATION).filter(|operation| !is_off(operation)) {
        let path = paths.entry(operation.path.to_owned()).or_insert_with(|| json!({}));
        path[operation.method] = describe(operation, unknown);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Passerelle",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "An OpenAI-compatible API. A field that is not listed is refused by name; `null` means absent.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
            "schemas": answers::schemas(),
            "responses": answers::errors(),
        },
        "security": [{"key": []}, {}],
    })
}

fn describe(operation: &Operation, unknown: UnknownFields) -> Value {
    let mut described = json!({
        "operationId": operation.id,
        "summary": operation.summary,
        "responses": {
            "200": operation.answer.describe(),
            "4XX": {"$ref": "#/components/responses/Refused"},
            "5XX": {"$ref": "#/components/responses/Failed"},
        },
    });
    if !operation.parameters.is_empty() {
        described["parameters"] = operation.parameters.iter().map(operations::Parameter::describe).collect();
    }
    let content = match &operation.body {
        RequestBody::None => return described,
        RequestBody::Exact(body) => {
            json!({"application/json": {"schema": body_schema(body, UnknownFields::Error)}})
        }
        RequestBody::Json(body) => json!({"application/json": {"schema": body_schema(body, unknown)}}),
        RequestBody::Upload(form) => {
            json!({"multipart/form-data": {"schema": body_schema(form, UnknownFields::Error)}})
        }
    };
    described["requestBody"] = json!({"required": true, "content": content});
    described
}

fn body_schema(body: &Body, unknown: UnknownFields) -> Value {
    let fields = body.tables.iter().flat_map(|table| table.iter());
    let properties: Map<String, Value> =
        fields.map(|field| (field.name.to_owned(), field_schema(body, field))).collect();
    json!({
        "type": "object",
        "properties": properties,
        "required": body.required,
        "additionalProperties": unknown == UnknownFields::Warn,
    })
}

/// What a field takes. `null` is absence everywhere, except where a value is needed.
fn field_schema(body: &Body, field: &Field) -> Value {
    let mut schema = match field.support {
        Support::Honoured => shapes::shape(body.door, field.name).unwrap_or_else(|| json!({})),
        Support::Neutral(values) => neutral_schema(values),
    };
    if !body.required.contains(&field.name) {
        allow_null(&mut schema);
    }
    schema
}

fn neutral_schema(values: &str) -> Value {
    let mut values: Vec<Value> = serde_json::from_str(values).unwrap_or_default();
    values.push(Value::Null);
    json!({"enum": values, "description": "known, and refused at any other value"})
}

fn allow_null(schema: &mut Value) {
    if let Some(Value::String(kind)) = schema.get("type") {
        schema["type"] = json!([kind, "null"]);
    } else if let Some(Value::Array(kinds)) = schema.get_mut("anyOf") {
        kinds.push(json!({"type": "null"}));
    }
    if let Some(Value::Array(values)) = schema.get_mut("enum")
        && !values.contains(&Value::Null)
    {
        values.push(Value::Null);
    }
}

#[cfg(test)]
mod tests;
