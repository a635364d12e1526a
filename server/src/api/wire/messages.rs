//! The messages of a conversation.

use serde_json::{Value, json};

use super::request::RequestBounds;
use crate::api::errors::ApiError;
use crate::api::fields::{
    Field, Fields, Reader, honoured, invalid, neutral, required, too_many, unsupported, wrong_type,
};

/// `parsed`, as `parsed_arguments` of a call, is what OpenAI's Python SDK made of an earlier answer. It comes back with it, and
/// says nothing that the text does not.
pub(crate) const MESSAGE_FIELDS: &[Field] = &[
    honoured("role"),
    honoured("content"),
    honoured("name"),
    honoured("tool_calls"),
    honoured("tool_call_id"),
    honoured("reasoning_content"),
    honoured("reasoning"),
    neutral("refusal", "[]"),
    neutral("audio", "[]"),
    neutral("function_call", "[]"),
    neutral("annotations", "[[]]"),
    honoured("parsed"),
];
pub(crate) const PART_FIELDS: &[Field] =
    &[honoured("type"), honoured("text"), honoured("refusal"), neutral("prompt_cache_breakpoint", "[]")];
pub(crate) const CALL_FIELDS: &[Field] = &[honoured("id"), honoured("type"), honoured("function"), honoured("index")];
pub(crate) const FUNCTION_FIELDS: &[Field] = &[honoured("name"), honoured("arguments"), honoured("parsed_arguments")];

/// One turn. `content` is absent only for an assistant that calls tools.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Message {
    pub(crate) role: Role,
    pub(crate) content: Option<String>,
    pub(crate) reasoning_content: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) tool_calls: Vec<ToolCall>,
    pub(crate) tool_call_id: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    System,
    Developer,
    User,
    Assistant,
    Tool,
}

/// Whether a model's chat template has a place for developers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeveloperRole {
    Known,
    Unknown,
}

impl Role {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Developer => "developer",
            Self::User => "user",
            Self::Assistant => "assistant",
            Self::Tool => "tool",
        }
    }
}

impl Message {
    /// The shape that chat templates are written for. OpenAI's developer is its newer name for the system: a template
    /// that does not know `developer` gets `system`.
    pub(crate) fn to_json(&self, developer: DeveloperRole) -> Value {
        let role = match (self.role, developer) {
            (Role::Developer, DeveloperRole::Unknown) => Role::System,
            (role, _) => role,
        };
        let mut message = json!({"role": role.as_str(), "content": self.content});
        let texts = [
            ("name", &self.name),
            ("reasoning_content", &self.reasoning_content),
            ("tool_call_id", &self.tool_call_id),
        ];
        for (key, text) in texts {
            if let Some(text) = text {
                message[key] = json!(text);
            }
        }
        if !self.tool_calls.is_empty() {
            message["tool_calls"] = self.tool_calls.iter().map(ToolCall::to_json).collect();
        }
        message
    }
}

/// A call that an assistant made in an earlier turn.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ToolCall {
    pub(crate) id: String,
    pub(crate) name: String,
    /// JSON, as text.
    pub(crate) arguments: String,
}

impl ToolCall {
    /// Whether templates get its arguments as an object, which is what they are written for.
    pub(crate) fn has_object(&self) -> bool {
        matches!(serde_json::from_str(&self.arguments), Ok(Value::Object(_)))
    }

