use std::path::{Path, PathBuf};

/// Why a checkpoint cannot be served, or a step cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The checkpoint is at fault: which file, which field or tensor, and what to do about it.
    #[error("{}: {what}: {problem}", .file.display())]
    Checkpoint { file: PathBuf, what: String, problem: String },
    /// The caller built an input that breaks the contract of [`crate::ModelInput`].
    #[error("invalid model input: {0}")]
    Input(String),
    #[error("cannot read {}", .file.display())]
    Io { file: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Device(#[from] candle_core::Error),
}

impl ModelError {
    pub(crate) fn checkpoint(file: &Path, what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Checkpoint { file: file.to_owned(), what: what.into(), problem: problem.into() }
    }
}
