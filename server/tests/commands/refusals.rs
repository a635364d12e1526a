//! A checkpoint that cannot be served is one clear error before anything listens.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::binary::{self, Served, State};

/// A copy of the demo that a test may break.
fn copy_of_demo(state: &State) -> PathBuf {
    let (from, to) = (binary::root().join("models/demo/final"), state.path().join("broken"));
    fs::create_dir(&to).expect("the folder is writable");
    for entry in fs::read_dir(from).expect("the demo is part of the repository") {
        let path = entry.expect("it is readable").path();
        fs::copy(&path, to.join(path.file_name().expect("it is a file"))).expect("the folder is writable");
    }
    to
}

fn set(file: &Path, field: &str, value: Value) {
    let text = fs::read_to_string(file).expect("it is there");
    let mut config: Value = serde_json::from_str(&text).expect("it is JSON");
    config[field] = value;
    fs::write(file, config.to_string()).expect("the folder is writable");
}

/// What is said of the demo after `break_it`.
fn refusal(break_it: impl FnOnce(&Path)) -> String {
    let state = State::new();
    let checkpoint = copy_of_demo(&state);
    break_it(&checkpoint);
    let output = state.command(&["serve", "--listen", "127.0.0.1:0", "--model", "./broken"]).output().expect("it runs");
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(output.stdout.is_empty(), "nothing may look ready");
    assert_eq!(said.lines().filter(|line| line.starts_with("error:")).count(), 1, "{said}");
    said
}

#[test]
fn a_missing_tokenizer_is_named() {
    let said = refusal(|folder| fs::remove_file(folder.join("tokenizer.json")).expect("it is there"));
    assert!(said.contains("tokenizer.json"), "{said}");
}

#[test]
fn a_start_that_fails_says_what_ends_it_and_nothing_of_a_tokenizer_that_is_missing_too() {
    let without_tokenizer = |folder: &Path| {
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            fs::remove_file(folder.join(file)).expect("it is there");
        }
    };
    let said = refusal(|folder| {
        without_tokenizer(folder);
        fs::remove_file(folder.join("model.safetensors")).expect("it is there");
    });
    assert!(said.contains("download the weights") && !said.contains("no tokenizer"), "{said}");
    let state = State::new();
    without_tokenizer(&copy_of_demo(&state));
    drop(Served::start_logging(&state, &["--model", "./broken"], "warn"));
    let log = fs::read_to_string(state.log()).expect("it is there");
    assert!(log.contains("no tokenizer: prompts are token ids alone"), "{log}");
}

#[test]
fn a_config_field_that_is_not_honoured_is_named() {
    let said = refusal(|folder| set(&folder.join("config.json"), "hidden_act", json!("softermax")));
    assert!(said.contains("config.json") && said.contains("hidden_act"), "{said}");
    let said = refusal(|folder| set(&folder.join("generation_config.json"), "top_p", json!(7)));
    assert!(said.contains("generation_config.json") && said.contains("top_p"), "{said}");
}

#[test]
fn truncated_weights_are_named() {
    let said = refusal(|folder| {
        let weights = fs::OpenOptions::new().write(true).open(folder.join("model.safetensors")).expect("it is there");
        weights.set_len(1_000_000).expect("the folder is writable");
    });
    assert!(said.contains("model.safetensors"), "{said}");
}

