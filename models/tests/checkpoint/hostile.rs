//! Damaged and hostile checkpoints: each is refused with an error that names the file and what is wrong in it. None
//! panics, none allocates what it merely claims.

use passerelle_models::{CheckpointFiles, LoadOptions, ModelError};
use serde_json::{Value, json};

use crate::tiny::{Entry, Tiny, config, encode, entries, raw};

/// Loading fails at `file`, naming `what`, and the problem says `problem`.
fn refused(tiny: &Tiny, file: &str, what: &str, problem: &str) {
    let expected = format!("{file}: {what}: ...{problem}...");
    match tiny.load() {
        Ok(_) => panic!("expected {expected}, but it loads"),
        Err(ModelError::Checkpoint { file: found, what: found_what, problem: found_problem }) => {
            let found_text = format!("{}: {found_what}: {found_problem}", found.display());
            assert!(found.ends_with(file) || file.is_empty(), "expected {expected}, found {found_text}");
            assert!(found_what.contains(what), "expected {expected}, found {found_text}");
            assert!(found_problem.contains(problem), "expected {expected}, found {found_text}");
            assert!(found_text.len() < 1000, "an error must not repeat the file: {} bytes", found_text.len());
        }
        Err(other) => panic!("expected {expected}, found {other}"),
    }
}

fn refused_field(key: &str, value: Value, problem: &str) {
    refused(&Tiny::with_field(key, value), "config.json", key, problem);
}

fn refused_header(what: &str, problem: &str, edit: impl FnOnce(&mut Vec<Entry>)) {
    refused(&Tiny::with_entries(edit), "model.safetensors", what, problem);
}

#[test]
fn the_unchanged_checkpoint_loads() {
    let description = Tiny::new().load().unwrap().description;
    assert_eq!(description.num_parameters, 2 * 32 + 7 * 16 + 3 * 4);
}

#[test]
fn sizes_that_no_model_has_are_refused_by_name() {
    let keys = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
    ];
    for key in keys {
        refused_field(key, Value::Null, "missing");
        refused_field(key, json!(0), "outside");
        refused_field(key, json!(-1), "whole number");
        refused_field(key, json!(4.5), "whole number");
        refused_field(key, json!("4"), "whole number");
        refused_field(key, json!([4]), "whole number");
        refused_field(key, json!(u64::MAX), "outside");
        refused_field(key, json!(1_000_000_000_000_u64), "outside");
    }
    refused_field("num_key_value_heads", json!(0), "outside");
    refused_field("num_key_value_heads", json!(3), "divide");
    refused_field("head_dim", json!(1u64 << 40), "outside");
    refused_field("head_dim", json!(3), "even");
    refused_field("num_attention_heads", json!(3), "divide");
    refused_field("num_attention_heads", json!(4), "4 heads of 1");
    refused_field("rms_norm_eps", json!(-1.0), "outside");
    refused_field("rms_norm_eps", json!("small"), "a number");
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    refused_field("hidden_act", json!("gelu"), "supported: silu");
    refused_field("attention_bias", json!("yes"), "true or false");
    refused_field("sliding_window", json!(4096), "4096 is not supported");
    refused_field("rope_interleaved", json!(true), "true is not supported");
    refused_field("use_mrope", json!(true), "true is not supported");
    refused_field("pretraining_tp", json!(2), "2 is not supported");
    refused_field("layer_types", json!(["sliding_attention"]), "full_attention");
    refused_field("layer_types", json!(["full_attention", "full_attention"]), "full_attention");
    refused_field("partial_rotary_factor", json!(0.5), "only 1.0");
    refused_field("is_encoder_decoder", json!(true), "decoders");
    for (method, advice) in [("gptq", "vLLM"), ("awq", "vLLM"), ("fp8", "dequantize"), ("x", "unquantised")] {
        refused_field("quantization_config", json!({ "quant_method": method, "bits": 4 }), method);
        refused_field("quantization_config", json!({ "quant_method": method }), advice);
    }
    let packed = json!({ "quant_method": "compressed-tensors" });
    refused_field("quantization_config", packed, "run_compressed=False");
    refused_field("num_local_experts", json!(8), "not known");
    refused_field("logits_scaling", json!(8.0), "not known");
    refused_field("eos_token_id", json!(8), "outside the vocabulary");
    refused_field("eos_token_id", json!([1, -1]), "token id");
    refused_field("eos_token_id", json!("</s>"), "token id");
    refused_field("eos_token_id", json!(vec![1; 65]), "at most 64");
    refused_field("bos_token_id", json!([1, 2]), "at most 1");
    refused(
        &Tiny::with_field("architectures", json!(["MistralForCausalLM"])),
        "config.json",
        "sliding_window",
        "missing",
    );
    refused_field("architectures", json!([]), "one class name");
    refused_field("architectures", json!("LlamaForCausalLM"), "one class name");
    refused_field(
        "architectures",
        json!(["Llama4ForCausalLM"]),
        "supported: Apertus1p5ForConditionalGeneration, Apertus1p5Text",
    );
    refused_field(
        "architectures",
        json!(["x".repeat(1 << 20)]),
        "supported: Apertus1p5ForConditionalGeneration, Apertus1p5Text",
    );
    refused_field("vision_config", json!({}), "not known");
    refused_field("suppress_tokens", json!([3]), "changes what the model generates");
    refused_field("bad_words_ids", json!([[3]]), "changes what the model generates");
    refused_field("min_length", json!(10), "changes what the model generates");
    refused_field("no_repeat_ngram_size", json!(3), "changes what the model generates");
    refused_field("repetition_penalty", json!(1.1), "changes what the model generates");
    let unknown_key = "k".repeat(50);
    refused_field(&unknown_key, json!("v".repeat(1 << 20)), "not known");
}

