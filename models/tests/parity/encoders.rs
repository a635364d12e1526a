//! Encoders against the reference implementations, and a text against itself: whoever shares its batch, its vector has
//! the same bits.

use std::ops::ControlFlow;

use passerelle_models::ops::{Compute, KernelSet};
use passerelle_models::{
    CheckpointKind, Encoder, EncoderInput, EncoderOutput, EncoderSequence, LoadOptions, ModelError, TextEncoder,
    checkpoint_kind, describe_encoder, load_text_encoder,
};
use serde_json::{Value, json};

use crate::runner::worst_excess;
use crate::support::Fixture;

const ALL: [&str; 8] = [
    "bert",
    "bert_reranker",
    "roberta",
    "xlm_roberta",
    "camembert_classifier",
    "modernbert",
    "modernbert_classifier",
    "qwen3_embedding",
];
/// Lengths of single texts, and `P`, a pair.
const INPUTS: [&str; 5] = ["1", "7", "33", "70", "P"];

/// Token ids, and where the second text begins.
pub(crate) type Text = (Vec<u32>, Option<usize>);

pub(crate) fn fixture(name: &str) -> Fixture {
    Fixture::copy(&format!("encoders/{name}"))
}

pub(crate) fn load(fixture: &Fixture) -> TextEncoder {
    load_on(&Compute::cpu(2), fixture)
}

fn load_on(compute: &Compute, fixture: &Fixture) -> TextEncoder {
    try_load(compute, fixture).unwrap()
}

fn try_load(compute: &Compute, fixture: &Fixture) -> Result<TextEncoder, ModelError> {
    let mut last = None;
    let loaded = load_text_encoder(&fixture.files(), compute, &LoadOptions::default(), &mut |done| {
        last = Some(done);
        ControlFlow::Continue(())
    });
    let (model, description) = loaded?;
    assert!(last.is_some_and(|last| last.bytes_done == last.bytes_total), "progress is reported to the end");
    assert!(description.model.resident_bytes.is_some());
    Ok(model)
}

pub(crate) fn text(fixture: &Fixture, key: &str) -> Text {
    let second = (key == "P").then(|| fixture.ids("second_P")[0] as usize);
    (fixture.ids(&format!("input_{key}")), second)
}

pub(crate) fn input(texts: &[Text]) -> EncoderInput {
    let sequences: Vec<_> =
        texts.iter().map(|(tokens, second_text)| EncoderSequence { tokens, second_text: *second_text }).collect();
    EncoderInput::new(&sequences).unwrap()
}

pub(crate) fn vectors(model: &mut TextEncoder, texts: &[Text]) -> Vec<Vec<f32>> {
    let vectors = model.forward(&input(texts)).unwrap();
    (0..vectors.num_rows()).map(|row| vectors.row(row).to_vec()).collect()
}

pub(crate) fn states(model: &mut TextEncoder, text: &Text) -> Vec<f32> {
    let input = input(std::slice::from_ref(text));
    model.hidden_states(&input, None).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    let worst = worst_excess(found, expected);
    assert!(worst.excess <= 1.0, "{what}: {worst:?}");
}

#[test]
fn hidden_states_and_outputs_are_those_of_the_reference() {
    for name in ALL {
        let fixture = fixture(name);
        let mut model = load(&fixture);
        for key in INPUTS {
            let text = text(&fixture, key);
            let found = states(&mut model, &text);
            let worst = worst_excess(&found, &fixture.floats(&format!("states_{key}")));
            assert!(worst.excess <= 1.0, "{name}, {key}: {worst:?}; {}", first_bad_layer(&fixture, &mut model));
            let output = vectors(&mut model, &[text]).concat();
            assert_close(&format!("{name}, output of {key}"), &output, &fixture.floats(&format!("output_{key}")));
        }
    }
}

#[test]
fn every_pooling_mode_is_that_of_the_reference() {
    const FLAGS: [(&str, &str); 6] = [
        ("cls", "pooling_mode_cls_token"),
        ("max", "pooling_mode_max_tokens"),
        ("mean", "pooling_mode_mean_tokens"),
        ("mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens"),
        ("weightedmean", "pooling_mode_weightedmean_tokens"),
        ("lasttoken", "pooling_mode_lasttoken"),
    ];
    for (mode, flag) in FLAGS {
        for config in [json!({ "pooling_mode": mode }), json!({ flag: true, "word_embedding_dimension": 48 })] {
            let fixture = fixture("modernbert");
            fixture.edit_json("1_Pooling/config.json", |pooling| *pooling = config);
            without_steps(&fixture);
            let mut model = load(&fixture);
            for key in ["7", "33"] {
                let found = vectors(&mut model, &[text(&fixture, key)]).concat();
                assert_close(mode, &found, &fixture.floats(&format!("pooled_{mode}_{key}")));
            }
        }
    }
}

