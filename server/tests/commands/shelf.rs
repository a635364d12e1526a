//! Models of a folder, which come into memory when somebody asks for them and leave it for others.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::{Value, json};

use super::binary::{self, Served, State, Whole, get_as, open, request};

const CHECKPOINTS: usize = 12;
const ROOM: u64 = 3;
const CLIENTS: usize = 8;
const REQUESTS: usize = 120;
/// Models of this test are small, and so are their caches.
const SHELF: &str = "[shelf]\nlook_interval = \"20ms\"\n";
/// Whatever the machine is busy with.
const PATIENT: &str = "longest_load = \"60s\"\nkv_cache = \"256KiB\"\n";

/// The fixture with other weights: a factor of its own for each number, by what remains of its place.
fn write_checkpoint(folder: &Path, index: usize) {
    let fixture = binary::root().join("models/tests/fixtures/plain");
    fs::create_dir_all(folder).expect("the folder is writable");
    let mut weights = fs::read(fixture.join("model.safetensors")).expect("the fixture");
    let header = 8 + u64::from_le_bytes(weights[..8].try_into().expect("eight bytes")) as usize;
    for (place, number) in weights[header..].chunks_exact_mut(4).enumerate() {
        let value = f32::from_le_bytes(number.try_into().expect("four bytes"));
        let factor = 1.0 + ((place * (index + 1)) % 13) as f32 / 26.0;
        number.copy_from_slice(&(value * factor).to_le_bytes());
    }
    fs::write(folder.join("model.safetensors"), weights).expect("the folder is writable");
    let config = fs::read_to_string(fixture.join("config.json")).expect("the fixture");
    let mut config: Value = serde_json::from_str(&config).expect("JSON");
    config["max_position_embeddings"] = json!(8192);
    // Last, so that no half of a checkpoint is seen.
    fs::write(folder.join("config.json"), config.to_string()).expect("the folder is writable");
}

fn serve(state: &State, options: &[&str], shelf: &str) -> Served {
    let config = state.path().join("config.toml");
    fs::write(&config, format!("{SHELF}{shelf}")).expect("the folder is writable");
    let runs = state.path().join("runs");
    let [config, runs] = [&config, &runs].map(|path| path.to_str().expect("a plain path"));
    Served::start(state, &[&["--config", config, "--models-dir", runs], options].concat())
}

/// Two checkpoints of other weights.
fn state_with_a_and_b() -> State {
    let state = State::new();
    for (name, index) in ["a", "b"].into_iter().zip(1..) {
        write_checkpoint(&state.path().join("runs").join(name), index);
    }
    state
}

/// Room for one model of the folder, beside one that stays.
fn serve_one_at_a_time(state: &State, longest_load: &str) -> Served {
    let shelf = format!("longest_load = \"{longest_load}\"\nkv_cache = \"256KiB\"\n");
    serve(state, &["--model", "demo", "--model-memory", "900KiB"], &shelf)
}

