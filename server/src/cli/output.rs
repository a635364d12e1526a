//! Standard output, which scripts read. Everything else is said on standard error.

use std::io::{self, Write};

use anyhow::{Context, Result};
use serde::Serialize;

/// Whether a command answers for people or for scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub(crate) struct OutputArgs {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Says what to do where a file that must be new is there.
pub(crate) fn must_be_new(error: io::Error) -> io::Error {
    match error.kind() {
        kind @ io::ErrorKind::AlreadyExists => {
            io::Error::new(kind, "it is there already; name another file, or remove it first")
        }
        _ => error,
    }
}

/// One line. A reader that went away is an error like any other.
pub(crate) fn line(text: impl std::fmt::Display) -> Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}").and_then(|()| stdout.flush()).context("cannot write to standard output")
}

pub(crate) fn json(value: &impl Serialize) -> Result<()> {
    line(serde_json::to_string_pretty(value)?)
}
