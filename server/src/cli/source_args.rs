//! Which checkpoint, for the commands that copy one, vouch for it or pack it.

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use passerelle::config::{Config, Environment, Written, WrittenServer};
use passerelle::hub::Wanted;
use passerelle::trust::{ImportedName, Watch, find_imported};
use passerelle_models::CheckpointFiles;

use crate::serve::find_files;

#[derive(Debug, Args)]
pub(super) struct SourceArgs {
    /// Where copies are kept [default: the user's data directory].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Never touch the network; say what is missing instead.
    #[arg(long)]
    offline: bool,
}

impl SourceArgs {
    pub(super) fn config(&self) -> Result<Config> {
        let offline = self.offline.then_some(true);
        let server = WrittenServer { data_dir: self.data_dir.clone(), offline, ..WrittenServer::default() };
        Config::check(Written { server, ..Written::default() }, &Environment::read()).map_err(Into::into)
    }

    /// A model that was imported goes by its name; anything else as `serve` takes it.
    pub(super) fn files(&self, source: &str) -> Result<CheckpointFiles> {
        let config = self.config()?;
        let data_dir = &config.server.data_dir;
        let name = source.parse::<ImportedName>().ok();
        let imported = name.as_ref().and_then(|name| find_imported(data_dir, name));
        Ok(match imported {
            Some(path) if path.is_dir() => CheckpointFiles::directory(path)?,
            Some(path) => CheckpointFiles::gguf(path)?,
            None => {
                let found = find_files(source, Wanted::CheckpointWithoutTokenizer, &config.hub);
                let nothing = || format!("nothing was imported as `{source}` into {}", data_dir.display());
                if name.is_some() { found.with_context(nothing)? } else { found? }
            }
        })
    }
}

/// Shows on a terminal how far the work is.
pub(super) fn watched<T>(what: &'static str, work: impl FnOnce(Watch<'_>) -> T) -> T {
    let is_terminal = io::stderr().is_terminal();
    let target = if is_terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let style = ProgressStyle::with_template("{msg} [{bar:30}] {bytes} of {total_bytes}");
    let style = style.expect("the template is a constant that a test draws");
    let bar = ProgressBar::with_draw_target(None, target).with_style(style).with_message(what);
    let done = work(&|progress| {
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes_done);
        ControlFlow::Continue(())
    });
    bar.finish_and_clear();
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_bar_can_be_drawn() {
        assert_eq!(watched("copying", |_| 7), 7);
    }
}
