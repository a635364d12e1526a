//! How a download shows on standard error.

use std::io::{IsTerminal, stderr};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgressOutput {
    /// A bar that redraws itself.
    Bar,
    /// A line for each tenth of a file.
    Lines,
    Silent,
}

impl ProgressOutput {
    /// A bar on a terminal, lines into a log.
    pub fn for_stderr() -> Self {
        if stderr().is_terminal() { Self::Bar } else { Self::Lines }
    }
}
