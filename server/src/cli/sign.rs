use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use passerelle::trust::{ManifestFiles, SigningKey, sign};
use passerelle_models::ModelDigest;
use serde::Serialize;

use super::output::{self, OutputArgs};
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
    #[command(flatten)]
    output: OutputArgs,
}

/// What there is now that was not there before.
#[derive(Debug, Serialize)]
struct Made {
    private_key: Option<PathBuf>,
    public_key: Option<PathBuf>,
    signature: Option<PathBuf>,
    digest: Option<ModelDigest>,
}

impl SignArgs {
    pub(crate) fn run(self) -> Result<()> {
        let public_key = self.new_key.as_deref().map(SigningKey::create).transpose().context("--new-key")?;
        let mut made = Made { private_key: self.new_key.clone(), public_key, signature: None, digest: None };
        // Said at once: they stay, whatever becomes of the signature.
        for (what, key) in [("private key", &made.private_key), ("public key", &made.public_key)] {
            match key {
                Some(key) if self.output.json => tell!("{what} {}", key.display()),
                Some(key) => output::line(format_args!("{what:<12}{}", key.display()))?,
                None => (),
            }
        }
        if let (Some(source), Some(key)) = (&self.source, self.new_key.as_ref().or(self.key.as_ref())) {
            let key = SigningKey::load(key).context("--key")?;
            let files = self.args.files(source)?;
            let digest = watched("hashing", |watch| sign(&files, &key, watch))?;
            let signature = ManifestFiles::of(&files)?.signature;
            if !self.output.json {
                output::line(format_args!("{:<12}{}", "signed", signature.display()))?;
                output::line(format_args!("{:<12}{digest}", "digest"))?;
            }
            (made.signature, made.digest) = (Some(signature), Some(digest));
        }
        if self.output.json { output::json(&made) } else { Ok(()) }
    }
}
