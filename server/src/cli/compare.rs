use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use passerelle::evaluation::{Comparison, Metric, Options, Resampling, report, score_file};

use super::output;

mod csv;
mod text;

const EXAMPLES: &str = "\
Examples:
  passerelle compare ./scores                          every checkpoint that was scored there
  passerelle compare ./scores --html report.html       the same as one page with plots
  passerelle compare a.jsonl b.jsonl --json
  passerelle compare ./scores --pair middle final --step final=3565

The files are those of `passerelle score`. The ranking's intervals are of 95 %, from a paired bootstrap: items are drawn
anew, the same ones for every checkpoint. The report and --json hold texts of the data.";

/// Rank scored checkpoints, and show where two of them differ.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CompareArgs {
    /// Score files, or folders of them.
    #[arg(value_name = "SCORES", required = true)]
    scores: Vec<PathBuf>,
    /// What the ranking goes by: bits_per_byte, reference_bits_per_byte, exact_match, accuracy, accuracy_per_byte or
    /// divergence
    /// [default: the first of these that the items say something about].
    #[arg(long, value_name = "METRIC")]
    by: Option<Metric>,
    /// The two checkpoints that are looked at token by token, by name or digest [default: the best and the next; of two,
    /// both as given].
    #[arg(long, value_names = ["A", "B"], num_args = 2)]
    pair: Option<Vec<String>>,
    /// The step that a checkpoint is from, where its name does not end with it.
    #[arg(long = "step", value_name = "NAME=STEP", value_parser = named_step)]
    steps: Vec<(String, u64)>,
    /// How often items are drawn anew.
    #[arg(long, value_name = "N", default_value = "2000", value_parser = clap::value_parser!(u32).range(100..=100_000))]
    resamples: u32,
    /// What is drawn: the same seed gives the same intervals.
    #[arg(long, default_value = "0")]
    seed: u64,
    /// Documents, tokens and answers that are listed.
    #[arg(long, value_name = "N", default_value = "12", value_parser = clap::value_parser!(u16).range(1..=200))]
    most: u16,
    /// Print JSON.
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print every metric of every checkpoint as CSV.
    #[arg(long)]
    csv: bool,
    /// Write a report to look at: one page that needs nothing else. It holds texts of the data.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

impl CompareArgs {
    pub(crate) fn run(self) -> Result<()> {
        let files = score_file::find(&self.scores)?;
        let comparison = Comparison::of(&files, &self.options())?;
        if let Some(path) = &self.html {
            fs::write(path, report::html(&comparison)).with_context(|| path.display().to_string())?;
            tell!("wrote {}: it holds texts of the data", path.display());
        }
        if self.json {
            output::json(&comparison)
        } else if self.csv {
            csv::print(&comparison)
        } else {
            text::print(&comparison)
        }
    }

    fn options(&self) -> Options {
        Options {
            rank_by: self.by,
            pair: self.pair.clone().and_then(|pair| pair.try_into().ok()),
            steps: self.steps.clone(),
            resampling: Resampling { resamples: self.resamples as usize, seed: self.seed },
            most_listed: usize::from(self.most),
        }
    }
}

fn named_step(written: &str) -> Result<(String, u64), String> {
    let (name, step) = written.rsplit_once('=').ok_or("write NAME=STEP")?;
    let step = step.parse().map_err(|_| format!("{step:?} is not a number of steps"))?;
    Ok((name.to_owned(), step))
}
