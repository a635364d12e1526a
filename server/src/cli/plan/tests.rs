//! What is predicted for a CPU is what a loaded engine has.

use passerelle::config::{ByteSize, Config, Environment, Written};
use passerelle::placement::{Backend, KvBudget, ModelDemand, PartitionRoom, plan};
use passerelle_models::ActivationDtype;
use passerelle_models::ops::Compute;

use super::demand;
use crate::serve::{KV_CACHE_MEMORY, KeptHashes, LoadContext, kv_demand, load, share_kv_memory};

/// So many parts of a hundred may differ.
const TOLERANCE: u64 = 3;

fn config(models: &str) -> Config {
    let home = std::env::temp_dir().join("passerelle-plan-tests");
    let written: Written = toml::from_str(models).expect("the test's TOML is well formed");
    let environment = Environment { hf_home: Some(home.clone()), home: Some(home), ..Environment::default() };
    Config::check(written, &environment).expect("valid")
}

fn assert_near(predicted: u64, found: u64, what: &str) {
    assert!(predicted.abs_diff(found) * 100 <= found * TOLERANCE, "{what}: {predicted} predicted, {found} found");
}

#[test]
fn a_plan_for_a_cpu_is_what_the_loaded_models_and_their_caches_take() {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tests/fixtures");
    let config = config(&format!(
        "models = [{{ source = \"demo\" }}, {{ source = \"demo\", name = \"quantised\", dtype = \"q8_0\" }}, \
         {{ source = \"demo\", name = \"narrow\", kv_dtype = \"int8\" }}, \
         {{ source = \"{fixtures}/gguf/qwen3_q6_k.gguf\" }}, {{ source = \"{fixtures}/gguf/mistral_window_f16.gguf\" }}]\n\
         [engine]\nkv_cache_memory = \"24MiB\"\nmax_num_seqs = 8\n"
    ));
    let demands = config.models.iter().map(|model| demand(model, &config, 1).expect("it can be described"));
    let room = PartitionRoom {
        name: "cpu".into(),
        backend: None,
        memory: ByteSize(1 << 30),
        reserved: ByteSize(0),
        kv: KvBudget::Stated(ByteSize(24 << 20)),
    };
    let plan = plan(&demands.collect::<Vec<_>>(), &[room]);
    assert_eq!(plan.unplaced, []);
    let (compute, hashes) = (Compute::cpu(1), KeptHashes::open(&config.server.data_dir));
    let loaded = config.models.iter().map(|model| {
        load(model, LoadContext { hub: &config.hub, compute: &compute, hashes: &hashes }).expect("it loads")
    });
    let loaded: Vec<_> = loaded.collect();
    let asked: Vec<_> = loaded.iter().map(|model| kv_demand(model, &config.engine)).collect();
    let blocks = share_kv_memory(config.engine.kv_cache_memory, KV_CACHE_MEMORY, &asked).expect("there is room");
    for (model, num_kv_blocks) in loaded.iter().zip(blocks) {
        let name = &model.name;
        let planned = plan.partitions[0].models.iter().find(|is| is.demand.name == *name).expect("it has a place");
        assert_near(planned.weights.0, model.description.resident_bytes.expect("it is loaded"), name);
        let spec = model.model.kv_cache_spec();
        assert_near(planned.kv.0, (num_kv_blocks * spec.block_bytes()) as u64, name);
        assert!(planned.sequences.expect("it generates") >= 1, "{name}");
    }
}

#[test]
fn a_plan_puts_keys_and_values_in_8_bits_on_cpus_alone() {
    let config = config("models = [{ source = \"demo\", kv_dtype = \"int8\" }, { source = \"demo\", name = \"b\" }]");
    let room = |name: &str, backend| PartitionRoom {
        name: name.into(),
        backend,
        memory: ByteSize(1 << 30),
        reserved: ByteSize(0),
        kv: KvBudget::PartOfRest(1),
    };
    let [narrow, usual] = [0, 1].map(|index| demand(&config.models[index], &config, 1).expect("it can be described"));
    let bytes = |demand: &ModelDemand| demand.kv.as_ref().map(|kv| kv.block_bytes());
    assert!(bytes(&narrow) < bytes(&usual));
    let demands = [narrow, usual];
    let (card, cpu) = (room("h100", Some(Backend::Cuda)), room("cpu", None));
    let both = plan(&demands, &[card.clone(), cpu]);
    let names = |index: usize| both.partitions[index].models.iter().map(|is| &*is.demand.name).collect::<Vec<_>>();
    assert_eq!([names(0), names(1)], [["b"], ["demo"]]);
    let alone = plan(&demands, &[card]);
    assert_eq!(alone.partitions[0].models.len(), 1, "the card takes what it reads");
    let [refused] = &alone.unplaced[..] else { panic!("one has no place: {:?}", alone.unplaced) };
    let why = refused.shortage.to_string();
    assert!(refused.name == "demo" && why.contains("int8") && why.contains("with --kv-dtype bf16, or a CPU"), "{why}");
    let rounded = ModelDemand { activation_dtype: ActivationDtype::Int8, ..demands[1].clone() };
    let refused =
        &plan(std::slice::from_ref(&rounded), std::slice::from_ref(&room("h100", Some(Backend::Cuda)))).unplaced;
    let why = refused[0].shortage.to_string();
    assert!(why.contains("with --activation-dtype int16, or a CPU"), "{why}");
    assert!(plan(&[rounded], &[room("cpu", None)]).unplaced.is_empty());
}
