//! Prompts that people wrote: a file of JSON, one object a line, or all of them in one array.
//!
//! ```json
//! {"prompt": "Why is the sky blue?", "output_tokens": 80}
//! {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}]}
//! {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Good day."}]}
//! ```
//!
//! The last form is that of ShareGPT's collections. A conversation is asked up to its first answer; that answer then says how
//! long the answers are that are wanted, where nothing else does. Other fields are passed over.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::rng::Rng;

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// At least one, and none of them an answer.
    pub messages: Vec<Value>,
    /// What the file has for an answer.
    pub answer: Option<String>,
    pub output_tokens: Option<u32>,
}

/// Entries in an order that is chance: all of them before one comes again.
#[derive(Debug, Default)]
pub struct Deck {
    /// `None` where one was discarded.
    entries: Vec<Option<Entry>>,
    left: Vec<usize>,
}

#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    #[error("{path}: {source}")]
    Unreadable { path: String, source: std::io::Error },
    #[error("entry {entry}: {what}")]
    Malformed { entry: usize, what: String },
    #[error("it is no array of JSON objects: {0}")]
    NoArray(serde_json::Error),
    #[error("it holds nothing that can be asked")]
    Empty,
    #[error("none of its prompts has at most {0} tokens")]
    AllTooLong(u32),
    #[error(
        "a prompt has neither `output_tokens` nor an answer of at least one token: give --output-tokens, or the scenario `output_tokens`"
    )]
    NoLength,
}

#[derive(Deserialize)]
struct Written {
    prompt: Option<String>,
    messages: Option<Vec<Value>>,
    conversations: Option<Vec<Said>>,
    output_tokens: Option<u32>,
}

/// As ShareGPT has it.
#[derive(Deserialize)]
struct Said {
    from: String,
    value: String,
}

/// At least one entry.
pub fn read(path: &Path) -> Result<Vec<Entry>, DatasetError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| DatasetError::Unreadable { path: path.display().to_string(), source })?;
    parse(&text)
}

/// At least one entry, in the order of `text`. Conversations that nobody began are left out: ShareGPT's collections have
/// some.
pub fn parse(text: &str) -> Result<Vec<Entry>, DatasetError> {
    let mut entries = Vec::new();
    for (index, written) in objects(text)?.into_iter().enumerate() {
        let malformed = |what| DatasetError::Malformed { entry: index + 1, what };
        let written: Written = written.map_err(|error| malformed(error.to_string()))?;
        entries.extend(written.entry().map_err(malformed)?);
    }
    if entries.is_empty() { Err(DatasetError::Empty) } else { Ok(entries) }
}

fn objects(text: &str) -> Result<Vec<Result<Written, serde_json::Error>>, DatasetError> {
    if text.trim_start().starts_with('[') {
        let all: Vec<Value> = serde_json::from_str(text).map_err(DatasetError::NoArray)?;
        return Ok(all.into_iter().map(serde_json::from_value).collect());
    }
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    Ok(lines.map(serde_json::from_str).collect())
}

impl Written {
    /// `None` where there is no question before the first answer.
    fn entry(self) -> Result<Option<Entry>, String> {
        let mut messages = match (self.prompt, self.messages, self.conversations) {
            (Some(prompt), None, None) => vec![json!({"role": "user", "content": prompt})],
            (None, Some(messages), None) => messages,
            (None, None, Some(said)) => said.into_iter().map(Said::message).collect(),
            _ => return Err("needs one of `prompt`, `messages` and `conversations`".to_owned()),
        };
        if self.output_tokens == Some(0) {
            return Err("`output_tokens` must be at least 1".to_owned());
        }
        let asked = messages.iter().position(|message| message["role"] == "assistant").unwrap_or(messages.len());
        let answer = messages.get(asked).map(|message| text_of(&message["content"]));
        messages.truncate(asked);
        let is_asked = messages.iter().any(|message| message["role"] == "user" && !message["content"].is_null());
        Ok(is_asked.then_some(Entry { messages, answer, output_tokens: self.output_tokens }))
    }
}

