//! A data set: one JSON object a line, each a document, a prompt with a reference, or a multiple-choice item.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::hex::hex;

/// Choices of one item.
pub const MAX_CHOICES: usize = 64;

/// Items in the order of the file. No two have the same id.
#[derive(Debug, Clone)]
pub struct DataSet {
    pub items: Vec<Item>,
    /// SHA-256 of the items, in hexadecimal: two files with the same items have the same one.
    pub digest: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// As written, or else the number of its line.
    pub id: String,
    pub task: Task,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// How likely is each of its tokens?
    Document { text: String },
    /// How likely is the reference, and is it what the model would answer?
    Prompt { prompt: String, reference: String },
    /// Which continuation is the likeliest? `answer` counts from 0.
    Choice { prompt: String, choices: Vec<String>, answer: usize },
}

/// A line that is no item. Lines count from 1.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DataError {
    #[error("line {line}: {problem}")]
    Line { line: usize, problem: String },
    #[error("holds no item")]
    Empty,
}

/// A line as it may be written. A field that is not here is refused by name.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    id: Option<Value>,
    text: Option<String>,
    prompt: Option<String>,
    reference: Option<String>,
    choices: Option<Vec<String>>,
    answer: Option<usize>,
}

impl DataSet {
    /// Blank lines are passed over.
    pub fn parse(text: &str) -> Result<Self, DataError> {
        let mut items = Vec::new();
        let mut ids = HashSet::new();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let at = |problem: String| DataError::Line { line: index + 1, problem };
            let written = Written::of(line).map_err(at)?;
            let item = written.item(index + 1).map_err(at)?;
            if !ids.insert(item.id.clone()) {
                return Err(at(format!("a second item with the id {:?}", item.id)));
            }
            items.push(item);
        }
        if items.is_empty() {
            return Err(DataError::Empty);
        }
        let digest = digest(&items);
        Ok(Self { items, digest })
    }
}

/// Serde's words, without its own count of lines, which begins anew with each of ours.
fn of_one_line(error: &serde_json::Error) -> String {
    error.to_string().replace(&format!(" at line {} column", error.line()), " at column")
}

/// What serde says of a field, in words of those who write items.
fn in_words(field: &str, error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(", expected ") {
        Some((found, "usize")) => format!("`{field}`: {found}, expected a whole number"),
        Some((found, "a sequence")) => format!("`{field}`: {found}, expected a list"),
        Some((found, "a string")) => format!("`{field}`: {found}, expected a text"),
        _ if text.starts_with("unknown field") => text,
        _ => format!("`{field}`: {text}"),
    }
}

impl Written {
    fn of(line: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(line).map_err(|error| of_one_line(&error))?;
        let Value::Object(fields) = value else { return Err("an item is a JSON object, in braces".to_owned()) };
        // One by one first, as serde does not say of which field it speaks.
        for (name, value) in &fields {
            let alone = Value::Object([(name.clone(), value.clone())].into_iter().collect());
            serde_json::from_value::<Self>(alone).map_err(|error| in_words(name, &error))?;
        }
        serde_json::from_str(line).map_err(|error| of_one_line(&error))
    }

    fn item(self, line: usize) -> Result<Item, String> {
        let id = match &self.id {
            None => line.to_string(),
            Some(Value::String(id)) if !id.is_empty() => id.clone(),
            Some(Value::Number(id)) => id.to_string(),
            Some(_) => return Err("`id` is a text or a number".to_owned()),
        };
        Ok(Item { id, task: self.task()? })
    }

