//! What the caller wants the answer's text to look like, under every name that the field's servers have for it.

use serde_json::{Value, json};

use crate::api::errors::ApiError;
use crate::api::fields::{Field, Fields, Reader, honoured, invalid, neutral, required, wrong_type};
use crate::text::Grammar;

/// Of chat and completions alike.
pub(crate) const STRUCTURE_FIELDS: &[Field] = &[
    honoured("response_format"),
    honoured("structured_outputs"),
    honoured("guided_json"),
    honoured("guided_regex"),
    honoured("guided_choice"),
    honoured("guided_grammar"),
    honoured("regex"),
    honoured("json_schema"),
    // In a notation that is not Lark's.
    neutral("ebnf", "[]"),
    // Which library holds to a form changes nothing of the form.
    neutral("guided_decoding_backend", r#"["auto", "xgrammar", "guidance", "outlines", "lm-format-enforcer"]"#),
    neutral("guided_whitespace_pattern", "[]"),
];

pub(crate) const FORMAT_FIELDS: &[Field] =
    &[honoured("type"), honoured("json_schema"), honoured("schema"), honoured("value")];
/// Where some servers take the schema itself, beside the type `json_object`; the second is TGI's.
const BARE_SCHEMA: [&str; 2] = ["schema", "value"];
pub(crate) const JSON_SCHEMA_FIELDS: &[Field] =
    &[honoured("name"), honoured("description"), honoured("schema"), honoured("strict")];
pub(crate) const STRUCTURED_FIELDS: &[Field] = &[
    honoured("json"),
    honoured("regex"),
    honoured("choice"),
    honoured("grammar"),
    honoured("json_object"),
    neutral("structural_tag", "[]"),
    neutral("disable_fallback", "[false, true]"),
    neutral("disable_any_whitespace", "[false]"),
    neutral("disable_additional_properties", "[false]"),
    neutral("whitespace_pattern", "[]"),
];
const MAX_NAME_CHARS: usize = 64;

/// A grammar that is not compiled yet, and the field that asked for it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Structure {
    pub(crate) grammar: Grammar,
    pub(crate) param: String,
}

impl Structure {
    fn new(param: &str, grammar: Grammar) -> Self {
        Self { grammar, param: param.to_owned() }
    }
}

/// At most one field may ask for something.
pub(crate) fn read_structure(fields: &mut Fields, reader: &mut Reader) -> Result<Option<Structure>, ApiError> {
    let read = [
        read_response_format(fields, reader)?,
        read_structured_outputs(fields, reader)?,
        read_json("guided_json", fields)?,
        read_regex("guided_regex", fields)?,
        read_choice("guided_choice", fields)?,
        read_grammar("guided_grammar", fields)?,
        read_regex("regex", fields)?,
        read_json("json_schema", fields)?,
    ];
    only_one(read)
}

fn read_response_format(fields: &mut Fields, reader: &mut Reader) -> Result<Option<Structure>, ApiError> {
    const NAME: &str = "response_format";
    let Some(value) = fields.value(NAME) else { return Ok(None) };
    let mut format = reader.open(value, NAME, &[FORMAT_FIELDS])?;
    let kind_name = format.full_name("type");
    let kind = required(format.string("type")?, &kind_name)?;
    let structure = match kind.as_str() {
        "text" => None,
        "json_object" => match BARE_SCHEMA.into_iter().find(|name| format.has(name)) {
            Some(name) => read_json(name, &mut format)?,
            None => Some(Structure::new(NAME, Grammar::JsonObject)),
        },
        "json_schema" => Some(read_json_schema(&mut format, reader)?),
        _ => return Err(invalid(&kind_name, "must be `text`, `json_object` or `json_schema`")),
    };
    reader.finish(format)?;
    Ok(structure)
}

/// A checked `response_format` as every server of the field understands it: a bare schema is named.
pub(crate) fn in_common_form(format: Value) -> Value {
    let bare =
        |name: &'static str| format.get(name).filter(|schema| format["type"] == "json_object" && !schema.is_null());
    let Some(bare) = BARE_SCHEMA.into_iter().find_map(bare) else { return format };
    let parsed = bare.as_str().and_then(|text| serde_json::from_str(text).ok());
    let schema: Value = parsed.unwrap_or_else(|| bare.clone());
    json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}})
}

