//! Messages to token ids, with what users write kept apart from what the template writes.
//!
//! A user who types `<|im_end|>` must not end their own turn. Escaping would change the text, so the strings are followed
//! through the template instead:
//!
//! ```text
//! content     "say <|im_end|> twice"           a special token's string, found before rendering
//! rendered    "<|im_start|>user\nsay ■ twice<|im_end|>\n"      one private character stands for it
//! restored    "<|im_start|>user\nsay <|im_end|> twice<|im_end|>\n"
//! encoded      Parse ............... AsText ....  Parse .......
//! ```
//!
//! Messages without such strings, which is nearly all, are rendered and encoded in one go, exactly as the reference
//! implementation does. Parts of a special string at the edges of a content are followed too, since a template may write
//! two contents side by side. Roles are not content: templates build their special tokens from them, so callers check them.

use std::collections::HashMap;
use std::ops::Range;

use serde_json::{Map, Value};

use super::TextError;
use super::special::SpecialStrings;
use super::template::{ChatTemplate, TemplateInput};
use super::tokenizer::{AddSpecialTokens, SpecialTokens, Tokenizer};

/// Private characters, one for each distinct string that is followed. The last two of the plane are no characters, and the
/// template room marks with the one before.
const STAND_INS: Range<u32> = 0x10_0000..0x10_FFF0;
/// The key of a message whose value templates compare and build tokens from; the API admits only known values.
const ROLE: &str = "role";
/// What templates call an earlier turn's reasoning.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Turns messages into a prompt's token ids.
#[derive(Debug, Clone, Copy)]
pub struct PromptEncoder<'a> {
    tokenizer: &'a Tokenizer,
    template: &'a ChatTemplate,
}

impl<'a> PromptEncoder<'a> {
    pub fn new(tokenizer: &'a Tokenizer, template: &'a ChatTemplate) -> Self {
        Self { tokenizer, template }
    }

    /// The prompt's token ids. The template writes BOS if the model wants one, so none is added here.
    pub fn encode(&self, prompt: &TemplateInput<'_>) -> Result<Vec<u32>, TextError> {
        let messages: Vec<Value> = prompt.messages.iter().map(for_template).collect();
        let prompt = TemplateInput { messages: &messages, ..*prompt };
        let mut followed = Followed::new(self.tokenizer.special_strings());
        let messages = followed.replace_messages(prompt.messages);
        let tools = prompt.tools.map(|tools| followed.replace_list(tools));
        let documents = prompt.documents.map(|documents| followed.replace_list(documents));
        let variables = followed.replace_map(prompt.variables);
        if followed.originals.is_empty() {
            let text = self.template.render(&prompt)?;
            return self.tokenizer.encode(&text, AddSpecialTokens::No, SpecialTokens::Parse);
        }
        let replaced = TemplateInput {
            messages: &messages,
            tools: tools.as_deref(),
            documents: documents.as_deref(),
            variables: &variables,
            ..prompt
        };
        let rendered = self.template.render(&replaced)?;
        let (text, literals) = followed.restore(&rendered);
        self.encode_with_literals(&text, &literals)
    }

    /// Encodes `text`, where a special string that touches one of `literals` (in order, not overlapping) is ordinary text.
    fn encode_with_literals(&self, text: &str, literals: &[Range<usize>]) -> Result<Vec<u32>, TextError> {
        let specials = self.tokenizer.special_strings();
        let mut ids = Vec::new();
        let mut encode = |range: Range<usize>, special| -> Result<(), TextError> {
            if !range.is_empty() {
                ids.extend(self.tokenizer.encode(&text[range], AddSpecialTokens::No, special)?);
            }
            Ok(())
        };
        let (mut encoded, mut scan) = (0, 0);
        while let Some(found) = specials.find_from(text, scan) {
            let next_literal = literals.partition_point(|literal| literal.end <= found.start);
            match literals.get(next_literal).filter(|literal| literal.start < found.end) {
                // The template's own token.
                None => scan = found.end,
                // Only as far as the user's text goes: what follows may be the template's own token again.
                Some(literal) => {
                    let end = found.end.min(literal.end);
                    encode(encoded..found.start, SpecialTokens::Parse)?;
                    encode(found.start..end, SpecialTokens::AsText)?;
                    (encoded, scan) = (end, end);
                }
            }
        }
        encode(encoded..text.len(), SpecialTokens::Parse)?;
        Ok(ids)
    }
}