    fn task(self) -> Result<Task, String> {
        const SHAPES: &str = "write {\"text\"}, {\"prompt\", \"reference\"} or {\"prompt\", \"choices\", \"answer\"}";
        match (self.text, self.prompt, self.reference, self.choices, self.answer) {
            (Some(text), None, None, None, None) => filled("text", text).map(|text| Task::Document { text }),
            (None, Some(prompt), Some(reference), None, None) => {
                let prompt = filled("prompt", prompt)?;
                Ok(Task::Prompt { prompt, reference: filled("reference", reference)? })
            }
            (None, Some(prompt), None, Some(choices), Some(answer)) => {
                let prompt = filled("prompt", prompt)?;
                if !(2..=MAX_CHOICES).contains(&choices.len()) {
                    return Err(format!("`choices` holds {}; 2 to {MAX_CHOICES} are allowed", choices.len()));
                }
                if answer >= choices.len() {
                    return Err(format!("`answer` is {answer}, and the {} choices count from 0", choices.len()));
                }
                let choices = choices.into_iter().map(|choice| filled("choices", choice)).collect::<Result<_, _>>()?;
                Ok(Task::Choice { prompt, choices, answer })
            }
            _ => Err(SHAPES.to_owned()),
        }
    }
}

fn filled(field: &str, text: String) -> Result<String, String> {
    if text.is_empty() { Err(format!("`{field}` is empty")) } else { Ok(text) }
}

fn digest(items: &[Item]) -> String {
    let mut hash = Sha256::new();
    for item in items {
        hash.update(serde_json::to_vec(item).expect("texts and numbers have a form in JSON"));
        hash.update(b"\n");
    }
    hex(&hash.finalize()[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_item_is_read_and_named_by_its_line_or_its_id() {
        let text = "{\"text\": \"a\"}\n\n{\"id\": 7, \"prompt\": \"b\", \"reference\": \"c\"}\n\
                    {\"id\": \"x\", \"prompt\": \"d\", \"choices\": [\"e\", \"f\"], \"answer\": 1}\n";
        let data = DataSet::parse(text).unwrap();
        let ids: Vec<_> = data.items.iter().map(|item| item.id.as_str()).collect();
        assert_eq!(ids, ["1", "7", "x"]);
        assert_eq!(data.items[0].task, Task::Document { text: "a".into() });
        assert_eq!(data.items[1].task, Task::Prompt { prompt: "b".into(), reference: "c".into() });
        let choices = vec!["e".to_owned(), "f".to_owned()];
        assert_eq!(data.items[2].task, Task::Choice { prompt: "d".into(), choices, answer: 1 });
    }

    #[test]
    fn the_digest_is_of_the_items_and_not_of_how_they_are_written() {
        let digest = |text: &str| DataSet::parse(text).unwrap().digest;
        assert_eq!(digest("{\"id\":1,\"text\":\"a\"}"), digest("\n{ \"text\": \"a\", \"id\": \"1\" }\n"));
        assert_ne!(digest("{\"id\":1,\"text\":\"a\"}"), digest("{\"id\":1,\"text\":\"b\"}"));
    }

    #[test]
    fn a_line_that_is_no_item_is_refused_by_its_number_and_its_field() {
        for (line, wanted) in [
            ("{\"txt\": \"a\"}", "txt"),
            ("{\"text\": \"\"}", "`text` is empty"),
            ("{\"prompt\": \"a\"}", "\"reference\""),
            ("{\"text\": \"a\", \"prompt\": \"b\"}", "write"),
            ("{\"prompt\": \"a\", \"choices\": [\"b\"], \"answer\": 0}", "`choices` holds 1"),
            ("{\"prompt\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": 2}", "`answer` is 2"),
            ("{\"id\": [], \"text\": \"a\"}", "`id`"),
            ("{\"id\": \"1\", \"text\": \"a\"}", "a second item"),
            ("{\"text\": 5}", "`text`: invalid type: integer `5`, expected a text"),
            ("{\"prompt\": \"a\", \"choices\": \"b\", \"answer\": 0}", "`choices`: invalid type"),
            ("{\"prompt\": \"a\", \"choices\": [\"b\", \"c\"], \"answer\": \"c\"}", "expected a whole number"),
            ("[]", "a JSON object"),
            ("nonsense", "expected"),
        ] {
            let error = DataSet::parse(&format!("{{\"text\": \"first\"}}\n{line}")).unwrap_err().to_string();
            assert!(error.starts_with("line 2: ") && error.contains(wanted), "{line}: {error}");
        }
        assert_eq!(DataSet::parse("\n").unwrap_err(), DataError::Empty);
    }
}
