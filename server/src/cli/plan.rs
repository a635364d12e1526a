mod print;
mod rooms;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;
use passerelle::config::{self, Config, Environment, ModelConfig, ModelFlag, StepSizes, WeightDtype, WrittenModel};
use passerelle::hub::Wanted;
use passerelle::placement::{HeldBytes, ModelDemand, PartitionRoom, Plan, plan};
use passerelle_models::{Footprint, WeightLayout, footprint};

use super::model_args::ModelArgs;
use super::numbers::count;
use super::output::{self, OutputArgs};
use crate::serve::{find_files, load_options, shared_devices, step_bytes};
use rooms::{Machine, RoomFlag};

const EXAMPLES: &str = "\
Examples:
  passerelle plan --config passerelle.toml             its models on its partitions, or on what is visible here
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
    #[arg(long, value_name = "N", default_value = "1", value_parser = count::<NonZeroUsize>)]
    sequences: NonZeroUsize,
    #[command(flatten)]
    model_args: ModelArgs,
    #[command(flatten)]
    output: OutputArgs,
}

impl PlanArgs {
    pub(crate) fn run(self) -> Result<()> {
        let config = self.config(&Environment::read())?;
        let (plan, mut notes) = if config.partitions.is_empty() || !self.on.is_empty() || self.devices.is_some() {
            let rooms = rooms::rooms(&self.on, self.devices.as_deref(), &config.engine)?;
            (plan(&self.demands(&config, &rooms, |_| true)?, &rooms), Vec::new())
        } else {
            self.as_configured(&config)?
        };
        if let Some(folder) = config.server.models_dir.as_ref().filter(|_| self.models.is_empty()) {
            let folder = folder.display();
            notes.push(format!("{folder}: not planned: its models come and go, within shelf.memory of [shelf]"));
        }
        if self.output.json {
            output::json(&print::as_json(&plan, &notes))?
        } else {
            print::print(&plan, &notes)?
        }
        let (unplaced, all) = (plan.unplaced.len(), config.models.len());
        ensure!(unplaced == 0, "{unplaced} of {all} models have no place");
        Ok(())
    }

    /// Each model on the partition that it names, and those that name none on what this machine has beside. And what
    /// cannot be so on this machine.
    fn as_configured(&self, config: &Config) -> Result<(Plan, Vec<String>)> {
        let mut whole = Plan { partitions: Vec::new(), unplaced: Vec::new() };
        let mut add = |part: Plan| {
            whole.partitions.extend(part.partitions);
            whole.unplaced.extend(part.unplaced);
        };
        let mut machine = Machine::new(&config.engine)?;
        for partition in &config.partitions {
            let rooms = [machine.room(partition).with_context(|| partition.key("memory"))?];
            let lies_here = |model: &ModelConfig| model.partition.as_ref() == Some(&partition.name);
            let filled = plan(&self.demands(config, &rooms, lies_here)?, &rooms);
            machine.take(partition, &filled);
            add(filled);
        }
        if config.models.iter().any(|model| model.partition.is_none()) {
            let rooms = machine.rest()?;
            add(plan(&self.demands(config, &rooms, |model| model.partition.is_none())?, &rooms));
        }
        let shared = shared_devices(config);
        machine.notes.extend(shared.iter().flat_map(|device| [device.too_much(), device.no_room_for_two()]).flatten());
        Ok((whole, machine.notes))
    }

    fn demands(
        &self,
        config: &Config,
        rooms: &[PartitionRoom],
        are_meant: impl Fn(&ModelConfig) -> bool,
    ) -> Result<Vec<ModelDemand>> {
        let config = on(config, rooms);
        config.models.iter().filter(|model| are_meant(model)).map(|model| self.demand(model, &config)).collect()
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

/// With the steps of what the rooms are; where they are of several kinds, those of a CPU, which are smaller.
fn on(config: &Config, rooms: &[PartitionRoom]) -> Config {
    let backend = rooms.first().and_then(|room| room.backend);
    let are_alike = rooms.iter().all(|room| room.backend.is_some());
    Config { engine: config.engine.on(backend.filter(|_| are_alike)), ..config.clone() }
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
        if quantised.cpu < weights.cpu {
            smaller.push((name, quantised));
        }
    }
    let StepSizes { max_num_seqs, max_num_batched_tokens, .. } = config.engine.steps;
    let activations = match is.kv {
        Some(_) => step_bytes(&is.activations, &config.engine),
        // Of an encoder, which runs a text that is longer than a step alone.
        None => is.activations.bytes(max_num_batched_tokens.max(is.max_position), 0),
    };
    Ok(ModelDemand {
        name: model.name.clone(),
        weights,
        smaller,
        context: is.max_position,
        sequences,
        max_sequences: max_num_seqs,
        step_tokens: max_num_batched_tokens,
        activations,
        kv: is.kv,
        activation_dtype: load_options(model).activation_dtype,
    })
}

#[cfg(test)]
mod tests;
