//! `/v1/compare` over the demo's checkpoints: what it says is what the models say by themselves, under one bill.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::binary::{Served, State, open, open_as, request, root};

const ROUTE: &str = "/v1/compare";
/// Columns of the exported ledger.
const RESERVATION: usize = 1;
const MODEL_DIGEST: usize = 5;
const BILL: usize = 23;
const PROMPT: &str = "<|im_start|>user\nWhat is 12 + 7?<|im_end|>\n<|im_start|>assistant\n";

fn run(state: &State, arguments: &[&str]) -> String {
    let output = state.command(arguments).output().expect("the binary runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// The fields of the exported ledger's entries.
fn exported(state: &State) -> Vec<Vec<String>> {
    let csv = state.path().join("ledger.csv");
    run(state, &["usage", "export", csv.to_str().expect("a plain path")]);
    let text = std::fs::read_to_string(csv).expect("it was exported");
    text.lines().skip(1).map(|line| line.split(',').map(str::to_owned).collect()).collect()
}

fn checkpoints() -> Vec<String> {
    let of = |name: &str| format!("{name}={}", root().join("models/demo").join(name).display());
    ["early", "middle", "final"].into_iter().flat_map(|name| ["--model".to_owned(), of(name)]).collect()
}

fn serve(state: &State) -> Served {
    let options = checkpoints();
    Served::start(state, &options.iter().map(String::as_str).collect::<Vec<_>>())
}

fn body(models: &[&str]) -> Value {
    json!({"models": models, "prompt": PROMPT, "max_tokens": 12, "temperature": 0.8, "seed": 5})
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}"))
}

#[test]
fn each_model_says_what_it_says_alone_and_its_log_probabilities_are_those_of_the_completions_route() {
    let state = State::new();
    let served = serve(&state);
    let complete =
        |body: Value| request(&served.address, "POST", "/v1/completions", &body).json()["choices"][0].clone();
    let compared = request(&served.address, "POST", ROUTE, &body(&["final", "early", "middle"])).json();
    let models = list(&compared["models"]);
    for (model, name) in models.iter().zip(["final", "early", "middle"]) {
        let alone = complete(json!({"model": name, "prompt": PROMPT, "max_tokens": 12, "temperature": 0.8, "seed": 5}));
        assert_eq!((&model["model"], &model["text"]), (&json!(name), &alone["text"]));
        assert_eq!(model["finish_reason"], alone["finish_reason"]);
    }
    let tokens = list(&compared["text"]["token_ids"]);
    let (prompt, answer) = tokens.split_at(compared["text"]["num_prompt_tokens"].as_u64().expect("a count") as usize);
    assert_eq!(answer, &list(&models[0]["token_ids"])[..]);
    let spelt: String = list(&compared["text"]["tokens"]).iter().filter_map(Value::as_str).collect();
    assert!(spelt.starts_with(PROMPT) && !prompt.is_empty(), "{spelt}");
    for difference in list(&compared["differences"]) {
        let pair = [0, 1].map(|side| difference["models"][side].as_u64().expect("an index") as usize);
        for (side, index) in pair.into_iter().enumerate() {
            let scored = complete(json!({"model": models[index]["model"], "prompt": tokens, "max_tokens": 0,
                "prompt_scores": true}));
            assert_eq!(difference["logprobs"][side], scored["prompt_scores"]["token_logprobs"], "{pair:?}");
            assert_eq!(difference["ranks"][side], scored["prompt_scores"]["ranks"], "{pair:?}");
        }
        let (first, second) = (list(&models[0]["token_ids"]), list(&models[pair[1]]["token_ids"]));
        let part = first.iter().zip(second).position(|(one, other)| one != other);
        let part = part.or_else(|| (first.len() != second.len()).then(|| first.len().min(second.len())));
        assert_eq!(difference["answers_part_at"], json!(part));
        let kls = list(&difference["kl"]);
        assert!(kls[0].is_null() && kls[1..].iter().all(|kl| kl.as_f64().is_some_and(|kl| kl >= 0.0)), "{kls:?}");
    }
    let mean = |index: usize| compared["differences"][index]["mean_kl"].as_f64().expect("a number");
    assert!(mean(0) > mean(1), "an early checkpoint is further from the last than a later one");
}

#[test]
fn a_stream_brings_the_answers_side_by_side_and_then_the_comparison() {
    let state = State::new();
    let served = serve(&state);
    let whole = request(&served.address, "POST", ROUTE, &body(&["final", "early"])).json();
    let mut streamed = body(&["final", "early"]);
    streamed["stream"] = json!(true);
    let text = open(&served.address, "POST", ROUTE, &streamed).text();
    assert!(text.trim_end().ends_with("data: [DONE]"), "{text}");
    let events = text.lines().filter_map(|line| line.strip_prefix("data: {"));
    let mut events: Vec<Value> = events.map(|line| serde_json::from_str(&format!("{{{line}")).expect("JSON")).collect();
    let last = events.pop().expect("an end");
    for index in 0..2 {
        let said: String =
            events.iter().filter(|event| event["index"] == index).filter_map(|event| event["text"].as_str()).collect();
        assert_eq!(json!(said), whole["models"][index]["text"]);
    }
    assert_eq!(last["object"], "comparison");
    assert_eq!((&last["differences"], &last["text"]), (&whole["differences"], &whole["text"]));
}

#[test]
fn without_a_seed_one_is_drawn_for_all_and_said() {
    let state = State::new();
    let served = serve(&state);
    let mut asked =
        json!({"models": ["final", "early"], "prompt": "Tell me a story", "max_tokens": 24, "temperature": 1.5});
    let drawn = request(&served.address, "POST", ROUTE, &asked).json();
    asked["seed"] = drawn["seed"].clone();
    let again = request(&served.address, "POST", ROUTE, &asked).json();
    assert!(drawn["seed"].is_u64(), "{drawn}");
    for index in 0..2 {
        assert_eq!(again["models"][index]["token_ids"], drawn["models"][index]["token_ids"]);
    }
}

#[test]
fn a_comparison_is_one_bill_that_is_in_the_ledger_under_each_model() {
    let state = State::new();
    run(&state, &["account", "create", "acme"]);
    let key = run(&state, &["key", "create", "alice", "--account", "acme"]).trim().to_owned();
    let mut served = serve(&state);
    let compared = open_as(&served.address, ROUTE, &body(&["final", "early", "middle"]), &key).whole().json();
    served.signal("TERM");
    assert_eq!(served.exit_code(), Some(0));
    let text = list(&compared["text"]["token_ids"]).len() as u64;
    let prompt = compared["text"]["num_prompt_tokens"].as_u64().expect("a count");
    let usage = |of: &Value, name: &str| of["usage"][name].as_u64().expect("a count");
    let models = list(&compared["models"]);
    // The first reads the text beside each of the two others, which read it once.
    let read: Vec<u64> = models.iter().map(|model| usage(model, "prompt_tokens")).collect();
    assert_eq!(read, [prompt + 2 * text, prompt + text, prompt + text]);
    for name in ["prompt_tokens", "completion_tokens"] {
        assert_eq!(models.iter().map(|model| usage(model, name)).sum::<u64>(), usage(&compared, name), "{name}");
    }
    let shown: Value = serde_json::from_str(&run(&state, &["usage", "show", "acme", "--json"])).expect("JSON");
    let sum = |name: &str| list(&shown).iter().map(|row| row[name].as_u64().expect("a count")).sum::<u64>();
    assert_eq!(sum("input_tokens"), usage(&compared, "prompt_tokens"), "{shown}");
    assert_eq!(sum("output_tokens"), usage(&compared, "completion_tokens"), "{shown}");
    // An entry under the digest of each, all of them on the bill of the first that was reserved.
    let entries = exported(&state);
    let of = |column: usize| entries.iter().map(|entry| entry[column].as_str()).collect::<BTreeSet<_>>();
    let digests = models.iter().map(|model| model["digest"].as_str().expect("a text"));
    assert_eq!((of(MODEL_DIGEST), of(MODEL_DIGEST).len()), (digests.collect(), 3));
    let first =
        entries.iter().map(|entry| entry[RESERVATION].parse::<u64>().expect("a number")).min().expect("entries");
    assert_eq!((entries.len(), of(BILL)), (3, BTreeSet::from([first.to_string().as_str()])));
}

#[test]
fn a_comparison_that_does_not_fit_whole_takes_nothing() {
    let state = State::new();
    run(&state, &["account", "create", "acme"]);
    run(&state, &["quota", "set", "acme", "input_tokens_granted", "120", "--until", "2099-01-01"]);
    let key = run(&state, &["key", "create", "alice", "--account", "acme"]).trim().to_owned();
    let served = serve(&state);
    // The first model alone would fit, with what it reads again.
    assert_eq!(open_as(&served.address, ROUTE, &body(&["final", "early", "middle"]), &key).whole().status, 429);
    // Two fit if the three have left nothing behind.
    assert_eq!(open_as(&served.address, ROUTE, &body(&["final", "early"]), &key).whole().status, 200);
}

#[test]
fn a_name_that_stands_for_a_model_is_compared_as_that_model() {
    let state = State::new();
    let config = state.path().join("aliases.toml");
    std::fs::write(&config, "[aliases]\nbest = { final = 1 }\n").expect("the folder is writable");
    let mut options = checkpoints();
    options.extend(["--config".to_owned(), config.display().to_string()]);
    let served = Served::start(&state, &options.iter().map(String::as_str).collect::<Vec<_>>());
    let compared = request(&served.address, "POST", ROUTE, &body(&["best", "early"])).json();
    assert_eq!([&compared["models"][0]["model"], &compared["models"][1]["model"]], ["final", "early"]);
    assert_eq!(
        request(&served.address, "POST", ROUTE, &body(&["best", "final"])).status,
        400,
        "one model, named twice"
    );
}

#[test]
fn every_model_must_be_one_that_the_key_sees_and_one_that_is_there() {
    let state = State::new();
    run(&state, &["account", "create", "acme"]);
    let create = ["key", "create", "alice", "--account", "acme", "--model", "final", "--model", "middle"];
    let key = run(&state, &create).trim().to_owned();
    let served = serve(&state);
    let status = |models: &[&str]| open_as(&served.address, ROUTE, &body(models), &key).whole().status;
    assert_eq!(status(&["final", "middle"]), 200);
    assert_eq!(status(&["final", "early"]), 404);
    assert_eq!(status(&["final", "nobody"]), 404);
}

/// As a run's checkpoints are before they are taught to chat.
fn without_chat_template(state: &State) -> String {
    let (demo, folder) = (root().join("models/demo/early"), state.path().join("base"));
    std::fs::create_dir(&folder).expect("the folder is writable");
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(demo.join(name), folder.join(name)).expect("the demo has it");
    }
    let text = std::fs::read(demo.join("tokenizer_config.json")).expect("the demo has it");
    let mut config: Value = serde_json::from_slice(&text).expect("JSON");
    config.as_object_mut().expect("an object").remove("chat_template").expect("the demo chats");
    std::fs::write(folder.join("tokenizer_config.json"), config.to_string()).expect("the folder is writable");
    format!("base={}", folder.display())
}

#[test]
fn a_model_without_a_chat_template_is_named_and_goes_on_with_a_text() {
    let state = State::new();
    let (base, mut options) = (without_chat_template(&state), checkpoints());
    options.extend(["--model".to_owned(), base]);
    let served = Served::start(&state, &options.iter().map(String::as_str).collect::<Vec<_>>());
    let mut asked = json!({"models": ["final", "base"], "messages": [{"role": "user", "content": "hi"}]});
    let refused = request(&served.address, "POST", ROUTE, &asked);
    assert!(refused.refusal().contains("write `prompt`"), "{}", refused.text());
    assert!(refused.text().contains(r#""param":"models[1]""#), "{}", refused.text());
    let fields = asked.as_object_mut().expect("an object");
    fields.remove("messages").expect("it is there");
    fields.insert("prompt".to_owned(), json!("12 + 7 ="));
    let compared = request(&served.address, "POST", ROUTE, &asked).json();
    assert_eq!(list(&compared["models"]).len(), 2, "{compared}");
}
