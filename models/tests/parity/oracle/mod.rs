//! A second opinion: the modules of candle-transformers, on checkpoints that are drawn here in other seeds and shapes than
//! the fixtures of the reference implementation. Where a module computes something else than that implementation, or cannot
//! be told a feature, the table says so and the test holds it to that, so that a later version is noticed.
//!
//! It has no module for Apertus, BLOOM, Ministral 3 and Nemotron, and its modules keep the cache of one sequence: they are
//! an oracle for layers, not a body to serve with.

mod draft;

use candle_core::{DType, Device, Tensor};
use candle_transformers::models::{bert, llama, mistral, modernbert, olmo2, qwen2, qwen3, smol::smollm3, xlm_roberta};
use passerelle_models::ops::Compute;
use passerelle_models::{KvDtype, LoadOptions, load_text_encoder, unwatched};
use serde_json::{Value, json};

use crate::encoders::states;
use crate::runner::{Runner, options, worst_excess};
use draft::{DecoderParts, Draft, LLAMA_PARTS, QkNorm};

const LENGTHS: [usize; 4] = [1, 7, 33, 70];

/// What a module makes of a sequence: a decoder the logits of its last token, an encoder the states of all.
type Opinion = Box<dyn FnMut(&[u32]) -> candle_core::Result<Tensor>>;
type Ask = fn(&Draft) -> candle_core::Result<Opinion>;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Verdict {
    /// Within the tolerance of the parity tests.
    Equal,
    /// Loads, and computes something else.
    Differs(&'static str),
    /// Does not load.
    Refuses(&'static str),
}

struct Row {
    module: &'static str,
    /// On top of the shape.
    fields: Value,
    tensors: Tensors,
    ask: Ask,
    verdict: Verdict,
}

#[derive(Debug, Clone, Copy)]
enum Tensors {
    Decoder(DecoderParts),
    Bert,
    ModernBert,
}

impl Row {
    fn draw(&self, shape: &Value, seed: u64) -> Draft {
        let config = with(shape, &[&self.fields]);
        match self.tensors {
            Tensors::Decoder(parts) => Draft::decoder(config, seed, parts),
            Tensors::Bert => Draft::bert(config, seed),
            Tensors::ModernBert => Draft::modernbert(config, seed),
        }
    }
}

/// Two shapes; heads fill the hidden size exactly, which most modules take for granted.
fn shapes() -> [Value; 2] {
    [
        json!({"vocab_size": 211, "hidden_size": 48, "intermediate_size": 88, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2}),
        json!({"vocab_size": 97, "hidden_size": 80, "intermediate_size": 56, "num_hidden_layers": 2,
            "num_attention_heads": 5, "num_key_value_heads": 1}),
    ]
}

fn with(shape: &Value, fields: &[&Value]) -> Value {
    let mut config = shape.as_object().unwrap().clone();
    for field in fields {
        config.extend(field.as_object().unwrap().clone());
    }
    Value::Object(config)
}

/// What every module of a decoder asks for.
fn of_decoders() -> Value {
    json!({"max_position_embeddings": 128, "rms_norm_eps": 0.05, "rope_theta": 5000.0, "hidden_act": "silu",
        "tie_word_embeddings": false})
}

fn ids(tokens: &[u32]) -> candle_core::Result<Tensor> {
    Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)
}

/// For modules of causal models that differ in name alone.
macro_rules! decoder {
    ($module:ident :: $model:ident) => {
        |draft: &Draft| {
            let mut model = $module::$model::new(&draft.read(), draft.variables())?;
            Ok(Box::new(move |tokens: &[u32]| {
                model.clear_kv_cache();
                model.forward(&ids(tokens)?, 0)
            }))
        }
    };
}

fn ask_llama(draft: &Draft) -> candle_core::Result<Opinion> {
    let config = draft.read::<llama::LlamaConfig>().into_config(false);
    let model = llama::Llama::load(draft.variables(), &config)?;
    Ok(Box::new(move |tokens: &[u32]| {
        let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu)?;
        model.forward(&ids(tokens)?, 0, &mut cache)
    }))
}

