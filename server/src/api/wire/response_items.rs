//! The input of a response: one text, or items of a conversation, made into the messages of a chat.

use serde_json::{Map, Value, json};

use super::carried_reasoning::read_carried;
use crate::api::errors::ApiError;
use crate::api::fields::{
    Field, Fields, Reader, honoured, invalid, neutral, required, too_many, unsupported, wrong_type,
};

pub(crate) const MESSAGE_FIELDS: &[Field] =
    &[honoured("type"), honoured("role"), honoured("content"), honoured("id"), honoured("status"), honoured("phase")];
pub(crate) const CALL_FIELDS: &[Field] = &[
    honoured("type"),
    honoured("call_id"),
    honoured("name"),
    honoured("arguments"),
    honoured("id"),
    honoured("status"),
    honoured("parsed_arguments"),
    neutral("namespace", "[]"),
    neutral("async", "[false]"),
    neutral("caller", "[]"),
];
pub(crate) const OUTPUT_FIELDS: &[Field] = &[
    honoured("type"),
    honoured("call_id"),
    honoured("output"),
    honoured("id"),
    honoured("status"),
    neutral("name", "[]"),
    neutral("namespace", "[]"),
    neutral("caller", "[]"),
];
pub(crate) const REASONING_FIELDS: &[Field] = &[
    honoured("type"),
    honoured("content"),
    honoured("encrypted_content"),
    honoured("id"),
    honoured("status"),
    neutral("summary", "[[]]"),
];
/// `annotations`, `logprobs` and `parsed`, as `parsed_arguments` of a call, come back with parts of earlier answers and
/// say nothing that the text does not.
pub(crate) const PART_FIELDS: &[Field] = &[
    honoured("type"),
    honoured("text"),
    honoured("refusal"),
    honoured("annotations"),
    honoured("logprobs"),
    neutral("prompt_cache_breakpoint", "[]"),
    honoured("parsed"),
];

pub(crate) const NOTHING_IS_STORED: &str =
    "nothing is stored here to refer to; send the items themselves (SDKs do with `store` at false)";

/// Messages in the chat's shape, of at most so many items.
pub(crate) fn read_input(input: Value, reader: &mut Reader, most: usize) -> Result<Vec<Value>, ApiError> {
    let items = match input {
        Value::String(text) => return Ok(vec![json!({"role": "user", "content": text})]),
        Value::Array(items) => items,
        other => return Err(wrong_type("input", "a string or an array of items", &other)),
    };
    if items.is_empty() {
        return Err(invalid("input", "must hold at least one item"));
    }
    if items.len() > most {
        return Err(too_many("input", most, items.len()));
    }
    let mut conversation = Conversation::default();
    for (index, item) in items.into_iter().enumerate() {
        conversation.push(item, &format!("input[{index}]"), reader)?;
    }
    Ok(conversation.into_messages())
}

#[derive(Default)]
struct Conversation {
    messages: Vec<Value>,
}

impl Conversation {
    /// Who was cut while reasoning has said nothing, which a chat writes as an empty text.
    fn into_messages(mut self) -> Vec<Value> {
        for message in self.messages.iter_mut().filter_map(Value::as_object_mut) {
            if !message.contains_key("content") && !message.contains_key("tool_calls") {
                message.insert("content".to_owned(), "".into());
            }
        }
        self.messages
    }

    fn push(&mut self, item: Value, path: &str, reader: &mut Reader) -> Result<(), ApiError> {
        let kind = match item.get("type") {
            None | Some(Value::Null) => "message",
            Some(Value::String(kind)) => kind.as_str(),
            Some(other) => return Err(wrong_type(&format!("{path}.type"), "a string", other)),
        };
        match kind {
            "message" => self.push_message(item, path, reader),
            "function_call" => self.push_call(item, path, reader),
            "function_call_output" => self.push_output(item, path, reader),
            "reasoning" => self.push_reasoning(item, path, reader),
            "item_reference" => Err(unsupported(&format!("{path}.type"), NOTHING_IS_STORED)),
            kind => {
                let why = format!("`{}` items are not supported by this server", crate::api::errors::echoed(kind));
                Err(unsupported(&format!("{path}.type"), why))
            }
        }
    }

    fn push_message(&mut self, item: Value, path: &str, reader: &mut Reader) -> Result<(), ApiError> {
        let mut fields = reader.open_returned(item, path, &[MESSAGE_FIELDS])?;
        let role_path = fields.full_name("role");
        let role = required(fields.string("role")?, &role_path)?;
        if !["user", "assistant", "system", "developer"].contains(&role.as_str()) {
            return Err(invalid(&role_path, "must be `user`, `assistant`, `system` or `developer`"));
        }
        let content_path = fields.full_name("content");
        let content = read_text(required(fields.value("content"), &content_path)?, &content_path, reader)?;
        finish_item(fields, reader)?;
        match self.open_assistant().filter(|last| role == "assistant" && !last.contains_key("content")) {
            // Reasoning and the text after it are one turn.
            Some(last) => last.insert("content".to_owned(), content.into()),
            None => {
                self.messages.push(json!({"role": role, "content": content}));
                None
            }
        };
        Ok(())
    }

