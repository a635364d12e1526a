//! The example configurations are part of the product: each of them loads.

use std::path::{Path, PathBuf};

use passerelle::config::{self, Config, Environment, Written};
use passerelle::placement::Backend;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs")
}

fn environment() -> Environment {
    Environment {
        home: Some("/home/ada".into()),
        hf_home: Some("/home/ada/.cache/huggingface".into()),
        ..Environment::default()
    }
}

#[test]
fn every_example_configuration_loads() {
    let mut loaded = 0;
    for entry in std::fs::read_dir(folder()).expect("configs/ is part of the repository") {
        let path = entry.expect("configs/ is readable").path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let written = config::read(&path).unwrap_or_else(|error| panic!("{error}"));
            Config::check(written, &environment()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            loaded += 1;
        }
    }
    assert!(loaded >= 5, "only {loaded} examples");
}

#[test]
fn the_reference_states_the_defaults() {
    let written = config::read(&folder().join("reference.toml")).expect("the reference is valid");
    let reference = Config::check(written, &environment()).expect("the reference is valid");
    let defaults = Config::check(Written::default(), &environment()).expect("the defaults are valid");
    assert_eq!(Config { file: None, ..reference }, defaults);
}

#[test]
fn the_reference_states_the_sizes_of_steps_on_each_kind_of_device() {
    let reference = std::fs::read_to_string(folder().join("reference.toml")).expect("the reference is readable");
    let defaults = Config::check(Written::default(), &environment()).expect("the defaults are valid").engine;
    let [cpu, gpu] = [None, Some(Backend::Cuda)].map(|backend| defaults.on(backend).steps);
    for (key, on_cpu, on_gpu) in [
        ("max_num_seqs", cpu.max_num_seqs, gpu.max_num_seqs),
        ("max_num_batched_tokens", cpu.max_num_batched_tokens, gpu.max_num_batched_tokens),
        ("max_prefill_chunk_tokens", cpu.max_prefill_chunk_tokens, gpu.max_prefill_chunk_tokens),
    ] {
        let line = reference.lines().find(|line| line.starts_with(&format!("# {key} = {on_cpu} "))).expect(key);
        assert!(line.ends_with(&format!("on a GPU {on_gpu}")), "{line}");
    }
}

#[test]
fn the_reference_names_every_key() {
    // The keys themselves, as the refusal of a wrong one lists them.
    let reference = std::fs::read_to_string(folder().join("reference.toml")).expect("the reference is readable");
    let sections = [
        "[server]",
        "[[partitions]]",
        "[workers]",
        "[[upstreams]]",
        "[routing]",
        "[shadow]",
        "[shelf]",
        "[engine]",
        "[api]",
        "[batches]",
        "[grammar]",
        "[limits]",
        "[ledger]",
        "[log]",
    ];
    for section in sections {
        let error = toml::from_str::<Written>(&format!("{section}\nno_such_key = 1")).expect_err("the key is unknown");
        let keys: Vec<_> = error.message().split('`').skip(3).step_by(2).map(str::to_owned).collect();
        assert!(keys.len() >= 2, "{error}");
        let lines = reference.lines().map(|line| line.trim_start_matches("# "));
        let below: Vec<&str> = lines
            .skip_while(|line| !line.starts_with(section))
            .skip(1)
            .take_while(|line| !line.starts_with('['))
            .collect();
        for key in keys {
            let is_named = below.iter().any(|line| line.starts_with(&format!("{key} =")));
            assert!(is_named, "configs/reference.toml does not name {section} {key}");
        }
    }
}

#[test]
fn an_open_door_to_other_machines_needs_keys() {
    let written = config::read(&folder().join("gateway-keys.toml")).expect("the example is valid");
    let config = Config::check(written, &environment()).expect("the example is valid");
    config.check_door(false).expect_err("without keys it must not start");
    config.check_door(true).expect("with keys it starts");
}
