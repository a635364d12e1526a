//! From the files of a checkpoint to a model that runs.

use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::PathBuf;

use crate::arch::{self, gguf};
use crate::config::{ConfigFile, DecoderSpec, Heads, LayerRun, LayerSpec, OutputHead, layer_runs, shared_heads};
use crate::layers::{Decoder, WeightNames};
use crate::ops::{Compute, widened};
use crate::weights::{CheckpointFiles, GgufHeader, StoredTensor, TensorIndex, WeightLoader, packed_dtype};
use crate::{Activations, CausalLm, KvCacheSpec, KvFormat, KvGroup, KvReach, ModelError, StoredDtype, TokenId};

/// How to hold a checkpoint in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadOptions {
    pub dtype: WeightDtype,
    pub kv_dtype: KvDtype,
    pub activation_dtype: ActivationDtype,
    /// The longest sequence to admit; at most what the checkpoint allows, which is the default.
    pub max_model_len: Option<usize>,
    /// Tokens per block of the KV cache.
    pub block_size: usize,
}

/// What weights are held in. Norms and biases are always f32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WeightDtype {
    /// As stored.
    #[default]
    Auto,
    F32,
    Bf16,
    F16,
    /// Matrices are quantised as they are loaded, but for those with rows that are no whole number of blocks of 32.
    Q8_0,
    Q4_0,
}

/// What keys and values are rounded to when they are cached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KvDtype {
    /// f32 beside f32 weights, else bf16.
    #[default]
    Auto,
    F32,
    Bf16,
    /// On a CPU.
    Int8,
}

/// What activations are rounded to where they meet quantised weights on a CPU, with a scale for every 32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ActivationDtype {
    /// As good as exact.
    #[default]
    Int16,
    /// Half the products, and an error of about half a per cent.
    Int8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    pub bytes_done: u64,
    pub bytes_total: u64,
}

/// Hears how far a load or a copy is; [`ControlFlow::Break`] ends it with an error of the kind `Interrupted`.
pub type LoadWatch<'a> = &'a mut dyn FnMut(LoadProgress) -> ControlFlow<()>;

/// For a [`LoadWatch`] of whom nobody watches.
pub fn unwatched(_: LoadProgress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A model and what it is.
pub struct LoadedModel {
    pub model: Box<dyn CausalLm>,
    pub description: ModelDescription,
    /// What its steps hold beside weights and KV cache.
    pub activations: Activations,
}

/// What a checkpoint is, as `inspect` and the start-up lines show it.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelDescription {
    pub family: String,
    /// The class that the checkpoint names, such as `LlamaForCausalLM`; of a GGUF file its `general.architecture`.
    pub architecture: String,
    pub num_parameters: u64,
    /// What most parameters are stored in.
    pub stored_dtype: StoredDtype,
    /// As they are read: a GGUF file's q5_0 as q8_0.
    pub stored_bytes: u64,
    /// Memory that the weights take once loaded; `None` when only described.
    pub resident_bytes: Option<u64>,
    /// Of it, what quantised ones are dequantised to on a GPU.
    pub scratch_bytes: u64,
    pub max_position: usize,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_layers: usize,
    /// What the layers are, in order.
    pub layer_runs: Vec<LayerRun>,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub tied_embeddings: bool,
    pub eos_token_ids: Vec<TokenId>,
    pub bos_token_id: Option<TokenId>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        const BLOCK_SIZE: usize = 16;
        Self {
            dtype: WeightDtype::Auto,
            kv_dtype: KvDtype::Auto,
            activation_dtype: ActivationDtype::default(),
            max_model_len: None,
            block_size: BLOCK_SIZE,
        }
    }
}

impl LoadOptions {
    /// What matrices of rows of `width` that are stored as `stored` are held as.
    pub(crate) fn held_dtype(&self, stored: StoredDtype, width: usize) -> StoredDtype {
        packed_dtype(self.dtype, width).unwrap_or(stored)
    }
}

/// Loads a checkpoint. Every field of its configuration is honoured and every tensor of it used, or the error says which
/// file and which field or tensor cannot be, and what to do.
///
/// `progress` is called after each matrix, and once at the end with everything done.
pub fn load(
    files: &CheckpointFiles,
    compute: &Compute,
    options: &LoadOptions,
    progress: LoadWatch<'_>,
) -> Result<LoadedModel, ModelError> {
    let (decoder, description) = load_decoder(files, compute, options, progress)?;
    let activations = decoder.activations();
    Ok(LoadedModel { model: Box::new(decoder), description, activations })
}

