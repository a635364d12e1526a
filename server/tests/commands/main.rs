//! The commands, run as their users run them: the real binary, the bundled demo model, free loopback ports.

mod administration;
mod binary;
mod cgroup;
#[path = "../http/common/chance.rs"]
mod chance;
mod comparing;
mod digest;
mod exactness;
mod gguf;
mod hostile;
mod inspect;
#[expect(clippy::unwrap_used, reason = "a helper that fails, fails its test")]
mod kills;
#[expect(clippy::unwrap_used, reason = "a helper that fails, fails its test")]
mod ledger;
mod loading;
mod operation;
mod parity;
#[cfg(target_os = "linux")]
mod placing;
mod refusals;
mod remote_workers;
mod scoring;
mod selftest;
mod shadowing;
mod shelf;
mod slurm;
mod suite;
mod survival;
mod tariff;
mod trusted;
mod workers;

use std::process::Command;

use binary::{Served, State, request};
use serde_json::{Value, json};

fn chat(content: &str, max_tokens: u32) -> Value {
    json!({
        "model": "demo",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": 0,
    })
}

#[test]
fn serve_without_options_answers_as_the_demo_model_and_ends_with_0() {
    let state = State::new();
    let mut served = Served::start(&state, &[]);
    let answer = request(&served.address, "POST", "/v1/chat/completions", &chat("What is 12 + 7?", 32)).json();
    let said = answer["choices"][0]["message"]["content"].as_str().expect("a text");
    assert!(said.contains("19"), "{answer}");
    served.signal("TERM");
    assert_eq!(served.exit_code(), Some(0));
    assert_eq!(served.rest_of_output(), "", "only the ready line stands on standard output");
}

#[test]
fn sigterm_lets_sixteen_streams_finish() {
    let state = State::new();
    let mut served = Served::start(&state, &[]);
    let streams: Vec<_> = (0..16)
        .map(|index| {
            let mut body = chat(&format!("Tell me a story about {index} cats."), 64);
            body["stream"] = json!(true);
            body["ignore_eos"] = json!(true);
            binary::open(&served.address, "POST", "/v1/chat/completions", &body)
        })
        .collect();
    // All of them are admitted once each has its first event.
    let streams: Vec<_> = streams.into_iter().map(binary::Answer::wait_for_event).collect();
    served.signal("TERM");
    for stream in streams {
        let text = stream.text();
        assert!(text.trim_end().ends_with("data: [DONE]"), "{text}");
        assert!(text.contains(r#""finish_reason":"length""#), "{text}");
    }
    assert_eq!(served.exit_code(), Some(0));
}

#[test]
fn three_checkpoints_of_one_run_are_served_at_once() {
    let demo = binary::root().join("models/demo");
    let models = ["early", "middle", "final"].map(|name| format!("{name}={}", demo.join(name).display()));
    let options: Vec<&str> = models.iter().flat_map(|model| ["--model", model.as_str()]).collect();
    let state = State::new();
    let served = Served::start(&state, &options);
    let listed = request(&served.address, "GET", "/v1/models", &Value::Null).json();
    assert_eq!(listed["data"].as_array().map(Vec::len), Some(3));
    let answers = std::thread::scope(|scope| {
        let ask = |name: &'static str| {
            let mut body = chat("What is 12 + 7?", 16);
            body["model"] = json!(name);
            let address = served.address.clone();
            scope.spawn(move || request(&address, "POST", "/v1/chat/completions", &body).json())
        };
        let asked = ["early", "middle", "final", "final", "middle", "early"].map(ask);
        asked.map(|thread| thread.join().expect("the request itself does not fail"))
    });
    for answer in &answers {
        assert!(answer["usage"]["completion_tokens"].as_u64().is_some_and(|tokens| tokens > 0), "{answer}");
    }
    assert_eq!(answers[2]["choices"], answers[3]["choices"], "one model, one answer");
}

#[test]
fn a_source_that_is_not_there_is_one_clear_error() {
    for (source, wanted) in
        [("./nowhere", "does not exist"), ("org/name", "network is off"), ("x.gguf", "does not exist")]
    {
        let state = State::new();
        let output = state.command(&["serve", "--listen", "127.0.0.1:0", "--model", source]).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(wanted), "{said}");
        assert_eq!(said.lines().filter(|line| line.starts_with("error:")).count(), 1, "{said}");
        assert!(output.stdout.is_empty(), "nothing may look ready");
    }
}

