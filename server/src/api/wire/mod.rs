//! OpenAI's types on the wire: requests read strictly, answers written exactly.

pub(crate) mod answer;
mod carried_reasoning;
pub(crate) mod chat;
pub(crate) mod chat_answer;
pub(crate) mod choices;
pub(crate) mod compare;
pub(crate) mod completion_answer;
pub(crate) mod completions;
pub(crate) mod embeddings;
pub(crate) mod forward;
pub(crate) mod messages;
pub(crate) mod prompt_scores;
pub(crate) mod relayed;
pub(crate) mod request;
pub(crate) mod response_answer;
pub(crate) mod response_items;
pub(crate) mod responses;
pub(crate) mod sampling;
pub(crate) mod scores;
mod strict_json;
pub(crate) mod structure;
pub(crate) mod texts;
pub(crate) mod tier;
pub(crate) mod tools;
pub(crate) mod usage;

pub(crate) use strict_json::parse_json;

#[cfg(test)]
mod tests;
