//! Random requests of every kind: all at once, and some of them given up, to models in worker processes that have little
//! memory, and one by one to the same models in the server's own process. Numbers are written so that they read back as
//! the very same float, so answers that are equal are bit-identical.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::{Value, json};

use super::binary::{Served, State, open, request};
use super::chance::Chance;
use super::workers::{demo, serve_in_one_process};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
const CLIENTS: usize = 8;
const REQUESTS: usize = 120;
const ALL_REQUESTS: usize = 10_000;
/// Two sequences of so many tokens do not fit a worker's cache.
const LONGEST_PROMPT: u64 = 400;
/// Prompts are made of these ids, which are words and parts of words.
const USUAL_IDS: u64 = 1500;

#[test]
fn random_requests_to_workers_get_the_bits_that_they_get_alone_in_one_process() {
    compare(REQUESTS);
}

#[test]
#[ignore = "ten thousand requests take minutes; .ci/full runs them"]
fn ten_thousand_random_requests_to_workers_get_the_bits_that_they_get_alone_in_one_process() {
    compare(ALL_REQUESTS);
}

fn compare(count: usize) {
    let (apart, together) = (State::new(), State::new());
    let (apart, together) = (serve_in_narrow_workers(&apart), serve_in_one_process(&together));
    let next = AtomicUsize::new(0);
    let compared: Vec<usize> = thread::scope(|scope| {
        let client = || {
            let mut compared = 0;
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return compared;
                }
                compared += usize::from(ask_both(index, &apart, &together));
            }
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        clients.into_iter().map(|client| client.join().expect("a client's own panic says which request")).collect()
    });
    assert!(compared.iter().sum::<usize>() > count / 2, "most of them are heard to their end");
    let metrics = request(&apart.address, "GET", "/metrics", &Value::Null);
    for name in ["passerelle_preemptions_total", "passerelle_prefix_hit_tokens_total"] {
        let of_models = metrics.text().lines().filter(|line| line.starts_with(&format!("{name}{{")));
        let times: f64 = of_models.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
        assert!(times > 0.0, "no {name}: this would prove little");
    }
}

/// False for one whose reader left.
fn ask_both(index: usize, apart: &Served, together: &Served) -> bool {
    let mut chance = Chance::new(index as u64 + 1);
    let (path, mut body) = random_request(&mut chance);
    if chance.below(6) == 0 {
        body["stream"] = json!(true);
        // They come with an answer that is whole.
        body.as_object_mut().expect("it is one").remove("prompt_logprobs");
        drop(open(&apart.address, "POST", path, &body).wait_for_event());
        return false;
    }
    let [apart, together] = [apart, together].map(|served| request(&served.address, "POST", path, &body));
    let (apart, together) = (what_was_said(apart.json()), what_was_said(together.json()));
    assert_eq!(apart, together, "request {index}: {body}");
    true
}

/// What depends on the request alone.
fn what_was_said(mut answer: Value) -> Value {
    for other in ["id", "created"] {
        answer[other] = Value::Null;
    }
    // How much of a prompt was found in a cache depends on who asked before.
    answer["usage"]["prompt_tokens_details"] = Value::Null;
    answer
}

/// One worker for each model, whose cache holds some 700 tokens.
fn serve_in_narrow_workers(state: &State) -> Served {
    let partition = |name: &str, model: &str| {
        format!(
            "[[partitions]]\nname = \"{name}\"\nthreads = 1\n\
             [[models]]\nname = \"{model}\"\nsource = \"{}\"\npartition = \"{name}\"\n",
            demo(model)
        )
    };
    let config = state.path().join("config.toml");
    let partitions = [("left", "early"), ("right", "final")].map(|(name, model)| partition(name, model)).concat();
    fs::write(&config, format!("[engine]\nkv_cache_memory = \"900KiB\"\n{partitions}")).expect("it is writable");
    Served::start(state, &["--config", config.to_str().expect("a plain path")])
}

fn random_request(chance: &mut Chance) -> (&'static str, Value) {
    let (path, mut body) = match chance.below(4) {
        0 => {
            let said = ["Tell me a story about a cat.", "What is 12 + 7?", "Bonjour, qui es-tu ?"];
            (CHAT, json!({"messages": [{"role": "user", "content": chance.one_of(&said)}]}))
        }
        _ => (COMPLETIONS, json!({"prompt": random_prompt(chance)})),
    };
    body["model"] = json!(chance.one_of(&["early", "final"]));
    body["max_tokens"] = json!(1 + chance.below(40));
    body["seed"] = json!(chance.below(1000));
    body["service_tier"] = json!(chance.one_of(&["priority", "default", "default", "flex"]));
    add_sampling(&mut body, chance);
    match path {
        CHAT if chance.below(2) == 0 => {
            body["logprobs"] = json!(true);
            body["top_logprobs"] = json!(chance.below(4));
        }
        COMPLETIONS if chance.below(2) == 0 => body["logprobs"] = json!(chance.below(5)),
        COMPLETIONS if chance.below(3) == 0 => body["prompt_logprobs"] = json!(chance.below(3)),
        _ => {}
    }
    (path, body)
}

/// A stretch of one of two long texts, and now and then a token of its own.
fn random_prompt(chance: &mut Chance) -> Vec<u64> {
    let (text, length) = (chance.below(2), 1 + chance.below(LONGEST_PROMPT));
    let mut prompt: Vec<u64> = (0..length).map(|at| 300 + (at * 7 + text * 131) % USUAL_IDS).collect();
    if chance.below(3) == 0 {
        prompt.push(300 + chance.below(USUAL_IDS));
    }
    prompt
}

fn add_sampling(body: &mut Value, chance: &mut Chance) {
    body["temperature"] = json!(chance.one_of(&[0.0, 0.7, 1.0, 1.4]));
    body["top_p"] = json!(chance.one_of(&[1.0, 0.9, 0.3]));
    let id = 300 + chance.below(USUAL_IDS);
    let fields = [
        ("top_k", json!(5)),
        ("min_p", json!(0.05)),
        ("frequency_penalty", json!(0.5)),
        ("presence_penalty", json!(-0.5)),
        ("repetition_penalty", json!(1.2)),
        ("logit_bias", json!({id.to_string(): 4.0})),
        ("stop", json!(["the", ". "])),
        ("ignore_eos", json!(true)),
        ("n", json!(1 + chance.below(3))),
    ];
    for (name, value) in fields {
        if chance.below(3) == 0 {
            body[name] = value;
        }
    }
    let forms = [
        json!({"regex": "(yes|no), [0-9]{3}"}),
        json!({"choice": ["a cat", "a dog", "a catapult"]}),
        json!({"json": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}),
    ];
    if chance.below(4) == 0 {
        body["structured_outputs"] = chance.one_of(&forms).clone();
    }
}