#[test]
fn several_pooling_modes_stand_one_after_the_other() {
    let fixture = fixture("xlm_roberta");
    fixture.edit_json("1_Pooling/config.json", |pooling| pooling["pooling_mode"] = json!(["max", "cls"]));
    without_steps(&fixture);
    let found = vectors(&mut load(&fixture), &[text(&fixture, "7")]).concat();
    assert_close("max and cls", &found, &[fixture.floats("pooled_max_7"), fixture.floats("pooled_cls_7")].concat());
}

/// As the sentence-transformers library does with a bare model.
#[test]
fn without_modules_the_mean_is_taken_as_it_is() {
    let fixture = fixture("bert");
    std::fs::remove_file(fixture.directory.path().join("modules.json")).unwrap();
    let found = vectors(&mut load(&fixture), &[text(&fixture, "33")]).concat();
    assert_close("mean", &found, &fixture.floats("pooled_mean_33"));
}

#[test]
fn company_changes_no_bit() {
    for name in ALL {
        let fixture = fixture(name);
        let mut model = load(&fixture);
        let texts = INPUTS.map(|key| text(&fixture, key));
        let alone: Vec<_> = texts.iter().map(|text| vectors(&mut model, std::slice::from_ref(text)).concat()).collect();
        for order in [[0, 1, 2, 3, 4], [3, 4, 0, 2, 1]] {
            let batch = order.map(|index: usize| texts[index].clone());
            let together = vectors(&mut model, &batch);
            for (row, index) in order.into_iter().enumerate() {
                assert_eq!(together[row], alone[index], "{name}, {}", INPUTS[index]);
            }
        }
    }
}

/// The portable bodies have the bits of the vector ones; the reference bodies are merely close.
#[test]
fn every_kernel_set_agrees_on_encoders() {
    for name in ALL {
        let fixture = fixture(name);
        let texts = INPUTS.map(|key| text(&fixture, key));
        let expected = vectors(&mut load(&fixture), &texts);
        let with = |kernels| {
            let compute = Compute::cpu_with_kernels(1, kernels).unwrap();
            vectors(&mut load_on(&compute, &fixture), &texts)
        };
        assert_eq!(with(KernelSet::Portable), expected, "{name}");
        assert_close(name, &with(KernelSet::Reference).concat(), &expected.concat());
    }
}

#[test]
fn names_may_carry_the_prefix_of_the_whole_model() {
    for (name, prefix) in [("bert", "bert."), ("xlm_roberta", "roberta."), ("modernbert", "model.")] {
        let fixture = fixture(name);
        fixture.rename_tensors(|name| format!("{prefix}{name}"));
        let found = vectors(&mut load(&fixture), &[text(&fixture, "33")]).concat();
        assert_close(name, &found, &fixture.floats("output_33"));
    }
}

#[test]
fn a_checkpoint_says_what_it_is_for() {
    for name in ALL {
        assert_eq!(checkpoint_kind(&fixture(name).files()).unwrap(), CheckpointKind::Encoder, "{name}");
    }
    let qwen3 = fixture("qwen3_embedding");
    qwen3.edit_config(|config| config["architectures"] = json!(["Qwen3ForCausalLM"]));
    assert_eq!(vectors(&mut load(&qwen3), &[text(&qwen3, "7")]).len(), 1);
    std::fs::remove_file(qwen3.directory.path().join("modules.json")).unwrap();
    assert_eq!(checkpoint_kind(&qwen3.files()).unwrap(), CheckpointKind::Generator);
    assert_eq!(checkpoint_kind(&Fixture::copy("qwen3").files()).unwrap(), CheckpointKind::Generator);
}

#[test]
fn the_description_says_what_vectors_mean() {
    let of = |name: &str| describe_encoder(&fixture(name).files()).unwrap();
    let EncoderOutput::Embedding(bert) = of("bert").output else { panic!("an embedding model") };
    assert_eq!((bert.dimensions, bert.normalized, bert.default_prompt.as_deref()), (20, true, Some("passage")));
    assert_eq!(bert.prompts["query"], "query: ");
    let EncoderOutput::Scores(camembert) = of("camembert_classifier").output else { panic!("a classifier") };
    assert_eq!(camembert.labels, ["droit", "santé", "transport"]);
    // The tokenizer's bound, the positions, and the positions behind the padding token.
    assert_eq!(["bert", "modernbert", "xlm_roberta"].map(|name| of(name).model.max_position), [100, 128, 126]);
}