fn decoders() -> Vec<Row> {
    let row = |module, architecture: &str, fields: Value, ask: Ask| Row {
        module,
        fields: with(&of_decoders(), &[&json!({"architectures": [architecture]}), &fields]),
        tensors: Tensors::Decoder(LLAMA_PARTS),
        ask,
        verdict: Verdict::Equal,
    };
    let llama = |fields: Value| row("llama", "LlamaForCausalLM", fields, ask_llama);
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16});
    let windows = json!({"sliding_window": null, "use_sliding_window": false, "max_window_layers": 1});
    let qwen2 = |fields: Value| {
        let unused = with(&windows, &[&json!({"sliding_window": 4096}), &fields]);
        let parts = DecoderParts { qkv_biased: true, ..LLAMA_PARTS };
        Row {
            tensors: Tensors::Decoder(parts),
            ..row("qwen2", "Qwen2ForCausalLM", unused, decoder!(qwen2::ModelForCausalLM))
        }
    };
    let qwen3 = |biased: bool| {
        let fields = with(&windows, &[&json!({"head_dim": 24, "attention_bias": biased})]);
        let parts = DecoderParts { qk_norm: QkNorm::OfHeads, qkv_biased: biased, output_biased: biased, ..LLAMA_PARTS };
        Row {
            tensors: Tensors::Decoder(parts),
            ..row("qwen3", "Qwen3ForCausalLM", fields, decoder!(qwen3::ModelForCausalLM))
        }
    };
    let mistral = |window: Value| {
        let fields = json!({"sliding_window": window, "head_dim": 24});
        row("mistral", "MistralForCausalLM", fields, decoder!(mistral::Model))
    };
    let olmo2 = |fields: Value| {
        let norms = ["post_attention_layernorm", "post_feedforward_layernorm"];
        let parts = DecoderParts { norms, qk_norm: QkNorm::OfTokens, ..LLAMA_PARTS };
        let fields = with(&json!({"attention_bias": false}), &[&fields]);
        Row { tensors: Tensors::Decoder(parts), ..row("olmo2", "Olmo2ForCausalLM", fields, decoder!(olmo2::Model)) }
    };
    let unencoded = json!({"no_rope_layer_interval": 2, "no_rope_layers": null});
    let biased = DecoderParts { qkv_biased: true, output_biased: true, ..LLAMA_PARTS };
    // The module of Llama would panic.
    let wide_heads = json!({"head_dim": 24});
    vec![
        llama(json!({})),
        llama(json!({"tie_word_embeddings": true})),
        llama(json!({"rope_scaling": scaling})),
        Row {
            tensors: Tensors::Decoder(biased),
            verdict: Verdict::Differs("it reads past attention_bias"),
            ..llama(json!({"attention_bias": true}))
        },
        qwen2(json!({})),
        qwen2(json!({"tie_word_embeddings": true})),
        qwen3(false),
        qwen3(true),
        mistral(Value::Null),
        Row { verdict: Verdict::Differs("its window is one token wider"), ..mistral(json!(9)) },
        olmo2(json!({})),
        Row { verdict: Verdict::Refuses("it reads past head_dim"), ..olmo2(wide_heads) },
        row("smollm3", "SmolLM3ForCausalLM", unencoded, decoder!(smollm3::ModelForCausalLM)),
    ]
}

#[test]
fn decoders_agree_with_candle_transformers_where_the_table_says_so() {
    for row in decoders() {
        for (seed, shape) in shapes().iter().enumerate() {
            let draft = row.draw(shape, seed as u64);
            let mut runner = None;
            holds(&row, draft, |draft, tokens| {
                let runner = runner.get_or_insert_with(|| {
                    Runner::of_files(&Compute::cpu(2), &draft.write().1, &options(KvDtype::F32))
                });
                runner.alone(tokens).pop().unwrap()
            });
        }
    }
}

fn ask_bert(draft: &Draft) -> candle_core::Result<Opinion> {
    let model = bert::BertModel::load(draft.variables(), &draft.read())?;
    Ok(Box::new(move |tokens: &[u32]| {
        let tokens = ids(tokens)?;
        model.forward(&tokens, &tokens.zeros_like()?, None)
    }))
}