#[test]
fn a_device_that_this_build_cannot_use_is_refused_and_never_replaced() {
    for device in ["cuda:0", "MIG-5f36b2a0", "rocm:1"] {
        let output = State::new().command(&["serve", "--listen", "127.0.0.1:0", "--device", device]).output();
        let output = output.expect("it runs");
        let said = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(output.stdout.is_empty(), "nothing may look ready");
        assert!(said.lines().any(|line| line.contains(device) && line.contains("use cpu")), "{said}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn processors_that_this_machine_does_not_have_are_refused_by_their_option() {
    let output = State::new().command(&["serve", "--listen", "127.0.0.1:0", "--cpu-affinity", "0-1023"]).output();
    let output = output.expect("it runs");
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(output.stdout.is_empty(), "nothing may look ready");
    assert!(said.contains("--cpu-affinity") && said.contains("and not on") && said.contains("-1023"), "{said}");
}

/// Two whole cards, and one that is cut, as `nvidia-smi -L` lists them.
const DEVICES: &str = "\
GPU 0: NVIDIA A100-SXM4-80GB (UUID: GPU-8932f937-d72c-4106-c12f-20bd9faed9f6)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-11aa22bb-0000-4106-c12f-20bd9faed9f7)
  MIG 3g.40gb     Device  0: (UUID: MIG-5f36b2a0-5f9e-5b0d-9f3a-8d1a1a3c2b11)
  MIG 1g.10gb     Device  1: (UUID: MIG-5f36b2a0-6000-5b0d-9f3a-8d1a1a3c2b12)
";

fn beside_devices() -> State {
    let state = State::new();
    fs::write(state.path().join("gpus.txt"), DEVICES).expect("the folder is writable");
    fs::write(state.path().join("site.toml"), "[engine]\ndevice_list = \"gpus.txt\"\n")
        .expect("the folder is writable");
    state
}

#[test]
fn a_device_that_the_environment_hides_is_refused_with_those_that_are_visible() {
    let state = beside_devices();
    let said = |device: &str| {
        let arguments = ["serve", "--listen", "127.0.0.1:0", "--config", "site.toml", "--device", device];
        let mut command = state.command(&arguments);
        let output = command.env("CUDA_VISIBLE_DEVICES", "MIG-5f36b2a0-5").output().expect("it runs");
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8(output.stderr).expect("text")
    };
    let hidden = said("MIG-5f36b2a0-6");
    assert!(hidden.contains("MIG-5f36b2a0-6") && hidden.contains("MIG-5f36b2a0-5f9e"), "{hidden}");
    assert!(said("cuda:1").contains("no device cuda:1 is visible"), "one device is, so it has number 0");
    assert!(said("cuda:0").contains("runs no models on cuda:0"), "it is visible, and this build cannot use it");
}

/// The gateway finds it in the list; its worker says that this build cannot use it.
#[test]
fn a_partition_of_a_slice_is_found_in_the_list_and_held_to_what_the_slice_has() {
    let state = beside_devices();
    let run = |command: &[&str], device: &str| {
        let text = format!(
            "[engine]\ndevice_list = \"gpus.txt\"\n[[partitions]]\nname = \"a\"\ndevice = \"{device}\"\n\
             memory = \"39GiB\"\n[[models]]\nname = \"m\"\nsource = \"demo\"\npartition = \"a\"\n"
        );
        fs::write(state.path().join("slices.toml"), text).expect("the folder is writable");
        let mut command = state.command(&[command, &["--config", "slices.toml"]].concat());
        command.env("CUDA_VISIBLE_DEVICES", "MIG-5f36b2a0-5").output().expect("it runs")
    };
    let plan = run(&["plan"], "MIG-5f36b2a0-5");
    let planned = String::from_utf8(plan.stdout).expect("text");
    assert!(plan.status.success() && planned.contains("partition `a` may take 40.50 GiB with 1.50 GiB"), "{planned}");
    let refusal = |device: &str| {
        let output = run(&["serve", "--listen", "127.0.0.1:0"], device);
        assert!(!output.status.success() && output.stdout.is_empty(), "nothing may look ready");
        String::from_utf8(output.stderr).expect("text")
    };
    let found = refusal("MIG-5f36b2a0-5");
    assert!(found.contains("partitions[0].device: this build runs no models on MIG-5f36b2a0-5"), "{found}");
    let hidden = refusal("MIG-5f36b2a0-6");
    assert!(hidden.contains("partitions[0].device") && hidden.contains("MIG-5f36b2a0-5f9e"), "{hidden}");
    assert!(!hidden.contains("a worker is started"), "{hidden}");
}

#[test]
fn a_plan_is_made_for_the_visible_devices_of_a_list() {
    let state = beside_devices();
    let plan = |arguments: &[&str], visible: &str| -> Value {
        let mut command = state.command(&[&["plan", "demo", "--json"][..], arguments].concat());
        let output = command.env("CUDA_VISIBLE_DEVICES", visible).output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("it is JSON")
    };
    let partitions = |plan: &Value| -> Vec<String> {
        let all = plan["partitions"].as_array().expect("a list").iter();
        all.map(|is| is["partition"].as_str().expect("a name").to_owned()).collect()
    };
    let here = plan(&["--config", "site.toml"], "1,0");
    assert_eq!(partitions(&here).len(), 3, "two slices and a card");
    assert!(partitions(&here)[0].starts_with("MIG-5f36b2a0-5f9e"), "in the order of the variable");
    let elsewhere = plan(&["--devices", "gpus.txt"], "0");
    assert!(partitions(&elsewhere)[0].starts_with("GPU-8932f937"), "this process's environment says nothing of it");
    assert_eq!(elsewhere["partitions"][0]["models"][0]["model"], "demo");
    assert_eq!(elsewhere["partitions"][0]["memory_bytes"], 81_920_u64 << 20);
}

#[test]
fn a_plan_without_a_place_for_a_model_fails_and_says_what_would_help() {
    let state = State::new();
    let output = state.command(&["plan", "demo", "--on", "cpu:2MB", "--sequences", "4"]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).expect("text");
    assert!(said.contains("demo: no place") && said.contains("it fits with"), "{said}");
}

#[test]
fn a_plan_gives_heads_that_no_gpu_takes_a_place_on_a_cpu_alone() {
    let state = State::new();
    let config = state.path().join("long/config.json");
    fs::create_dir(state.path().join("long")).expect("the folder is writable");
    fs::copy(binary::root().join("models/tests/fixtures/shapes/qwen3-0.6b/config.json"), &config).expect("a fixture");
    set(&config, "head_dim", json!(512));
    let plan = |on: &[&str]| {
        let plan = ["plan", "./long", "--max-model-len", "1024"];
        let output = state.command(&[&plan[..], on].concat()).output().expect("it runs");
        (output.status.code(), String::from_utf8(output.stdout).expect("text"))
    };
    let (code, said) = plan(&["--on", "h100"]);
    let why = "heads of 512 elements are for models on a CPU; on a GPU there are at most 256";
    assert!(code == Some(1) && said.contains(why) && said.contains("it fits with a CPU with "), "{said}");
    let (code, said) = plan(&["--on", "h100", "--on", "cpu:64GiB"]);
    assert!(code == Some(0) && !said.contains("no place"), "{said}");
}

#[test]
fn a_plan_says_of_which_models_it_has_none() {
    let state = State::new();
    fs::create_dir(state.path().join("runs")).expect("the folder is writable");
    fs::write(state.path().join("site.toml"), "[server]\nmodels_dir = \"runs\"\n").expect("the folder is writable");
    let output = state.command(&["plan", "--config", "site.toml", "--on", "cpu:1GiB"]).output().expect("it runs");
    let said = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success() && said.contains("runs: not planned: its models come and go"), "{said}");
}

#[test]
fn a_folder_of_checkpoints_is_refused_with_what_is_in_it() {
    let state = State::new();
    for file in ["step-1/config.json", "step-1/model.safetensors", "step-2/config.json", "step-2/model.safetensors"] {
        let path = state.path().join("runs").join(file);
        fs::create_dir_all(path.parent().expect("it is in a folder")).expect("the folder is writable");
        fs::write(path, "{}").expect("the folder is writable");
    }
    for command in [
        &["serve", "--listen", "127.0.0.1:0", "--model", "./runs"][..],
        &["inspect", "./runs"],
        &["import", "./runs"],
        &["bundle", "./runs", "--out", "runs.tar"],
    ] {
        let output = state.command(command).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
        assert!(said.contains("its folders are checkpoints (step-1, step-2)"), "{command:?}: {said}");
        assert!(!said.contains("tokenizer"), "nothing else is missed: {said}");
    }
    assert!(!state.path().join("runs.tar").exists());
}

#[test]
fn what_no_model_could_mend_is_refused_before_one_is_loaded() {
    for (wrong, why) in [
        ("[ledger]\ntime_zone = \"Atlantis\"\n", "wrong.toml:2:1: ledger.time_zone: 'Atlantis' is no time zone"),
        ("[aliases]\nchat = { nobody = 1 }\n", "wrong.toml:2:1: aliases.chat: `chat` stands for `nobody`"),
        ("[[models]]\nsource = \"./nowhere\"\n", "wrong.toml:2:1: model `nowhere`: the directory "),
        ("[engine]\nmax_num_seqs = 100000000\n", "wrong.toml:2:1: engine.max_num_seqs (--max-num-seqs): 100000000 are"),
        ("[engine]\nkv_cache_memory = \"900TiB\"\n", "wrong.toml:2:1: engine.kv_cache_memory (--kv-cache-memory): 9"),
    ] {
        let state = State::new();
        fs::write(state.path().join("wrong.toml"), wrong).expect("the folder is writable");
        let command = ["serve", "--listen", "127.0.0.1:0", "--config", "wrong.toml"];
        let output = state.command(&command).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(why) && !said.contains("loaded model="), "{said}");
    }
}