    fn to_json(&self) -> Value {
        json!({"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}})
    }
}

pub(crate) fn read_messages(
    items: Vec<Value>,
    reader: &mut Reader,
    bounds: &RequestBounds,
) -> Result<Vec<Message>, ApiError> {
    if items.is_empty() {
        return Err(invalid("messages", "must hold at least one message"));
    }
    if items.len() > bounds.max_messages {
        return Err(too_many("messages", bounds.max_messages, items.len()));
    }
    let messages = items.into_iter().enumerate();
    messages.map(|(index, item)| read_message(item, &format!("messages[{index}]"), reader)).collect()
}

fn read_message(item: Value, path: &str, reader: &mut Reader) -> Result<Message, ApiError> {
    let mut fields = reader.open_returned(item, path, &[MESSAGE_FIELDS])?;
    _ = fields.value("parsed");
    let role = read_role(&mut fields)?;
    let message = Message {
        role,
        content: read_content(role, &mut fields, reader)?,
        reasoning_content: read_reasoning(role, &mut fields)?,
        name: fields.string("name")?,
        tool_calls: read_tool_calls(role, &mut fields, reader)?,
        tool_call_id: only_for(role == Role::Tool, &mut fields, "tool_call_id")?,
    };
    if role == Role::Tool {
        required(message.tool_call_id.as_ref(), &fields.full_name("tool_call_id"))?;
    }
    if message.tool_calls.is_empty() {
        required(message.content.as_ref(), &fields.full_name("content"))?;
    }
    reader.finish(fields)?;
    Ok(message)
}

fn read_role(fields: &mut Fields) -> Result<Role, ApiError> {
    let name = fields.full_name("role");
    match required(fields.string("role")?, &name)?.as_str() {
        "system" => Ok(Role::System),
        "developer" => Ok(Role::Developer),
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        "tool" => Ok(Role::Tool),
        _ => Err(invalid(&name, "must be `system`, `developer`, `user`, `assistant` or `tool`")),
    }
}

fn only_for(role_fits: bool, fields: &mut Fields, name: &str) -> Result<Option<String>, ApiError> {
    let value = fields.string(name)?;
    if value.is_some() && !role_fits {
        return Err(invalid(&fields.full_name(name), "not allowed for this role"));
    }
    Ok(value)
}

/// Answers carry it under two names, and clients send either or both back.
fn read_reasoning(role: Role, fields: &mut Fields) -> Result<Option<String>, ApiError> {
    let mut read = |name: &str| only_for(role == Role::Assistant, fields, name);
    let (longer, shorter) = (read("reasoning_content")?, read("reasoning")?);
    if longer.is_some() && shorter.is_some() && longer != shorter {
        return Err(invalid(&fields.full_name("reasoning"), "differs from `reasoning_content`; give one of them"));
    }
    Ok(longer.or(shorter))
}

fn read_content(role: Role, fields: &mut Fields, reader: &mut Reader) -> Result<Option<String>, ApiError> {
    let name = fields.full_name("content");
    match fields.value("content") {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Array(parts)) => {
            let parts = parts.into_iter().enumerate();
            let texts = parts.map(|(index, part)| read_part(role, part, &format!("{name}[{index}]"), reader));
            // Templates that take one text per message are given the parts as lines, as the field's servers do.
            Ok(Some(texts.collect::<Result<Vec<String>, ApiError>>()?.join("\n")))
        }
        Some(other) => Err(wrong_type(&name, "a string or an array of content parts", &other)),
    }
}

/// A text part, or what an assistant said in declining; the other kinds are refused by name.
fn read_part(role: Role, part: Value, path: &str, reader: &mut Reader) -> Result<String, ApiError> {
    if let Some(kind @ ("image_url" | "input_audio" | "file" | "video_url")) = part["type"].as_str() {
        return Err(unsupported(&format!("{path}.type"), format!("`{kind}` parts are not supported by this server")));
    }
    let mut fields = reader.open_returned(part, path, &[PART_FIELDS])?;
    let kind = fields.full_name("type");
    let holds = match required(fields.string("type")?, &kind)?.as_str() {
        "text" => "text",
        "refusal" if role == Role::Assistant => "refusal",
        "refusal" => return Err(invalid(&kind, "only an assistant refuses")),
        _ => return Err(invalid(&kind, "must be `text`, or `refusal` for an assistant")),
    };
    let text = required(fields.string(holds)?, &fields.full_name(holds))?;
    reader.finish(fields)?;
    Ok(text)
}

fn read_tool_calls(role: Role, fields: &mut Fields, reader: &mut Reader) -> Result<Vec<ToolCall>, ApiError> {
    let name = fields.full_name("tool_calls");
    let items = fields.array("tool_calls")?.unwrap_or_default();
    if !items.is_empty() && role != Role::Assistant {
        return Err(invalid(&name, "only an assistant calls tools"));
    }
    let items = items.into_iter().enumerate();
    items.map(|(index, item)| read_tool_call(item, &format!("{name}[{index}]"), reader)).collect()
}

fn read_tool_call(item: Value, path: &str, reader: &mut Reader) -> Result<ToolCall, ApiError> {
    let mut call = reader.open_returned(item, path, &[CALL_FIELDS])?;
    call.integer("index", 0..=i64::MAX)?; // streamed deltas carry it, and clients send them back joined
    let kind = call.string("type")?;
    if kind.is_some_and(|kind| kind != "function") {
        return Err(invalid(&call.full_name("type"), "must be `function`"));
    }
    let id = required(call.string("id")?, &call.full_name("id"))?;
    let function_path = call.full_name("function");
    let function = required(call.value("function"), &function_path)?;
    let mut function = reader.open_returned(function, &function_path, &[FUNCTION_FIELDS])?;
    _ = function.value("parsed_arguments");
    let name = required(function.string("name")?, &function.full_name("name"))?;
    let arguments = required(function.string("arguments")?, &function.full_name("arguments"))?;
    reader.finish(function)?;
    reader.finish(call)?;
    Ok(ToolCall { id, name, arguments })
}