fn ask_xlm_roberta(draft: &Draft) -> candle_core::Result<Opinion> {
    let model = xlm_roberta::XLMRobertaModel::new(&draft.read(), draft.variables())?;
    Ok(Box::new(move |tokens: &[u32]| {
        let tokens = ids(tokens)?;
        model.forward(&tokens, &tokens.ones_like()?, &tokens.zeros_like()?, None, None, None)
    }))
}

fn ask_modernbert(draft: &Draft) -> candle_core::Result<Opinion> {
    let model = modernbert::ModernBert::load(draft.variables(), &draft.read())?;
    Ok(Box::new(move |tokens: &[u32]| {
        let tokens = ids(tokens)?;
        model.forward(&tokens, &tokens.ones_like()?)
    }))
}

fn encoders() -> Vec<Row> {
    let row = |module, class: &str, fields: Value, ask: Ask| Row {
        module,
        fields: with(&json!({"architectures": [class], "max_position_embeddings": 128}), &[&fields]),
        tensors: Tensors::Bert,
        ask,
        verdict: Verdict::Equal,
    };
    let bert = json!({"hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02, "layer_norm_eps": 0.05, "position_embedding_type": "absolute",
        "type_vocab_size": 2, "pad_token_id": 0});
    let roberta = with(&bert, &[&json!({"type_vocab_size": 1, "pad_token_id": 1})]);
    // Its module has one epsilon under the name that exporters write beside the one that counts.
    let modern = json!({"norm_eps": 0.05, "layer_norm_eps": 0.05, "pad_token_id": 0, "local_attention": 9,
        "global_attn_every_n_layers": 2, "global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0});
    vec![
        row("bert", "BertModel", bert.clone(), ask_bert),
        row("bert", "BertModel", with(&bert, &[&json!({"hidden_act": "relu"})]), ask_bert),
        row("xlm_roberta", "XLMRobertaModel", roberta.clone(), ask_xlm_roberta),
        row("xlm_roberta", "RobertaModel", roberta, ask_xlm_roberta),
        Row { tensors: Tensors::ModernBert, ..row("modernbert", "ModernBertModel", modern, ask_modernbert) },
    ]
}

#[test]
fn encoders_agree_with_candle_transformers_where_the_table_says_so() {
    for row in encoders() {
        for (seed, mut shape) in shapes().into_iter().enumerate() {
            shape.as_object_mut().unwrap().remove("num_key_value_heads");
            let draft = row.draw(&shape, seed as u64);
            let mut model = None;
            holds(&row, draft, |draft, tokens| {
                let model = model.get_or_insert_with(|| {
                    let (_folder, files) = draft.write();
                    load_text_encoder(&files, &Compute::cpu(2), &LoadOptions::default(), &mut unwatched).unwrap().0
                });
                states(model, &(tokens.to_vec(), None))
            });
        }
    }
}

/// What the table says of a module is so.
fn holds(row: &Row, mut draft: Draft, mut ours: impl FnMut(&Draft, &[u32]) -> Vec<f32>) {
    /// As far apart as the fixtures' features must be visible.
    const CLEARLY: f32 = 50.0;
    let name = format!("{} with {}", row.module, draft.config);
    let opinion = (row.ask)(&draft);
    let (Ok(mut opinion), Verdict::Equal | Verdict::Differs(_)) = (opinion, row.verdict) else {
        assert!(matches!(row.verdict, Verdict::Refuses(_)), "{name}: it does not load");
        assert!((row.ask)(&draft).is_err(), "{name}: it loads, although {:?}", row.verdict);
        return;
    };
    let mut worst: f32 = 0.0;
    for len in LENGTHS {
        let tokens = draft.ids(len);
        let expected: Vec<f32> = opinion(&tokens).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let excess = worst_excess(&ours(&draft, &tokens), &expected).excess;
        assert!(!excess.is_nan(), "{name}: not a number, with {len} tokens");
        worst = worst.max(excess);
    }
    match row.verdict {
        Verdict::Equal => assert!(worst <= 1.0, "{name}: {worst} times the tolerance"),
        _ => assert!(worst > CLEARLY, "{name}: only {worst} times the tolerance, although {:?}", row.verdict),
    }
}