#[test]
fn generation_fields_that_change_nothing_are_accepted() {
    let mut neutral = config();
    neutral.insert("suppress_tokens".into(), json!([]));
    neutral.insert("bad_words_ids".into(), json!(null));
    neutral.insert("min_length".into(), json!(0));
    neutral.insert("repetition_penalty".into(), json!(1.0));
    neutral.insert("temperature".into(), json!(0.6));
    let mut tiny = Tiny::new();
    tiny.set_config(&neutral);
    assert!(tiny.load().is_ok());
}

#[test]
fn an_error_shows_hostile_names_harmlessly_and_shortly() {
    let Err(error) = Tiny::with_field("\u{1b}[2J\u{202e}evil", json!(1)).load() else { panic!("it loads") };
    let text = error.to_string();
    assert!(!text.contains(['\u{1b}', '\u{202e}']) && text.contains("evil"), "{text}");
    let Err(error) = Tiny::with_field(&"k".repeat(1 << 20), json!(1)).load() else { panic!("it loads") };
    assert!(error.to_string().len() < 1000);
}

#[test]
fn rope_scaling_is_honoured_or_refused_by_name() {
    let scaling = |value: Value, what: &str, problem: &str| {
        refused(
            &Tiny::with_field("rope_scaling", value.clone()),
            "config.json",
            &format!("rope_scaling{what}"),
            problem,
        );
        refused(&Tiny::with_field("rope_parameters", value), "config.json", &format!("rope_parameters{what}"), problem);
    };
    scaling(json!("linear"), "", "an object");
    scaling(json!({ "rope_type": "longrope", "factor": 2.0 }), ".rope_type", "longrope is not supported");
    scaling(json!({ "type": "su", "factor": 2.0 }), ".type", "su is not supported");
    scaling(json!({ "type": "linear", "rope_type": "yarn", "factor": 2.0 }), ".type", "contradicts");
    scaling(json!({ "rope_type": "linear" }), ".factor", "missing");
    scaling(json!({ "rope_type": "linear", "factor": 0 }), ".factor", "outside");
    scaling(json!({ "rope_type": "linear", "factor": 2.0, "short_factor": [] }), ".short_factor", "not known");
    scaling(json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0 }), ".high_freq_factor", "missing");
    let equal = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0 });
    scaling(equal, ".high_freq_factor", "above");
    let unbounded = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0 });
    scaling(unbounded, ".original_max_position_embeddings", "missing");
    scaling(json!({ "rope_type": "yarn", "factor": 1e300 }), ".factor", "outside");
    scaling(json!({ "rope_theta": 0.0 }), ".rope_theta", "outside");
    refused_field("rope_theta", json!(-1), "outside");
    let mut both = config();
    both.insert("rope_scaling".into(), json!({ "type": "linear", "factor": 2.0 }));
    both.insert("rope_parameters".into(), json!({ "rope_type": "linear", "factor": 2.0 }));
    let mut tiny = Tiny::new();
    tiny.set_config(&both);
    refused(&tiny, "config.json", "rope_scaling", "keep one");
}

