//! From the files of a checkpoint to an encoder that runs.

use std::collections::BTreeMap;

use crate::arch::{self, EncoderArchitecture};
use crate::config::{
    ConfigFile, EncoderSpec, Heads, MODULES_FILE, PipelineSpec, ScoreActivation, layer_runs, read_pipeline,
    shared_heads,
};
use crate::layers::TextEncoder;
use crate::load::admitted_len;
use crate::ops::Compute;
use crate::weights::{CheckpointFiles, StoredTensor, TensorIndex, WeightLoader};
use crate::{Encoder, LoadOptions, LoadWatch, ModelDescription, ModelError, StoredDtype};

/// What a checkpoint is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointKind {
    /// Continues texts: [`crate::load()`].
    Generator,
    /// Gives one vector for each text: [`load_encoder`].
    Encoder,
}

/// An encoder and what it is.
pub struct LoadedEncoder {
    pub model: Box<dyn Encoder>,
    pub description: EncoderDescription,
}

/// What an encoder's checkpoint is.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderDescription {
    /// `max_position` is the longest text that its authors and its positions allow.
    pub model: ModelDescription,
    pub output: EncoderOutput,
}

/// What the vector of a text means.
#[derive(Debug, Clone, PartialEq)]
pub enum EncoderOutput {
    Embedding(EmbeddingDescription),
    Scores(ScoresDescription),
}

#[derive(Debug, Clone, PartialEq)]
pub struct EmbeddingDescription {
    pub dimensions: usize,
    /// Vectors have length 1.
    pub normalized: bool,
    /// Text is turned to lower case first.
    pub lower_case: bool,
    /// What may be put before a text, by name.
    pub prompts: BTreeMap<String, String>,
    /// The prompt of whoever names none.
    pub default_prompt: Option<String>,
}

/// The vector holds logits.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoresDescription {
    /// What each logit stands for.
    pub labels: Vec<String>,
    pub activation: ScoreActivation,
}

/// What the checkpoint is for: its class says so, and for a decoder's class whether a `modules.json` is beside it.
pub fn checkpoint_kind(files: &CheckpointFiles) -> Result<CheckpointKind, ModelError> {
    if !files.contains(crate::config::CONFIG_FILE) {
        return Ok(CheckpointKind::Generator);
    }
    let config = ConfigFile::read(files)?;
    let is_encoder = arch::is_encoder(config.architecture()?) || files.contains(MODULES_FILE);
    Ok(if is_encoder { CheckpointKind::Encoder } else { CheckpointKind::Generator })
}

/// Loads an encoder. Every field of its configuration is honoured and every tensor of it used, or the error says which
/// file and which field or tensor cannot be, and what to do.
///
/// `progress` is called after each matrix, and once at the end with everything done.
pub fn load_encoder(
    files: &CheckpointFiles,
    compute: &Compute,
    options: &LoadOptions,
    progress: LoadWatch<'_>,
) -> Result<LoadedEncoder, ModelError> {
    let (model, description) = load_text_encoder(files, compute, options, progress)?;
    Ok(LoadedEncoder { model: Box::new(model), description })
}

/// As [`load_encoder`], for callers that also want to look inside the model.
pub fn load_text_encoder(
    files: &CheckpointFiles,
    compute: &Compute,
    options: &LoadOptions,
    progress: LoadWatch<'_>,
) -> Result<(TextEncoder, EncoderDescription), ModelError> {
    let compute = &compute.with_activations_in(options.activation_dtype)?.for_model()?;
    let _here = compute.enter();
    let mut checkpoint = EncoderCheckpoint::open(files)?;
    checkpoint.spec.max_position = checkpoint.admitted_len(options.max_model_len)?;
    let mut description = checkpoint.describe();
    let EncoderCheckpoint { architecture, spec, heads, pipeline, index, .. } = checkpoint;
    let names = &architecture.names;
    let mut loader = WeightLoader::new(files, index, compute, options.dtype, progress)
        .with_optional_prefix(names.block.base_prefix, names.block.embedding);
    let model = TextEncoder::load(&mut loader, names, (&spec, heads, &pipeline), files)?;
    loader.finish(|tensor| architecture.is_expendable(tensor))?;
    description.model.scratch_bytes = compute.scratch_bytes() as u64;
    description.model.resident_bytes = Some(model.size_bytes() as u64 + description.model.scratch_bytes);
    Ok((model, description))
}

