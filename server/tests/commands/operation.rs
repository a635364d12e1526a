//! What operators rely on: the log, keys in a file, folders of models, and how a server ends.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};

use serde_json::{Value, json};

use super::binary::{self, Served, State, request};
use super::workers::wait_until;

/// Tokens that no stream below may reach before it is ended.
const LONG: u32 = 1_900;

fn chat(content: &str) -> Value {
    json!({"model": "demo", "messages": [{"role": "user", "content": content}], "temperature": 0})
}

/// Streams that run for long, each past its first event.
fn long_streams(served: &Served, count: usize) -> Vec<binary::Answer> {
    let mut body = chat("Tell me a story about a bridge.");
    body["stream"] = json!(true);
    body["ignore_eos"] = json!(true);
    body["max_tokens"] = json!(LONG);
    let opened: Vec<_> =
        (0..count).map(|_| binary::open(&served.address, "POST", "/v1/chat/completions", &body)).collect();
    opened.into_iter().map(binary::Answer::wait_for_event).collect()
}

#[test]
fn without_max_tokens_a_request_gets_what_the_kv_cache_holds() {
    let state = State::new();
    let served = Served::start(&state, &["--kv-cache-memory", "200KiB", "--max-num-seqs", "1"]);
    let answer = request(&served.address, "POST", "/v1/chat/completions", &chat("What is 12 + 7?")).json();
    assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
    let mut long = chat("What is 12 + 7?");
    long["max_tokens"] = json!(LONG);
    let refused = request(&served.address, "POST", "/v1/chat/completions", &long);
    assert_eq!(refused.status, 400);
}

#[test]
fn what_is_said_never_reaches_the_log_however_much_is_logged() {
    const MARKER: &str = "xyzzy-plugh-4711";
    let state = State::new();
    let mut served = Served::start_logging(&state, &[], "trace");
    let answer = request(&served.address, "POST", "/v1/chat/completions", &chat(&format!("Repeat: {MARKER}")));
    assert_eq!(answer.status, 200);
    let mut body = chat("What is 12 + 7?");
    body[MARKER] = json!(1);
    assert_eq!(request(&served.address, "POST", "/v1/chat/completions", &body).status, 400);
    let broken = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{{\"{MARKER}",
        MARKER.len() + 2
    );
    assert_eq!(binary::send(&served.address, &broken).whole().status, 400);
    assert_eq!(binary::get_as(&served.address, "/v1/models", Some(MARKER)).status, 200);
    served.signal("TERM");
    assert_eq!(served.exit_code(), Some(0));
    let log = fs::read_to_string(state.log()).expect("it was logged");
    assert!(log.contains("loaded") && !log.contains(MARKER), "{log}");
}

/// Whoever collects a log may die before the server, and its disk may fill.
#[test]
fn a_log_that_cannot_be_written_ends_nothing() {
    let state = State::new();
    let mut served = Served::start_unheard(&state, "trace");
    for _ in 0..2 {
        let answer = request(&served.address, "POST", "/v1/chat/completions", &chat("What is 12 + 7?"));
        assert_eq!(answer.status, 200);
    }
    served.signal("TERM");
    assert_eq!(served.exit_code(), Some(0));
    let mut create = state.command(&["key", "create", "alice"]);
    create.stderr(File::options().write(true).open("/dev/full").expect("Linux has it"));
    let created = create.output().expect("the binary runs");
    assert!(created.status.success() && !created.stdout.is_empty(), "the key is shown: {created:?}");
}

#[test]
fn the_start_says_what_runs_where_and_with_how_much_room() {
    let state = State::new();
    let _served = Served::start_logging(&state, &["--threads", "1", "--dtype", "f32"], "info");
    let log = fs::read_to_string(state.log()).expect("it was logged");
    let line = log.lines().find(|line| line.contains("loaded")).unwrap_or_else(|| panic!("not said: {log}"));
    for part in ["model=demo", "dtype=f32", "device=cpu", "kernels=", "kv_blocks=", "context=2048", "threads=1"] {
        assert!(line.contains(part), "{part} is missing: {line}");
    }
}

#[test]
fn keys_and_values_in_8_bits_are_told_at_the_start_and_in_the_fingerprint() {
    let [narrow, usual] = [State::new(), State::new()];
    let served = Served::start_logging(&narrow, &["--kv-dtype", "int8"], "info");
    let usual = Served::start(&usual, &[]);
    let [narrow_answer, usual_answer] = [&served, &usual]
        .map(|served| request(&served.address, "POST", "/v1/chat/completions", &chat("What is 12 + 7?")).json());
    let said = narrow_answer["choices"][0]["message"]["content"].as_str().expect("a text");
    assert!(said.contains("19"), "{narrow_answer}");
    assert_ne!(narrow_answer["system_fingerprint"], usual_answer["system_fingerprint"]);
    let log = fs::read_to_string(narrow.log()).expect("it was logged");
    assert!(log.lines().any(|line| line.contains("loaded") && line.contains("kv_dtype=int8")), "{log}");
}

#[test]
fn a_file_of_keys_guards_the_door() {
    let state = State::new();
    let file = state.path().join("keys");
    fs::write(&file, "# staff\nalice: correct-horse-battery\n").expect("the folder is writable");
    fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).expect("the folder is writable");
    let served = Served::start(&state, &["--api-key-file", file.to_str().expect("a plain path")]);
    let models = |bearer: Option<&str>| binary::get_as(&served.address, "/v1/models", bearer).status;
    assert_eq!([models(Some("correct-horse-battery")), models(Some("alice")), models(None)], [200, 401, 401]);
}

