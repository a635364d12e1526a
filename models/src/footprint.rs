//! What a model takes in memory, reckoned from its configuration and the headers of its files, before anything is loaded.

mod activations;
mod weights;

pub use activations::Activations;
pub use weights::WeightLayout;

use crate::config::ConfigFile;
use crate::load::{Checkpoint, Outline};
use crate::load_encoder::EncoderCheckpoint;
use crate::weights::{CheckpointFiles, StoredTensor, TensorIndex};
use crate::{CheckpointKind, KvCacheSpec, KvFormat, LoadOptions, ModelError, StoredDtype, checkpoint_kind};

/// What one model takes.
#[derive(Debug, Clone, PartialEq)]
pub struct Footprint {
    /// Of the weights once they are loaded, norms and biases included, and what quantised ones are dequantised to on a device.
    pub weight_bytes: u64,
    /// What its KV cache is made of; an encoder keeps none.
    pub kv: Option<KvCacheSpec>,
    /// The longest sequence, as `LoadOptions::max_model_len` bounds it.
    pub max_position: usize,
    /// On this processor, where the layout is a CPU's.
    pub activations: Activations,
}

/// Of the model in `files`, loaded with `options` where weights lie as `layout` says.
///
/// A generator's `config.json` alone is enough: its weights then count as the dtype that it names. What a loaded model says
/// of itself ([`crate::ModelDescription::resident_bytes`]) is the same number but for the padding of matrices that are
/// stored apart and held as one, and for dense layers behind an encoder's pooling, which are not reckoned.
///
/// Errors as [`crate::describe`].
pub fn footprint(
    files: &CheckpointFiles,
    options: &LoadOptions,
    layout: WeightLayout,
) -> Result<Footprint, ModelError> {
    match checkpoint_kind(files)? {
        CheckpointKind::Encoder => encoder(&EncoderCheckpoint::open(files)?, options, layout),
        CheckpointKind::Generator if TensorIndex::has_files(files)? => {
            let is = Checkpoint::open(files)?;
            let stored = is.used_tensors().filter_map(weights::matrix);
            let matrices = layout.bytes(options.dtype, stored, weights::matrices(&is.outline.spec));
            generator(&is.outline, is.stored_dtype(), matrices, options, layout)
        }
        CheckpointKind::Generator => {
            let config = ConfigFile::read(files)?;
            let (outline, stored) = (Outline::read(&config)?, config.stated_dtype()?);
            let matrices = || weights::matrices(&outline.spec);
            let matrices = layout.bytes(options.dtype, matrices().map(|shape| (stored, shape)), matrices());
            generator(&outline, stored, matrices, options, layout)
        }
    }
}

/// Given what most weights are stored in, and what all matrices take.
fn generator(
    outline: &Outline,
    stored: StoredDtype,
    matrix_bytes: u64,
    options: &LoadOptions,
    layout: WeightLayout,
) -> Result<Footprint, ModelError> {
    let max_position = outline.admitted_len(options.max_model_len)?;
    let spec = &outline.spec;
    let kv = outline.kv_cache_spec(max_position, stored, options);
    let held = options.held_dtype(stored, spec.hidden_size);
    let activations = Activations::of_layers(&spec.layers, spec.hidden_size, spec.vocab_size);
    Ok(Footprint {
        weight_bytes: matrix_bytes + weights::vector_bytes(spec),
        activations: activations.rounded_to(layout.rounded_unit(held, kv.format, options.activation_dtype)),
        kv: Some(kv),
        max_position,
    })
}

fn encoder(is: &EncoderCheckpoint, options: &LoadOptions, layout: WeightLayout) -> Result<Footprint, ModelError> {
    let max_position = is.admitted_len(options.max_model_len)?;
    let vectors = is.held_tensors().filter(|tensor| tensor.shape.len() != 2).map(StoredTensor::num_elements);
    let vectors = weights::VECTOR_ELEMENT_BYTES * vectors.sum::<usize>() as u64;
    let merged = is.spec.layers.iter().flat_map(|layer| weights::of_layer(layer, is.spec.hidden_size));
    let matrices = layout.bytes(options.dtype, is.held_tensors().filter_map(weights::matrix), merged);
    let held = options.held_dtype(is.describe().model.stored_dtype, is.spec.hidden_size);
    // Encoders keep to f32 beside weights that are floats.
    let rounded = layout.rounded_unit(held, KvFormat::F32, options.activation_dtype);
    Ok(Footprint {
        weight_bytes: matrices + vectors + weights::unstored_bytes(&is.spec),
        kv: None,
        max_position,
        activations: Activations::of_layers(&is.spec.layers, is.spec.hidden_size, 0).rounded_to(rounded),
    })
}
