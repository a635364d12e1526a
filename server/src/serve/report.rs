//! What the start-up output says about each model.

use passerelle::config::{ByteSize, EngineConfig};
use passerelle_models::EncoderOutput;
use passerelle_models::ops::Compute;

use super::engines::EngineBounds;
use super::memory::step_bytes;
use super::models::{Loaded, LoadedEncoder};
use super::text;

/// One event; operators look here first.
pub(crate) fn model(model: &Loaded, bounds: EngineBounds, config: &EngineConfig, compute: &Compute) {
    let (is, spec) = (&model.description, model.model.kv_cache_spec());
    let EngineBounds { num_kv_blocks, max_model_len } = bounds;
    tracing::info!(
        model = %model.name,
        source = %model.files.root().display(),
        digest = %model.digest,
        family = %is.family,
        parameters = %count(is.num_parameters),
        dtype = %model.dtype,
        memory = %ByteSize(is.resident_bytes.unwrap_or(is.stored_bytes)),
        device = %device_name(compute),
        kernels = %compute.kernels(),
        threads = compute.num_threads(),
        context = is.max_position,
        kv_dtype = %spec.format,
        kv_blocks = num_kv_blocks,
        kv_groups = spec.groups.len(),
        kv_tokens = num_kv_blocks / spec.groups.len() * spec.block_size,
        kv_memory = %ByteSize((num_kv_blocks * spec.block_bytes()) as u64),
        step_memory = %ByteSize(step_bytes(&model.activations, config)),
        "loaded"
    );
    say_what_multiplies(&model.name, &model.dtype, compute);
    text::warn_of_none(&model.name, &model.text);
    if max_model_len < is.max_position {
        tracing::warn!(
            model = %model.name,
            "the KV cache holds a sequence of {max_model_len} tokens, less than the context of {}; longer requests are refused: raise \
             --kv-cache-memory, or shelf.kv_cache for one of --models-dir, or lower --max-model-len",
            is.max_position
        );
    }
}

/// Of quantised weights on a GPU: docs/gpu.md has more of them.
fn say_what_multiplies(model: &str, dtype: &str, compute: &Compute) {
    if !compute.device().is_cpu() && dtype.starts_with(['q', 'Q']) {
        tracing::warn!(
            model = %model,
            dtype = %dtype,
            "no GPU has run the kernels for quantised weights yet: `passerelle selftest` checks them, --dtype bf16 does without them"
        );
    }
}

/// As [`model`], for one that gives vectors.
pub(crate) fn encoder(loaded: &LoadedEncoder, compute: &Compute) {
    let is = &loaded.description.model;
    let gives = match &loaded.description.output {
        EncoderOutput::Embedding(embedding) => format!("embeddings of {}", embedding.dimensions),
        EncoderOutput::Scores(scores) => format!("scores of {} labels", scores.labels.len()),
    };
    tracing::info!(
        model = %loaded.name,
        source = %loaded.files.root().display(),
        digest = %loaded.digest,
        family = %is.family,
        parameters = %count(is.num_parameters),
        dtype = %loaded.dtype,
        memory = %ByteSize(is.resident_bytes.unwrap_or(is.stored_bytes)),
        device = %device_name(compute),
        kernels = %compute.kernels(),
        threads = compute.num_threads(),
        context = is.max_position,
        gives,
        "loaded"
    );
    say_what_multiplies(&loaded.name, &loaded.dtype, compute);
    text::warn_of_none(&loaded.name, &loaded.text);
}

pub(crate) fn device(compute: &Compute) -> &'static str {
    if compute.device().is_cpu() { "cpu" } else { "cuda" }
}

/// For people: `cpu`, or what the driver calls the GPU.
pub(crate) fn device_name(compute: &Compute) -> String {
    compute.gpu_name().unwrap_or_else(|| device(compute).to_owned())
}

/// `5_900_000` is `5.9 M`.
pub(crate) fn count(number: u64) -> String {
    match number {
        0..1_000_000 => format!("{:.1} k", number as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", number as f64 / 1e6),
        _ => format!("{:.2} G", number as f64 / 1e9),
    }
}