fn run(state: &State, arguments: &[&str]) -> Result<String, String> {
    let output = state.command(arguments).output().expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

fn listed(state: &State) -> Value {
    serde_json::from_str(&run(state, &["model", "list", "--json"]).expect("a server runs")).expect("JSON")
}

fn row(state: &State, model: &str) -> Value {
    let rows = listed(state)["data"].as_array().expect("a list").clone();
    rows.into_iter().find(|row| row["model"] == model).unwrap_or(Value::Null)
}

fn body(model: &str, prompt: usize, max_tokens: usize) -> Value {
    json!({"model": model, "prompt": [prompt + 3, prompt + 5, 7], "max_tokens": max_tokens, "temperature": 0,
           "ignore_eos": true, "logprobs": 3, "return_token_ids": true})
}

fn ask(served: &Served, model: &str, prompt: usize) -> Whole {
    request(&served.address, "POST", "/v1/completions", &body(model, prompt, 6))
}

fn choices(served: &Served, model: &str, prompt: usize) -> Value {
    ask(served, model, prompt).json()["choices"].clone()
}

/// SplitMix64, as elsewhere: the same requests in each run.
fn draw(index: usize) -> u64 {
    let mut value = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[test]
fn twelve_checkpoints_in_room_for_three_give_no_wrong_answer_and_never_overrun_their_memory() {
    let state = State::new();
    let names: Vec<String> = (0..CHECKPOINTS).map(|index| format!("run@step-{index}")).collect();
    (0..CHECKPOINTS).for_each(|index| write_checkpoint(&state.path().join(format!("runs/run/step-{index}")), index));
    // Each alone, in a server that has room for all.
    let roomy = serve(&state, &["--model-memory", "1GiB"], PATIENT);
    let alone: Vec<Vec<Value>> =
        names.iter().map(|name| (0..4).map(|prompt| choices(&roomy, name, prompt)).collect()).collect();
    assert!((1..CHECKPOINTS).all(|index| alone[index] != alone[0]), "the checkpoints differ");
    let each = listed(&state)["data"].as_array().expect("a list").iter().map(|row| row["bytes"].as_u64()).max();
    let each = each.flatten().expect("what each holds");
    drop(roomy);
    let memory = format!("{}B", each * ROOM + each / 2);
    let served = serve(&state, &["--model-memory", &memory], PATIENT);
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        let client = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= REQUESTS {
                    return;
                }
                let (model, prompt) = (draw(index) as usize % CHECKPOINTS, draw(index) as usize / CHECKPOINTS % 4);
                assert_eq!(choices(&served, &names[model], prompt), alone[model][prompt], "{}", names[model]);
            }
        };
        (0..CLIENTS).for_each(|_| drop(scope.spawn(client)));
    });
    let list = listed(&state);
    let held = |field: &str| list["memory"][field].as_u64().expect("bytes");
    assert!(held("most_held_bytes") <= held("limit_bytes"), "{list}");
    let ready = list["data"].as_array().expect("a list").iter().filter(|row| row["state"] == "ready").count();
    assert!((1..=ROOM as usize).contains(&ready), "{list}");
}

/// Asks until it is so; each look is a command, which takes its time.
fn until(state: &State, model: &str, wanted: &str) -> Value {
    loop {
        let row = row(state, model);
        if row["state"] == wanted {
            return row;
        }
    }
}

#[test]
fn checkpoints_appear_and_fail_and_are_mended_while_the_server_runs() {
    let state = State::new();
    let runs = state.path().join("runs");
    write_checkpoint(&runs.join("good"), 1);
    fs::create_dir_all(runs.join("broken")).expect("the folder is writable");
    fs::write(runs.join("broken/config.json"), "{}").expect("the folder is writable");
    let served = serve(&state, &["--model", "demo"], PATIENT);
    let models = get_as(&served.address, "/v1/models", None).json();
    let states: Vec<_> = models["data"].as_array().expect("a list").iter().map(|row| row["state"].clone()).collect();
    assert_eq!(states, ["failed", "ready", "available"], "{models}");
    assert!(models["data"][0]["error"].as_str().is_some_and(|why| why.contains("config.json")), "{models}");
    let refused = open(&served.address, "POST", "/v1/completions", &body("broken", 0, 6)).text_with_head();
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("model_failed"), "{refused}");
    assert!(!refused.contains("config.json") && !refused.contains("runs"), "no file of the server is named: {refused}");
    assert!(row(&state, "broken")["error"].as_str().is_some_and(|why| why.contains("config.json")));
    assert_eq!(ask(&served, "later@v1", 0).status, 404);
    write_checkpoint(&runs.join("later/v1"), 2);
    write_checkpoint(&runs.join("broken"), 3);
    until(&state, "later@v1", "available");
    until(&state, "broken", "available");
    for model in ["later@v1", "broken", "good"] {
        assert_eq!(ask(&served, model, 0).status, 200, "{model}");
    }
    let shown = get_as(&served.address, "/v1/models/later@v1", None).json();
    assert_eq!(shown["state"], "ready");
    assert!(shown["digest"].as_str().is_some_and(|digest| digest.starts_with("sha256:")), "{shown}");
    fs::remove_dir_all(runs.join("later")).expect("the folder is writable");
    assert_eq!(ask(&served, "later@v1", 0).status, 200, "what is in memory is served until it leaves");
}

