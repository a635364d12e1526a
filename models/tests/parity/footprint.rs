//! What a model is reckoned to take is what it takes once it is loaded.

use passerelle_models::ops::Compute;
use passerelle_models::{
    CheckpointFiles, Footprint, LoadOptions, WeightDtype, WeightLayout, footprint, load_decoder, load_text_encoder,
    unwatched,
};
use serde_json::json;
use tempfile::TempDir;

use crate::support::Fixture;

pub(crate) const DECODERS: [&str; 22] = [
    "plain",
    "biased_tied",
    "rope_linear",
    "rope_llama3",
    "rope_yarn",
    "sharded_f16",
    "mistral",
    "mistral_window",
    "ministral",
    "ministral3",
    "mistral3",
    "qwen2",
    "qwen3",
    "qwen3_windows",
    "olmo2",
    "apertus",
    "apertus_split",
    "apertus1p5_text",
    "apertus1p5",
    "nemotron",
    "smollm3",
    "bloom",
];
const ENCODERS: [&str; 8] = [
    "bert",
    "bert_reranker",
    "camembert_classifier",
    "modernbert",
    "modernbert_classifier",
    "qwen3_embedding",
    "roberta",
    "xlm_roberta",
];

fn reckoned(files: &CheckpointFiles, options: &LoadOptions) -> Footprint {
    footprint(files, options, WeightLayout::Panels).unwrap()
}

/// Within 3 %: matrices that are stored apart and held as one are reckoned with the padding of each, and the dense
/// layers behind an encoder's pooling are left out, which is much of a tiny model and little of a large one.
fn assert_near(reckoned: u64, found: u64, what: &str) {
    assert!(reckoned.abs_diff(found) * 33 <= found, "{what}: {reckoned} reckoned, {found} found");
}

#[test]
fn weights_and_caches_are_as_large_as_reckoned() {
    for name in DECODERS {
        let fixture = Fixture::copy(name);
        for dtype in [WeightDtype::Auto, WeightDtype::F32, WeightDtype::Bf16, WeightDtype::Q8_0, WeightDtype::Q4_0] {
            let options = LoadOptions { dtype, max_model_len: Some(48), ..LoadOptions::default() };
            let reckoned = reckoned(&fixture.files(), &options);
            let (decoder, is) = load_decoder(&fixture.files(), &Compute::cpu(1), &options, &mut unwatched).unwrap();
            let what = format!("{name} in {dtype:?}");
            assert_near(reckoned.weight_bytes, is.resident_bytes.unwrap(), &what);
            assert_eq!(reckoned.kv, Some(passerelle_models::CausalLm::kv_cache_spec(&decoder)), "{what}");
            assert_eq!((reckoned.max_position, reckoned.activations), (48, decoder.activations()), "{what}");
        }
    }
}

#[test]
fn encoders_are_as_large_as_reckoned() {
    for name in ENCODERS {
        let fixture = Fixture::copy(&format!("encoders/{name}"));
        let options = LoadOptions::default();
        let (_, is) = load_text_encoder(&fixture.files(), &Compute::cpu(1), &options, &mut unwatched).unwrap();
        let reckoned = reckoned(&fixture.files(), &options);
        assert_near(reckoned.weight_bytes, is.model.resident_bytes.unwrap(), name);
        assert_eq!(reckoned.kv, None, "{name}");
    }
}

/// It has neither matrices that are stored apart and held as one nor dense layers behind its pooling, but norms whose biases
/// are zeros.
#[test]
fn norms_without_biases_are_reckoned_with_the_zeros_that_they_hold() {
    let fixture = Fixture::copy("encoders/modernbert");
    let options = LoadOptions::default();
    let (_, is) = load_text_encoder(&fixture.files(), &Compute::cpu(1), &options, &mut unwatched).unwrap();
    assert_eq!(Some(reckoned(&fixture.files(), &options).weight_bytes), is.model.resident_bytes);
}

#[test]
fn a_configuration_alone_is_enough() {
    for name in DECODERS {
        let fixture = Fixture::copy(name);
        fixture.edit_config(|config| {
            config.insert("torch_dtype".into(), json!("float16"));
        });
        let options = LoadOptions { dtype: WeightDtype::F16, ..LoadOptions::default() };
        let whole = reckoned(&fixture.files(), &options);
        let outline = TempDir::new().unwrap();
        std::fs::copy(fixture.directory.path().join("config.json"), outline.path().join("config.json")).unwrap();
        let outline = CheckpointFiles::directory(outline.path()).unwrap();
        let alone = reckoned(&outline, &LoadOptions::default());
        assert_near(alone.weight_bytes, whole.weight_bytes, name);
        assert_eq!((alone.max_position, alone.activations), (whole.max_position, whole.activations), "{name}");
    }
}

#[test]
fn a_configuration_that_names_no_dtype_is_refused_by_that_field() {
    let fixture = Fixture::copy("plain");
    std::fs::remove_file(fixture.directory.path().join("model.safetensors")).unwrap();
    fixture.edit_config(|config| {
        config.remove("dtype");
        config.insert("torch_dtype".into(), json!("float8"));
    });
    let error = footprint(&fixture.files(), &LoadOptions::default(), WeightLayout::Rows).unwrap_err();
    assert!(error.to_string().contains("torch_dtype"), "{error}");
}
