//! `passerelle-loadtests`: see the README beside this crate.

mod cli;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // A limit that cannot be raised is told when it is met.
    let _ = passerelle_loadtests::files::raise_limit();
    match cli::Cli::parse().execute() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", told_once(&error));
            ExitCode::from(cli::EXIT_COULD_NOT_TRY)
        }
    }
}

/// The error and its causes, without those that the words before them tell already.
fn told_once(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if told.is_empty() {
            told = cause;
        } else if !told.contains(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[derive(Debug, thiserror::Error)]
    #[error("x.toml: {source}")]
    struct Named {
        source: std::io::Error,
    }

    #[test]
    fn no_cause_is_told_twice() {
        let error = || Named { source: std::io::Error::other("not there") };
        assert_eq!(told_once(&error().into()), "x.toml: not there");
        let wrapped = Err::<(), _>(error()).context("server a").unwrap_err();
        assert_eq!(told_once(&wrapped), "server a: x.toml: not there");
        let plain = Err::<(), _>(std::io::Error::other("not there")).context("server a").unwrap_err();
        assert_eq!(told_once(&plain), "server a: not there");
    }
}
