use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use passerelle::trust::write_bundle;
use serde_json::json;

use super::output::{self, OutputArgs};
use super::source_args::{SourceArgs, watched};

const EXAMPLES: &str = "\
Examples:
  passerelle bundle step-1000 --out /media/disk/step-1000.tar     a model that was imported, with its signature
  passerelle import /media/disk/step-1000.tar --trust lab.pub     on the other machine";

/// Make one file of a checkpoint, its manifest and its signature, to travel on a disk.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct BundleArgs {
    /// The name of a model that was imported, a directory, a .gguf file, or `demo`.
    source: String,
    /// The bundle, a tar archive; it must not exist.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    args: SourceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

impl BundleArgs {
    pub(crate) fn run(self) -> Result<()> {
        let files = self.args.files(&self.source)?;
        let digest = watched("copying", |watch| write_bundle(&files, &self.out, watch))?;
        if self.output.json {
            return output::json(&json!({"bundle": self.out, "digest": digest}));
        }
        output::line(format_args!("{:<12}{}", "bundle", self.out.display()))?;
        output::line(format_args!("{:<12}{digest}", "digest"))
    }
}