#[test]
fn every_checkpoint_of_a_folder_is_served_under_its_name() {
    let state = State::new();
    let folder = state.path().join("runs");
    fs::create_dir_all(folder.join("notes")).expect("the folder is writable");
    for name in ["early", "final"] {
        symlink(binary::root().join("models/demo").join(name), folder.join(name)).expect("the folder is writable");
    }
    let served = Served::start(&state, &["--models-dir", "runs"]);
    let listed = request(&served.address, "GET", "/v1/models", &Value::Null).json();
    let names: Vec<_> = listed["data"].as_array().expect("a list").iter().map(|model| model["id"].clone()).collect();
    assert_eq!(names, ["early", "final"]);
}

#[test]
fn after_the_drain_timeout_every_client_is_told_and_the_exit_code_is_0() {
    let state = State::new();
    let file = state.path().join("p.toml");
    fs::write(&file, "[server]\ndrain_timeout = \"1ms\"\n").expect("the folder is writable");
    let mut served = Served::start(&state, &["--config", file.to_str().expect("a plain path")]);
    let streams = long_streams(&served, 8);
    served.signal("TERM");
    for stream in streams {
        let text = stream.text();
        assert!(text.contains("\"error\""), "the stream does not say how it ended: {text}");
    }
    assert_eq!(served.exit_code(), Some(0));
}

#[test]
fn a_drain_that_cuts_nothing_off_warns_of_nothing() {
    let state = State::new();
    let file = state.path().join("p.toml");
    fs::write(&file, "[server]\ndrain_timeout = \"0s\"\n").expect("the folder is writable");
    for (num_streams, warnings) in [(0, 0), (16, 1)] {
        let options = ["--config", file.to_str().expect("a plain path")];
        let mut served = Served::start_logging(&state, &options, "warn");
        let streams = long_streams(&served, num_streams);
        served.signal("TERM");
        streams.into_iter().for_each(|stream| drop(stream.text()));
        assert_eq!(served.exit_code(), Some(0));
        let log = fs::read_to_string(state.log()).expect("it is logged");
        assert_eq!(log.matches("the drain timeout has passed").count(), warnings, "{log}");
    }
}

#[test]
fn a_second_signal_ends_at_once() {
    let state = State::new();
    let mut served = Served::start_logging(&state, &[], "info");
    let _streams = long_streams(&served, 16);
    served.signal("TERM");
    // Two signals of one kind at one instant are one.
    let log = || fs::read_to_string(state.log()).expect("it is logged");
    wait_until("the first signal is heard", || log().contains("admitting nothing more"));
    served.signal("INT");
    assert_eq!(served.exit_code(), Some(130));
}

#[cfg(target_os = "linux")]
#[test]
fn the_allocator_keeps_what_the_next_step_needs_and_looks_after_it_while_the_server_idles() {
    let output = State::new().command(&["--version"]).env("_RJEM_MALLOC_CONF", "stats_print:true").output();
    let said = String::from_utf8(output.expect("it runs").stderr).expect("text");
    for option in ["opt.oversize_threshold: 0\n", "opt.background_thread: true"] {
        assert!(said.contains(option), "{option} in {said}");
    }
}