#[test]
fn why_a_model_failed_is_told_to_operators_and_to_no_other_key() {
    let state = State::new();
    fs::create_dir_all(state.path().join("runs/broken")).expect("the folder is writable");
    fs::write(state.path().join("runs/broken/config.json"), "{}").expect("the folder is writable");
    let scopes = ["--scope", "admin", "--scope", "inference"];
    let user = run(&state, &["key", "create", "user"]).expect("a key").trim().to_owned();
    let admin = run(&state, &[&["key", "create", "root", "--account", "/"][..], &scopes].concat()).expect("a key");
    let admin = admin.trim();
    let served = serve(&state, &[], PATIENT);
    let told = |key: &str, path: &str| get_as(&served.address, path, Some(key)).json()["error"].clone();
    assert_eq!(told(&user, "/v1/models/broken"), "it cannot be loaded");
    assert!(told(admin, "/v1/models/broken").as_str().is_some_and(|why| why.contains("config.json")));
    let rows = get_as(&served.address, "/admin/v1/models", Some(admin)).json();
    assert!(rows["data"][0]["error"].as_str().is_some_and(|why| why.contains("config.json")), "{rows}");
    assert_eq!(get_as(&served.address, "/admin/v1/models", Some(&user)).status, 403);
    let load = |key: &str| binary::open_as(&served.address, "/admin/v1/models/load", &json!({"model": "broken"}), key);
    assert_eq!(load(&user).whole().status, 403);
    assert!(load(admin).text_with_head().contains("config.json"));
    run(&state, &["model", "pin", "broken"]).expect("it can be pinned");
    let log = run(&state, &["account", "audit"]).expect("a log");
    let acts = [
        "load model broken asked",
        "load model broken failed: The model `broken` cannot be loaded",
        "pin model broken asked",
        "pin model broken done",
    ];
    for act in acts {
        assert!(log.contains(act), "{act}: {log}");
    }
}

#[test]
fn a_server_all_of_whose_models_have_failed_is_not_ready_until_one_can_be_loaded() {
    let state = State::new();
    let broken = state.path().join("runs/broken");
    fs::create_dir_all(&broken).expect("the folder is writable");
    let served = serve(&state, &[], PATIENT);
    let probe = || request(&served.address, "GET", "/ready", &Value::Null);
    assert_eq!(probe().status, 200, "a first model may come");
    fs::write(broken.join("config.json"), "{}").expect("the folder is writable");
    until(&state, "broken", "failed");
    let refused = probe();
    assert_eq!(refused.status, 503);
    assert!(
        refused.text().contains("No model can be loaded") && !refused.text().contains("runs"),
        "{}",
        refused.text()
    );
    write_checkpoint(&broken, 3);
    until(&state, "broken", "available");
    assert_eq!(probe().status, 200);
}

#[test]
fn what_of_the_folder_cannot_be_served_is_said_at_the_start() {
    let state = State::new();
    let runs = state.path().join("runs");
    ["z/1", "z@1", "with space", "a/b/c"].iter().for_each(|name| write_checkpoint(&runs.join(name), 1));
    let runs = runs.to_str().expect("a plain path");
    let _served = Served::start_logging(&state, &["--models-dir", runs, "--model-memory", "1KiB"], "warn");
    let log = fs::read_to_string(state.log()).expect("it was logged");
    for said in ["would be `z@1` too", "`with space` in ", "lies too deep", "shelf.kv_cache", "--model-memory"] {
        assert_eq!(log.lines().filter(|line| line.contains(said)).count(), 1, "{said}: {log}");
    }
    let alone = State::new();
    let _served = Served::start_logging(&alone, &["--model-memory", "1GiB"], "warn");
    let log = fs::read_to_string(alone.log()).expect("it was logged");
    assert!(log.contains("--model-memory is for the models of --models-dir"), "{log}");
    let empty = State::new();
    let folder = empty.path().join("runs");
    fs::create_dir(&folder).expect("the folder is writable");
    let folder = folder.to_str().expect("a plain path");
    let _served = Served::start_logging(&empty, &["--model", "demo", "--models-dir", folder], "warn");
    let log = fs::read_to_string(empty.log()).expect("it was logged");
    assert!(log.contains("no checkpoint in") && log.contains("config.json"), "{log}");
}

