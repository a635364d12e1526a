//! Rust sources as text: comments and strings blanked out, imports written in full, functions measured.

use std::path::Path;

/// A `.rs` file of the workspace.
pub(crate) struct Source {
    /// Relative to the root, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
    /// `text` with the insides of comments and literals blanked, line for line.
    code: String,
}

pub(crate) fn rust_sources(root: &Path) -> Vec<Source> {
    let read = |path: String| {
        let text = std::fs::read_to_string(root.join(&path)).expect("the tree is readable");
        Source { code: blank(&text), path, text }
    };
    let sources: Vec<_> = tracked_files(root, &["rs"]).into_iter().map(read).collect();
    assert!(sources.len() > 20, "the sources were not found");
    sources
}

/// Files with one of these extensions, relative to the root. Build outputs and dot folders are left out.
pub(crate) fn tracked_files(root: &Path, extensions: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("the tree is readable") {
            let path = entry.expect("the tree is readable").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() && !name.starts_with('.') && name != "target" {
                folders.push(path);
            } else if path.extension().is_some_and(|own| extensions.iter().any(|wanted| own == *wanted)) {
                let relative = path.strip_prefix(root).expect("found below the root");
                found.push(relative.to_string_lossy().replace('\\', "/"));
            }
        }
    }
    found.sort();
    found
}

impl Source {
    pub(crate) fn is_test(&self) -> bool {
        self.path.contains("/tests/") || self.path.ends_with("tests.rs") || self.path.contains("/benches/")
    }

    /// Numbered lines of code.
    pub(crate) fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    /// Numbered lines of tests: all of a file of tests, of others what follows the code.
    pub(crate) fn code_of_tests(&self) -> impl Iterator<Item = (usize, &str)> {
        let begins = if self.is_test() { Some(0) } else { self.code.find("#[cfg(test)]\nmod tests {") };
        let before = self.code[..begins.unwrap_or(self.code.len())].matches('\n').count();
        self.code().skip(before)
    }

    /// Numbered lines up to the tests, then every import in full, numbered by where it begins.
    pub(crate) fn product_code(&self) -> Vec<(usize, String)> {
        let end = self.code.find("#[cfg(test)]\nmod tests").unwrap_or(self.code.len());
        let product = &self.code[..end];
        let mut lines: Vec<_> = product.lines().enumerate().map(|(index, line)| (index + 1, line.to_owned())).collect();
        for (start, _) in product.match_indices("use ") {
            let is_item = product[..start].lines().next_back().is_none_or(|line| line.trim_start().is_empty())
                || product[..start].ends_with("pub ");
            let Some(end) = product[start..].find(';').filter(|_| is_item) else { continue };
            let line = product[..start].matches('\n').count() + 1;
            let tree = product[start + 4..start + end].split_whitespace().collect::<String>();
            lines.extend(expand(&tree).into_iter().map(|path| (line, path)));
        }
        lines
    }

    /// Name and number of lines of each function, signature included. rustfmt puts the closing brace in the column of
    /// the function's first line.
    pub(crate) fn functions(&self) -> Vec<(&str, usize)> {
        let lines: Vec<&str> = self.code.lines().collect();
        let mut functions = Vec::new();
        for (start, line) in lines.iter().enumerate() {
            let Some(name) = function_name(line) else { continue };
            let indent = &line[..line.len() - line.trim_start().len()];
            let closing = format!("{indent}}}");
            let end = (start..lines.len()).find(|&at| lines[at] == closing || (at == start && line.ends_with('}')));
            let is_declared_only =
                lines[start..end.unwrap_or(start)].iter().any(|line| line.trim_end() == format!("{indent});"));
            if let Some(end) = end.filter(|_| !line.ends_with(';') && !is_declared_only) {
                functions.push((name, end - start + 1));
            }
        }
        functions
    }
}

