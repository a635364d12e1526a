//! Checkpoints that are recognised but not served, each with what to do about it.

use super::CheckpointFiles;
use crate::ModelError;

/// The error for a checkpoint without safetensors files that this crate reads.
pub(super) fn refuse(files: &CheckpointFiles) -> ModelError {
    match files.names() {
        Ok(names) => ModelError::checkpoint(files.root(), "weights", explain(&names)),
        Err(error) => error,
    }
}

/// What a trainer leaves beside the weights: its own state, by the beginnings of the names.
const TRAINER_FILES: [&str; 8] =
    ["optimizer", "scheduler", "scaler", "rng_state", "random_states", "training_args", "trainer_state", "global_step"];

fn explain(names: &[String]) -> &'static str {
    let is_trainers = |name: &str| TRAINER_FILES.iter().any(|start| name.starts_with(start));
    let names: Vec<&String> = names.iter().filter(|name| !is_trainers(name)).collect();
    let any = |suffix: &str| names.iter().any(|name| name.ends_with(suffix));
    if any(".gguf") {
        "only GGUF files are here; give one of them, not their folder"
    } else if names.iter().any(|name| name.starts_with("consolidated") && name.ends_with(".safetensors")) {
        "only the publisher's own layout (consolidated*.safetensors) is here; download model*.safetensors too"
    } else if names.iter().any(|name| name.starts_with("adapter_model")) {
        "an adapter without its base model; merge it into the base model and save that as safetensors"
    } else if any(".bin") || any(".pt") || any(".pth") || any(".ckpt") {
        "only pickled weights, which can run code when read; convert them to safetensors, for example by loading the \
         model with transformers and calling save_pretrained"
    } else if any(".h5") || any(".msgpack") || any(".onnx") {
        "weights of another framework; convert them to safetensors"
    } else if any(".incomplete") || any(".part") || any(".lock") {
        "no model.safetensors yet, only an unfinished download; finish it"
    } else {
        "neither model.safetensors nor model.safetensors.index.json is here; download the weights"
    }
}
