//! What a message says: a text, or a list of parts with texts.

use std::fmt;

use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, de};

/// All texts of a message, one after the other; empty for `null`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Content(pub(super) String);

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

/// A visitor and not an untagged enum, which would copy every event before it is read.
struct ContentVisitor;

#[derive(Deserialize)]
struct Part {
    #[serde(default)]
    text: Option<String>,
}

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a text, a list of parts, or null")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Content, E> {
        Ok(Content(text.to_owned()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Content, E> {
        Ok(Content(text))
    }

    fn visit_unit<E: de::Error>(self) -> Result<Content, E> {
        Ok(Content::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Content, A::Error> {
        let mut all = String::new();
        while let Some(part) = parts.next_element::<Part>()? {
            all.push_str(part.text.as_deref().unwrap_or_default());
        }
        Ok(Content(all))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_and_a_list_of_parts_say_the_same() {
        let read = |json: &str| serde_json::from_str::<Content>(json).map(|content| content.0);
        assert_eq!(read(r#""two words""#).unwrap(), "two words");
        assert_eq!(read(r#"[{"type":"text","text":"two "},{"type":"image"},{"text":"words"}]"#).unwrap(), "two words");
        assert_eq!(read("null").unwrap(), "");
        assert!(read("7").is_err());
    }
}