#[test]
fn a_key_is_shown_once_accepted_and_refused_after_its_revocation() {
    let state = State::new();
    let run = |arguments: &[&str]| {
        let output = state.command(arguments).output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let key = run(&["key", "create", "alice", "--concurrent-requests", "1"]).trim().to_owned();
    let listed = run(&["key", "list"]);
    assert!(listed.contains("alice") && listed.contains("inference") && !listed.contains(&key), "{listed}");
    let accounts = run(&["account", "list"]);
    assert!(accounts.contains("alice") && accounts.contains("concurrent_requests 1"), "{accounts}");
    let served = Served::start(&state, &[]);
    let models = |bearer: Option<&str>| binary::get_as(&served.address, "/v1/models", bearer).status;
    assert_eq!([models(Some(&key)), models(Some("sk-guess")), models(None)], [200, 401, 401]);
    run(&["key", "revoke", "alice"]);
    // The server looks at the keys again after a moment, within which the key may still be known.
    let refused = (0..100_000).any(|_| models(Some(&key)) == 401);
    assert!(refused, "a revoked key is still accepted");
    drop(served);
    let restarted = Served::start(&state, &[]);
    let models = |bearer: Option<&str>| binary::get_as(&restarted.address, "/v1/models", bearer).status;
    assert_eq!([models(Some(&key)), models(None)], [401, 401], "taking the last key away must not open the door");
}

#[test]
fn a_unix_socket_answers_and_is_gone_afterwards() {
    let state = State::new();
    let path = state.path().join("p.sock");
    let listen = format!("unix:{}", path.display());
    let mut served = Served::start(&state, &["--listen", &listen]);
    assert_eq!(served.address, listen);
    assert_eq!(request(&served.address, "GET", "/health", &Value::Null).status, 200);
    served.signal("INT");
    assert_eq!(served.exit_code(), Some(0));
    assert!(!path.exists());
}

#[test]
fn inspect_says_what_the_demo_is_without_loading_it() {
    let state = State::new();
    let output = state.command(&["inspect", "demo", "--json"]).output().expect("it runs");
    let description: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(description["architecture"], "LlamaForCausalLM");
    assert!(description["num_parameters"].as_u64().is_some_and(|count| count > 100_000), "{description}");
}

#[test]
fn inspect_says_what_an_encoder_gives() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/tests/fixtures/encoders/bert");
    let state = State::new();
    let output = state.command(&["inspect", folder, "--json"]).output().expect("it runs");
    let description: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&description["architecture"], &description["max_position"]), (&"BertModel".into(), &100.into()));
    assert_eq!(description["gives"]["embedding_dimensions"], 20);
    let output = state.command(&["inspect", folder]).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("embeddings of 20 elements, of length 1") && said.contains("passage, query"), "{said}");
}

#[test]
fn chat_answers_what_is_typed() {
    let state = State::new();
    let mut command = state.command(&["chat", "--temperature", "0"]);
    let output = binary::with_input(&mut command, "What is 12 + 7?\n/reset\n/quit\n");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("19"), "{said} {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn chat_whose_input_is_piped_fails_where_an_answer_did_and_goes_on() {
    let state = State::new();
    let mut command = state.command(&["chat", "--temperature", "0", "--max-model-len", "64"]);
    let output = binary::with_input(&mut command, &format!("{}\nWhat is 12 + 7?\n", "a b c ".repeat(100)));
    let [answered, told] = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said));
    assert!(answered.contains("19"), "{answered} {told}");
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("answers that failed: 1"), "{told}");
}