/// What an encoder's checkpoint is, from its configuration and the headers of its files. Loads no weights.
pub fn describe_encoder(files: &CheckpointFiles) -> Result<EncoderDescription, ModelError> {
    Ok(EncoderCheckpoint::open(files)?.describe())
}

impl std::fmt::Debug for LoadedEncoder {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("LoadedEncoder").field("description", &self.description).finish_non_exhaustive()
    }
}

/// Configuration and headers, read and checked.
pub(crate) struct EncoderCheckpoint {
    config: ConfigFile,
    architecture: EncoderArchitecture,
    pub(crate) spec: EncoderSpec,
    heads: Heads,
    pipeline: PipelineSpec,
    index: TensorIndex,
}

impl EncoderCheckpoint {
    pub(crate) fn open(files: &CheckpointFiles) -> Result<Self, ModelError> {
        let config = ConfigFile::read(files)?;
        let (architecture, mut spec) = arch::read_encoder(&config)?;
        let pipeline = read_pipeline(files)?;
        spec.max_position = pipeline.max_tokens.map_or(spec.max_position, |stated| stated.min(spec.max_position));
        let heads = shared_heads(&spec.layers).map_err(|problem| config.refuse("layers", problem))?;
        Ok(Self { config, architecture, spec, heads, pipeline, index: TensorIndex::read(files)? })
    }

    pub(crate) fn admitted_len(&self, wanted: Option<usize>) -> Result<usize, ModelError> {
        let refuse = |problem: String| self.config.refuse("max_position_embeddings", problem);
        admitted_len(self.spec.max_position, wanted, refuse)
    }

    /// What the model holds of what is stored.
    pub(crate) fn used_tensors(&self) -> impl Iterator<Item = &StoredTensor> {
        self.index.tensors().filter(|tensor| !self.architecture.is_expendable(&tensor.name))
    }

    /// The same with the dense layer of a classifier, which other heads leave unused.
    pub(crate) fn held_tensors(&self) -> impl Iterator<Item = &StoredTensor> {
        let dense = self.spec.classifier.as_ref().map(|_| self.architecture.names.classifier.dense);
        let is_dense = move |name: &str| dense.is_some_and(|dense| !dense.is_empty() && name.contains(dense));
        self.index.tensors().filter(move |is| !self.architecture.is_expendable(&is.name) || is_dense(&is.name))
    }

    pub(crate) fn describe(&self) -> EncoderDescription {
        let (spec, heads) = (&self.spec, self.heads);
        let parameters = |dtype| -> u64 {
            self.used_tensors().filter(|tensor| tensor.dtype == dtype).map(|tensor| tensor.num_elements() as u64).sum()
        };
        let dtypes = StoredDtype::ALL;
        let model = ModelDescription {
            family: self.architecture.family.to_owned(),
            architecture: self.architecture.name.to_owned(),
            num_parameters: dtypes.into_iter().map(parameters).sum(),
            stored_dtype: dtypes.into_iter().max_by_key(|dtype| parameters(*dtype)).expect("the list is not empty"),
            stored_bytes: self.used_tensors().map(StoredTensor::bytes_as_read).sum(),
            resident_bytes: None,
            scratch_bytes: 0,
            max_position: spec.max_position,
            vocab_size: spec.vocab_size,
            hidden_size: spec.hidden_size,
            num_layers: spec.layers.len(),
            layer_runs: layer_runs(&spec.layers),
            num_heads: heads.num_heads,
            num_kv_heads: heads.num_kv_heads,
            head_dim: heads.head_dim,
            tied_embeddings: false,
            eos_token_ids: Vec::new(),
            bos_token_id: None,
        };
        EncoderDescription { model, output: self.output() }
    }

    fn output(&self) -> EncoderOutput {
        let pipeline = &self.pipeline;
        match &self.spec.classifier {
            Some(classifier) => EncoderOutput::Scores(ScoresDescription {
                labels: classifier.labels.clone(),
                activation: classifier.scores,
            }),
            None => EncoderOutput::Embedding(EmbeddingDescription {
                dimensions: pipeline.dimensions(self.spec.hidden_size),
                normalized: pipeline.normalizes(),
                lower_case: pipeline.lower_case,
                prompts: pipeline.prompts.clone(),
                default_prompt: pipeline.default_prompt.clone(),
            }),
        }
    }
}
