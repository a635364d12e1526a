//! Whose models are served, where the operator says whose may be.

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use passerelle::config::{Config, DEMO, ModelConfig};
use passerelle::hub::Source;
use passerelle::trust::{TrustError, TrustedKeys};
use passerelle_models::{CheckpointFiles, KnownHashes, NothingKnown};

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

    /// Whether anything is asked.
    pub(super) fn has_keys(&self) -> bool {
        self.keys.is_some()
    }

    /// Reads every byte of the model. What was proven of its files is told to `hashes`, so that the digest it is served
    /// under is that of what was signed, whatever was kept before.
    pub(crate) fn inspect(&self, model: &ModelConfig, hashes: &dyn KnownHashes) -> Result<()> {
        let inspect = |keys| inspect(keys, model, hashes).with_context(|| format!("model `{}`", model.name));
        self.keys.as_ref().map_or(Ok(()), inspect)
    }

    /// As [`Inspector::inspect`], for a checkpoint of which only the tokenizer is read.
    #[cfg_attr(not(feature = "upstream"), expect(dead_code, reason = "only upstreams have tokenizers alone"))]
    pub(crate) fn inspect_folder(&self, folder: &Path) -> Result<()> {
        match &self.keys {
            Some(keys) => verify(keys, &CheckpointFiles::directory(folder)?, &NothingKnown),
            None => Ok(()),
        }
    }
}

fn inspect(keys: &TrustedKeys, model: &ModelConfig, hashes: &dyn KnownHashes) -> Result<()> {
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
    verify(keys, &files, hashes)
}

fn verify(keys: &TrustedKeys, files: &CheckpointFiles, hashes: &dyn KnownHashes) -> Result<()> {
    let digest = keys.verify(files, hashes, &|_| ControlFlow::Continue(()))?;
    tracing::info!(source = %files.root().display(), %digest, "signed by a trusted key");
    Ok(())
}
