//! A corpus of hostile checkpoints, made systematically from the tiny one: each is refused with an error that names the
//! file, in seconds, and without the memory that it asks for ([`crate::bounds`] watches every load).

use passerelle_models::ModelError;
use serde_json::{Value, json};

use crate::tiny::{Entry, Tiny, config, encode, entries, raw};

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

struct Case {
    name: String,
    tiny: Tiny,
    /// What the error must name: a file, or the checkpoint itself for what is in no file.
    file: &'static str,
}

fn corpus() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |file: &'static str, name: String, tiny: Tiny| cases.push(Case { name, tiny, file });
    truncations(&mut add);
    headers(&mut add);
    tensors(&mut add);
    configs(&mut add);
    indexes(&mut add);
    cases
}

type Add<'a> = &'a mut dyn FnMut(&'static str, String, Tiny);

/// Cut at every eighth byte of the header and at places of the data.
fn truncations(add: Add<'_>) {
    let whole = Tiny::new().files[WEIGHTS].clone();
    let cuts = (0..8).chain((8..whole.len()).step_by(whole.len() / 40)).chain([whole.len() - 1]);
    for cut in cuts {
        add(WEIGHTS, format!("weights cut at {cut}"), Tiny::new().with_file(WEIGHTS, &whole[..cut]));
    }
    let config = Tiny::new().files["config.json"].clone();
    for cut in (0..config.len()).step_by(config.len() / 12) {
        add("config.json", format!("config cut at {cut}"), Tiny::new().with_file("config.json", &config[..cut]));
    }
}

fn headers(add: Add<'_>) {
    let (entries, len) = entries();
    let whole = encode(&entries, len);
    let header_len = u64::from_le_bytes(whole[..8].try_into().unwrap());
    let lies =
        [0, 1, header_len - 1, header_len + 1, 2 * header_len, 1 << 31, 1 << 32, 1 << 63, u64::MAX - 8, u64::MAX];
    for lie in lies {
        let mut bytes = whole.clone();
        bytes[..8].copy_from_slice(&lie.to_le_bytes());
        add(WEIGHTS, format!("a header of {lie} bytes"), Tiny::new().with_file(WEIGHTS, bytes));
    }
    let texts = [
        "null".to_owned(),
        "[1]".to_owned(),
        "{\"a\"".to_owned(),
        "{\"__metadata__\": {\"a\": {}}, \"b\": 1}".to_owned(),
        "{\"a\": {\"dtype\": \"F32\", \"shape\": [1], \"data_offsets\": [0, 4], \"dtype\": \"F16\"}}".to_owned(),
        format!("{{\"{}\": 1}}", "n".repeat(1 << 20)),
        format!("{{\"a\": {}", "{\"b\": ".repeat(50_000)),
        format!("{{\"a\": {{\"dtype\": \"F32\", \"shape\": [{}1], \"data_offsets\": [0, 4]}}}}", "2,".repeat(1 << 20)),
        " ".repeat(1 << 20),
    ];
    for (index, text) in texts.iter().enumerate() {
        add(WEIGHTS, format!("header text {index}"), Tiny::new().with_file(WEIGHTS, raw(text, 4)));
    }
    // A hundred thousand tensors of nothing, none of which the model has.
    let many = |index: usize| Entry {
        name: format!("t{index}"),
        value: json!({"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}),
    };
    let many: Vec<Entry> = (0..100_000).map(many).collect();
    add("", "a hundred thousand empty tensors".into(), Tiny::new().with_file(WEIGHTS, encode(&many, 0)));
}

fn tensors(add: Add<'_>) {
    let changed = |index: usize, key: &str, value: &Value| {
        Tiny::with_entries(|entries| entries[index].value[key] = value.clone())
    };
    for index in [0, 5, 11] {
        let start = entries().0[index].value["data_offsets"][0].as_u64().unwrap();
        let end = entries().0[index].value["data_offsets"][1].as_u64().unwrap();
        let offsets = [
            json!([start + 1, end]),
            json!([start, end - 1]),
            json!([start, end + 4]),
            json!([end, start]),
            json!([0, u64::MAX]),
            json!([u64::MAX - 4, u64::MAX]),
            json!([start]),
            json!([start as f64 + 0.5, end]),
            json!({"start": start}),
        ];
        let shapes = [
            json!([u64::MAX, u64::MAX]),
            json!([1u64 << 32, 1u64 << 32]),
            json!([-4, -4]),
            json!("[4, 4]"),
            json!([4.5]),
            json!([0]),
            json!(vec![1; 10_000]),
            json!([[4], 4]),
        ];
        let dtypes = [json!("F64"), json!("I64"), json!("F8_E4M3"), json!("F4"), json!("f32"), json!(""), json!(32)];
        for (key, values) in [("data_offsets", &offsets[..]), ("shape", &shapes[..]), ("dtype", &dtypes[..])] {
            for value in values {
                let shown: String = value.to_string().chars().take(40).collect();
                add(WEIGHTS, format!("tensor {index}: {key} {shown}"), changed(index, key, value));
            }
        }
    }
    let (mut twice, len) = entries();
    twice.push(twice[3].clone());
    add(WEIGHTS, "a name twice".into(), Tiny::new().with_file(WEIGHTS, encode(&twice, len)));
}

fn configs(add: Add<'_>) {
    let sizes = [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "head_dim",
    ];
    let absurd = [json!(0), json!(-1), json!(4.5), json!(1e300), json!(u64::MAX), json!("4"), json!([4]), json!(true)];
    for key in sizes {
        for value in &absurd {
            add("config.json", format!("{key} {value}"), Tiny::with_field(key, value.clone()));
        }
    }
    let texts = [
        "[".repeat(1 << 20),
        "{\"a\":".repeat(1 << 20),
        "\u{feff}{}".to_owned(),
        "{\"vocab_size\": NaN}".to_owned(),
        "{\"vocab_size\": 1e999}".to_owned(),
        format!("{{\"architectures\": [\"{}\"]}}", "L".repeat(8 << 20)),
        format!("{{{}\"z\": 1}}", (0..200_000).map(|n| format!("\"k{n}\": {n},")).collect::<String>()),
        format!("{{\"architectures\": {}1{}}}", "[".repeat(100), "]".repeat(100)),
    ];
    for (index, text) in texts.into_iter().enumerate() {
        add("config.json", format!("config text {index}"), Tiny::new().with_file("config.json", text));
    }
    let generation = ["{", "[]", "{\"eos_token_id\": 8}", "{\"eos_token_id\": [[1]]}", "{\"eos_token_id\": -1}", "nul"];
    for text in generation {
        let tiny = Tiny::new().with_file("generation_config.json", text);
        add("generation_config.json", format!("generation {text}"), tiny);
    }
}

fn indexes(add: Add<'_>) {
    let indexed = |text: String| Tiny::new().without_file(WEIGHTS).with_file(INDEX, text);
    let texts = [
        "".to_owned(),
        "[]".to_owned(),
        "{\"weight_map\": 1}".to_owned(),
        "{\"weight_map\": {\"a\": 1}}".to_owned(),
        "{\"weight_map\": {\"a\": null}}".to_owned(),
        format!("{{\"weight_map\": {}", "{\"a\": ".repeat(100_000)),
    ];
    let names = ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", "~", "a\u{0}.safetensors", "x\n"];
    let mapped = names.map(|name| json!({"weight_map": {"model.norm.weight": name}}).to_string());
    for (number, text) in texts.into_iter().chain(mapped).enumerate() {
        add(INDEX, format!("index {number}"), indexed(text));
    }
    let everything = entries().0;
    let all: serde_json::Map<String, Value> =
        everything.iter().map(|entry| (entry.name.clone(), "missing.safetensors".into())).collect();
    add("missing.safetensors", "a shard that is not there".into(), indexed(json!({"weight_map": all}).to_string()));
    let itself: serde_json::Map<String, Value> =
        everything.iter().map(|entry| (entry.name.clone(), INDEX.into())).collect();
    add(INDEX, "an index that names itself".into(), indexed(json!({"weight_map": itself}).to_string()));
}

#[test]
fn every_hostile_checkpoint_is_refused_by_name_in_time_and_in_little_memory() {
    let corpus = corpus();
    assert!(corpus.len() >= 200, "{}", corpus.len());
    for Case { name, tiny, file } in &corpus {
        let refused = tiny.load().err().unwrap_or_else(|| panic!("{name}: it loads"));
        let ModelError::Checkpoint { file: found, what, problem } = &refused else { panic!("{name}: {refused}") };
        assert!(file.is_empty() || found.ends_with(file), "{name}: {refused}");
        assert!(!what.is_empty() && !problem.is_empty() && refused.to_string().len() < 1000, "{name}: {refused}");
    }
}

/// A configuration of a real shape asks for gigabytes; its weights decide whether they are there.
#[test]
fn what_a_configuration_merely_claims_is_not_allocated() {
    let mut claims = config();
    let sizes = [
        ("hidden_size", 131_072),
        ("intermediate_size", 1 << 20),
        ("num_attention_heads", 1024),
        ("num_hidden_layers", 1024),
    ];
    for (key, value) in sizes {
        claims.insert(key.into(), value.into());
    }
    let mut tiny = Tiny::new();
    tiny.set_config(&claims);
    let refused = tiny.load().err().unwrap();
    assert!(matches!(&refused, ModelError::Checkpoint { what, .. } if what.ends_with(".weight")), "{refused}");
}

/// Whatever else a trainer left beside the weights is not looked at.
#[test]
fn a_trainer_s_own_files_change_nothing() {
    let left = ["optimizer.pt", "optimizer.safetensors", "scheduler.pt", "rng_state_0.pth", "trainer_state.json"];
    let beside = left.iter().fold(Tiny::new(), |tiny, file| tiny.with_file(file, "not what it seems"));
    beside.load().unwrap();
    let alone = left.iter().fold(Tiny::new().without_file(WEIGHTS), |tiny, file| tiny.with_file(file, "x"));
    let error = alone.load().err().unwrap().to_string();
    assert!(error.contains("download the weights"), "{error}");
}
