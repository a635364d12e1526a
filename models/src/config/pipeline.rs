//! The files of the sentence-transformers library beside a checkpoint: how hidden states become an embedding.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::encoder_spec::{DenseSpec, PipelineSpec, PipelineStep, Pooling};
use super::spec::{Activation, Bias};
use super::{Fields, limits, read_object};
use crate::ModelError;
use crate::weights::CheckpointFiles;

pub(crate) const MODULES_FILE: &str = "modules.json";
const LENGTH_FILE: &str = "sentence_bert_config.json";
const PROMPTS_FILE: &str = "config_sentence_transformers.json";
const TOKENIZER_FILE: &str = "tokenizer_config.json";
/// Published embedding models have at most five.
const MAX_MODULES: usize = 16;

/// The pipeline that the files describe; without `modules.json` the mean of the hidden states. Every field is honoured or
/// refused by file and name.
pub(crate) fn read_pipeline(files: &CheckpointFiles) -> Result<PipelineSpec, ModelError> {
    let mut pipeline = match read_modules(files)? {
        Some(modules) => read_steps(files, &modules)?,
        None => PipelineSpec::default(),
    };
    read_length(files, &mut pipeline)?;
    read_prompts(files, &mut pipeline)?;
    Ok(pipeline)
}

/// One entry of `modules.json`.
struct Module {
    /// The last part of its class name.
    kind: String,
    folder: String,
}

fn read_modules(files: &CheckpointFiles) -> Result<Option<Vec<Module>>, ModelError> {
    let Some(bytes) = files.read(MODULES_FILE, limits::MAX_CONFIG_BYTES)? else { return Ok(None) };
    let path = files.path_of(MODULES_FILE);
    let refuse = |what: String, problem: &str| ModelError::checkpoint(&path, what, problem);
    let Ok(Value::Array(listed)) = serde_json::from_slice(&bytes) else {
        return Err(refuse("JSON".into(), "expected a list of modules; fetch the file again"));
    };
    if listed.len() > MAX_MODULES {
        return Err(refuse(format!("[{MAX_MODULES}]"), "more modules than an embedding model has"));
    }
    let mut modules = Vec::with_capacity(listed.len());
    for (index, entry) in listed.iter().enumerate() {
        let Some(object) = entry.as_object() else {
            return Err(refuse(format!("[{index}]"), "expected an object"));
        };
        let mut fields = Fields::new(&path, object);
        fields.ignore(&["idx", "name", "kwargs"]);
        let folder = fields.text("path")?.unwrap_or_default().to_owned();
        let class = fields.text("type")?.unwrap_or_default();
        let kind = class.rsplit('.').next().unwrap_or_default().to_owned();
        if !is_folder_name(&folder) {
            return Err(fields.refuse("path", "not the name of a folder beside the file"));
        }
        fields.finish()?;
        modules.push(Module { kind, folder });
    }
    Ok(Some(modules))
}