#[test]
fn models_that_have_no_room_together_are_not_compared_and_not_waited_for() {
    let state = state_with_a_and_b();
    // Longer than anybody who runs this waits.
    let served = serve_one_at_a_time(&state, "1h");
    assert_eq!(ask(&served, "a", 0).status, 200, "one has room");
    let side_by_side = json!({"models": ["a", "b"], "prompt": [3, 5, 7], "max_tokens": 2});
    let scored = json!({"model": "a", "prompt": [3, 5, 7], "max_tokens": 0, "prompt_scores_against": "b"});
    for (route, body) in [("/v1/compare", side_by_side), ("/v1/completions", scored)] {
        let why = request(&served.address, "POST", route, &body).refusal();
        assert!(why.contains("together") && why.contains("--model-memory"), "{why}");
    }
}

#[test]
fn models_are_loaded_unloaded_and_pinned_by_hand() {
    let state = state_with_a_and_b();
    // The one that stays has its cache from elsewhere.
    let served = serve_one_at_a_time(&state, "1ms");
    assert_eq!(run(&state, &["model", "load", "a"]).expect("there is room").split(',').next(), Some("a: ready"));
    run(&state, &["model", "pin", "a"]).expect("it is there");
    assert!(run(&state, &["model", "list"]).expect("a server runs").contains("pinned"));
    let waits = ask(&served, "b", 0);
    assert_eq!(waits.status, 503, "no room beside a pinned model");
    assert!(waits.error().contains("pinned"), "{}", waits.error());
    assert!(run(&state, &["model", "unload", "a"]).expect_err("it is pinned").contains("is pinned"));
    run(&state, &["model", "unpin", "a"]).expect("it is there");
    run(&state, &["model", "load", "b"]).expect("a has left");
    assert_eq!(
        (row(&state, "a")["state"].clone(), row(&state, "b")["state"].clone()),
        (json!("available"), json!("ready"))
    );
    run(&state, &["model", "unload", "b"]).expect("nobody uses it");
    until(&state, "b", "available");
    assert!(run(&state, &["model", "unload", "demo"]).expect_err("it stays").contains("stays in memory"));
    assert!(run(&state, &["model", "load", "nobody"]).expect_err("no such model").contains("does not exist"));
}

#[test]
fn a_model_that_left_memory_keeps_its_digest_until_its_files_change_and_one_never_read_says_that_it_has_none() {
    let state = state_with_a_and_b();
    let served = serve_one_at_a_time(&state, "60s");
    let shown = |served: &Served, model: &str| {
        let listed = get_as(&served.address, &format!("/v1/models/{model}"), None).json();
        let row = row(&state, model);
        assert_eq!((&row["digest"], &row["digest_state"]), (&listed["digest"], &listed["digest_state"]));
        (listed["digest"].clone(), listed["digest_state"].as_str().expect("a text").to_owned())
    };
    assert_eq!(shown(&served, "a"), (Value::Null, "not_hashed".to_owned()));
    run(&state, &["model", "load", "a"]).expect("there is room");
    let (digest, while_ready) = shown(&served, "a");
    assert!(digest.is_string() && while_ready == "loaded", "{digest} {while_ready}");
    run(&state, &["model", "unload", "a"]).expect("nobody uses it");
    until(&state, "a", "available");
    assert_eq!(shown(&served, "a"), (digest.clone(), "on_disk".to_owned()));
    drop(served);
    let served = serve_one_at_a_time(&state, "60s");
    assert_eq!(shown(&served, "a"), (digest, "on_disk".to_owned()), "the next server knows it too");
    assert_eq!(shown(&served, "b"), (Value::Null, "not_hashed".to_owned()));
    write_checkpoint(&state.path().join("runs/a"), 7);
    let unread = || get_as(&served.address, "/v1/models/a", None).json()["digest_state"] == "not_hashed";
    while !unread() {
        thread::yield_now();
    }
}

