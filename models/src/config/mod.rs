//! `config.json` of any family as one [`DecoderSpec`].
//!
//! A field is honoured, known to say nothing about the arithmetic ([`irrelevant`]), or refused by name. Nothing is
//! silently ignored: a model that computes something else than its authors meant is worse than a model that is refused.

mod encoder_spec;
mod fields;
pub(crate) mod irrelevant;
mod labels;
pub(crate) mod limits;
mod mixer;
mod pipeline;
pub mod rope;
mod runs;
pub mod spec;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

pub use encoder_spec::{
    ClassifierSpec, DenseSpec, EncoderSpec, PipelineSpec, PipelineStep, Pooling, PositionTable, ScoreActivation,
};
pub(crate) use fields::Fields;
pub(crate) use labels::{read_labels, read_score_activation};
pub(crate) use mixer::{Heads, shared_heads};
pub use mixer::{Kept, LatentAttentionSpec, MixerSpec, Recurrence, RecurrentSpec};
pub(crate) use pipeline::{MODULES_FILE, read_pipeline};
pub(crate) use rope::{PartialRotary, RopeContext, RopeDialect, Temperature, read_rope, read_rope_object, yarn_mscale};
pub use rope::{RopeScaling, RopeSpec, RopeStyle, YarnSpec};
pub use runs::LayerRun;
pub(crate) use runs::layer_runs;
pub use spec::{
    Activation, AttentionSpec, Bias, DecoderSpec, Direction, FfnSpec, GateActivation, LayerSpec, NormKind,
    NormPlacement, NormSpec, NormWeight, OutputHead, PositionSpec, QkNormScope, QkNormSpec, TemperatureSpec,
    alibi_slopes,
};

use crate::weights::{CheckpointFiles, without_config};
use crate::{ModelError, StoredDtype, TokenId};

pub(crate) const CONFIG_FILE: &str = "config.json";
const GENERATION_CONFIG_FILE: &str = "generation_config.json";

/// The parsed `config.json` of a checkpoint.
#[derive(Debug)]
pub(crate) struct ConfigFile {
    path: PathBuf,
    root: Map<String, Value>,
    generation: Option<GenerationConfig>,
}

#[derive(Debug)]
struct GenerationConfig {
    path: PathBuf,
    root: Map<String, Value>,
}

impl ConfigFile {
    pub(crate) fn read(files: &CheckpointFiles) -> Result<Self, ModelError> {
        let path = files.path_of(CONFIG_FILE);
        let Some(root) = read_object(files, CONFIG_FILE)? else {
            return Err(without_config(files));
        };
        let generation = read_object(files, GENERATION_CONFIG_FILE)?
            .map(|root| GenerationConfig { path: files.path_of(GENERATION_CONFIG_FILE), root });
        Ok(Self { path, root, generation })
    }