/// As [`load`], for callers that also want to look inside the model.
pub fn load_decoder(
    files: &CheckpointFiles,
    compute: &Compute,
    options: &LoadOptions,
    progress: LoadWatch<'_>,
) -> Result<(Decoder, ModelDescription), ModelError> {
    let _here = compute.enter();
    let checkpoint = Checkpoint::open(files)?;
    let mut description = checkpoint.describe();
    let Checkpoint { outline, index } = checkpoint;
    let max_position = outline.admitted_len(options.max_model_len)?;
    let kv_cache_spec = outline.kv_cache_spec(max_position, description.stored_dtype, options);
    kv_cache_spec.check_on(compute.device().location())?;
    let (names, spec) = (&outline.names, DecoderSpec { max_position, ..outline.spec });
    description.max_position = max_position;
    let compute = compute.for_kv_of(kv_cache_spec.format).with_activations_in(options.activation_dtype)?;
    let compute = &compute.for_model()?;
    let mut loader = WeightLoader::new(files, index, compute, options.dtype, progress)
        .with_optional_prefix(names.base_prefix, names.embedding);
    let held = options.held_dtype(description.stored_dtype, spec.hidden_size);
    let decoder = Decoder::load(&mut loader, names, &spec, kv_cache_spec)?.with_most_weights(held);
    loader.finish(|name| is_expendable(names, &spec, name))?;
    description.scratch_bytes = compute.scratch_bytes() as u64;
    description.resident_bytes = Some(decoder.size_bytes() as u64 + description.scratch_bytes);
    Ok((decoder, description))
}

/// A window that no sequence is longer than is none.
fn reach(layer: &LayerSpec, max_position: usize) -> KvReach {
    let window = layer.window().filter(|&window| window < max_position);
    window.and_then(NonZeroUsize::new).map_or(KvReach::Full, KvReach::Window)
}

/// What a checkpoint is, from its configuration and the headers of its files. Loads no weights: a tensor that is missing,
/// unknown or of another shape is found by [`load`] alone.
pub fn describe(files: &CheckpointFiles) -> Result<ModelDescription, ModelError> {
    Ok(Checkpoint::open(files)?.describe())
}

impl std::fmt::Debug for LoadedModel {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("LoadedModel").field("description", &self.description).finish_non_exhaustive()
    }
}

/// Configuration and headers, read and checked.
pub(crate) struct Checkpoint {
    pub(crate) outline: Outline,
    index: TensorIndex,
}

/// What the configuration alone says of a decoder.
pub(crate) struct Outline {
    family: &'static str,
    architecture: &'static str,
    names: WeightNames,
    pub(crate) spec: DecoderSpec,
    pub(crate) heads: Heads,
    /// The file and the field that bound a sequence's length.
    length_field: (PathBuf, String),
}

impl Checkpoint {
    pub(crate) fn open(files: &CheckpointFiles) -> Result<Self, ModelError> {
        if let Some(header) = files.gguf_header()? {
            return Self::open_gguf(files, header);
        }
        Ok(Self { outline: Outline::read(&ConfigFile::read(files)?)?, index: TensorIndex::read(files)? })
    }

    fn open_gguf(files: &CheckpointFiles, header: GgufHeader) -> Result<Self, ModelError> {
        let factors = header.tensors.iter().find(|tensor| tensor.name == gguf::ROPE_FACTORS).cloned();
        let index = TensorIndex::of_gguf(files, header.tensors);
        let factors = match factors {
            Some(tensor) => Some(widened(tensor.dtype, &index.copy_small(files, &tensor)?)),
            None => None,
        };
        let (family, spec) = gguf::read(&header.metadata, &index, factors)?;
        let outline = Outline {
            family: family.name,
            architecture: family.name,
            names: family.names,
            heads: shared_heads(&spec.layers).map_err(|problem| header.metadata.refuse("layers", problem))?,
            spec,
            length_field: (files.root().to_owned(), gguf::context_key(family)),
        };
        Ok(Self { outline, index })
    }

    /// What the model holds of what is stored.
    pub(crate) fn used_tensors(&self) -> impl Iterator<Item = &StoredTensor> {
        let Outline { names, spec, .. } = &self.outline;
        self.index.tensors().filter(|tensor| !is_expendable(names, spec, &tensor.name))
    }