#[test]
fn the_cache_of_a_checkpoint_is_reckoned_as_what_it_holds_once_it_is_loaded() {
    let cache = "longest_load = \"60s\"\nkv_cache = \"256MiB\"\n";
    // Weights are reckoned with what packing may add; they are the same in both.
    let [wide, narrow] = ["f32", "int8"].map(|kv_dtype| {
        let state = state_with_a_and_b();
        let options = ["--model-memory", "1GiB", "--max-num-seqs", "1", "--kv-dtype", kv_dtype];
        let _served = serve(&state, &options, cache);
        let bytes = || row(&state, "a")["bytes"].as_u64().expect("what it holds, or would");
        let before = bytes();
        run(&state, &["model", "load", "a"]).expect("there is room");
        (before, bytes())
    });
    assert!(narrow.0 < wide.0, "{narrow:?} {wide:?}");
    assert_eq!(wide.0 - narrow.0, wide.1 - narrow.1, "{narrow:?} {wide:?}");
}

#[test]
fn comparisons_of_different_pairs_never_wait_for_each_others_models() {
    let state = State::new();
    for (name, index) in ["a", "b", "c", "d"].into_iter().zip(1..) {
        write_checkpoint(&state.path().join("runs").join(name), index);
    }
    let roomy = serve(&state, &["--model-memory", "1GiB"], PATIENT);
    let each = row(&state, "a")["bytes"].as_u64().expect("what it would hold");
    drop(roomy);
    let for_two = format!("{}B", 2 * each + each / 2);
    let served = serve(&state, &["--model-memory", &for_two], "longest_load = \"20s\"\nkv_cache = \"256KiB\"\n");
    let compare = |[first, second]: [&str; 2]| {
        let asked = json!({"model": first, "prompt": [3, 5, 7], "max_tokens": 0, "prompt_scores_against": second});
        request(&served.address, "POST", "/v1/completions", &asked)
    };
    let pairs = [["a", "b"], ["c", "d"], ["d", "a"], ["b", "c"]];
    thread::scope(|scope| {
        for pair in pairs {
            scope.spawn(move || (0..6).for_each(|_| drop(compare(pair).json())));
        }
    });
}

#[test]
fn a_stream_keeps_its_model_and_whoever_wants_another_is_told_when_to_come_back() {
    let state = state_with_a_and_b();
    // Room for one, with a context that takes the model a while to fill.
    let served = serve(&state, &["--model-memory", "20MiB"], "longest_load = \"1ms\"\nkv_cache = \"16MiB\"\n");
    run(&state, &["model", "load", "a"]).expect("there is room");
    let mut long = body("a", 0, 4000);
    long["stream"] = json!(true);
    let stream = open(&served.address, "POST", "/v1/completions", &long).wait_for_event();
    let told = open(&served.address, "POST", "/v1/completions", &body("b", 0, 1)).text_with_head();
    assert!(told.starts_with("HTTP/1.1 503") && told.contains("model_loading"), "{told}");
    assert!(told.contains("models in use leave it no room"), "{told}");
    assert!(told.to_lowercase().contains("retry-after: "), "{told}");
    let text = stream.text();
    assert!(text.contains(r#""finish_reason":"length""#) && text.trim_end().ends_with("data: [DONE]"), "{text}");
}

/// The fixture, and in its file a tensor that takes no room on the disk and that no configuration describes: it is reckoned
/// with, and its load is over at once.
fn write_large_checkpoint(folder: &Path, bytes: u64) {
    let fixture = binary::root().join("models/tests/fixtures/plain");
    fs::create_dir_all(folder).expect("the folder is writable");
    let weights = fs::read(fixture.join("model.safetensors")).expect("the fixture");
    let (length, rest) = weights.split_at(8);
    let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into().expect("eight bytes")) as usize);
    let mut header: Value = serde_json::from_slice(header).expect("JSON");
    let end = data.len() as u64;
    header["large"] = json!({"dtype": "F32", "shape": [bytes / 4], "data_offsets": [end, end + bytes]});
    let header = header.to_string();
    let header = format!("{header:<width$}", width = header.len().next_multiple_of(8));
    let whole = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat();
    fs::write(folder.join("model.safetensors"), &whole).expect("the folder is writable");
    let file = fs::File::options().write(true).open(folder.join("model.safetensors")).expect("it is there");
    file.set_len(whole.len() as u64 + bytes).expect("a file may have holes");
    fs::copy(fixture.join("config.json"), folder.join("config.json")).expect("the folder is writable");
}

