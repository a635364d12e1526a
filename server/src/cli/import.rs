use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use passerelle::config::{HubConfig, ModelConfig};
use passerelle::hub::{Wanted, is_gguf};
use passerelle::text::TextError;
use passerelle::trust::{CopiedSignature, Import, Imported, ImportedName, TrustedKeys};
use passerelle_models::{
    CheckpointFiles, CheckpointKind, Manifest, ModelDigest, ModelError, checkpoint_kind, describe_encoder,
};
use serde::Serialize;

use super::output::{self, OutputArgs};
use super::source_args::{SourceArgs, watched};
use crate::serve::{find_files, load_text};

const EXAMPLES: &str = "\
Examples:
  passerelle import ./runs/step-1000                          a copy called step-1000, and its digest
  passerelle import /media/disk/model.tar --trust lab.pub     only if the lab has signed it
  passerelle serve --models-dir DATA_DIR/models --trust lab.pub";

/// Copy a checkpoint into the data directory, hashing as it copies, and say its digest.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ImportArgs {
    /// A directory, a .gguf file, a bundle, a hub id[@revision], or `demo`.
    source: String,
    /// What the copy is called [default: as the source's last part].
    #[arg(long)]
    name: Option<String>,
    /// Copy nothing but what this public key has signed; more than once for several keys.
    #[arg(long, value_name = "FILE")]
    trust: Vec<PathBuf>,
    #[command(flatten)]
    args: SourceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Serialize)]
struct Said<'a> {
    path: &'a Path,
    digest: ModelDigest,
    signature: &'static str,
    files_mended: usize,
}

impl ImportArgs {
    pub(crate) fn run(self) -> Result<()> {
        let config = self.args.config()?;
        let trust = TrustedKeys::load(&self.trust).context("--trust")?;
        let name: ImportedName = match &self.name {
            Some(name) => name.parse()?,
            None => ImportedName::of_source(&self.source).context("--name gives it another one")?,
        };
        let import = Import { data_dir: &config.server.data_dir, name, trust: trust.as_ref() };
        let model = ModelConfig::found(self.source.clone(), self.source.clone(), &config.engine);
        let source = Path::new(&self.source);
        // What is not there is refused as what it is called.
        let is_bundle = match source.exists() {
            true => source.is_file() && !is_gguf(source),
            false => source.extension().is_some_and(|extension| extension == "tar"),
        };
        let imported = if is_bundle {
            watched("copying", |watch| import.bundle(source, watch))?
        } else {
            let files = find_files(&self.source, Wanted::Checkpoint, &config.hub)?;
            // What must be signed is not read before its signature and every hash were found right.
            if trust.is_none() {
                check_is_model(&files)?;
                check_is_whole(&files, &model, &config.hub).context("not copied: it could never be loaded")?;
            }
            watched("copying", |watch| import.checkpoint(&files, watch))?
        };
        self.say(&imported, trust.is_some())?;
        if let Err(why) = check_is_served(&imported.path, &model, &config.hub) {
            tell!("warning: this program cannot serve it: {why:#}");
        }
        Ok(())
    }

    fn say(&self, imported: &Imported, is_trusted: bool) -> Result<()> {
        let Imported { path, digest, signature, num_mended } = imported;
        let signature = match (signature, is_trusted) {
            (CopiedSignature::None, _) => "none",
            (CopiedSignature::Kept, false) => "kept, and not checked: no --trust was given",
            (CopiedSignature::Kept, true) => "of a trusted key",
            (CopiedSignature::Former, _) => "as it was: the source's was not checked, as no --trust was given",
        };
        if self.output.json {
            return output::json(&Said { path, digest: *digest, signature, files_mended: *num_mended });
        }
        output::line(format_args!("{:<12}{}", "imported", path.display()))?;
        output::line(format_args!("{:<12}{digest}", "digest"))?;
        output::line(format_args!("{:<12}{signature}", "signature"))?;
        match num_mended {
            0 => Ok(()),
            _ => output::line(format_args!("{:<12}{num_mended} files of the copy, which were damaged", "mended")),
        }
    }
}

/// Errors for what no program could serve. A family that this one does not serve is copied: its tokenizer may be an upstream's.
fn check_is_model(files: &CheckpointFiles) -> Result<(), ModelError> {
    files.gguf_metadata()?;
    Manifest::require_parts(files)?;
    checkpoint_kind(files).map(drop)
}

/// Errors for a model of a family that this program serves which is not all there. What is wrong with its configuration is
/// no matter here.
fn check_is_whole(files: &CheckpointFiles, model: &ModelConfig, hub: &HubConfig) -> Result<()> {
    const TOKENIZER: &str = "tokenizer.json";
    match describe(files) {
        Err(error) if is_of_weights(&error, files) => Err(error.into()),
        Err(_) => Ok(()),
        // A model without any file of a tokenizer takes token ids.
        Ok(()) if files.is_gguf() || files.contains(TOKENIZER) => Ok(()),
        Ok(()) => match load_text(model, files, hub) {
            Err(error) if is_of_file(&error, TOKENIZER) => Err(error),
            _ => Ok(()),
        },
    }
}

/// Of a folder: that none are there, or are not whole.
fn is_of_weights(error: &ModelError, files: &CheckpointFiles) -> bool {
    let ModelError::Checkpoint { file, .. } = error else { return false };
    !files.is_gguf() && (file == files.root() || file.to_string_lossy().contains(".safetensors"))
}

fn is_of_file(error: &anyhow::Error, name: &str) -> bool {
    matches!(error.downcast_ref::<TextError>(), Some(TextError::File { file, .. }) if file == name)
}

/// As far as `inspect` reads it.
fn check_is_served(copy: &Path, model: &ModelConfig, hub: &HubConfig) -> Result<()> {
    let files = if copy.is_dir() { CheckpointFiles::directory(copy)? } else { CheckpointFiles::gguf(copy)? };
    describe(&files)?;
    load_text(model, &files, hub).map(drop)
}

fn describe(files: &CheckpointFiles) -> Result<(), ModelError> {
    match checkpoint_kind(files)? {
        CheckpointKind::Generator => passerelle_models::describe(files).map(drop),
        CheckpointKind::Encoder => describe_encoder(files).map(drop),
    }
}