    /// The class that the checkpoint was saved from, such as `LlamaForCausalLM`.
    pub(crate) fn architecture(&self) -> Result<&str, ModelError> {
        let listed = self.root.get("architectures").or_else(|| self.text_config()?.get("architectures"));
        match listed.and_then(Value::as_array).map(Vec::as_slice) {
            Some([Value::String(name)]) => Ok(name),
            _ => Err(self.refuse("architectures", "expected a list of one class name, such as [\"LlamaForCausalLM\"]")),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What it says that the weights are stored in, where nothing of them is at hand.
    pub(crate) fn stated_dtype(&self) -> Result<StoredDtype, ModelError> {
        let objects = [Some(&self.root), self.text_config()];
        let stated = objects.into_iter().flatten().find_map(|object| object.get("torch_dtype").or(object.get("dtype")));
        match stated.and_then(Value::as_str) {
            Some("float32") => Ok(StoredDtype::F32),
            Some("float16") => Ok(StoredDtype::F16),
            Some("bfloat16") => Ok(StoredDtype::Bf16),
            _ => {
                Err(self
                    .refuse("torch_dtype", "without weights beside it, float32, float16 or bfloat16 must stand here"))
            }
        }
    }

    pub(crate) fn refuse(&self, key: &str, problem: impl Into<String>) -> ModelError {
        ModelError::checkpoint(&self.path, key, problem)
    }

    /// The decoder's spec as `read` makes it of the fields, after which no field is left unread but the `other_inputs`
    /// beside a nested decoder.
    pub(crate) fn decoder(
        &self,
        read: fn(&mut Fields<'_>) -> Result<DecoderSpec, ModelError>,
        other_inputs: &[&str],
    ) -> Result<DecoderSpec, ModelError> {
        let mut top = Fields::new(&self.path, &self.root);
        refuse_quantized(&mut top)?;
        let mut spec = match top.object("text_config")? {
            None => read_whole(top, read)?,
            Some(mut inner) => {
                refuse_quantized(&mut inner)?;
                let spec = read_whole(inner, read)?;
                let tied = matches!(spec.output_head, OutputHead::Tied);
                top.neutral("tie_word_embeddings", &[tied.into()], "it contradicts text_config.tie_word_embeddings")?;
                irrelevant::skip(&mut top)?;
                top.ignore(&["bos_token_id", "eos_token_id"]);
                top.ignore(other_inputs);
                top.finish()?;
                spec
            }
        };
        for id in self.generation_eos(spec.vocab_size)? {
            if !spec.eos_token_ids.contains(&id) {
                spec.eos_token_ids.push(id);
            }
        }
        Ok(spec)
    }

    /// The encoder's spec as `read` makes it of the fields, after which no field is left unread.
    pub(crate) fn encoder(
        &self,
        read: fn(&mut Fields<'_>) -> Result<EncoderSpec, ModelError>,
    ) -> Result<EncoderSpec, ModelError> {
        let mut fields = Fields::new(&self.path, &self.root);
        refuse_quantized(&mut fields)?;
        read_whole(fields, read)
    }

    /// The language model's own object, in configurations that describe several models.
    fn text_config(&self) -> Option<&Map<String, Value>> {
        self.root.get("text_config")?.as_object()
    }

    fn generation_eos(&self, vocab_size: usize) -> Result<Vec<TokenId>, ModelError> {
        let Some(generation) = &self.generation else { return Ok(Vec::new()) };
        Fields::new(&generation.path, &generation.root).token_ids("eos_token_id", vocab_size, limits::MAX_EOS_TOKENS)
    }
}

fn read_whole<S>(mut fields: Fields<'_>, read: fn(&mut Fields<'_>) -> Result<S, ModelError>) -> Result<S, ModelError> {
    let spec = read(&mut fields)?;
    irrelevant::skip(&mut fields)?;
    fields.finish()?;
    Ok(spec)
}

fn refuse_quantized(fields: &mut Fields<'_>) -> Result<(), ModelError> {
    for key in ["quantization_config", "compression_config"] {
        let Some(value) = fields.value(key) else { continue };
        let method = value.get("quant_method").and_then(Value::as_str).unwrap_or("unnamed");
        let advice = dequantize(method);
        return Err(fields.refuse(key, format!("weights quantised by {method} are not served; {advice}")));
    }
    Ok(())
}

fn dequantize(method: &str) -> &'static str {
    match method {
        "gptq" | "awq" | "auto-round" | "hqq" => {
            "use the f32, f16 or bf16 checkpoint that they were made from, or serve this one with vLLM"
        }
        "fp8" | "fbgemm_fp8" | "compressed-tensors" | "modelopt" => {
            "use the bf16 checkpoint, or make one: load this with transformers and a quantization_config that has \
             dequantize=True (run_compressed=False for compressed-tensors), then save_pretrained"
        }
        "bitsandbytes" | "mxfp4" => {
            "use the bf16 checkpoint, or make one: load this with transformers, call dequantize(), then save_pretrained"
        }
        _ => "use the unquantised f32, f16 or bf16 checkpoint",
    }
}

fn read_object(files: &CheckpointFiles, file: &str) -> Result<Option<Map<String, Value>>, ModelError> {
    let Some(bytes) = files.read(file, limits::MAX_CONFIG_BYTES)? else { return Ok(None) };
    parse_object(&files.path_of(file), &bytes).map(Some)
}

pub(crate) fn parse_object(path: &Path, bytes: &[u8]) -> Result<Map<String, Value>, ModelError> {
    let damaged = |problem: String| ModelError::checkpoint(path, "JSON", problem);
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(damaged("expected an object; fetch the file again".into())),
        Err(error) => Err(damaged(format!("{}; fetch the file again", no_json(&error)))),
    }
}

/// Where a text is no JSON, and why.
pub(crate) fn no_json(error: &serde_json::Error) -> String {
    let said = error.to_string();
    let why = said.rsplit_once(" at line ").map_or(said.as_str(), |(why, _)| why);
    format!("not valid at line {}, column {} ({why})", error.line(), error.column())
}
