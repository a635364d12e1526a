//! Proof that the fixtures can see each feature: with the feature changed, the difference is far above the tolerance.

use passerelle_models::KvDtype;
use serde_json::{Value, json};

use crate::runner::{Runner, worst_excess};
use crate::support::Fixture;

#[test]
fn every_feature_of_llama_is_visible_in_its_fixture() {
    let default_rope = json!({ "rope_type": "default", "rope_theta": 10000.0 });
    must_differ("rope_linear", "without scaling", |fixture| {
        fixture.edit_config(|config| drop(config.remove("rope_scaling")));
    });
    for name in ["rope_llama3", "rope_yarn"] {
        must_differ(name, "without scaling", |fixture| {
            fixture.edit_config(|config| drop(config.insert("rope_parameters".into(), default_rope.clone())));
        });
    }
    must_differ("rope_yarn", "attention factor 1", |fixture| {
        fixture.edit_config(|config| config["rope_parameters"]["attention_factor"] = json!(1.0));
    });
    must_differ("plain", "another base", |fixture| {
        fixture.edit_config(|config| config["rope_parameters"]["rope_theta"] = json!(20000.0));
    });
    must_differ("plain", "a forgotten epsilon", |fixture| {
        fixture.edit_config(|config| config["rms_norm_eps"] = json!(1e-6));
    });
    must_differ("plain", "the scale of hidden / heads", |fixture| {
        fixture.edit_tensors("q_proj.weight", |bytes| scale(bytes, 2f32.sqrt()));
    });
    must_differ("plain", "gate and up exchanged", |fixture| fixture.swap_tensors("gate_proj", "up_proj"));
    must_differ("plain", "the head tied", |fixture| fixture.swap_tensors("lm_head", "model.embed_tokens"));
    for norm in ["input_layernorm.weight", "post_attention_layernorm.weight", "model.norm.weight"] {
        must_differ("plain", norm, |fixture| fixture.edit_tensors(norm, ones));
    }
    for linear in ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"] {
        let bias = format!("{linear}.bias");
        must_differ("biased_tied", &bias, |fixture| fixture.edit_tensors(&bias, |bytes| bytes.fill(0)));
    }
}

#[test]
fn windows_are_visible() {
    for window in [json!(null), json!(8), json!(10)] {
        with_field("mistral_window", "sliding_window", window);
    }
    with_field("ministral", "layer_types", json!(["sliding_attention", "sliding_attention", "sliding_attention"]));
    with_field("ministral", "layer_types", json!(["sliding_attention", "full_attention", "full_attention"]));
    must_differ("qwen3_windows", "without windows", |fixture| {
        fixture.edit_config(|config| {
            config["use_sliding_window"] = json!(false);
            config["layer_types"] = json!(null);
        });
    });
    with_field("qwen3_windows", "sliding_window", json!(19));
    must_differ("qwen3_windows", "another layer", |fixture| {
        fixture.edit_config(|config| {
            config["layer_types"] = json!(["sliding_attention", "full_attention", "full_attention"])
        });
    });
}

#[test]
fn norms_of_queries_and_keys_are_visible() {
    for name in ["qwen3", "olmo2", "apertus", "apertus1p5_text"] {
        for norm in ["q_norm.weight", "k_norm.weight"] {
            must_differ(name, norm, |fixture| fixture.edit_tensors(norm, ones_bf16));
        }
        with_field(name, "rms_norm_eps", json!(1e-6));
    }
}

#[test]
fn biases_are_visible() {
    let zero = |name: &str, bias: &str| must_differ(name, bias, |fixture| fixture.edit_tensors(bias, zeros));
    for linear in ["q_proj", "k_proj", "v_proj"] {
        zero("qwen2", &format!("{linear}.bias"));
        zero("qwen3_windows", &format!("{linear}.bias"));
        zero("nemotron", &format!("{linear}.bias"));
    }
    for linear in ["o_proj", "up_proj", "down_proj"] {
        zero("nemotron", &format!("{linear}.bias"));
    }
    for linear in ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"] {
        zero("bloom", &format!("{linear}.bias"));
    }
}