#[test]
fn an_option_that_cannot_count_is_refused_by_its_name() {
    let state = State::new();
    for (command, wanted) in [
        ("bench --shape tiny --batch 1 --prompt 4 --generate 4", "--shape says something of a suite"),
        ("bench --streams 3 --batch 1", "--streams says something of a suite"),
        ("bench --prompt 18446744073709551615", "make 18446744073709551615 tokens; this model takes 2048"),
        ("bench --tariff 2026-12-01 --factor inf", "state a --factor above 0"),
        ("quota set acme tokens_per_day nan", "`nan` is no number"),
        ("worker enrol --partition far --out papers --days 99999999", "99999999 is not in 1..=36500"),
        ("serve --threads -1", "'-1' for '--threads <N>'"),
        ("serve --kv-cache-memory -1", "'-1' for '--kv-cache-memory <SIZE>'"),
        ("serve --tokenizer nowhere", "tokenizer (--tokenizer): \"nowhere\" is not a model source"),
        ("serve --max-model-len 100000", "max_model_len asks for 100000; ask for 1 to 2048"),
    ] {
        let output = state.command(&command.split(' ').collect::<Vec<_>>()).output().expect("it runs");
        let said = String::from_utf8(output.stderr).expect("text");
        assert!(!output.status.success() && said.contains(wanted), "{command}: {said}");
    }
}