fn function_name(line: &str) -> Option<&str> {
    let (before, after) = line.split_once("fn ")?;
    let is_item = before.split_whitespace().all(|word| {
        ["pub", "async", "const", "unsafe", "extern"].contains(&word)
            || word.starts_with("pub(")
            || word.starts_with('"')
    });
    let end = after.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    (is_item && end > 0).then(|| &after[..end])
}

/// `a::{b,c::{d,e}}` is `a::b`, `a::c::d`, `a::c::e`.
fn expand(tree: &str) -> Vec<String> {
    let Some(open) = tree.find('{') else { return vec![tree.to_owned()] };
    let (prefix, rest) = (&tree[..open], &tree[open + 1..]);
    let mut paths = Vec::new();
    let (mut depth, mut start) = (0_usize, 0);
    for (at, c) in rest.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                paths.extend(expand(&rest[start..at]).into_iter().map(|path| format!("{prefix}{path}")));
                start = at + 1;
            }
            _ => {}
        }
    }
    paths
}

/// Blanks comments and the insides of string and character literals; keeps every line break.
fn blank(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let (kept, blanked) = token(rest);
        code.push_str(&rest[..kept]);
        code.extend(rest[kept..kept + blanked].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[kept + blanked..];
    }
    code
}

/// How many bytes to keep, and how many to blank after them.
fn token(rest: &str) -> (usize, usize) {
    if rest.starts_with("//") {
        return (0, rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return (0, rest.find("*/").map_or(rest.len(), |end| end + 2));
    }
    if let Some(hashes) = raw_string_hashes(rest) {
        let close = format!("\"{}", "#".repeat(hashes));
        let open = hashes + 2;
        return (open, rest[open..].find(&close).unwrap_or(rest.len() - open) + close.len());
    }
    if let Some(inside) = rest.strip_prefix('"') {
        return (1, string_end(inside));
    }
    if let Some(inside) = rest.strip_prefix('\'') {
        return character(inside).map_or((1, 0), |bytes| (0, bytes + 1));
    }
    (rest.chars().next().map_or(0, char::len_utf8), 0)
}

/// Bytes of a character literal after its opening quote; `None` for a lifetime, which has no closing one.
fn character(inside: &str) -> Option<usize> {
    const LONGEST_ESCAPE: usize = "\\u{10ffff}'".len();
    if let Some(escaped) = inside.strip_prefix('\\') {
        let after_escaped = escaped.chars().next()?.len_utf8();
        let close = 1 + after_escaped + escaped[after_escaped..].find('\'')?;
        return (close < LONGEST_ESCAPE).then_some(close + 1);
    }
    let first = inside.chars().next()?.len_utf8();
    inside[first..].starts_with('\'').then_some(first + 1)
}

fn raw_string_hashes(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix('r')?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].starts_with('"').then_some(hashes)
}

/// Bytes up to and with the closing quote.
fn string_end(inside: &str) -> usize {
    let mut escaped = false;
    for (at, c) in inside.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    inside.len()
}

#[test]
fn comments_and_literals_are_not_code() {
    let code = blank(
        "let a = \"unsafe { // }\"; // unsafe {\nlet b = 'x'; let c: &'static str = r#\"axum::\"#;\nlet d = '\\'';",
    );
    assert!(!code.contains("unsafe") && !code.contains("axum") && code.contains("&'static str"), "{code}");
    assert_eq!(code.lines().count(), 3);
}

#[test]
fn imports_are_written_in_full() {
    assert_eq!(
        expand("crate::{api::Error,text::{Model,stop}}"),
        ["crate::api::Error", "crate::text::Model", "crate::text::stop"]
    );
}

#[test]
fn a_function_is_measured_from_its_signature_to_its_brace() {
    let text = "impl A {\n    pub fn long(\n        a: u8,\n    ) {\n        b();\n    }\n\n    fn short() {}\n}\n";
    let source = Source { path: "a.rs".into(), text: text.into(), code: blank(text) };
    assert_eq!(source.functions(), [("long", 5), ("short", 1)]);
}
