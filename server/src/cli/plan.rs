mod print;
mod rooms;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use passerelle::config::{self, Config, EngineConfig, Environment, ModelConfig, ModelFlag, WeightDtype, WrittenModel};
use passerelle::hub::Wanted;
use passerelle::placement::{HeldBytes, ModelDemand, plan};
use passerelle_models::{Footprint, WeightLayout, footprint};

use super::model_args::ModelArgs;
use super::output::{self, OutputArgs};
use crate::serve::{find_files, load_options, step_bytes};
use rooms::RoomFlag;

const EXAMPLES: &str = "\
Examples:
  passerelle plan --config passerelle.toml             its models on what is visible here
  passerelle plan ./checkpoint --on cpu:16GiB
  passerelle plan big=org/big small=org/small --on h100 --on h100:3g.40gb --max-model-len 8192 --sequences 16
  nvidia-smi -L >node.txt; passerelle plan ./checkpoint --devices node.txt     for another machine

Of a model of the hub only config.json is fetched. The sizes of cards and slices are those of configs/placement/cards.toml.
It exits with an error if a model has no place.";

/// Say what fits where, before anything is loaded.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct PlanArgs {
    /// Models, each a directory, a .gguf file, a hub id[@revision] or `demo` [default: those of --config].
    #[arg(value_name = "[NAME=]SOURCE")]
    models: Vec<ModelFlag>,
    /// A configuration file, for its models and their settings.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where: cpu, cpu:SIZE, a card like h100, or a slice of one like h100:3g.40gb; more than once for several.
    #[arg(long, value_name = "PARTITION")]
    on: Vec<RoomFlag>,
    /// A machine's devices, as `nvidia-smi -L` printed them.
    #[arg(long, value_name = "FILE", conflicts_with = "on")]
    devices: Option<PathBuf>,
    /// Sequences of the longest length that each model must have room for at once.
    #[arg(long, value_name = "N", default_value = "1")]
    sequences: NonZeroUsize,
    #[command(flatten)]
    model_args: ModelArgs,
    #[command(flatten)]
    output: OutputArgs,
}

impl PlanArgs {
    pub(crate) fn run(self) -> Result<()> {
        let config = self.config(&Environment::read())?;
        let demands = config.models.iter().map(|model| self.demand(model, &config));
        let demands = demands.collect::<Result<Vec<_>>>()?;
        let rooms = rooms::rooms(&self.on, self.devices.as_deref(), &config.engine)?;
        let plan = plan(&demands, &rooms);
        if self.output.json {
            output::json(&print::as_json(&plan))?
        } else {
            print::print(&plan)?
        }
        ensure!(plan.unplaced.is_empty(), "{} of {} models have no place", plan.unplaced.len(), demands.len());
        Ok(())
    }

    fn config(&self, environment: &Environment) -> Result<Config> {
        let file = self.config.as_deref().map(config::read).transpose()?.unwrap_or_default();
        let mut written = self.model_args.clone().written();
        let named = |flag: &ModelFlag| WrittenModel { name: flag.name.clone(), ..WrittenModel::of(&flag.source) };
        written.models = (!self.models.is_empty()).then(|| self.models.iter().map(named).collect());
        Ok(Config::check(written.over(file), environment)?)
    }

    fn demand(&self, model: &ModelConfig, config: &Config) -> Result<ModelDemand> {
        demand(model, config, self.sequences.get()).with_context(|| format!("model `{}`", model.name))
    }
}

/// What a model of the configuration takes, from its files' headers or its `config.json` alone.
pub(super) fn demand(model: &ModelConfig, config: &Config, sequences: usize) -> Result<ModelDemand> {
    let files = find_files(&model.source, Wanted::Description, &config.hub)?;
    let taken = |dtype, layout| footprint(&files, &load_options(&ModelConfig { dtype, ..model.clone() }), layout);
    let held = |dtype| -> Result<(Footprint, HeldBytes)> {
        let on_cpu = taken(dtype, WeightLayout::Panels)?;
        let accelerator = taken(dtype, WeightLayout::Rows)?.weight_bytes;
        let held = HeldBytes { cpu: on_cpu.weight_bytes, accelerator };
        Ok((on_cpu, held))
    };
    let (is, weights) = held(model.dtype)?;
    let mut smaller = Vec::new();
    for (name, dtype) in [("q8_0", WeightDtype::Q8_0), ("q4_0", WeightDtype::Q4_0)] {
        let (_, quantised) = held(dtype)?;
        if quantised.accelerator < weights.accelerator {
            smaller.push((name, quantised));
        }
    }
    let EngineConfig { max_num_seqs, max_num_batched_tokens, .. } = config.engine;
    Ok(ModelDemand {
        name: model.name.clone(),
        weights,
        smaller,
        context: is.max_position,
        sequences,
        max_sequences: max_num_seqs,
        step_tokens: max_num_batched_tokens,
        activations: step_bytes(&is.activations, &config.engine),
        kv: is.kv,
    })
}

#[cfg(test)]
mod tests;