/// Nothing that leads out of the checkpoint; empty for the checkpoint itself.
fn is_folder_name(name: &str) -> bool {
    name.len() <= 255 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

fn read_steps(files: &CheckpointFiles, modules: &[Module]) -> Result<PipelineSpec, ModelError> {
    let path = files.path_of(MODULES_FILE);
    let [transformer, pooling, rest @ ..] = modules else {
        return Err(ModelError::checkpoint(&path, "modules", "expected a Transformer and a Pooling at least"));
    };
    for (module, expected) in [(transformer, "Transformer"), (pooling, "Pooling")] {
        if module.kind != expected {
            let problem = format!("{:.80} where {expected} is expected; no other pipeline is served", module.kind);
            return Err(ModelError::checkpoint(&path, "type", problem));
        }
    }
    if !transformer.folder.is_empty() {
        let problem = "the model itself is expected beside modules.json; move its files there";
        return Err(ModelError::checkpoint(&path, "path", problem));
    }
    let mut pipeline = PipelineSpec { pooling: read_pooling(files, &pooling.folder)?, ..PipelineSpec::default() };
    for module in rest {
        pipeline.steps.push(match module.kind.as_str() {
            "Normalize" => PipelineStep::Normalize,
            "Dense" => PipelineStep::Dense(read_dense(files, &module.folder)?),
            other => {
                let problem = format!("{other:.80} is not supported; supported after Pooling: Dense, Normalize");
                return Err(ModelError::checkpoint(&path, "type", problem));
            }
        });
    }
    Ok(pipeline)
}

fn read_pooling(files: &CheckpointFiles, folder: &str) -> Result<Vec<Pooling>, ModelError> {
    const NAMES: [(&str, &str, Pooling); 6] = [
        ("cls", "pooling_mode_cls_token", Pooling::First),
        ("max", "pooling_mode_max_tokens", Pooling::Max),
        ("mean", "pooling_mode_mean_tokens", Pooling::Mean),
        ("mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens", Pooling::MeanSqrtLen),
        ("weightedmean", "pooling_mode_weightedmean_tokens", Pooling::WeightedMean),
        ("lasttoken", "pooling_mode_lasttoken", Pooling::Last),
    ];
    let (path, root) = module_config(files, folder)?;
    let mut fields = Fields::new(&path, &root);
    // The width of what is pooled is the model's.
    fields.ignore(&["embedding_dimension", "word_embedding_dimension"]);
    fields.neutral("include_prompt", &[true.into()], "prompts are pooled with the text")?;
    let mut flagged = Vec::new();
    for (_, flag, pooling) in NAMES {
        if fields.flag(flag, false)? {
            flagged.push(pooling);
        }
    }
    let named = match fields.value("pooling_mode") {
        None => Vec::new(),
        Some(written) => {
            let one = std::slice::from_ref(written);
            let find = |mode: &Value| NAMES.iter().find(|(name, ..)| mode == *name).map(|(.., pooling)| *pooling);
            let modes = written.as_array().map_or(one, Vec::as_slice).iter().map(find).collect::<Option<Vec<_>>>();
            modes.filter(|modes| !modes.is_empty() && modes.len() <= NAMES.len()).ok_or_else(|| {
                let names: Vec<_> = NAMES.iter().map(|(name, ..)| *name).collect();
                fields.refuse("pooling_mode", format!("supported: one or several of {}", names.join(", ")))
            })?
        }
    };
    fields.finish()?;
    Ok([named, flagged, vec![Pooling::Mean]].into_iter().find(|modes| !modes.is_empty()).expect("the last is not"))
}

fn read_dense(files: &CheckpointFiles, folder: &str) -> Result<DenseSpec, ModelError> {
    let (path, root) = module_config(files, folder)?;
    let mut fields = Fields::new(&path, &root);
    let pooled = ["sentence_embedding".into()];
    fields.neutral("module_input_name", &pooled, "the pooled vector is what it reads")?;
    fields.neutral("module_output_name", &pooled, "the pooled vector is what it writes")?;
    fields.neutral("use_residual", &[false.into()], "the output replaces the input")?;
    let activation = match fields.text("activation_function")? {
        // The library's own default.
        None => Some(Activation::Tanh),
        Some(class) => match class.rsplit('.').next() {
            Some("Identity") => None,
            Some("Tanh") => Some(Activation::Tanh),
            Some("ReLU") => Some(Activation::Relu),
            Some("GELU") => Some(Activation::GeluErf),
            Some("SiLU") => Some(Activation::Silu),
            _ => {
                let problem = format!("{class:.80} is not supported; supported: Identity, Tanh, ReLU, GELU, SiLU");
                return Err(fields.refuse("activation_function", problem));
            }
        },
    };
    let dense = DenseSpec {
        folder: folder.to_owned(),
        in_features: fields.count("in_features", limits::INTERMEDIATE_SIZE)?,
        out_features: fields.count("out_features", limits::INTERMEDIATE_SIZE)?,
        bias: Bias::from(fields.flag("bias", true)?),
        activation,
    };
    fields.finish()?;
    Ok(dense)
}

fn module_config(files: &CheckpointFiles, folder: &str) -> Result<(PathBuf, Map<String, Value>), ModelError> {
    if folder.is_empty() {
        let problem = "empty, where only the model itself lies; give the folder that the module's config.json is in";
        return Err(ModelError::checkpoint(&files.path_of(MODULES_FILE), "path", problem));
    }
    let file = format!("{folder}/config.json");
    let path = files.path_of(&file);
    match read_object(files, &file)? {
        Some(root) => Ok((path, root)),
        None => Err(ModelError::checkpoint(&path, "config.json", "not found, although modules.json names it")),
    }
}

/// The longest text: newer versions of the library write it into the tokenizer's file only.
fn read_length(files: &CheckpointFiles, pipeline: &mut PipelineSpec) -> Result<(), ModelError> {
    if let Some(root) = read_object(files, LENGTH_FILE)? {
        let path = files.path_of(LENGTH_FILE);
        let mut fields = Fields::new(&path, &root);
        pipeline.max_tokens = fields.optional_count("max_seq_length", limits::MAX_POSITION)?;
        pipeline.lower_case = fields.flag("do_lower_case", false)?;
        fields.neutral("transformer_task", &["feature-extraction".into()], "hidden states are what is pooled")?;
        fields.neutral("module_output_name", &["token_embeddings".into()], "hidden states are what is pooled")?;
        // Which inputs beside text there could be, and how the Python classes are called.
        fields.ignore(&["modality_config", "model_args", "config_args", "tokenizer_args", "processing_kwargs"]);
        fields.finish()?;
    }
    if pipeline.max_tokens.is_none()
        && let Some(root) = read_object(files, TOKENIZER_FILE)?
    {
        // Without a bound of its own, the library writes a number beyond any text.
        let length =
            root.get("model_max_length").and_then(Value::as_u64).and_then(|length| usize::try_from(length).ok());
        pipeline.max_tokens = length.filter(|length| limits::MAX_POSITION.contains(length));
    }
    Ok(())
}

fn read_prompts(files: &CheckpointFiles, pipeline: &mut PipelineSpec) -> Result<(), ModelError> {
    let Some(root) = read_object(files, PROMPTS_FILE)? else { return Ok(()) };
    let path = files.path_of(PROMPTS_FILE);
    let mut fields = Fields::new(&path, &root);
    let prompts = fields.value("prompts").map(|value| value.as_object().ok_or(())).transpose();
    let prompts = prompts.map_err(|()| fields.refuse("prompts", "expected an object of names and texts"))?;
    let mut read = BTreeMap::new();
    for (name, text) in prompts.into_iter().flatten() {
        let Some(text) = text.as_str() else {
            return Err(fields.refuse("prompts", "a prompt that is not a text"));
        };
        read.insert(name.clone(), text.to_owned());
    }
    pipeline.prompts = read;
    pipeline.default_prompt = fields.text("default_prompt_name")?.map(str::to_owned);
    if let Some(name) = &pipeline.default_prompt
        && !pipeline.prompts.contains_key(name)
    {
        return Err(fields.refuse("default_prompt_name", "not one of the prompts"));
    }
    fields.neutral("model_type", &["SentenceTransformer".into()], "only dense embeddings are served")?;
    // How vectors are compared, which whoever asked for them does.
    fields.ignore(&["similarity_fn_name"]);
    fields.finish()
}
