//! Proof that the encoders' fixtures can see each feature: with it changed, the difference is far above the tolerance.

use serde_json::{Value, json};

use crate::encoders::{fixture, load, states, text, vectors};
use crate::runner::worst_excess;
use crate::support::Fixture;

#[test]
fn what_comes_before_the_layers_is_visible() {
    for table in ["word_embeddings.weight", "position_embeddings.weight", "token_type_embeddings.weight"] {
        zeroed("bert", table);
    }
    for norm in ["embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias"] {
        zeroed("bert", norm);
        zeroed("roberta", norm);
        zeroed("xlm_roberta", norm);
    }
    zeroed("modernbert", "embeddings.norm.weight");
    zeroed("modernbert_classifier", "embeddings.norm.bias");
    // One more padding token, and all positions move.
    with_field("roberta", "pad_token_id", json!(2));
    with_field("xlm_roberta", "pad_token_id", json!(2));
    with_field("camembert_classifier", "pad_token_id", json!(3));
}

#[test]
fn the_second_text_of_a_pair_is_visible() {
    let fixture = fixture("bert_reranker");
    let (tokens, _) = text(&fixture, "P");
    let found = vectors(&mut load(&fixture), &[(tokens, None)]).concat();
    let worst = worst_excess(&found, &fixture.floats("output_P"));
    assert!(worst.excess >= 50.0, "a pair taken for one text: only {} times the tolerance", worst.excess);
}

#[test]
fn windows_and_bases_of_modernbert_are_visible() {
    for window in [7, 11] {
        with_field("modernbert", "local_attention", json!(window));
        with_field("modernbert_classifier", "local_attention", json!(window));
    }
    with_field("modernbert", "layer_types", json!(vec!["full_attention"; 4]));
    with_field(
        "modernbert",
        "layer_types",
        json!(["full_attention", "full_attention", "sliding_attention", "full_attention"]),
    );
    for kind in ["full_attention", "sliding_attention"] {
        must_differ("modernbert", kind, |fixture| {
            fixture.edit_config(|config| config["rope_parameters"][kind]["rope_theta"] = json!(500.0));
        });
    }
    for kind in ["global_rope_theta", "local_rope_theta"] {
        with_field("modernbert_classifier", kind, json!(500.0));
    }
}

#[test]
fn activations_of_encoders_are_visible() {
    with_field("bert", "hidden_act", json!("relu"));
    with_field("bert_reranker", "hidden_act", json!("relu"));
    with_field("camembert_classifier", "hidden_act", json!("gelu"));
    with_field("modernbert", "hidden_activation", json!("silu"));
    with_field("modernbert_classifier", "hidden_activation", json!("silu"));
    with_field("modernbert_classifier", "classifier_activation", json!("relu"));
}

#[test]
fn norms_and_biases_of_encoders_are_visible() {
    for part in ["attention.output.LayerNorm", "output.LayerNorm", "output.dense", "intermediate.dense"] {
        zeroed("bert", &format!("{part}.bias"));
    }
    for part in ["query", "value"] {
        zeroed("bert", &format!("self.{part}.bias"));
    }
    for part in ["attn_norm", "mlp_norm", "final_norm", "attn.Wqkv", "attn.Wo", "mlp.Wi", "mlp.Wo"] {
        zeroed("modernbert_classifier", &format!("{part}.bias"));
    }
    for norm in ["attn_norm.weight", "mlp_norm.weight", "final_norm.weight"] {
        must_differ("modernbert", norm, |fixture| fixture.edit_tensors(norm, ones));
    }
    for norm in ["attention.output.LayerNorm.weight", "output.LayerNorm.weight"] {
        must_differ("bert", norm, |fixture| fixture.edit_tensors(norm, ones));
    }
    with_field("bert", "layer_norm_eps", json!(1e-12));
    with_field("modernbert", "norm_eps", json!(1e-12));
}

#[test]
fn heads_are_visible() {
    for part in ["pooler.dense.weight", "pooler.dense.bias", "classifier.weight", "classifier.bias"] {
        zeroed("bert_reranker", part);
    }
    for part in ["classifier.dense.weight", "classifier.dense.bias", "classifier.out_proj.bias"] {
        zeroed("camembert_classifier", part);
    }
    for part in ["head.dense.weight", "head.dense.bias", "head.norm.weight", "head.norm.bias", "classifier.bias"] {
        zeroed("modernbert_classifier", part);
    }
    with_field("modernbert_classifier", "classifier_pooling", json!("cls"));
}

#[test]
fn the_pipeline_is_visible() {
    let pooled_as = |name: &str, mode: &str| {
        must_differ(name, mode, |fixture| {
            fixture.edit_json("1_Pooling/config.json", |pooling| pooling["pooling_mode"] = json!(mode));
        });
    };
    for mode in ["cls", "max", "lasttoken"] {
        pooled_as("bert", mode);
        pooled_as("modernbert", mode);
    }
    pooled_as("roberta", "cls");
    pooled_as("xlm_roberta", "mean");
    pooled_as("qwen3_embedding", "mean");
    must_differ("bert", "no activation", |fixture| {
        let identity = json!("torch.nn.modules.linear.Identity");
        fixture.edit_json("2_Dense/config.json", |dense| dense["activation_function"] = identity);
    });
    for name in ["bert", "modernbert", "roberta", "xlm_roberta", "qwen3_embedding"] {
        must_differ(name, "not normalised", |fixture| {
            fixture.edit_json("modules.json", |modules| drop(modules.as_array_mut().unwrap().pop()));
        });
    }
}

fn zeroed(name: &str, tensor: &str) {
    must_differ(name, tensor, |fixture| fixture.edit_tensors(tensor, |bytes| bytes.fill(0)));
}

fn with_field(name: &str, key: &str, value: Value) {
    let change = format!("{key} {value}");
    must_differ(name, &change, |fixture| fixture.edit_config(|config| drop(config.insert(key.into(), value))));
}

/// In the hidden states, or in what the head makes of them.
fn must_differ(name: &str, change: &str, edit: impl FnOnce(&Fixture)) {
    const VISIBLE: f32 = 50.0;
    let fixture = fixture(name);
    edit(&fixture);
    let mut model = load(&fixture);
    let found = states(&mut model, &text(&fixture, "70"));
    let in_states = worst_excess(&found, &fixture.floats("states_70")).excess;
    let found = vectors(&mut model, &[text(&fixture, "7")]).concat();
    let output = fixture.floats("output_7");
    // A pipeline without its last step may give vectors of another length, which is visible enough.
    let in_output = if found.len() == output.len() { worst_excess(&found, &output).excess } else { f32::INFINITY };
    let worst = in_states.max(in_output);
    assert!(worst >= VISIBLE, "{name}, {change}: only {worst} times the tolerance");
}

fn ones(bytes: &mut [u8]) {
    bytes.as_chunks_mut::<4>().0.fill(1f32.to_le_bytes());
}
