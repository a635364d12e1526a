use std::path::{Path, PathBuf};

const MAX_WHAT_CHARS: usize = 120;
const MAX_PROBLEM_CHARS: usize = 400;

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
    /// What computes failed, or has no memory: nothing that another input would mend.
    #[error(transparent)]
    Device(#[from] candle_core::Error),
}

impl ModelError {
    pub fn device(problem: impl Into<String>) -> Self {
        Self::Device(candle_core::Error::Msg(problem.into()))
    }

    /// Whether what computes has no memory left, by what NVIDIA's driver and its libraries call that, and this crate.
    pub fn is_out_of_memory(&self) -> bool {
        const NAMES: [&str; 4] = ["OUT_OF_MEMORY", "out of memory", "STATUS_ALLOC_FAILED", "no memory for"];
        let Self::Device(error) = self else { return false };
        let text = error.to_string();
        NAMES.iter().any(|name| text.contains(name))
    }

    pub(crate) fn checkpoint(file: &Path, what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Checkpoint {
            file: file.to_owned(),
            what: harmless(&what.into(), MAX_WHAT_CHARS),
            problem: harmless(&problem.into(), MAX_PROBLEM_CHARS),
        }
    }
}

/// Names and values come from the checkpoint: no control character reaches a terminal, and no error repeats a file.
fn harmless(text: &str, max_chars: usize) -> String {
    let mut shown = String::new();
    for (index, character) in text.chars().enumerate() {
        if index == max_chars {
            shown.push_str("...");
            break;
        }
        if character.is_control() || is_invisible(character) {
            shown.extend(character.escape_unicode());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Characters that change the order in which others are shown, or that are not shown themselves.
fn is_invisible(character: char) -> bool {
    matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}
