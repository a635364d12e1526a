use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use passerelle::trust::{ManifestFiles, SigningKey, sign};

use super::output;
use super::source_args::{SourceArgs, watched};

const EXAMPLES: &str = "\
Examples:
  passerelle sign --new-key lab                   a pair: `lab` signs and stays secret, `lab.pub` goes to whoever trusts it
  passerelle sign --key lab step-1000             a model that was imported
  passerelle sign --key lab ./checkpoint          a directory that holds nothing else";

/// Sign a checkpoint, so that `serve --trust` takes it. Keys are Ed25519, in PEM, as OpenSSL writes them.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SignArgs {
    /// The name of a model that was imported, a directory or a .gguf file.
    #[arg(required_unless_present = "new_key")]
    source: Option<String>,
    /// The private key.
    #[arg(long, value_name = "FILE", required_unless_present = "new_key")]
    key: Option<PathBuf>,
    /// Make a pair of keys first, FILE and FILE.pub.
    #[arg(long, value_name = "FILE", conflicts_with = "key")]
    new_key: Option<PathBuf>,
    #[command(flatten)]
    args: SourceArgs,
}

impl SignArgs {
    pub(crate) fn run(self) -> Result<()> {
        if let Some(file) = &self.new_key {
            let public = SigningKey::create(file).context("--new-key")?;
            output::line(format_args!("{:<12}{}", "private key", file.display()))?;
            output::line(format_args!("{:<12}{}", "public key", public.display()))?;
        }
        let (Some(source), Some(key)) = (&self.source, self.new_key.as_ref().or(self.key.as_ref())) else {
            return Ok(());
        };
        let key = SigningKey::load(key).context("--key")?;
        let files = self.args.files(source)?;
        let digest = watched("hashing", |watch| sign(&files, &key, watch))?;
        output::line(format_args!("{:<12}{}", "signed", ManifestFiles::of(&files)?.signature.display()))?;
        output::line(format_args!("{:<12}{digest}", "digest"))
    }
}
