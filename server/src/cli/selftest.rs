use std::num::NonZeroUsize;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use passerelle::config::{Config, Environment};
use passerelle::placement::DeviceChoice;
use passerelle_engine::clock::{Clock, SystemClock};
use passerelle_models::KvFormat;
use passerelle_models::ops::Compute;
use passerelle_models::selftest::{self, Check, Load};
use serde::Serialize;

use super::bench::limits::{Limits, quickest};
use super::model_args::ModelArgs;
use super::numbers::count;
use super::output::{self, OutputArgs};
use crate::serve;
use print::print;

mod print;

const EXAMPLES: &str = "\
Examples:
  passerelle selftest
  passerelle selftest --device cpu --json >report.json
  passerelle selftest --device cuda:0

Kernels are compared with plain reference bodies over a table of shapes; small models with the logits that another
implementation computed, and the bundled one with itself on the reference bodies; each alone, in a batch and in chunks. Then
the ops that take a step's time are timed, as a share of what this machine can do, measured in the same run. It needs
no network and no file, and ends with an error that names what failed. Its figures are not part of the verdict.";

/// Check that a device computes what it should, and how fast it does.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SelftestArgs {
    /// What is checked: auto, cpu, or a GPU or slice of one as cuda:N or MIG-UUID [default: auto].
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceChoice>,
    /// Threads that compute [default: one per physical core].
    #[arg(long, value_name = "N", value_parser = count::<NonZeroUsize>)]
    threads: Option<NonZeroUsize>,
    /// Multiply what may differ by this; with 0 nothing may, and the checks fail.
    #[arg(long, value_name = "FACTOR", default_value = "1", value_parser = factor)]
    allow: f32,
    #[command(flatten)]
    output: OutputArgs,
}

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    device: String,
    threads: usize,
    passes: bool,
    checks: Vec<Line>,
    /// Whether replayed graphs equal eager steps.
    graphs: &'static str,
    memory_bytes_per_s: f64,
    multiply_add_flops_per_s: f64,
    speed: Vec<Speed>,
    seconds: f64,
}

/// A [`Check`] for scripts. What is not a number is null.
#[derive(Debug, Serialize)]
struct Line {
    what: &'static str,
    at: String,
    bodies: String,
    against: String,
    worst: Option<f32>,
    allowed: f32,
    passes: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct Speed {
    what: &'static str,
    at: String,
    seconds: f64,
    bytes_per_s: f64,
    operations_per_s: f64,
    /// The least time that the limits allow, over the time taken.
    share_of_limit: f64,
}

/// Where [`passerelle_models::ops::KernelSet::replays_steps`] says so, and elsewhere.
const GRAPHS: &str = "compared with the same steps launch by launch, see `replayed steps`";
const NO_GRAPHS: &str = "none on this device: every step is run op by op";

impl SelftestArgs {
    pub(crate) fn run(self) -> Result<()> {
        let written = ModelArgs::on(self.device, self.threads).written();
        let config = Config::check(written, &Environment::read())?;
        let compute = serve::compute(&config.engine)?;
        let report = Report::of(&compute, self.allow, &SystemClock::new())?;
        if self.output.json {
            output::json(&report)?
        } else {
            print(&report)?
        }
        let failed = report.names(|check| !check.passes);
        let count = report.checks.iter().filter(|check| !check.passes).count();
        ensure!(report.passes, "{count} of {} checks failed: {}", report.checks.len(), failed.join("; "));
        Ok(())
    }
}

impl Report {
    fn of(compute: &Compute, factor: f32, clock: &dyn Clock) -> Result<Self> {
        let began = clock.now();
        tell!("comparing kernels");
        let mut checks = selftest::check_kernels(compute, factor)?;
        tell!("comparing models");
        checks.extend(selftest::check_parity(compute, factor)?);
        if cfg!(debug_assertions) {
            tell!("warning: built without --release; the times below are not the machine's");
        }
        tell!("measuring");
        let limits = Limits::measure(&compute.for_kv_of(KvFormat::Bf16), false, clock)?;
        let loads = selftest::loads(compute)?;
        let speed = loads.iter().map(|load| Speed::of(load, &limits, clock)).collect::<Result<_>>()?;
        Ok(Self {
            version: env!("CARGO_PKG_VERSION"),
            device: serve::device_name(compute),
            threads: compute.num_threads(),
            passes: checks.iter().all(Check::passes),
            checks: checks.into_iter().map(Line::of).collect(),
            graphs: if compute.kernels().replays_steps() { GRAPHS } else { NO_GRAPHS },
            memory_bytes_per_s: limits.bytes_per_s,
            multiply_add_flops_per_s: limits.operations_per_s,
            speed,
            seconds: (clock.now() - began).as_secs_f64(),
        })
    }

    /// Of the checks that are meant, each name once, in the order in which they came first.
    fn names(&self, are_meant: impl Fn(&Line) -> bool) -> Vec<&'static str> {
        let mut names = Vec::new();
        for check in self.checks.iter().filter(|check| are_meant(check)) {
            if !names.contains(&check.what) {
                names.push(check.what);
            }
        }
        names
    }
}

impl Line {
    fn of(check: Check) -> Self {
        let passes = check.passes();
        let Check { what, at, bodies, against, worst, allowed } = check;
        let (worst, error) = match worst {
            Ok(worst) => (worst.is_finite().then_some(worst), None),
            Err(error) => (None, Some(error)),
        };
        Self { what, at, bodies, against, worst, allowed, passes, error }
    }
}

impl Speed {
    fn of(load: &Load, limits: &Limits, clock: &dyn Clock) -> Result<Self> {
        let (time, ()): (Duration, ()) = quickest(clock, || Ok(load.run()?))?;
        let seconds = time.as_secs_f64().max(f64::EPSILON);
        Ok(Self {
            what: load.what,
            at: load.at.clone(),
            seconds,
            bytes_per_s: load.work.bytes as f64 / seconds,
            operations_per_s: load.work.operations as f64 / seconds,
            share_of_limit: limits.least(load.work) / seconds,
        })
    }
}

fn factor(written: &str) -> Result<f32, String> {
    let factor = written.parse::<f32>().ok().filter(|factor| factor.is_finite() && *factor >= 0.0);
    factor.ok_or_else(|| "not a number of 0 or more".to_owned())
}
