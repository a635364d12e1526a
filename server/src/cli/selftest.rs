use std::num::NonZeroUsize;

use anyhow::{Result, ensure};
use clap::Args;
use passerelle::config::{Config, Environment};
use passerelle::placement::DeviceChoice;
use passerelle_models::selftest::{Check, self_test};
use serde_json::{Value, json};

use super::bench::{BenchArgs, Report, print_report};
use super::model_args::ModelArgs;
use super::output::{self, OutputArgs};
use crate::serve;

const EXAMPLES: &str = "\
Examples:
  passerelle selftest
  passerelle selftest --device cpu --json >report.json

Kernels are compared with plain reference bodies over a table of shapes, the bundled model with itself on those bodies, and its
logits in batches and chunks, bit for bit, with those of each sequence alone. Then it generates for a moment, and says
which share that is of what this machine could do, measured in the same run. It needs no network and no file, and exits
with an error if anything differs by more than it may.";

/// Check that this machine computes what it should, and how fast.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SelftestArgs {
    /// What is checked: auto, cpu, or a GPU or slice of one as cuda:N or MIG-UUID [default: auto].
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceChoice>,
    /// Threads that compute [default: one per physical core].
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    #[command(flatten)]
    output: OutputArgs,
}

impl SelftestArgs {
    pub(crate) fn run(self) -> Result<()> {
        let model_args = ModelArgs::on(self.device, self.threads);
        let config = Config::check(model_args.clone().written(), &Environment::read())?;
        let compute = serve::compute(&config.engine)?;
        let device = serve::device_name(&compute);
        let checks = self_test(&compute)?;
        let report = BenchArgs::short(model_args).report()?;
        if self.output.json { output::json(&as_json(device, &checks, &report))? } else { print(device, &checks, &report)? }
        let failed = checks.iter().filter(|check| !check.passes()).count();
        ensure!(failed == 0, "{failed} of {} checks failed on {device}", checks.len());
        Ok(())
    }
}

/// A line for each kind of check, and one for each that failed.
fn print(device: &str, checks: &[Check], report: &Report) -> Result<()> {
    for alike in checks.chunk_by(|one, other| one.what == other.what) {
        let worst = alike.iter().map(|check| check.worst).fold(0.0, f32::max);
        let verdict = if alike.iter().all(Check::passes) { "ok" } else { "FAILED" };
        let (what, allowed) = (alike[0].what, alike[0].allowed);
        output::line(format_args!("{verdict:<7}{what:<22}{:>3} compared, {worst:.1e} apart of {allowed:.0e}", alike.len()))?;
        for check in alike.iter().filter(|check| !check.passes()) {
            output::line(format_args!("       {}: {:.3e}", check.at, check.worst))?;
        }
    }
    let passed = checks.iter().filter(|check| check.passes()).count();
    output::line(format_args!("{device}: {passed} of {} checks passed", checks.len()))?;
    print_report(report)
}

fn as_json(device: &str, checks: &[Check], report: &Report) -> Value {
    let check = |is: &Check| {
        json!({"what": is.what, "at": is.at, "worst": is.worst, "allowed": is.allowed, "passes": is.passes()})
    };
    json!({
        "device": device,
        "passes": checks.iter().all(Check::passes),
        "checks": checks.iter().map(check).collect::<Vec<_>>(),
        "bench": report,
    })
}