#[test]
fn norms_and_their_places_are_visible() {
    for norm in ["post_attention_layernorm.weight", "post_feedforward_layernorm.weight"] {
        must_differ("olmo2", norm, |fixture| fixture.edit_tensors(norm, ones_bf16));
    }
    for norm in ["attention_layernorm.weight", "feedforward_layernorm.weight"] {
        for name in ["apertus", "apertus1p5"] {
            must_differ(name, norm, |fixture| fixture.edit_tensors(norm, ones_bf16));
        }
    }
    for norm in ["input_layernorm", "post_attention_layernorm", "norm"] {
        let (weight, bias) = (format!("{norm}.weight"), format!("{norm}.bias"));
        must_differ("nemotron", &weight, |fixture| fixture.edit_tensors(&weight, zeros));
        must_differ("nemotron", "1 not added", |fixture| fixture.edit_tensors(&weight, |bytes| add_bf16(bytes, -1.0)));
        must_differ("nemotron", &bias, |fixture| fixture.edit_tensors(&bias, zeros));
    }
    for norm in ["word_embeddings_layernorm", "input_layernorm", "post_attention_layernorm", "ln_f"] {
        let (weight, bias) = (format!("{norm}.weight"), format!("{norm}.bias"));
        must_differ("bloom", &weight, |fixture| fixture.edit_tensors(&weight, ones_bf16));
        must_differ("bloom", &bias, |fixture| fixture.edit_tensors(&bias, zeros));
    }
    with_field("nemotron", "norm_eps", json!(1e-5));
    with_field("bloom", "layer_norm_epsilon", json!(1e-5));
}

#[test]
fn position_encodings_are_visible() {
    must_differ("nemotron", "whole heads turned", |fixture| {
        fixture.edit_config(|config| config["rope_parameters"]["partial_rotary_factor"] = json!(1.0));
    });
    with_field("smollm3", "no_rope_layers", json!([1, 1, 1]));
    with_field("smollm3", "no_rope_layers", json!([1, 1, 0]));
    for (key, value) in [("llama_4_scaling_beta", json!(0.0)), ("factor", json!(4.0)), ("mscale", json!(2.0))] {
        must_differ("ministral3", key, |fixture| {
            fixture.edit_config(|config| config["rope_parameters"][key] = value);
        });
    }
    // Twelve heads of half the size read the same matrices in another order and with other slopes.
    with_field("bloom", "n_head", json!(12));
    must_differ("apertus", "without scaling", |fixture| {
        let plain = json!({ "type": "default" });
        fixture.edit_config(|config| drop(config.insert("rope_scaling".into(), plain)));
    });
    must_differ("apertus1p5", "without scaling", |fixture| {
        fixture.edit_config(|config| config["text_config"]["rope_parameters"] = json!({ "rope_type": "default" }));
    });
}

#[test]
fn scalars_of_the_activation_are_visible() {
    for scalar in ["alpha_p", "alpha_n", "beta", "eps"] {
        for name in ["apertus", "apertus1p5"] {
            must_differ(name, scalar, |fixture| fixture.edit_tensors(scalar, zeros));
        }
    }
}

fn with_field(name: &str, key: &str, value: Value) {
    let change = format!("{key} {value}");
    must_differ(name, &change, |fixture| fixture.edit_config(|config| drop(config.insert(key.into(), value))));
}

fn must_differ(name: &str, change: &str, edit: impl FnOnce(&Fixture)) {
    const VISIBLE: f32 = 50.0;
    let fixture = Fixture::copy(name);
    edit(&fixture);
    let logits = Runner::load(&fixture, KvDtype::F32).alone(&fixture.ids("input_70"));
    let worst = worst_excess(&logits.concat(), &fixture.floats("logits_70"));
    assert!(worst.excess >= VISIBLE, "{name}, {change}: only {} times the tolerance", worst.excess);
}

fn scale(bytes: &mut [u8], factor: f32) {
    for word in bytes.as_chunks_mut::<4>().0 {
        *word = (f32::from_le_bytes(*word) * factor).to_le_bytes();
    }
}

fn ones(bytes: &mut [u8]) {
    bytes.as_chunks_mut::<4>().0.fill(1f32.to_le_bytes());
}

fn ones_bf16(bytes: &mut [u8]) {
    bytes.as_chunks_mut::<2>().0.fill(half::bf16::ONE.to_le_bytes());
}

fn add_bf16(bytes: &mut [u8], addend: f32) {
    for word in bytes.as_chunks_mut::<2>().0 {
        *word = half::bf16::from_f32(half::bf16::from_le_bytes(*word).to_f32() + addend).to_le_bytes();
    }
}

fn zeros(bytes: &mut [u8]) {
    bytes.fill(0);
}