impl Said {
    fn message(self) -> Value {
        let role = match self.from.as_str() {
            "gpt" | "chatgpt" | "bard" | "bing" | "assistant" => "assistant",
            "system" => "system",
            _ => "user",
        };
        json!({"role": role, "content": self.value})
    }
}

impl Entry {
    /// All that its messages say.
    pub fn text(&self) -> String {
        self.messages.iter().map(|message| text_of(&message["content"])).collect::<Vec<String>>().join("\n")
    }
}

/// A text, or parts of which some have one.
fn text_of(content: &Value) -> String {
    match content {
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        content => content.as_str().unwrap_or_default().to_owned(),
    }
}

impl Deck {
    pub fn new(entries: Vec<Entry>) -> Self {
        Self { entries: entries.into_iter().map(Some).collect(), left: Vec::new() }
    }

    /// The next one and its number; `None` where all were discarded.
    pub fn draw(&mut self, rng: &mut Rng) -> Option<(usize, Entry)> {
        if self.left.is_empty() {
            self.left = (0..self.entries.len()).filter(|number| self.entries[*number].is_some()).collect();
        }
        if self.left.is_empty() {
            return None;
        }
        let number = self.left.swap_remove(rng.below(self.left.len()));
        self.entries[number].clone().map(|entry| (number, entry))
    }

    /// The one of this number does not come again.
    pub fn discard(&mut self, number: usize) {
        self.entries[number] = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_comes_once_before_any_comes_again_and_the_seed_says_in_which_order() {
        let entries = parse("{\"prompt\": \"a\"}\n{\"prompt\": \"b\"}\n{\"prompt\": \"c\"}").unwrap();
        let drawn = |seed: u64, count: usize| {
            let (mut deck, mut rng) = (Deck::new(entries.clone()), Rng::new(seed));
            (0..count).filter_map(|_| deck.draw(&mut rng)).map(|(_, entry)| entry.text()).collect::<Vec<_>>()
        };
        let six = drawn(1, 6);
        for three in six.chunks(3) {
            let mut sorted = three.to_vec();
            sorted.sort();
            assert_eq!(sorted, ["a", "b", "c"]);
        }
        assert_eq!(six, drawn(1, 6));
        assert!((2..20).any(|seed| drawn(seed, 6) != six));
        let (mut deck, mut rng) = (Deck::new(entries.clone()), Rng::new(1));
        (0..3).for_each(|number| deck.discard(number));
        assert_eq!(deck.draw(&mut rng), None);
    }

    #[test]
    fn every_form_is_read_up_to_its_first_answer() {
        let lines = [
            r#"{"prompt": "Why?", "output_tokens": 80, "id": 7}"#,
            r#"{"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": [{"text": "Hello"}]},
                {"role": "assistant", "content": "Good day."}, {"role": "user", "content": "And then?"}]}"#,
            r#"{"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Good day."}]}"#,
            r#"{"conversations": [{"from": "gpt", "value": "I begin."}]}"#,
        ]
        .map(|line| line.replace('\n', " "));
        let entries = parse(&lines.join("\n\n")).unwrap();
        assert_eq!(entries.len(), 3, "nobody asked in the last one");
        assert_eq!((entries[0].text().as_str(), entries[0].output_tokens), ("Why?", Some(80)));
        assert_eq!((entries[1].text().as_str(), entries[1].answer.as_deref()), ("Be short.\nHello", Some("Good day.")));
        assert_eq!(entries[2].messages, [json!({"role": "user", "content": "Hello"})]);
        assert_eq!(parse(&format!("[{}]", lines.join(","))).unwrap(), entries);
    }

    #[test]
    fn what_cannot_be_asked_is_named() {
        for (wrong, what) in [
            ("{\"prompt\": \"a\"}\n{\"prompt\": 7}", "entry 2"),
            ("{\"prompt\": \"a\", \"messages\": []}", "needs one of"),
            ("{\"text\": \"a\"}", "needs one of"),
            ("{\"prompt\": \"a\", \"output_tokens\": 0}", "at least 1"),
            ("[{\"prompt\": \"a\"}", "no array"),
            ("\n", "holds nothing"),
        ] {
            let error = parse(wrong).unwrap_err().to_string();
            assert!(error.contains(what), "{wrong}: {error}");
        }
    }
}