#[test]
fn who_is_told_to_come_back_is_told_how_long_the_load_is_reckoned_to_take() {
    let state = State::new();
    write_large_checkpoint(&state.path().join("runs/large"), 700_000_000);
    let served = serve(&state, &["--model-memory", "4GiB"], "longest_load = \"1ms\"\nkv_cache = \"256KiB\"\n");
    let seconds = row(&state, "large")["load_seconds"].as_f64().expect("an estimate");
    assert!(seconds > 2.0, "more than what is told where nothing is known: {seconds}");
    let told = open(&served.address, "POST", "/v1/completions", &body("large", 0, 1)).text_with_head();
    assert!(told.starts_with("HTTP/1.1 503") && told.contains("model_loading"), "{told}");
    assert!(told.to_lowercase().contains(&format!("retry-after: {}\r\n", seconds.ceil())), "{seconds}: {told}");
}

#[test]
fn what_a_killed_server_had_open_is_billed_though_its_model_is_not_loaded_again() {
    let state = State::new();
    write_checkpoint(&state.path().join("runs/a"), 1);
    let key = run(&state, &["key", "create", "alice"]).expect("a key").trim().to_owned();
    let served = serve(&state, &[], "kv_cache = \"16MiB\"\nlongest_load = \"60s\"\n");
    let mut long = body("a", 0, 4000);
    long["stream"] = json!(true);
    // Enough of them that a mark was written.
    let _stream = binary::open_as(&served.address, "/v1/completions", &long, &key).wait_for_events(40);
    served.signal("KILL");
    drop(served);
    let _restarted = serve(&state, &[], "");
    assert_eq!(row(&state, "a")["state"], "available");
    let sums: Value = serde_json::from_str(&run(&state, &["usage", "show", "--json"]).expect("usage")).expect("JSON");
    let of_model = sums.as_array().and_then(|sums| sums.iter().find(|sum| sum["model"] == "a")).expect("it was used");
    assert!(of_model["billed_gpu_us"].as_u64() > Some(0), "{sums}");
}

#[test]
fn a_request_that_is_told_to_come_back_finds_its_model_in_the_place_of_an_idle_one() {
    let state = state_with_a_and_b();
    let served = serve(&state, &["--model-memory", "900KiB"], "longest_load = \"1ms\"\nkv_cache = \"256KiB\"\n");
    run(&state, &["model", "load", "a"]).expect("there is room");
    assert_eq!(ask(&served, "b", 0).status, 503, "it takes longer than a millisecond");
    until(&state, "b", "ready");
    assert_eq!(ask(&served, "b", 0).status, 200);
}

#[test]
fn a_name_of_an_upstream_or_of_an_alias_is_taken_also_after_a_reload() {
    let state = State::new();
    let runs = state.path().join("runs");
    ["early", "good"].iter().for_each(|name| write_checkpoint(&runs.join(name), 1));
    let upstream = |model: &str| format!("[[upstreams]]\nmodel = \"{model}\"\nurl = \"http://127.0.0.1:9\"\n");
    let _served = serve(&state, &[], &format!("{PATIENT}{}", upstream("early")));
    let lies_here = |name: &str| row(&state, name)["comes_and_goes"] == true;
    assert_eq!(["early", "good"].map(lies_here), [false, true]);
    let changed = format!("{SHELF}{PATIENT}{}[aliases]\nlater = {{ good = 1 }}\n", upstream("elsewhere"));
    fs::write(state.path().join("config.toml"), changed).expect("the folder is writable");
    run(&state, &["reload"]).expect("it is valid");
    ["elsewhere", "later", "seen"].iter().for_each(|name| write_checkpoint(&runs.join(name), 2));
    // Names are looked at in their order, and all of them at each look.
    until(&state, "seen", "available");
    until(&state, "early", "available");
    assert_eq!(["elsewhere", "later", "seen", "early"].map(lies_here), [false, false, true, true]);
}