#[test]
fn json_that_is_damaged_deep_or_huge_is_refused() {
    let config = |text: String| Tiny::new().with_file("config.json", text);
    refused(&config(String::new()), "config.json", "JSON", "EOF");
    refused(&config("{\"architectures\":".into()), "config.json", "JSON", "EOF");
    refused(&config("nope".into()), "config.json", "JSON", "not valid at line 1, column 2 (");
    refused(&config("[]".into()), "config.json", "JSON", "object");
    refused(&config("[".repeat(100_000)), "config.json", "JSON", "recursion");
    refused(&config("{\"a\":".repeat(100_000)), "config.json", "JSON", "recursion");
    refused(&config("{\"vocab_size\": 1e999}".into()), "config.json", "JSON", "out of range");
    refused(&config(" ".repeat((32 << 20) + 1)), "config.json", "size", "longer than");
    let not_text = Tiny::new().with_file("config.json", b"{\"\xff\": 1}".as_slice());
    refused(&not_text, "config.json", "JSON", "");
    let generation = Tiny::new().with_file("generation_config.json", "{\"eos_token_id\": 99}");
    refused(&generation, "generation_config.json", "eos_token_id", "outside the vocabulary");
    let generation = Tiny::new().with_file("generation_config.json", "{");
    refused(&generation, "generation_config.json", "JSON", "EOF");
}

#[test]
fn headers_that_break_the_format_are_refused_with_the_tensor() {
    let file = |bytes: Vec<u8>| Tiny::new().with_file("model.safetensors", bytes);
    let header = |bytes: Vec<u8>, problem: &str| refused(&file(bytes), "model.safetensors", "header", problem);
    header(vec![], "only 0 bytes");
    header(vec![1, 2, 3], "only 3 bytes");
    header(u64::MAX.to_le_bytes().to_vec(), "at most");
    header((1u64 << 40).to_le_bytes().to_vec(), "at most");
    header(100u64.to_le_bytes().to_vec(), "fetch it again");
    header(raw("", 0), "its JSON is not valid at line 1, column 0 (EOF");
    header(raw("[]", 0), "an object of tensors");
    header(raw("{\"a\":", 0), "EOF");
    header(raw("{\"a\": 7}", 0), "a:");
    header(raw("{\"a\": {\"dtype\": \"F32\", \"shape\": [1]}}", 4), "a: missing field");
    header(raw("{\"a\": {\"dtype\": \"Q4\", \"shape\": [1], \"data_offsets\": [0, 4]}}", 4), "a: unknown variant");
    header(raw("{\"a\": {\"dtype\": \"F32\", \"shape\": [-1], \"data_offsets\": [0, 4]}}", 4), "a: invalid value");
    header(raw(&"{\"a\":".repeat(100_000), 0), "a:");
    header(raw(&format!("{{\"__metadata__\":{}", "[".repeat(100_000)), 0), "");
    let (mut twice, len) = entries();
    twice.push(twice[0].clone());
    header(encode(&twice, len), "model.embed_tokens.weight occurs twice");
    let (entries, len) = entries();
    header(encode(&entries, len - 1), "fetch it again");
    header(encode(&entries, len + 1), "describes");
}

#[test]
fn tensors_that_lie_about_themselves_are_refused_by_name() {
    refused_header("model.norm.weight", "overlap or leave a hole", |entries| {
        entries[10].value["data_offsets"] = entries[9].value["data_offsets"].clone();
    });
    refused_header("model.norm.weight", "backwards", |entries| {
        let start = entries[10].value["data_offsets"][0].as_u64().unwrap();
        entries[10].value["data_offsets"] = json!([start, start - 1]);
    });
    refused_header("q_proj.weight", "overlap or leave a hole", |entries| {
        entries[1].value["data_offsets"] = json!([132, 196]);
    });
    refused_header("lm_head.weight", "does not take", |entries| {
        let start = entries[11].value["data_offsets"][0].as_u64().unwrap();
        entries[11].value["data_offsets"] = json!([start, u64::MAX]);
    });
    refused_header("q_proj.weight", "does not take", |entries| entries[1].value["shape"] = json!([4, 5]));
    refused_header("q_proj.weight", "does not take", |entries| entries[1].value["shape"] = json!([1u64 << 63, 4]));
    refused_header("q_proj.weight", "does not take", |entries| entries[1].value["dtype"] = json!("F16"));
    refused_header("q_proj.weight", "dtype I32 is not supported", |entries| entries[1].value["dtype"] = json!("I32"));
    refused_header("q_proj.weight", "config.json asks for [4, 4]", |entries| entries[1].value["shape"] = json!([2, 8]));
    refused_header("q_proj.weight", "config.json asks for [4, 4]", |entries| entries[1].value["shape"] = json!([16]));
    refused_header("input_layernorm.weight", "config.json asks for [4]", |entries| {
        entries[8].value["shape"] = json!([2, 2]);
    });
}

