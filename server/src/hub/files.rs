//! Which files of a repository a served model needs: never pickled weights, never anything to run.

use std::collections::BTreeSet;

use serde_json::Value;

pub(super) const WEIGHTS: &str = "model.safetensors";
pub(super) const WEIGHTS_INDEX: &str = "model.safetensors.index.json";

/// What of a repository is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    Checkpoint,
    /// A checkpoint whose text files come from elsewhere.
    CheckpointWithoutTokenizer,
    /// What makes tokens of text, and no weights.
    Tokenizer,
    /// What the model is, without weights and text.
    Description,
}

impl Wanted {
    /// Without these a source cannot be used.
    pub(super) fn required(self) -> &'static [&'static str] {
        match self {
            Self::Checkpoint => &["config.json", "tokenizer.json"],
            Self::CheckpointWithoutTokenizer | Self::Description => &["config.json"],
            Self::Tokenizer => &["tokenizer.json"],
        }
    }

    pub(super) fn has_weights(self) -> bool {
        !matches!(self, Self::Tokenizer | Self::Description)
    }
}

/// Whether a small file beside the weights is wanted.
#[cfg(any(feature = "hub", test))]
pub(super) fn is_description(file: &str) -> bool {
    passerelle_models::is_description(file) || is_module_file(file)
}

/// `1_Pooling/config.json` or `2_Dense/model.safetensors` of an embedding model.
#[cfg(any(feature = "hub", test))]
fn is_module_file(file: &str) -> bool {
    let folder = file.strip_suffix("/config.json").or_else(|| file.strip_suffix("/model.safetensors"));
    let Some(folder) = folder else { return false };
    let plain = folder.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    plain && folder.starts_with(|c: char| c.is_ascii_digit())
}

/// The shards that a weights index lists. Errors name what is wrong with it.
pub(super) fn shards(index: &[u8]) -> Result<BTreeSet<String>, String> {
    let index: Value =
        serde_json::from_slice(index).map_err(|error| format!("{WEIGHTS_INDEX} is not JSON: {error}"))?;
    let map = index["weight_map"].as_object().ok_or_else(|| format!("{WEIGHTS_INDEX} has no weight_map"))?;
    map.values()
        .map(|shard| shard.as_str().filter(|shard| is_shard(shard)).map(str::to_owned))
        .collect::<Option<_>>()
        .ok_or_else(|| format!("{WEIGHTS_INDEX} names weights that are not plain .safetensors files"))
}

fn is_shard(file: &str) -> bool {
    let plain = file.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    plain && file.ends_with(".safetensors") && !file.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_serving_needs_is_chosen() {
        for wanted in [
            "config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
            "1_Pooling/config.json",
            "2_Dense/model.safetensors",
        ] {
            assert!(is_description(wanted), "{wanted}");
        }
        for unwanted in
            ["pytorch_model.bin", "model.pt", "README.md", "modeling_x.py", "onnx/config.json", "../config.json"]
        {
            assert!(!is_description(unwanted), "{unwanted}");
        }
    }

    #[test]
    fn an_index_cannot_name_files_elsewhere() {
        let index = |shard: &str| format!(r#"{{"weight_map": {{"a": "{shard}", "b": "{shard}"}}}}"#);
        assert_eq!(shards(index("model-1.safetensors").as_bytes()).unwrap().len(), 1);
        for bad in ["../model.safetensors", "/etc/x.safetensors", "model.bin", ".safetensors"] {
            assert!(shards(index(bad).as_bytes()).is_err(), "{bad}");
        }
        assert!(shards(b"{}").is_err());
        assert!(shards(br#"{"weight_map": {"a": 1}}"#).is_err());
    }
}
