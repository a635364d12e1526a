//! Reads a configuration file and says precisely what is wrong with it.

use std::mem;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::{ConfigError, DEMO, Listen, Written, WrittenFile, sections};
use crate::spelling::nearest;

/// Reads and parses `file`. Relative paths inside it are relative to its folder, so that a configuration means the same
/// wherever the command is started.
pub fn read(file: &Path) -> Result<Written, ConfigError> {
    let text = std::fs::read_to_string(file).map_err(|source| ConfigError::Read { file: file.into(), source })?;
    let mut written: Written = parse(file, &text)?;
    let folder = file.parent().unwrap_or(Path::new(""));
    let Written { server, engine, ledger, shadow, models, upstreams, .. } = &mut written;
    let paths = [
        &mut server.api_key_file,
        &mut server.data_dir,
        &mut server.models_dir,
        &mut server.tls_certificate,
        &mut server.tls_key,
        &mut ledger.tariff,
        &mut shadow.folder,
        &mut engine.device_list,
        &mut engine.chat_template,
    ];
    for path in paths.into_iter().flatten().chain(server.trust.iter_mut().flatten()) {
        *path = folder.join(&*path);
    }
    if let Some(Listen::Unix(path)) = &mut server.listen {
        *path = folder.join(&*path);
    }
    for upstream in upstreams.iter_mut().flatten() {
        upstream.key_file = upstream.key_file.take().map(|file| folder.join(file));
        let is_path = |source: &PathBuf| source.as_path() != Path::new(DEMO);
        if let Some(source) = upstream.tokenizer.as_mut().filter(|source| is_path(source)) {
            *source = folder.join(&*source);
        }
    }
    let beside = |source: String| beside(folder, &source);
    engine.tokenizer = engine.tokenizer.take().map(beside);
    for model in models.iter_mut().flatten() {
        model.source = beside(mem::take(&mut model.source));
        model.tokenizer = model.tokenizer.take().map(beside);
        model.chat_template = model.chat_template.take().map(|file| folder.join(file));
    }
    let behind = WrittenFile::new(file, text, &written);
    written.file = Some(Box::new(behind));
    Ok(written)
}

/// What `file` holds is `text`: any TOML that people write, with the errors of a configuration.
pub fn parse<T: DeserializeOwned>(file: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| syntax_error::<T>(file, text, &error))
}

/// `org/name` is a hub id as well as a path, so only `./` and `../` are taken as paths beside the file.
fn beside(folder: &Path, source: &str) -> String {
    let is_relative = source.starts_with("./") || source.starts_with("../");
    let path = if is_relative { folder.join(source) } else { PathBuf::from(source) };
    path.to_string_lossy().into_owned()
}

/// Of a file that `T` should be read from.
fn syntax_error<T: DeserializeOwned>(file: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let start = error.span().map_or(0, |span| span.start.min(text.len()));
    if let Some((start, problem)) = of_another_shape::<T>(error.message(), text.split_at(start)) {
        return ConfigError::in_file(file, text, start, problem);
    }
    let homes = |key: &str| sections::knowing::<T>(key);
    let problem = match key_before(&text[..start]) {
        Some(key) => format!("{key}: {}", explain(error.message(), &homes)),
        None => explain(error.message(), &homes),
    };
    ConfigError::in_file(file, text, start, problem)
}

/// That a table stands where there may be several, or several where there is one, and at which byte: serde names neither.
fn of_another_shape<T: DeserializeOwned>(message: &str, (before, rest): (&str, &str)) -> Option<(usize, String)> {
    let is_one_for_several = message.starts_with("invalid type: map, expected a sequence");
    let (above, at) = (before.lines().rev().find_map(Header::of), Header::of(rest));
    match (key_before(before).map(Header::Table).or(at), at.or(above)) {
        (Some(Header::Table(name)), _) if is_one_for_several && sections::is_list::<T>(name) => {
            Some((before.len(), format!("`{name}` is a list: write [[{name}]] above each of them")))
        }
        (_, Some(Header::List(name))) if sections::is_table::<T>(name) => {
            let start = before.rfind(&format!("[[{name}]]")).unwrap_or(before.len());
            Some((start, format!("`{name}` is one table: write [{name}]")))
        }
        _ => None,
    }
}

/// What stands above settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Header<'a> {
    /// `[NAME]`
    Table(&'a str),
    /// `[[NAME]]`
    List(&'a str),
}

impl<'a> Header<'a> {
    /// Which one the text begins with.
    fn of(text: &'a str) -> Option<Self> {
        let inside = text.trim_start().strip_prefix('[')?;
        let (inside, is_list) = inside.strip_prefix('[').map_or((inside, false), |inside| (inside, true));
        let name = inside.split_once(']')?.0.trim();
        let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
        let header = if is_list { Self::List(name) } else { Self::Table(name) };
        (!name.is_empty() && name.bytes().all(is_bare)).then_some(header)
    }
}

/// The key whose value begins behind `text`, on the same line, also inside braces; serde names the value alone.
fn key_before(text: &str) -> Option<&str> {
    let line = text.rsplit('\n').next()?;
    let keys = line.trim_end().strip_suffix('=')?.trim_end();
    let is_between = |character: char| character.is_whitespace() || matches!(character, '{' | '[' | ',');
    keys.rsplit(is_between).next().filter(|key| !key.is_empty())
}

/// What serde says, in words of those who write configurations.
fn explain(message: &str, homes: &dyn Fn(&str) -> Vec<String>) -> String {
    let message = message.trim().replace('\n', ": ");
    if message.starts_with("unknown ") {
        return with_what_was_meant(message, homes);
    }
    match message.rsplit_once(", expected ") {
        Some((found, expected)) => format!("{found}, expected {}", in_words(expected)),
        // Of a setting that has names for values, serde names none where something else stands there.
        None if message == "wanted string or table" => "expected one of its names, in quotes".to_owned(),
        None => message,
    }
}

/// Messages of an unknown field or variant list what would have been right; the nearest of these is what was probably meant, or
/// else the same key under another header.
fn with_what_was_meant(message: String, homes: &dyn Fn(&str) -> Vec<String>) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let Some(wrong) = quoted.next() else { return message };
    let homes = if message.starts_with("unknown field") { homes(wrong) } else { Vec::new() };
    let elsewhere = (!homes.is_empty()).then(|| format!("`{wrong}` stands under {}", homes.join(" or ")));
    match (nearest(wrong, quoted), elsewhere) {
        (Some(known), Some(elsewhere)) => format!("{message}; did you mean `{known}`? {elsewhere}"),
        (Some(known), None) => format!("{message}; did you mean `{known}`?"),
        (None, Some(elsewhere)) => format!("{message}; {elsewhere}"),
        (None, None) => message,
    }
}

/// Serde names types as Rust does.
fn in_words(expected: &str) -> &str {
    match expected {
        "a nonzero usize" | "a nonzero u32" | "a nonzero u64" => "a whole number above 0",
        "usize" | "u16" | "u32" | "u64" => "a whole number",
        "f64" => "a number",
        "a sequence" => "a list, written `[\"A\", \"B\"]`; of tables it is written `[[NAME]]`",
        "a string" => "a text, in quotes",
        _ if expected == "a map" || expected.starts_with("struct ") => "a table, written `{ NAME = VALUE }`",
        other => other,
    }
}
