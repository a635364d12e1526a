//! A file behind what was written, so that a setting of it that is refused later is told with its line.

use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::line_and_column;
use super::models::default_name;
use super::{ConfigError, ModelConfig, Written, WrittenModel};

#[derive(Debug, Clone, PartialEq)]
pub struct WrittenFile {
    path: PathBuf,
    text: String,
    /// It alone.
    written: Written,
}

impl WrittenFile {
    pub(super) fn new(path: &Path, text: String, written: &Written) -> Self {
        Self { path: path.into(), text, written: written.clone() }
    }

    /// It alone, with nothing laid over it.
    pub fn written(&self) -> &Written {
        &self.written
    }

    /// `error` with the place of its setting, if `check` refuses the file alone in the same words: otherwise the command line,
    /// which was laid over it, is at fault too.
    pub(super) fn blamed(&self, error: ConfigError, check: impl FnOnce(Written) -> Option<ConfigError>) -> ConfigError {
        let problem = error.to_string();
        let is_of_file = check(self.written.clone()).is_some_and(|alone| alone.to_string() == problem);
        if is_of_file { self.located(error) } else { error }
    }

    /// `error` with the place of its setting, which no command line states.
    pub(super) fn located(&self, error: ConfigError) -> ConfigError {
        let ConfigError::Value { key, .. } = &error else { return error };
        match start_of(&self.text, key) {
            Some(start) => ConfigError::in_file(&self.path, &self.text, start, error.to_string()),
            None => error,
        }
    }

    /// Where the source of a model stands, as `FILE:LINE:COLUMN`; `None` where the file names no such model.
    pub(super) fn place_of_source(&self, model: &ModelConfig) -> Option<String> {
        let is_it = |written: &WrittenModel| {
            let name = written.name.as_deref().unwrap_or_else(|| default_name(&written.source));
            written.source == model.source && name == model.name
        };
        let number = self.written.models.as_ref()?.iter().position(is_it)?;
        let start = start_of(&self.text, &format!("models[{number}].source"))?;
        let (line, column) = line_and_column(&self.text, start);
        Some(format!("{}:{line}:{column}", self.path.display()))
    }
}

/// Where what an error calls `key` begins, such as `engine.threads (--threads)` or `partitions[1].device`: of one that is not
/// written, where the table begins in which it would be. `None` where the key does not say of which of several it is.
fn start_of(text: &str, key: &str) -> Option<usize> {
    let document = DeTable::parse(text).ok()?;
    let mut table = document.get_ref();
    let mut found = None;
    let mut rest = key.split(' ').next()?;
    while !rest.is_empty() {
        // A name in quotes may hold what else ends a step.
        let whole = table.contains_key(rest).then_some((rest, ""));
        let (step, behind) = whole.or_else(|| rest.split_once('.')).unwrap_or((rest, ""));
        rest = behind;
        let (name, place) = numbered(step);
        let Some((written, value)) = table.get_key_value(name) else { break };
        let start = written.span().start;
        let (start, value) = match (value.get_ref(), place) {
            (DeValue::Array(list), Some(place)) => {
                let item = list.get(place)?;
                (item.span().start, item.get_ref())
            }
            (DeValue::Array(list), None) if list.len() > 1 && list[0].get_ref().is_table() => return None,
            (DeValue::Array(list), None) => (start, list.first().map_or(value.get_ref(), Spanned::get_ref)),
            (value, _) => (start, value),
        };
        found = Some(start);
        let DeValue::Table(inner) = value else { break };
        table = inner;
    }
    found
}

/// `partitions[1]` is the name and 1.
fn numbered(step: &str) -> (&str, Option<usize>) {
    let numbered = step.strip_suffix(']').and_then(|step| step.split_once('['));
    numbered.map_or((step, None), |(name, place)| (name, place.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
[engine]
threads = 4
[server]
trust = [\"a\", \"b\"]
[[partitions]]
name = \"a\"
[[partitions]]
name = \"b\"
device = \"cpu\"
[[models]]
source = \"demo\"
[shadow]
aliases = { chat = { model = \"m\", share = 1.0 } }
[aliases]
\"gpt-4.1\" = { demo = 1 }
";

    #[test]
    fn the_place_of_a_setting_is_found_by_what_errors_call_it() {
        let line = |key: &str| start_of(TEXT, key).map(|start| TEXT[..start].matches('\n').count() + 1);
        for (key, expected) in [
            ("engine.threads (--threads)", 2),
            ("server.trust", 4),
            ("partitions[1].device", 9),
            ("partitions[0].name", 6),
            ("models.source of `demo`", 11),
            ("shadow.aliases", 13),
            ("aliases.gpt-4.1", 15),
            ("aliases.other", 14),
        ] {
            assert_eq!(line(key), Some(expected), "{key}");
        }
        assert_eq!((line("partitions[0].device"), line("engine.numa")), (Some(5), Some(1)), "what it is missing in");
        assert_eq!([line("partitions"), line("partitions[2].name"), line("HF_HOME")], [None; 3]);
        assert_eq!(start_of("[server]\ntrust = []\n", "server.trust"), Some(9));
    }
}