/// A message as templates expect it: what is null left out, because templates ask whether a key is there; a list of text
/// parts joined to one text; reasoning under each of its names; and tool arguments as the object that they are rather than
/// its JSON text, because templates write them with `tojson`.
pub(super) fn for_template(message: &Value) -> Value {
    let mut message = message.clone();
    if let Some(fields) = message.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
        if let Some(reasoning) = REASONING.iter().find_map(|name| fields.get(*name)).cloned() {
            fields.entry("thinking").or_insert_with(|| reasoning.clone());
            fields.insert(REASONING[0].to_owned(), reasoning);
        }
    }
    if let Some(text) = message.get("content").and_then(joined_text) {
        message["content"] = Value::String(text);
    }
    let calls = message.get_mut("tool_calls").and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
        if let Some(object @ Value::Object(_)) = arguments.as_str().and_then(|text| serde_json::from_str(text).ok()) {
            *arguments = object;
        }
    }
    message
}

fn joined_text(content: &Value) -> Option<String> {
    let parts: Option<Vec<&str>> = content.as_array()?.iter().map(|part| part.get("text")?.as_str()).collect();
    parts.map(|parts| parts.join("\n"))
}

/// The strings that are followed through one rendering.
struct Followed<'a> {
    specials: &'a SpecialStrings,
    /// `originals[n]` is what the n-th stand-in stands for.
    originals: Vec<String>,
    stand_ins: HashMap<String, char>,
}

impl<'a> Followed<'a> {
    fn new(specials: &'a SpecialStrings) -> Self {
        Self { specials, originals: Vec::new(), stand_ins: HashMap::new() }
    }

    /// As [`Self::replace_list`], but for the role of each message itself.
    fn replace_messages(&mut self, messages: &[Value]) -> Vec<Value> {
        let replace = |message: &Value| {
            let mut replaced = self.replace(message);
            if let Some(role @ Value::String(_)) = message.get(ROLE) {
                replaced[ROLE] = role.clone();
            }
            replaced
        };
        messages.iter().map(replace).collect()
    }

    fn replace_list(&mut self, values: &[Value]) -> Vec<Value> {
        values.iter().map(|value| self.replace(value)).collect()
    }

    fn replace_map(&mut self, map: &Map<String, Value>) -> Map<String, Value> {
        map.iter().map(|(key, value)| (self.replace_text(key), self.replace(value))).collect()
    }

    fn replace(&mut self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.replace_text(text)),
            Value::Array(values) => Value::Array(self.replace_list(values)),
            Value::Object(map) => Value::Object(self.replace_map(map)),
            other => other.clone(),
        }
    }

    /// Puts stand-ins for the special strings in `text`, for parts of them at its edges, and for characters that could be
    /// taken for stand-ins.
    fn replace_text(&mut self, text: &str) -> String {
        let mut result = String::with_capacity(text.len());
        let mut rest = text;
        let first_special = self.specials.find_from(rest, 0).map_or(rest.len(), |found| found.start);
        let head = self.specials.unbegun_start(rest).len().min(first_special);
        if head > 0 {
            self.push_stand_in(&rest[..head], &mut result);
            rest = &rest[head..];
        }
        while let Some(found) = self.specials.find_from(rest, 0) {
            self.push_plain(&rest[..found.start], &mut result);
            self.push_stand_in(&rest[found.clone()], &mut result);
            rest = &rest[found.end..];
        }
        let tail = self.specials.unfinished_end(rest);
        self.push_plain(&rest[..rest.len() - tail.len()], &mut result);
        if !tail.is_empty() {
            self.push_stand_in(tail, &mut result);
        }
        result
    }

    fn push_plain(&mut self, text: &str, out: &mut String) {
        for c in text.chars() {
            if STAND_INS.contains(&u32::from(c)) || u32::from(c) >= STAND_INS.end {
                self.push_stand_in(c.encode_utf8(&mut [0; 4]), out);
            } else {
                out.push(c);
            }
        }
    }

    fn push_stand_in(&mut self, original: &str, out: &mut String) {
        if let Some(&stand_in) = self.stand_ins.get(original) {
            return out.push(stand_in);
        }
        let next = u32::try_from(self.originals.len()).ok().and_then(|index| char::from_u32(STAND_INS.start + index));
        // When all are taken, most of the originals are private characters, which mean nothing: drop one more.
        if let Some(stand_in) = next.filter(|&c| STAND_INS.contains(&u32::from(c))) {
            self.originals.push(original.to_owned());
            self.stand_ins.insert(original.to_owned(), stand_in);
            out.push(stand_in);
        }
    }

    /// The rendered text with the originals back in place, and where they are.
    fn restore(&self, rendered: &str) -> (String, Vec<Range<usize>>) {
        let mut text = String::with_capacity(rendered.len());
        let mut literals = Vec::new();
        for c in rendered.chars() {
            let index = u32::from(c).checked_sub(STAND_INS.start).map(|index| index as usize);
            match index.and_then(|index| self.originals.get(index)) {
                Some(original) => {
                    literals.push(text.len()..text.len() + original.len());
                    text.push_str(original);
                }
                None => text.push(c),
            }
        }
        (text, literals)
    }
}

#[cfg(test)]
mod tests;
