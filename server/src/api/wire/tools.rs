//! The tools a caller offers, and whether the model may use them.

use serde_json::Value;

use super::request::RequestBounds;
use crate::api::errors::{ApiError, echoed};
use crate::api::fields::{Field, Fields, Reader, honoured, invalid, required, too_many, unsupported, wrong_type};

pub(crate) const TOOL_FIELDS: &[Field] = &[honoured("type"), honoured("function")];
pub(crate) const FUNCTION_FIELDS: &[Field] =
    &[honoured("name"), honoured("description"), honoured("parameters"), honoured("strict")];
pub(crate) const NAMED_FIELDS: &[Field] = &[honoured("name")];
const MAX_NAME_CHARS: usize = 64;

/// An offered function.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tool {
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    /// A JSON schema of the arguments, passed to the template as it is.
    pub(crate) parameters: Option<Value>,
    /// Its arguments are of the schema, whoever chose to call it.
    pub(crate) strict: bool,
}

impl Tool {
    /// The shape that chat templates are written for, with the keys in this order.
    pub(crate) fn to_json(&self) -> Value {
        let mut function = serde_json::Map::new();
        function.insert("name".to_owned(), Value::from(self.name.clone()));
        if let Some(description) = &self.description {
            function.insert("description".to_owned(), Value::from(description.clone()));
        }
        if let Some(parameters) = &self.parameters {
            function.insert("parameters".to_owned(), parameters.clone());
        }
        serde_json::json!({"type": "function", "function": function})
    }
}

/// Whether the model may call tools. Under `none` it does not see them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ToolChoice {
    Auto,
    Required,
    Named(String),
}

/// The tools the model gets to see: none under `tool_choice: "none"`.
pub(crate) fn read_tools(
    fields: &mut Fields,
    reader: &mut Reader,
    bounds: &RequestBounds,
) -> Result<(Vec<Tool>, ToolChoice), ApiError> {
    let items = fields.array("tools")?.unwrap_or_default();
    if items.len() > bounds.max_tools {
        return Err(too_many("tools", bounds.max_tools, items.len()));
    }
    let items = items.into_iter().enumerate();
    let tools = items.map(|(index, item)| read_tool(item, &format!("tools[{index}]"), reader));
    let tools: Vec<Tool> = tools.collect::<Result<_, _>>()?;
    match read_choice(fields, reader)? {
        None => Ok((Vec::new(), ToolChoice::Auto)),
        Some(ToolChoice::Required) if tools.is_empty() => Err(invalid("tool_choice", "`required` needs `tools`")),
        Some(ToolChoice::Named(name)) if !tools.iter().any(|tool| tool.name == name) => {
            Err(invalid("tool_choice", format!("there is no tool `{}`", echoed(&name))))
        }
        Some(choice) => Ok((tools, choice)),
    }
}

/// `None` is `"none"`.
fn read_choice(fields: &mut Fields, reader: &mut Reader) -> Result<Option<ToolChoice>, ApiError> {
    const NAME: &str = "tool_choice";
    match fields.value(NAME) {
        None => Ok(Some(ToolChoice::Auto)),
        Some(named @ Value::Object(_)) => read_named(named, reader).map(Some),
        Some(Value::String(choice)) => match choice.as_str() {
            "auto" => Ok(Some(ToolChoice::Auto)),
            "none" => Ok(None),
            "required" => Ok(Some(ToolChoice::Required)),
            _ => Err(invalid(NAME, "must be `auto`, `none`, `required` or name a tool")),
        },
        Some(other) => Err(wrong_type(NAME, "a string or an object", &other)),
    }
}

/// Other kinds have other fields; it is the kind that is not served.
fn check_kind(tool: &Value, path: &str) -> Result<(), ApiError> {
    match tool["type"].as_str() {
        None | Some("function") => Ok(()),
        Some(_) => Err(unsupported(&format!("{path}.type"), "only `function` is supported by this server")),
    }
}

fn read_named(named: Value, reader: &mut Reader) -> Result<ToolChoice, ApiError> {
    check_kind(&named, "tool_choice")?;
    let mut choice = reader.open(named, "tool_choice", &[TOOL_FIELDS])?;
    required(choice.string("type")?, &choice.full_name("type"))?;
    let path = choice.full_name("function");
    let mut function = reader.open(required(choice.value("function"), &path)?, &path, &[NAMED_FIELDS])?;
    let name_path = function.full_name("name");
    let name = required(function.string("name")?, &name_path)?;
    reader.finish(function)?;
    reader.finish(choice)?;
    Ok(ToolChoice::Named(name))
}

fn read_tool(item: Value, path: &str, reader: &mut Reader) -> Result<Tool, ApiError> {
    check_kind(&item, path)?;
    let mut tool = reader.open(item, path, &[TOOL_FIELDS])?;
    required(tool.string("type")?, &tool.full_name("type"))?;
    let function_path = tool.full_name("function");
    let mut function =
        reader.open(required(tool.value("function"), &function_path)?, &function_path, &[FUNCTION_FIELDS])?;
    let name = function.full_name("name");
    let offered = Tool {
        name: checked_name(required(function.string("name")?, &name)?, &name)?,
        description: function.string("description")?,
        parameters: read_parameters(&mut function)?,
        strict: function.boolean("strict")?.unwrap_or(false),
    };
    reader.finish(function)?;
    reader.finish(tool)?;
    Ok(offered)
}

fn checked_name(name: String, path: &str) -> Result<String, ApiError> {
    let fits = !name.is_empty() && name.len() <= MAX_NAME_CHARS;
    if fits && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.')) {
        return Ok(name);
    }
    let why = format!("must be 1 to {MAX_NAME_CHARS} letters, digits, underscores, dashes or dots");
    Err(invalid(path, why))
}

fn read_parameters(function: &mut Fields) -> Result<Option<Value>, ApiError> {
    match function.value("parameters") {
        None => Ok(None),
        Some(schema @ Value::Object(_)) => Ok(Some(schema)),
        Some(other) => Err(wrong_type(&function.full_name("parameters"), "an object", &other)),
    }
}
