//! Which files of a folder are parts of a checkpoint. Their names alone decide, so that nothing is parsed before it is
//! known to be what somebody vouched for.

use super::Manifest;
use crate::ModelError;
use crate::config::MODULES_FILE;
use crate::weights::{CheckpointFiles, is_plain_name};

/// Small files beside the weights that are read, here or by what makes text of tokens.
const DESCRIPTIONS: [&str; 9] = [
    "config.json",
    "generation_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    MODULES_FILE,
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "model.safetensors.index.json",
];
/// All that is read of the folder of an embedding model's module.
const OF_A_MODULE: [&str; 2] = ["config.json", "model.safetensors"];

/// A file, as the manifest and as the checkpoint call it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) file: String,
}

/// Whether a file directly in a checkpoint's folder describes it.
pub fn is_description(file: &str) -> bool {
    DESCRIPTIONS.contains(&file) || file.starts_with("tokenizer") && file.ends_with(".json") && is_plain_name(file)
}

/// In no particular order.
pub(super) fn parts(files: &CheckpointFiles) -> Result<Vec<Part>, ModelError> {
    if files.is_gguf() {
        return Ok(files.names()?.into_iter().map(|file| Part { name: Manifest::GGUF.to_owned(), file }).collect());
    }
    let mut names = files.names()?;
    names.retain(|name| is_description(name) || is_weights(name));
    if files.contains(MODULES_FILE) {
        for folder in files.folders()?.into_iter().filter(|folder| is_plain_name(folder)) {
            let in_folder = OF_A_MODULE.map(|file| format!("{folder}/{file}"));
            names.extend(in_folder.into_iter().filter(|file| files.contains(file)));
        }
    }
    Ok(names.into_iter().map(|name| Part { file: name.clone(), name }).collect())
}

fn is_weights(file: &str) -> bool {
    file.ends_with(".safetensors") && is_plain_name(file)
}

/// Whether a manifest may hold the name: that of a plain file, in the checkpoint's folder or in a folder there.
pub(super) fn is_part_name(name: &str) -> bool {
    let (folder, file) = name.split_once('/').unwrap_or(("module", name));
    is_plain_name(folder) && is_plain_name(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_are_known_by_their_names() {
        for part in ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "modules.json"] {
            assert!(is_description(part), "{part}");
        }
        for other in ["README.md", "trainer_state.json", "optimizer.pt", "tokenizer/x.json", "tokenizer x.json"] {
            assert!(!is_description(other), "{other}");
        }
    }
}
