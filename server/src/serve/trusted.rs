//! Whose models are served, where the operator says whose may be.

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use passerelle::config::{Config, DEMO, ModelConfig};
use passerelle::hub::Source;
use passerelle::trust::{TrustError, TrustedKeys};
use passerelle_models::CheckpointFiles;

/// Asks of every model that it is what a trusted key has signed, before anything of it is parsed.
#[derive(Debug, Clone)]
pub(crate) struct Inspector {
    /// `None`: nothing is asked.
    keys: Option<TrustedKeys>,
}

impl Inspector {
    pub(crate) fn new(config: &Config) -> Result<Self> {
        let keys = TrustedKeys::load(&config.server.trust).context("server.trust (--trust)")?;
        Ok(Self { keys })
    }

    /// Reads every byte of the model.
    pub(crate) fn inspect(&self, model: &ModelConfig) -> Result<()> {
        match &self.keys {
            Some(keys) => inspect(keys, model).with_context(|| format!("model `{}`", model.name)),
            None => Ok(()),
        }
    }

    /// As [`Inspector::inspect`], for a checkpoint of which only the tokenizer is read.
    pub(crate) fn inspect_folder(&self, folder: &Path) -> Result<()> {
        match &self.keys {
            Some(keys) => verify(keys, &CheckpointFiles::directory(folder)?),
            None => Ok(()),
        }
    }
}

fn inspect(keys: &TrustedKeys, model: &ModelConfig) -> Result<()> {
    for (is_set, what) in [(model.tokenizer.is_some(), "tokenizer"), (model.chat_template.is_some(), "chat_template")] {
        ensure!(!is_set, "{what} (--{}): no signature covers one from elsewhere; leave it out", what.replace('_', "-"));
    }
    if model.source == DEMO {
        return Err(TrustError::Embedded.into());
    }
    let files = match Source::parse(&model.source)? {
        Source::Directory(path) => CheckpointFiles::directory(path)?,
        Source::Gguf(path) => CheckpointFiles::gguf(path)?,
        Source::Hub(id) => bail!("{id} is on the hub, where nobody signs; `passerelle import` it, and serve the copy"),
    };
    verify(keys, &files)
}

fn verify(keys: &TrustedKeys, files: &CheckpointFiles) -> Result<()> {
    let digest = keys.verify(files, &|_| ControlFlow::Continue(()))?;
    tracing::info!(source = %files.root().display(), %digest, "signed by a trusted key");
    Ok(())
}
