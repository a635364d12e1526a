use std::path::{Path, PathBuf};

/// Why a configuration is refused: where it stands, what is wrong, what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: cannot be read", .file.display())]
    Read { file: PathBuf, source: std::io::Error },
    #[error("{}:{line}:{column}: {problem}", .file.display())]
    InFile { file: PathBuf, line: usize, column: usize, problem: String },
    /// Of no file, or not of one alone: it may be the command line's.
    #[error("{key}: {problem}")]
    Value { key: String, problem: String },
}

impl ConfigError {
    pub fn value(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Value { key: key.into(), problem: problem.into() }
    }

    /// `start`: in bytes, where a character of `text` begins.
    pub(super) fn in_file(file: &Path, text: &str, start: usize, problem: String) -> Self {
        let (line, column) = line_and_column(text, start);
        Self::InFile { file: file.into(), line, column, problem }
    }
}

/// Of what begins at a byte of `text`, both from 1.
pub(super) fn line_and_column(text: &str, start: usize) -> (usize, usize) {
    let before = &text[..start];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}