    fn num_parameters(&self, dtype: StoredDtype) -> u64 {
        let tensors = self.used_tensors().filter(|tensor| tensor.dtype == dtype);
        tensors.map(|tensor| tensor.num_elements() as u64).sum()
    }

    /// What most parameters are stored in.
    pub(crate) fn stored_dtype(&self) -> StoredDtype {
        StoredDtype::ALL.into_iter().max_by_key(|dtype| self.num_parameters(*dtype)).expect("the list is not empty")
    }

    fn describe(&self) -> ModelDescription {
        let Outline { spec, heads, .. } = &self.outline;
        ModelDescription {
            family: self.outline.family.to_owned(),
            architecture: self.outline.architecture.to_owned(),
            num_parameters: StoredDtype::ALL.into_iter().map(|dtype| self.num_parameters(dtype)).sum(),
            stored_dtype: self.stored_dtype(),
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
            tied_embeddings: spec.output_head == OutputHead::Tied,
            eos_token_ids: spec.eos_token_ids.clone(),
            bos_token_id: spec.bos_token_id,
        }
    }
}

impl Outline {
    pub(crate) fn read(config: &ConfigFile) -> Result<Self, ModelError> {
        let architecture = arch::find(config)?;
        let spec = config.decoder(architecture.read, architecture.other_inputs)?;
        Ok(Self {
            family: architecture.family,
            architecture: architecture.name,
            names: architecture.names,
            heads: shared_heads(&spec.layers).map_err(|problem| config.refuse("layers", problem))?,
            spec,
            length_field: (config.path().to_owned(), "max_position_embeddings".into()),
        })
    }

    /// Of sequences up to `max_position`, and of weights that are `stored` so.
    pub(crate) fn kv_cache_spec(&self, max_position: usize, stored: StoredDtype, options: &LoadOptions) -> KvCacheSpec {
        KvCacheSpec {
            groups: KvGroup::of_layers(self.spec.layers.iter().map(|layer| reach(layer, max_position))),
            num_kv_heads: self.heads.num_kv_heads,
            head_dim: self.heads.head_dim,
            format: kv_format(options, stored),
            block_size: options.block_size,
        }
    }

    pub(crate) fn admitted_len(&self, wanted: Option<usize>) -> Result<usize, ModelError> {
        let (file, field) = &self.length_field;
        admitted_len(self.spec.max_position, wanted, |problem| ModelError::checkpoint(file, field, problem))
    }
}

/// The longest sequence that is admitted of those up to `allowed`: what is `wanted`, or the error that `refuse` makes of why
/// that cannot be.
pub(crate) fn admitted_len(
    allowed: usize,
    wanted: Option<usize>,
    refuse: impl FnOnce(String) -> ModelError,
) -> Result<usize, ModelError> {
    match wanted {
        Some(wanted) if wanted > allowed || wanted == 0 => Err(refuse(format!(
            "the model takes {allowed} tokens, and max_model_len asks for {wanted}; ask for 1 to {allowed}"
        ))),
        wanted => Ok(wanted.unwrap_or(allowed)),
    }
}

/// Tensors that a checkpoint may hold without the model using them: tables computed from the configuration, the copy of a
/// tied embedding, and what reads other inputs than text.
fn is_expendable(names: &WeightNames, spec: &DecoderSpec, tensor: &str) -> bool {
    let derived = names.derived.iter().any(|suffix| tensor.ends_with(suffix));
    let copied = spec.output_head == OutputHead::Tied && tensor.strip_suffix(".weight") == Some(names.output_head);
    let other_input = names.other_inputs.iter().any(|prefix| tensor.starts_with(prefix));
    derived || copied || other_input
}

fn kv_format(options: &LoadOptions, stored: StoredDtype) -> KvFormat {
    match (options.kv_dtype, options.dtype, stored) {
        (KvDtype::F32, ..) => KvFormat::F32,
        (KvDtype::Bf16, ..) => KvFormat::Bf16,
        (KvDtype::Int8, ..) => KvFormat::Int8,
        (KvDtype::Auto, WeightDtype::F32, _) => KvFormat::F32,
        (KvDtype::Auto, WeightDtype::Auto, StoredDtype::F32) => KvFormat::F32,
        (KvDtype::Auto, ..) => KvFormat::Bf16,
    }
}