    /// A call belongs to the turn that the assistant is in.
    fn push_call(&mut self, item: Value, path: &str, reader: &mut Reader) -> Result<(), ApiError> {
        let mut fields = reader.open_returned(item, path, &[CALL_FIELDS])?;
        let mut text = |name: &str| required(fields.string(name)?, &fields.full_name(name));
        let (id, name, arguments) = (text("call_id")?, text("name")?, text("arguments")?);
        _ = fields.value("parsed_arguments");
        finish_item(fields, reader)?;
        let call = json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
        let turn = self.assistant_turn();
        match turn.entry("tool_calls").or_insert_with(|| json!([])) {
            Value::Array(calls) => calls.push(call),
            other => *other = json!([call]),
        }
        Ok(())
    }

    fn push_output(&mut self, item: Value, path: &str, reader: &mut Reader) -> Result<(), ApiError> {
        let mut fields = reader.open_returned(item, path, &[OUTPUT_FIELDS])?;
        let id = required(fields.string("call_id")?, &fields.full_name("call_id"))?;
        let output_path = fields.full_name("output");
        let output = read_text(required(fields.value("output"), &output_path)?, &output_path, reader)?;
        finish_item(fields, reader)?;
        self.messages.push(json!({"role": "tool", "tool_call_id": id, "content": output}));
        Ok(())
    }

    fn push_reasoning(&mut self, item: Value, path: &str, reader: &mut Reader) -> Result<(), ApiError> {
        let mut fields = reader.open_returned(item, path, &[REASONING_FIELDS])?;
        let (content_path, carried_path) = (fields.full_name("content"), fields.full_name("encrypted_content"));
        let carried = fields.string("encrypted_content")?.filter(|carried| !carried.is_empty());
        let content = fields.value("content");
        finish_item(fields, reader)?;
        let content = content.map(|content| read_text(content, &content_path, reader)).transpose()?;
        let carried = carried.map(|carried| {
            read_carried(&carried).ok_or_else(|| invalid(&carried_path, "was not written by this server"))
        });
        // Some clients hand back an empty `content` beside it.
        let content = match (carried.transpose()?, content) {
            (Some(carried), Some(content)) if !content.is_empty() && content != carried => {
                return Err(invalid(
                    &content_path,
                    "says something else than `encrypted_content`; leave one of them out",
                ));
            }
            (Some(content), _) | (None, Some(content)) => content,
            (None, None) => return Ok(()),
        };
        self.messages.push(json!({"role": "assistant", "reasoning_content": content}));
        Ok(())
    }

    fn open_assistant(&mut self) -> Option<&mut Map<String, Value>> {
        let last = self.messages.last_mut()?.as_object_mut()?;
        (last["role"] == "assistant" && !last.contains_key("tool_calls")).then_some(last)
    }

    /// The assistant's turn that is going on, or a new one.
    fn assistant_turn(&mut self) -> &mut Map<String, Value> {
        if !self.messages.last().is_some_and(|last| last["role"] == "assistant") {
            self.messages.push(json!({"role": "assistant"}));
        }
        let last = self.messages.last_mut().and_then(Value::as_object_mut);
        last.expect("an assistant's message was just seen or pushed, and messages are objects")
    }
}

/// What an item carries of the answer that it comes from says nothing to the model, and is of its type all the same.
fn finish_item(mut fields: Fields, reader: &mut Reader) -> Result<(), ApiError> {
    for name in ["type", "id", "status", "phase"] {
        fields.string(name)?;
    }
    reader.finish(fields)
}

/// A text, or parts of text as lines, as the chat joins them.
fn read_text(value: Value, path: &str, reader: &mut Reader) -> Result<String, ApiError> {
    let parts = match value {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => return Err(wrong_type(path, "a string or an array of content parts", &other)),
    };
    let texts = parts.into_iter().enumerate().map(|(index, part)| {
        let path = format!("{path}[{index}]");
        let holds = match part["type"].as_str() {
            Some("input_text" | "output_text" | "text" | "reasoning_text") | None => "text",
            Some("refusal") => "refusal",
            Some(_) => return Err(unsupported(&format!("{path}.type"), "only text is supported by this server")),
        };
        let mut fields = reader.open_returned(part, &path, &[PART_FIELDS])?;
        required(fields.string("type")?, &fields.full_name("type"))?;
        let text = required(fields.string(holds)?, &fields.full_name(holds))?;
        _ = fields.value("parsed");
        for name in ["annotations", "logprobs"] {
            fields.array(name)?;
        }
        reader.finish(fields)?;
        Ok(text)
    });
    Ok(texts.collect::<Result<Vec<_>, _>>()?.join("\n"))
}