#[test]
fn bench_reports_every_batch() {
    let state = State::new();
    let arguments = ["bench", "--prompt", "16", "--generate", "4", "--batch", "1,3", "--profile", "--json"];
    let output = state.command(&arguments).output().expect("it runs");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let rows = report["rows"].as_array().expect("rows");
    assert_eq!(rows.iter().map(|row| row["batch"].as_u64()).collect::<Vec<_>>(), [Some(1), Some(3)]);
    let positive = |value: &Value| value.as_f64().is_some_and(|rate| rate > 0.0);
    for row in rows {
        assert!(positive(&row["memory_bandwidth_bytes_per_s"]) && positive(&row["multiply_add_flops_per_s"]), "{row}");
        for kind in ["prefill", "decode"] {
            let figures = ["tokens_per_s", "limit_tokens_per_s", "share_of_limit"];
            let [rate, limit, share] =
                figures.map(|figure| row[format!("{kind}_{figure}")].as_f64().expect("a number"));
            assert!(rate > 0.0 && limit > 0.0 && (share - rate / limit).abs() < 1e-9, "{kind}: {row}");
        }
        assert_eq!(row["decoding"], row["batch"], "{row}");
    }
    let profile = rows[0]["profile"].as_array().expect("a profile");
    let linear = profile.iter().find(|share| share["op"] == "linear").expect("its products");
    assert!(positive(&linear["prefill_share"]) && positive(&linear["decode_share"]), "{report}");
}

#[test]
fn bench_holds_answers_over_http_against_the_engine_s_own() {
    let report = over_http("64");
    let positive = |value: &Value| value.as_f64().is_some_and(|number| number > 0.0);
    for way in ["straight", "over_http"] {
        let told = ["first_token_s", "tokens_per_s"].map(|figure| positive(&report[way][figure]));
        assert_eq!(told, [true, true], "{way}: {report}");
    }
    for left in ["whole", "generating"].map(|what| &report["left_over_http"][what]) {
        let [first, median, third] = ["first", "median", "third"].map(|part| left[part].as_f64());
        assert!(Some(0.0) < first && first <= median && median <= third, "{report}");
    }
}

#[test]
fn bench_tells_no_rate_by_a_few_tokens() {
    let report = over_http("8");
    for way in ["straight", "over_http"] {
        assert!(report[way]["first_token_s"].is_number() && report[way]["tokens_per_s"].is_null(), "{way}: {report}");
    }
    let left = &report["left_over_http"];
    assert!(left["whole"]["median"].is_number() && left["generating"].is_null(), "{report}");
}

/// What `bench --over-http` prints of answers of so many tokens.
fn over_http(generate: &str) -> Value {
    let state = State::new();
    let arguments = ["bench", "--over-http", "3", "--prompt", "16", "--generate", generate, "--threads", "1", "--json"];
    let output = state.command(&arguments).output().expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn bench_says_what_it_cannot_hold_against_http() {
    let state = State::new();
    let encoder = format!("{}/../models/tests/fixtures/encoders/bert", env!("CARGO_MANIFEST_DIR"));
    let refusals = [
        (&["--generate", "1"][..], "error: --generate: "),
        (&["--prompt", "100000"], "error: the engine refuses: "),
        (&["--batch", "2"], "error: the argument '--over-http <ROUNDS>' cannot be used with '--batch"),
        (&["--model", &encoder], "error: --model: makes vectors"),
    ];
    for (options, refusal) in refusals {
        let output = state.command(&["bench", "--over-http", "1"]).args(options).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.lines().any(|line| line.starts_with(refusal)), "{options:?}: {said}");
    }
}

#[test]
fn bench_refuses_a_bound_of_the_cache_that_it_would_not_keep() {
    let state = State::new();
    let output = state.command(&["bench", "--kv-cache-memory", "1KiB"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.starts_with("error: --kv-cache-memory"), "{said}");
}

#[test]
fn a_wrong_configuration_file_is_refused_by_line() {
    let state = State::new();
    let file = state.path().join("p.toml");
    std::fs::write(&file, "[server]\nlistne = \"127.0.0.1:0\"\n").expect("the folder is writable");
    let mut command: Command = state.command(&["serve", "--config"]);
    let output = command.arg(&file).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("p.toml:2:1") && said.contains("did you mean `listen`?"), "{said}");
}
