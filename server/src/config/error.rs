use std::path::PathBuf;

/// Why a configuration is refused: where it stands, what is wrong, what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{}: cannot be read", .file.display())]
    Read { file: PathBuf, source: std::io::Error },
    #[error("{}:{line}:{column}: {problem}", .file.display())]
    Syntax { file: PathBuf, line: usize, column: usize, problem: String },
    /// Found after the file and the command line were laid over each other, so it names the key and not a line.
    #[error("{key}: {problem}")]
    Value { key: String, problem: String },
}

impl ConfigError {
    pub(super) fn value(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Value { key: key.into(), problem: problem.into() }
    }
}