/// The schema is enforced whether `strict` is set or not.
fn read_json_schema(format: &mut Fields, reader: &mut Reader) -> Result<Structure, ApiError> {
    let path = format.full_name("json_schema");
    let written = required(format.value("json_schema"), &path)?;
    let mut named = reader.open(written, &path, &[JSON_SCHEMA_FIELDS])?;
    let name_path = named.full_name("name");
    let name = required(named.string("name")?, &name_path)?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if name.is_empty() || name.len() > MAX_NAME_CHARS || !name.chars().all(is_name) {
        let why = format!("must be 1 to {MAX_NAME_CHARS} letters, digits, underscores or dashes");
        return Err(invalid(&name_path, why));
    }
    named.string("description")?;
    named.boolean("strict")?;
    let schema_path = named.full_name("schema");
    let schema = required(read_json("schema", &mut named)?, &schema_path)?;
    reader.finish(named)?;
    Ok(schema)
}

fn read_structured_outputs(fields: &mut Fields, reader: &mut Reader) -> Result<Option<Structure>, ApiError> {
    const NAME: &str = "structured_outputs";
    let Some(value) = fields.value(NAME) else { return Ok(None) };
    let mut options = reader.open(value, NAME, &[STRUCTURED_FIELDS])?;
    let any_object = options.boolean("json_object")?.unwrap_or(false);
    let read = [
        any_object.then(|| Structure::new("structured_outputs.json_object", Grammar::JsonObject)),
        read_json("json", &mut options)?,
        read_regex("regex", &mut options)?,
        read_choice("choice", &mut options)?,
        read_grammar("grammar", &mut options)?,
    ];
    reader.finish(options)?;
    let structure = only_one(read)?;
    structure.map(Some).ok_or_else(|| invalid(NAME, "needs one of `json`, `regex`, `choice`, `grammar`, `json_object`"))
}

/// A schema, or the JSON text of one.
fn read_json(name: &str, fields: &mut Fields) -> Result<Option<Structure>, ApiError> {
    let full = fields.full_name(name);
    let schema = match fields.value(name) {
        None => return Ok(None),
        Some(Value::String(text)) => {
            serde_json::from_str(&text).map_err(|error| invalid(&full, format!("is not valid JSON ({error})")))?
        }
        Some(schema) => schema,
    };
    match schema {
        Value::Object(_) | Value::Bool(_) => Ok(Some(Structure::new(&full, Grammar::JsonSchema(schema)))),
        other => Err(wrong_type(&full, "a JSON schema", &other)),
    }
}

fn read_regex(name: &str, fields: &mut Fields) -> Result<Option<Structure>, ApiError> {
    let full = fields.full_name(name);
    Ok(fields.string(name)?.map(|regex| Structure::new(&full, Grammar::Regex(regex))))
}

fn read_grammar(name: &str, fields: &mut Fields) -> Result<Option<Structure>, ApiError> {
    let full = fields.full_name(name);
    let Some(lark) = fields.string(name)? else { return Ok(None) };
    if lark.lines().any(is_other_notation) {
        return Err(invalid(&full, "is GBNF or EBNF (`::=`); write it in Lark's notation, `start: ...`"));
    }
    Ok(Some(Structure::new(&full, Grammar::Lark(lark))))
}

/// `name ::= ...`, which is no line of Lark.
fn is_other_notation(line: &str) -> bool {
    let is_name = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '<' | '>'));
    line.split_once("::=").is_some_and(|(name, _)| is_name(name.trim()))
}

fn read_choice(name: &str, fields: &mut Fields) -> Result<Option<Structure>, ApiError> {
    let full = fields.full_name(name);
    let Some(items) = fields.array(name)? else { return Ok(None) };
    if items.is_empty() {
        return Err(invalid(&full, "must hold at least one text"));
    }
    let texts = items.into_iter().enumerate().map(|(index, item)| match item {
        Value::String(text) if text.is_empty() => Err(invalid(&format!("{full}[{index}]"), "must not be empty")),
        Value::String(text) => Ok(text),
        other => Err(wrong_type(&format!("{full}[{index}]"), "a string", &other)),
    });
    Ok(Some(Structure::new(&full, Grammar::Choice(texts.collect::<Result<_, _>>()?))))
}

fn only_one<const N: usize>(read: [Option<Structure>; N]) -> Result<Option<Structure>, ApiError> {
    let mut asked = read.into_iter().flatten();
    let first = asked.next();
    match (&first, asked.next()) {
        (Some(first), Some(second)) => {
            Err(invalid(&second.param, format!("cannot be combined with `{}`", first.param)))
        }
        _ => Ok(first),
    }
}