#[test]
fn tensors_that_no_file_can_hold_are_refused_before_their_places_are_added_up() {
    // Eight of these end just before the largest number; what stands before all of them leads beyond it.
    const LEN: u64 = (1 << 59) - 1;
    let mut end = 0_u64;
    let mut entry = |name: &str, len: u64| {
        let start = end;
        end += 4 * len;
        let value = json!({ "dtype": "F32", "shape": [len], "data_offsets": [start, end] });
        Entry { name: name.to_owned(), value }
    };
    let mut entries = ["a", "b", "c", "d", "e", "f", "g", "h"].map(|name| entry(name, LEN)).to_vec();
    entries.push(entry("i", 4));
    let tiny = Tiny::new().with_file("model.safetensors", encode(&entries, 0));
    refused(&tiny, "model.safetensors", "header", "fetch it again");
}

#[test]
fn missing_and_surplus_tensors_are_refused_by_name() {
    let renamed = Tiny::with_entries(|entries| entries[1].name = "model.layers.0.self_attn.q.weight".into());
    refused(&renamed, "", "model.layers.0.self_attn.q_proj.weight", "missing");
    refused_header("model.layers.0.self_attn.q_norm.weight", "does not describe", |entries| {
        let (start, end) = (entries[11].value["data_offsets"][1].clone(), entries[11].value["data_offsets"][1].clone());
        let value = json!({ "dtype": "F32", "shape": [0], "data_offsets": [start, end] });
        entries.push(Entry { name: "model.layers.0.self_attn.q_norm.weight".into(), value });
    });
    refused(&Tiny::with_field("num_hidden_layers", json!(1024)), "", "model.layers.1.", "missing");
    refused(&Tiny::with_field("attention_bias", json!(true)), "", "q_proj.bias", "missing");
    refused(&Tiny::with_field("vocab_size", json!(9)), "model.safetensors", "model.embed_tokens.weight", "[9, 4]");
}

#[test]
fn an_index_leads_only_to_plain_files_beside_it() {
    let index = |text: String| Tiny::new().without_file("model.safetensors").with_file(INDEX, text);
    let one = |file: &str| index(json!({ "weight_map": { "a": file } }).to_string());
    for name in ["../model.safetensors", "/etc/passwd", "a/b", "..", ".", "", ".hidden", "a\0b", "a b", "é"] {
        refused(&one(name), INDEX, "weight_map.a", "not a plain file name");
    }
    refused(&one(&"a".repeat(256)), INDEX, "weight_map.a", "not a plain file name");
    refused(&one("absent.safetensors"), "absent.safetensors", "shard", "not found");
    refused(&index("{}".into()), INDEX, "weight_map", "an object");
    refused(&index("{\"weight_map\": []}".into()), INDEX, "weight_map", "an object");
    refused(&index("{\"weight_map\": {\"a\": 7}}".into()), INDEX, "weight_map.a", "not a plain file name");
    refused(&index("{\"weight_map\": {}}".into()), "", "model.embed_tokens.weight", "missing");
    let many = (0..5000).map(|shard| (format!("t{shard}"), format!("s{shard}").into()));
    let many = json!({ "weight_map": many.collect::<serde_json::Map<String, Value>>() });
    refused(&index(many.to_string()), INDEX, "weight_map", "at most 4096");
}

