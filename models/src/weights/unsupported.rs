//! Checkpoints that are recognised but not served, each with what to do about it.

use std::borrow::Cow;
use std::path::Path;

use super::CheckpointFiles;
use crate::ModelError;
use crate::config::CONFIG_FILE;

/// The error for a checkpoint without safetensors files that this crate reads.
pub(super) fn refuse(files: &CheckpointFiles) -> ModelError {
    match files.names() {
        Ok(names) => ModelError::checkpoint(files.root(), "weights", explain(&names)),
        Err(error) => error,
    }
}

/// The error for a folder that has no `config.json`.
pub(crate) fn without_config(files: &CheckpointFiles) -> ModelError {
    ModelError::checkpoint(files.root(), CONFIG_FILE, explain_without_config(files))
}

fn explain_without_config(files: &CheckpointFiles) -> Cow<'static, str> {
    let names = files.names().unwrap_or_default();
    let any = |part: &str| names.iter().any(|name| name.contains(part));
    if names.iter().any(|name| is_gguf(name)) {
        return ONLY_GGUF.into();
    } else if any("adapter_config.json") {
        return ADAPTER.into();
    } else if any("params.json") {
        return "not found, only the publisher's own layout (params.json) is here; download config.json and \
                model*.safetensors too"
            .into();
    }
    match some_checkpoints(files) {
        Some(inside) => {
            format!("not found; its folders are checkpoints ({inside}): give one, or all of them as --models-dir")
                .into()
        }
        None => "not found; a checkpoint is a directory with config.json, tokenizer.json and *.safetensors".into(),
    }
}

/// The names of a few folders that hold a checkpoint each.
fn some_checkpoints(files: &CheckpointFiles) -> Option<String> {
    const FEW: usize = 3;
    // The modules of an embedding model have a config.json of their own, and seldom weights.
    let has_weights = |folder: &CheckpointFiles| {
        folder.names().is_ok_and(|names| names.iter().any(|name| name.ends_with(".safetensors")))
    };
    let is_checkpoint = |name: &String| {
        let folder = files.folder(name);
        folder.contains(CONFIG_FILE) && has_weights(&folder)
    };
    let mut inside: Vec<String> = files.folders().ok()?.into_iter().filter(is_checkpoint).take(FEW + 1).collect();
    if inside.len() > FEW {
        inside[FEW] = "...".to_owned();
    }
    (!inside.is_empty()).then(|| inside.join(", "))
}

/// The error for a file that stands for another one, which was never fetched: what git leaves without its LFS extension.
pub(super) fn refuse_pointer(file: &Path, content: &[u8]) -> Result<(), ModelError> {
    if content.starts_with(b"version https://git-lfs.github.com/spec/") {
        let problem = "a pointer of Git LFS, not the file itself; run `git lfs pull`, or download the file";
        return Err(ModelError::checkpoint(file, "content", problem));
    }
    Ok(())
}

const ONLY_GGUF: &str = "only GGUF files are here; give one of them, not their folder";
const ADAPTER: &str = "an adapter without its base model; merge it into the base model and save that as safetensors";

/// What a trainer leaves beside the weights: its own state, by the beginnings of the names.
const TRAINER_FILES: [&str; 8] =
    ["optimizer", "scheduler", "scaler", "rng_state", "random_states", "training_args", "trainer_state", "global_step"];

fn is_gguf(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with(".gguf")
}

fn explain(names: &[String]) -> &'static str {
    let is_trainers = |name: &str| TRAINER_FILES.iter().any(|start| name.starts_with(start));
    let names: Vec<&String> = names.iter().filter(|name| !is_trainers(name)).collect();
    let any = |suffix: &str| names.iter().any(|name| name.ends_with(suffix));
    if names.iter().any(|name| is_gguf(name)) {
        ONLY_GGUF
    } else if names.iter().any(|name| name.starts_with("consolidated") && name.ends_with(".safetensors")) {
        "only the publisher's own layout (consolidated*.safetensors) is here; download model*.safetensors too"
    } else if names.iter().any(|name| name.starts_with("adapter_model")) {
        ADAPTER
    } else if names.iter().any(|name| name.contains("-of-") && name.ends_with(".safetensors")) {
        "shards without model.safetensors.index.json, which says what is in them; download it too"
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
