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

fn explain(names: &[String]) -> &'static str {
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