#[test]
fn an_index_and_its_shards_must_agree() {
    let (entries, len) = entries();
    let whole = encode(&entries, len);
    let mut map: serde_json::Map<String, Value> =
        entries.iter().map(|entry| (entry.name.clone(), "one.safetensors".into())).collect();
    let sharded = |map: &serde_json::Map<String, Value>| {
        Tiny::new()
            .without_file("model.safetensors")
            .with_file("one.safetensors", whole.clone())
            .with_file(INDEX, json!({ "weight_map": map }).to_string())
    };
    sharded(&map).load().unwrap();
    map.insert("promised.weight".into(), "one.safetensors".into());
    refused(&sharded(&map), INDEX, "promised.weight", "in no file");
    map.remove("promised.weight");
    map.remove("lm_head.weight");
    refused(&sharded(&map), "one.safetensors", "lm_head.weight", "not listed");
    map.insert("lm_head.weight".into(), "two.safetensors".into());
    let copied = sharded(&map).with_file("two.safetensors", whole.clone());
    refused(&copied, "two.safetensors", "", "also in one.safetensors");
}

#[test]
fn checkpoints_of_other_kinds_are_recognised() {
    let other = |file: &str, problem: &str| {
        let tiny = Tiny::new().without_file("model.safetensors").with_file(file, "x");
        refused(&tiny, "", "weights", problem);
    };
    other("pytorch_model.bin", "save_pretrained");
    other("model.pt", "save_pretrained");
    other("model-q4.gguf", "GGUF");
    other("consolidated.safetensors", "publisher");
    other("adapter_model.safetensors", "adapter");
    other("flax_model.msgpack", "another framework");
    other("model-00001-of-00002.safetensors", "index.json");
    other("README.md", "download the weights");
    refused(&Tiny::new().without_file("config.json"), "", "config.json", "not found");
    for (file, problem) in [("model-q4.gguf", "GGUF"), ("adapter_config.json", "adapter"), ("params.json", "publisher")]
    {
        let tiny = Tiny::new().without_file("config.json").with_file(file, "{}");
        refused(&tiny, "", "config.json", problem);
    }
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    for file in ["config.json", "model.safetensors"] {
        refused(&Tiny::new().with_file(file, pointer), file, "content", "git lfs pull");
    }
    let absent = CheckpointFiles::directory("/nonexistent/checkpoint").unwrap_err();
    assert!(matches!(absent, ModelError::Io { .. }));
    assert!(absent.to_string().contains("/nonexistent/checkpoint"));
}

#[test]
fn a_length_beyond_the_checkpoint_is_refused() {
    for (wanted, fits) in [(0, false), (1, true), (32, true), (33, false)] {
        let options = LoadOptions { max_model_len: Some(wanted), ..LoadOptions::default() };
        match Tiny::new().load_with(&options) {
            Ok(loaded) => assert!(fits && loaded.model.max_position() == wanted),
            Err(error) => assert!(!fits && error.to_string().contains("max_position_embeddings"), "{error}"),
        }
    }
}

/// Whatever single damage a file takes, loading ends in a model or in a typed error.
#[test]
fn a_thousand_random_damages_never_panic() {
    const CASES: u64 = 1000;
    let intact = Tiny::new();
    let mut refusals = 0;
    for seed in 1..=CASES {
        let mut random = XorShift(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let mut tiny = intact.clone();
        let name = ["config.json", "model.safetensors"][random.below(2)];
        damage(tiny.files.get_mut(name).unwrap(), &mut random);
        match tiny.load() {
            Ok(_) => {}
            Err(ModelError::Checkpoint { .. }) => refusals += 1,
            Err(other) => panic!("seed {seed}: {other}"),
        }
    }
    assert!(refusals > CASES / 4, "only {refusals} damages were noticed");
}

fn damage(bytes: &mut Vec<u8>, random: &mut XorShift) {
    // The header, where damage can be seen; in the data every byte is as good as another.
    let reach = bytes.len().min(1200);
    let at = random.below(reach);
    match random.below(6) {
        0 => bytes.truncate(at),
        1 => bytes[at] ^= 1 << random.below(8),
        2 => bytes[at] = random.below(256) as u8,
        3 => drop(bytes.remove(at)),
        4 => bytes.insert(at, b"0123456789\"{}[],:-eE.\\"[random.below(22)]),
        _ => {
            let other = random.below(reach);
            bytes.swap(at, other);
        }
    }
}

struct XorShift(u64);

impl XorShift {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

const INDEX: &str = "model.safetensors.index.json";
