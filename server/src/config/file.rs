//! Reads a configuration file and says precisely what is wrong with it.

use std::mem;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::{ConfigError, DEMO, Listen, Written, sections};
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
    Ok(written)
}

/// What `file` holds is `text`: any TOML that people write, with the errors of a configuration.
pub fn parse<T: DeserializeOwned>(file: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let homes = |key: &str| sections::knowing::<T>(key);
        syntax_error(file, text, &error, &homes)
    })
}

/// `org/name` is a hub id as well as a path, so only `./` and `../` are taken as paths beside the file.
fn beside(folder: &Path, source: &str) -> String {
    let is_relative = source.starts_with("./") || source.starts_with("../");
    let path = if is_relative { folder.join(source) } else { PathBuf::from(source) };
    path.to_string_lossy().into_owned()
}

/// `homes`: the headers under which a key is known.
fn syntax_error(file: &Path, text: &str, error: &toml::de::Error, homes: &dyn Fn(&str) -> Vec<String>) -> ConfigError {
    let start = error.span().map_or(0, |span| span.start.min(text.len()));
    let before = &text[..start];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let problem = match key_before(&before[line_start..]) {
        Some(key) => format!("{key}: {}", explain(error.message(), homes)),
        None => explain(error.message(), homes),
    };
    ConfigError::Syntax {
        file: file.into(),
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
        problem,
    }
}

/// The key whose value begins behind `line`, also inside braces; serde names the value alone.
fn key_before(line: &str) -> Option<&str> {
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
        "a map" => "a table, written `{ NAME = VALUE }`",
        "socket address" => "an address, like \"127.0.0.1:9443\"",
        other => other,
    }
}
