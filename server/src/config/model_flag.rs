use std::str::FromStr;

/// `--model`: `SOURCE` or `NAME=SOURCE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFlag {
    pub name: Option<String>,
    pub source: String,
}

impl FromStr for ModelFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // `=` may be part of a path, but no name starts like one.
        let is_path = text.starts_with(['.', '/']);
        let (name, source) = match text.split_once('=') {
            Some((name, source)) if !is_path => (Some(name.to_owned()), source),
            _ => (None, text),
        };
        if source.is_empty() || name.as_deref() == Some("") {
            return Err("write SOURCE or NAME=SOURCE".into());
        }
        Ok(Self { name, source: source.to_owned() })
    }
}