#[test]
fn a_text_that_the_model_cannot_read_is_refused() {
    let fixture = fixture("bert");
    let mut model = load(&fixture);
    let refused = |model: &mut TextEncoder, tokens: Vec<u32>, named: &str| {
        let error = model.forward(&input(&[(tokens, None)])).unwrap_err();
        assert!(matches!(&error, ModelError::Input(problem) if problem.contains(named)), "{error}");
    };
    refused(&mut model, vec![211], "a token beyond the vocabulary");
    refused(&mut model, vec![5; 101], "position 100");
}

#[test]
fn a_pipeline_that_cannot_be_honoured_is_refused_by_file_and_field() {
    let refused = |file: &str, named: &str, edit: &dyn Fn(&mut Value)| {
        let fixture = fixture("bert");
        fixture.edit_json(file, |value| edit(value));
        let error = try_load(&Compute::cpu(1), &fixture).unwrap_err().to_string();
        let name = file.rsplit('/').next().unwrap();
        assert!(error.contains(name) && error.contains(named), "{error}");
    };
    refused("modules.json", "expected a list", &|modules| *modules = json!({}));
    refused("modules.json", "path: not the name", &|modules| modules[1]["path"] = json!("../1_Pooling"));
    refused("modules.json", "path: empty", &|modules| modules[1]["path"] = json!(""));
    refused("modules.json", "path: empty", &|modules| modules[2]["path"] = Value::Null);
    refused("modules.json", "LSTM", &|modules| modules[3]["type"] = json!("sentence_transformers.models.LSTM"));
    refused("modules.json", "Pooling is expected", &|modules| modules[1]["type"] = json!("x.WordWeights"));
    refused("1_Pooling/config.json", "pooling_mode", &|pooling| pooling["pooling_mode"] = json!("median"));
    refused("1_Pooling/config.json", "include_prompt", &|pooling| pooling["include_prompt"] = json!(false));
    refused("1_Pooling/config.json", "tomorrow", &|pooling| pooling["tomorrow"] = json!(1));
    refused("2_Dense/config.json", "activation_function", &|dense| dense["activation_function"] = json!("x.Mish"));
    refused("2_Dense/config.json", "in_features: 47", &|dense| dense["in_features"] = json!(47));
    refused("config_sentence_transformers.json", "default_prompt_name", &|prompts| {
        prompts["default_prompt_name"] = json!("none of them");
    });
}

/// A digest covers what is read, and of a module's folder it covers one file of weights.
#[test]
fn weights_of_a_module_in_several_files_are_refused_by_their_index() {
    let fixture = fixture("bert");
    let folder = fixture.directory.path().join("2_Dense");
    let index = json!({ "weight_map": { "linear.weight": "one.safetensors", "linear.bias": "one.safetensors" } });
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    try_load(&Compute::cpu(1), &fixture).unwrap();
    std::fs::rename(folder.join("model.safetensors"), folder.join("one.safetensors")).unwrap();
    let error = try_load(&Compute::cpu(1), &fixture).unwrap_err().to_string();
    assert!(error.contains("2_Dense/model.safetensors.index.json: weight_map: a module's weights"), "{error}");
}

/// It reads no file.
#[test]
fn a_normalisation_needs_no_folder() {
    let fixture = fixture("modernbert");
    let expected = vectors(&mut load(&fixture), &[text(&fixture, "7")]);
    fixture.edit_json("modules.json", |modules| modules[2]["path"] = json!(""));
    assert_eq!(vectors(&mut load(&fixture), &[text(&fixture, "7")]), expected);
}

/// Only what the pooling leaves.
fn without_steps(fixture: &Fixture) {
    fixture.edit_json("modules.json", |modules| modules.as_array_mut().unwrap().truncate(2));
}

/// Where to look when states are wrong.
fn first_bad_layer(fixture: &Fixture, model: &mut TextEncoder) -> String {
    let mut bad = None;
    let batch = input(&[text(fixture, "33")]);
    model
        .hidden_states(
            &batch,
            Some(&mut |layer, stream| {
                let found: Vec<f32> = stream.flatten_all()?.to_vec1()?;
                let worst = worst_excess(&found, &fixture.floats(&format!("hidden_{layer}")));
                if worst.excess > 1.0 && bad.is_none() {
                    bad = Some(format!("layer {layer} is the first to differ: {worst:?}"));
                }
                Ok(())
            }),
        )
        .unwrap();
    bad.unwrap_or_else(|| "every layer agrees".to_owned())
}
