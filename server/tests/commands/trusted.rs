//! From a laboratory's disk to a server that serves what the laboratory has signed, and nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::thread;

use serde_json::{Value, json};

use super::binary::{self, Served, State, get_as, request};

fn demo() -> String {
    binary::root().join("models/demo/final").display().to_string()
}

fn output(state: &State, arguments: &[&str]) -> Output {
    state.command(arguments).output().expect("the binary runs")
}

fn run(state: &State, arguments: &[&str]) -> String {
    let output = output(state, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// What is said, once, by a command that fails and prints nothing.
fn refusal(state: &State, arguments: &[&str]) -> String {
    let output = output(state, arguments);
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{arguments:?}: {said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("error:")).count(), 1, "{said}");
    said
}

/// A machine on which the demo model was imported as `final` and signed with the key `lab`. Returns where the copy is.
fn laboratory() -> (State, PathBuf) {
    let state = State::new();
    run(&state, &["sign", "--new-key", "lab"]);
    run(&state, &["import", &demo()]);
    run(&state, &["sign", "--key", "lab", "final"]);
    let copy = state.path().join("passerelle/models/final");
    (state, copy)
}

fn serve_refused(state: &State, copy: &Path, further: &[&str]) -> String {
    let model = format!("final={}", copy.display());
    let arguments = ["serve", "--listen", "127.0.0.1:0", "--trust", "lab.pub", "--model", &model];
    refusal(state, &[&arguments[..], further].concat())
}

#[test]
fn a_model_travels_on_a_disk_and_is_served_where_its_signature_is_trusted() {
    let (lab, copy) = laboratory();
    let json_of = |said: String| serde_json::from_str::<Value>(&said).expect("JSON");
    let bundled = json_of(run(&lab, &["bundle", "final", "--out", "final.tar", "--json"]));
    let signed = json_of(run(&lab, &["sign", "--key", "lab", "final", "--json"]));
    assert_eq!((&bundled["bundle"], &bundled["digest"]), (&json!("final.tar"), &signed["digest"]));
    let digest = bundled["digest"].as_str().expect("a text");
    let site = State::new();
    for file in ["final.tar", "lab.pub"] {
        fs::copy(lab.path().join(file), site.path().join(file)).expect("the disk is there");
    }
    let said: Value =
        serde_json::from_str(&run(&site, &["import", "final.tar", "--trust", "lab.pub", "--json"])).expect("JSON");
    assert_eq!((&said["digest"], &said["signature"]), (&json!(digest), &json!("of a trusted key")));
    let models = site.path().join("passerelle/models");
    let options = ["--models-dir", models.to_str().expect("a plain path"), "--trust", "lab.pub"];
    let served = Served::start(&site, &options);
    // It is loaded when it is asked for.
    let body = json!({"model": "final", "prompt": "Once", "max_tokens": 2});
    assert_eq!(request(&served.address, "POST", "/v1/completions", &body).status, 200);
    let listed = get_as(&served.address, "/v1/models", None).json();
    assert_eq!((&listed["data"][0]["id"], &listed["data"][0]["digest"]), (&json!("final"), &json!(digest)));
    assert!(run(&lab, &["inspect", copy.to_str().expect("a plain path")]).contains(digest));
}

#[test]
fn one_changed_byte_a_missing_and_a_further_file_are_named_before_anything_listens() {
    let (state, copy) = laboratory();
    for name in
        ["model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json"]
    {
        let path = copy.join(name);
        let former = fs::read(&path).expect("it was copied");
        let mut changed = former.clone();
        *changed.last_mut().expect("it is not empty") ^= 1;
        fs::write(&path, &changed).expect("the folder is writable");
        let said = serve_refused(&state, &copy, &[]);
        assert!(said.contains(&format!("{name}: is not what the manifest says; it was changed")), "{said}");
        fs::remove_file(&path).expect("it is there");
        let said = serve_refused(&state, &copy, &[]);
        assert!(said.contains(&format!("{name}: the manifest has it, and it is not there")), "{said}");
        fs::write(&path, &former).expect("the folder is writable");
    }
    // Of a file that no parser would take, so that it is known who found it.
    for name in ["model-2.safetensors", "chat_template.jinja", "modeling.py"] {
        fs::write(copy.join(name), "{{").expect("the folder is writable");
        let said = serve_refused(&state, &copy, &[]);
        assert!(said.contains(&format!("{name}: the manifest does not have it; take it away")), "{said}");
        fs::remove_file(copy.join(name)).expect("it is there");
    }
}

#[test]
fn what_nobody_trusted_has_signed_is_refused_by_name() {
    let (state, copy) = laboratory();
    let unsigned = refusal(&state, &["serve", "--listen", "127.0.0.1:0", "--trust", "lab.pub", "--model", &demo()]);
    assert!(
        unsigned.contains("passerelle.manifest.sig: there is no such file, so the model is not signed"),
        "{unsigned}"
    );
    let bundled = refusal(&state, &["serve", "--listen", "127.0.0.1:0", "--trust", "lab.pub"]);
    assert!(bundled.contains("model `demo`") && bundled.contains("passerelle import demo"), "{bundled}");
    let model = ["serve", "--offline", "--listen", "127.0.0.1:0", "--trust", "lab.pub", "--model", "org/name"];
    let of_the_hub = refusal(&state, &model);
    assert!(of_the_hub.contains("org/name is on the hub, where nobody signs"), "{of_the_hub}");
    run(&state, &["sign", "--new-key", "other"]);
    run(&state, &["sign", "--key", "other", "final"]);
    let foreign = serve_refused(&state, &copy, &[]);
    assert!(foreign.contains("passerelle.manifest.sig: is not a signature by a trusted key"), "{foreign}");
    // Each of several keys is enough.
    let model = format!("final={}", copy.display());
    drop(Served::start(&state, &["--trust", "lab.pub", "--trust", "other.pub", "--model", &model]));
    let no_key = refusal(&state, &["serve", "--listen", "127.0.0.1:0", "--trust", "lab", "--model", &model]);
    assert!(no_key.contains("server.trust (--trust)"), "{no_key}");
}

/// One byte of the weights, in the middle.
fn change(copy: &Path) {
    let weights = copy.join("model.safetensors");
    let mut bytes = fs::read(&weights).expect("it was copied");
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    // A new file: the old one may be in use.
    fs::remove_file(&weights).expect("it is there");
    fs::write(&weights, &bytes).expect("the folder is writable");
}

#[test]
fn of_a_folder_of_models_only_the_trusted_are_served_also_when_one_changes_after_it_was_found() {
    let (state, copy) = laboratory();
    for name in ["changed", "later", "unsigned"] {
        run(&state, &["import", &demo(), "--name", name]);
    }
    run(&state, &["sign", "--key", "lab", "changed"]);
    run(&state, &["sign", "--key", "lab", "later"]);
    let models = copy.parent().expect("models").to_owned();
    change(&models.join("changed"));
    let config = state.path().join("config.toml");
    // Nobody looks again while this test runs.
    fs::write(&config, "[shelf]\nlook_interval = \"1h\"\n").expect("the folder is writable");
    let [folder, config] = [&models, &config].map(|path| path.to_str().expect("a plain path"));
    let served = Served::start(&state, &["--config", config, "--models-dir", folder, "--trust", "lab.pub"]);
    let listed = || get_as(&served.address, "/v1/models", None).json()["data"].clone();
    let row = |name: &str| {
        let rows = listed();
        rows.as_array().expect("a list").iter().find(|row| row["id"] == name).cloned().expect("it is listed")
    };
    for (name, why) in [("changed", "model.safetensors: is not what the manifest says"), ("unsigned", "is not signed")]
    {
        assert_eq!(row(name)["state"], "failed", "{}", row(name));
        assert!(row(name)["error"].as_str().is_some_and(|error| error.contains(why)), "{}", row(name));
    }
    assert_eq!((&row("final")["state"], &row("later")["state"]), (&json!("available"), &json!("available")));
    // What was read to be trusted is known by its digest, though nobody has asked for it.
    assert_eq!(row("final")["digest_state"], "on_disk");
    // What the manifest beside it says counts for nothing: no key has signed that.
    assert_eq!(row("unsigned")["digest_state"], "not_hashed", "{}", row("unsigned"));
    assert!(
        run(&state, &["inspect", "--json", &copy.display().to_string()]).contains(&row("final")["digest"].to_string())
    );
    change(&models.join("later"));
    let ask = |name: &str| {
        let body = json!({"model": name, "prompt": "Once", "max_tokens": 2});
        request(&served.address, "POST", "/v1/completions", &body).status
    };
    assert_eq!(["changed", "unsigned", "later", "final"].map(ask), [503, 503, 503, 200]);
    assert!(row("later")["error"].as_str().is_some_and(|error| error.contains("was changed")), "{}", row("later"));
    // Until then both were the same.
    assert_ne!(row("later")["digest"], row("final")["digest"], "that of the bytes as they are now");
}

#[test]
fn a_copy_shows_the_digest_that_its_manifest_states_until_it_changes_or_is_read() {
    let state = State::new();
    let imported: Value = serde_json::from_str(&run(&state, &["import", &demo(), "--json"])).expect("JSON");
    let models = state.path().join("passerelle/models");
    let config = state.path().join("config.toml");
    fs::write(&config, "[shelf]\nlook_interval = \"20ms\"\n").expect("the folder is writable");
    let [folder, config] = [&models, &config].map(|path| path.to_str().expect("a plain path"));
    let served = Served::start(&state, &["--config", config, "--models-dir", folder]);
    let shown = || {
        let row = get_as(&served.address, "/v1/models/final", None).json();
        (row["digest"].clone(), row["digest_state"].clone())
    };
    assert_eq!(shown(), (imported["digest"].clone(), json!("manifest")));
    change(&models.join("final"));
    while shown() != (Value::Null, json!("not_hashed")) {
        thread::yield_now();
    }
    let body = json!({"model": "final", "prompt": "Once", "max_tokens": 2});
    let ask = || request(&served.address, "POST", "/v1/completions", &body).status;
    // A look that came while the file was away, or comes during the load, has it fail.
    let answered = std::iter::repeat_with(ask).take(10_000).find(|&status| status != 503);
    assert_eq!(answered, Some(200));
    let (digest, digest_state) = shown();
    assert_eq!(digest_state, "loaded");
    assert!(digest.is_string() && digest != imported["digest"], "that of the bytes: {digest}");
}

#[test]
fn partitions_and_tokenizers_of_upstreams_are_refused_too_before_anything_listens() {
    let (state, copy) = laboratory();
    let partition = "[[partitions]]\nname = \"one\"\nthreads = 1\nmemory = \"64MiB\"\n";
    let placed = format!("{partition}[[models]]\nname = \"m\"\nsource = {copy:?}\npartition = \"one\"\n");
    let model = format!("[[models]]\nname = \"m\"\nsource = {copy:?}\n");
    let elsewhere = demo();
    let upstream =
        format!("{model}[[upstreams]]\nmodel = \"far\"\nurl = \"http://127.0.0.1:9\"\ntokenizer = {elsewhere:?}\n");
    change(&copy);
    let refusal_of = |config: &str| {
        let file = state.path().join("config.toml");
        fs::write(&file, config).expect("the folder is writable");
        let file = file.to_str().expect("a plain path");
        refusal(&state, &["serve", "--listen", "127.0.0.1:0", "--config", file, "--trust", "lab.pub"])
    };
    for (config, place) in [(&model, "config.toml:3:1: model `m`: "), (&placed, "config.toml:7:1: model `m`: ")] {
        let said = refusal_of(config);
        assert!(said.contains(place) && said.contains("model.safetensors: is not what the manifest says"), "{said}");
    }
    fs::remove_dir_all(&copy).expect("it is there");
    run(&state, &["import", &demo()]);
    run(&state, &["sign", "--key", "lab", "final"]);
    let said = refusal_of(&upstream);
    assert!(said.contains("is not signed"), "{said}");
}

#[test]
fn nothing_is_scored_that_is_not_what_a_trusted_key_signed() {
    let (state, copy) = laboratory();
    fs::write(state.path().join("data.jsonl"), "{\"text\": \"Once\"}").expect("the folder is writable");
    let source = copy.display().to_string();
    let score = ["score", "--offline", "--data", "data.jsonl", "--trust", "lab.pub", source.as_str()];
    run(&state, &score);
    change(&copy);
    let said = refusal(&state, &score);
    assert!(said.contains("model.safetensors: is not what the manifest says"), "{said}");
}

#[test]
fn a_model_is_served_under_the_digest_that_was_verified_whatever_was_kept() {
    let (state, copy) = laboratory();
    let model = format!("final={}", copy.display());
    let digest = || {
        let served = Served::start(&state, &["--trust", "lab.pub", "--model", &model]);
        get_as(&served.address, "/v1/models", None).json()["data"][0]["digest"].as_str().expect("a text").to_owned()
    };
    let signed = digest();
    let kept = state.path().join("passerelle/hashes.json");
    let entries: Value = serde_json::from_slice(&fs::read(&kept).expect("it was kept")).expect("JSON");
    let mut forged = entries.as_array().expect("a list").clone();
    forged.iter_mut().for_each(|entry| entry["hash"] = json!("0".repeat(64)));
    fs::write(&kept, json!(forged).to_string()).expect("the folder is writable");
    assert_eq!(digest(), signed);
}

#[test]
fn no_tokenizer_or_template_from_elsewhere_stands_beside_a_signature() {
    let (state, copy) = laboratory();
    let elsewhere = demo();
    let said = serve_refused(&state, &copy, &["--tokenizer", &elsewhere]);
    assert!(said.contains("tokenizer (--tokenizer): no signature covers one from elsewhere"), "{said}");
    fs::write(state.path().join("t.jinja"), "hi").expect("the folder is writable");
    let said = serve_refused(&state, &copy, &["--chat-template", "t.jinja"]);
    assert!(said.contains("chat_template (--chat-template): no signature covers"), "{said}");
}

#[test]
fn an_import_takes_nothing_that_is_not_what_its_signature_says() {
    let (state, copy) = laboratory();
    let source = copy.display().to_string();
    change(&copy);
    for further in [&[][..], &["--trust", "lab.pub"]] {
        let said = refusal(&state, &[&["import", &source, "--name", "again"], further].concat());
        assert!(said.contains("model.safetensors: is not what the manifest says"), "{said}");
    }
    let said = refusal(&state, &["import", &demo(), "--name", "again", "--trust", "lab.pub"]);
    assert!(said.contains("so the model is not signed"), "{said}");
    assert!(!state.path().join("passerelle/models/again").exists());
}

#[test]
fn an_import_copies_nothing_whose_configuration_is_that_of_no_model() {
    let state = State::new();
    let config = state.path().join("odd/config.json");
    fs::create_dir(state.path().join("odd")).expect("the folder is writable");
    for odd in ["[]", "{", "{}", r#"{"architectures": []}"#, r#"{"architectures": "LlamaForCausalLM"}"#] {
        fs::write(&config, odd).expect("the folder is writable");
        let said = refusal(&state, &["import", "./odd"]);
        assert!(said.contains("odd/config.json: "), "{odd}: {said}");
        assert_eq!(said, refusal(&state, &["inspect", "./odd"]), "{odd}");
    }
    fs::write(state.path().join("odd.gguf"), "no such file").expect("the folder is writable");
    assert!(refusal(&state, &["import", "./odd.gguf"]).contains("odd.gguf: "));
    assert!(!state.path().join("passerelle/models").exists());
}

/// The tokenizer of an upstream's model may be wanted of it, or another program may serve it.
#[test]
fn an_import_copies_a_family_that_is_not_served_here_and_says_that_it_is_not() {
    let state = State::new();
    fs::create_dir(state.path().join("far")).expect("the folder is writable");
    let config = r#"{"architectures": ["NemotronHForCausalLM"]}"#;
    fs::write(state.path().join("far/config.json"), config).expect("the folder is writable");
    let imported = output(&state, &["import", "./far"]);
    let said = String::from_utf8_lossy(&imported.stderr);
    assert!(imported.status.success() && said.contains("NemotronHForCausalLM is not supported"), "{said}");
    assert_eq!(fs::read_to_string(state.path().join("passerelle/models/far/config.json")).expect("a copy"), config);
}

#[test]
fn an_import_copies_no_model_of_a_family_that_is_served_here_without_its_weights_or_half_of_its_tokenizer() {
    let state = State::new();
    let (part, aside) = (state.path().join("part"), state.path().join("aside"));
    fs::create_dir(&part).expect("the folder is writable");
    for file in ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(Path::new(&demo()).join(file), part.join(file)).expect("the demo has it");
    }
    for (file, why) in [
        (
            "model.safetensors",
            "part: weights: neither model.safetensors nor model.safetensors.index.json is here; download",
        ),
        ("tokenizer.json", "tokenizer.json: is missing beside tokenizer_config.json; finish the copy"),
    ] {
        fs::rename(part.join(file), &aside).expect("the folder is writable");
        let said = refusal(&state, &["import", "./part"]);
        assert!(said.contains("not copied: ") && said.contains(why), "{said}");
        fs::rename(&aside, part.join(file)).expect("the folder is writable");
    }
    assert!(!state.path().join("passerelle/models").exists());
    run(&state, &["import", "./part"]);
}

/// As the documentation says that other tools check it.
#[test]
fn openssl_and_sha256sum_find_right_what_was_signed_here() {
    let (state, copy) = laboratory();
    let (key, here) = (state.path().join("lab.pub"), copy.display());
    let assert_passes = |check: &str| {
        let script = format!("cd {here} && {check}");
        let checked = std::process::Command::new("sh").args(["-c", &script]).output();
        let checked = checked.expect("a shell is part of every system");
        assert!(checked.status.success(), "{check}: {}", String::from_utf8_lossy(&checked.stderr));
    };
    assert_passes("tail -n +2 passerelle.manifest | awk '{print $1 \"  \" $3}' | sha256sum --check --quiet");
    if std::process::Command::new("openssl").arg("version").output().is_err() {
        eprintln!("skipped: the signature is not checked, because this machine has no openssl");
        return;
    }
    assert_passes(&format!(
        "openssl pkeyutl -verify -pubin -inkey {} -rawin -in passerelle.manifest -sigfile passerelle.manifest.sig",
        key.display()
    ));
}
