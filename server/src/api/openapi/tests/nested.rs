//! The readers' tables of the objects inside bodies, by where they stand: a dot leads into an object, `[]` into every entry of a
//! list, and `[name]` into those of that type.

use crate::api::fields::{Field, honoured};
use crate::api::wire::{messages, response_items, responses, sampling, structure, tools};

pub(super) type Nested = (&'static str, &'static [Field]);

pub(super) fn inside(door: &str) -> Vec<Nested> {
    match door {
        "chat" => [CHAT, ANSWERS].concat(),
        "completions" => ANSWERS.to_vec(),
        "responses" => RESPONSES.to_vec(),
        _ => Vec::new(),
    }
}

const ANSWERS: &[Nested] = &[
    ("response_format", structure::FORMAT_FIELDS),
    ("response_format.json_schema", structure::JSON_SCHEMA_FIELDS),
    ("stream_options", sampling::STREAM_OPTIONS),
    ("structured_outputs", structure::STRUCTURED_FIELDS),
];

const CHAT: &[Nested] = &[
    ("messages[]", messages::MESSAGE_FIELDS),
    ("messages[].content[]", messages::PART_FIELDS),
    ("messages[].tool_calls[]", messages::CALL_FIELDS),
    ("messages[].tool_calls[].function", messages::FUNCTION_FIELDS),
    ("tool_choice", tools::TOOL_FIELDS),
    ("tool_choice.function", tools::NAMED_FIELDS),
    ("tools[]", tools::TOOL_FIELDS),
    ("tools[].function", tools::FUNCTION_FIELDS),
];

/// Rewritten before a table is asked.
const NAMED: &[Field] = &[honoured("name"), honoured("type")];
const KIND: &[Field] = &[honoured("type")];

const RESPONSES: &[Nested] = &[
    ("input[message]", response_items::MESSAGE_FIELDS),
    ("input[message].content[]", response_items::PART_FIELDS),
    ("input[function_call]", response_items::CALL_FIELDS),
    ("input[function_call_output]", response_items::OUTPUT_FIELDS),
    ("input[function_call_output].output[]", response_items::PART_FIELDS),
    ("input[reasoning]", response_items::REASONING_FIELDS),
    ("input[reasoning].content[]", response_items::PART_FIELDS),
    ("reasoning", responses::REASONING_FIELDS),
    ("stream_options", responses::STREAM_OPTIONS),
    ("text", responses::TEXT_FIELDS),
    ("text.format", KIND),
    ("text.format", structure::JSON_SCHEMA_FIELDS),
    ("tool_choice", NAMED),
    ("tools[]", responses::TOOL_FIELDS),
];
