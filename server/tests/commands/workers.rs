//! Models on partitions, each served by a worker process of its own.

use std::fs;
use std::os::unix::net::UnixListener;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use passerelle_engine::clock::{Clock, SystemClock};
use serde_json::{Value, json};

use super::binary::{self, Answer, Served, State, open, request, signal};

/// Longer than anything here takes on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);
const STREAMING_CLIENTS: usize = 4;
const KIB: f64 = 1024.0;
const MIB: f64 = KIB * KIB;

/// Two checkpoints of the demo model, each on a partition with one thread.
const PARTITIONS: &str = "[[partitions]]\nname = \"left\"\nthreads = 1\nmemory = \"64MiB\"\n\
                          [[partitions]]\nname = \"right\"\nthreads = 1\nmemory = \"64MiB\"\n";

pub(super) fn demo(checkpoint: &str) -> String {
    binary::root().join("models/demo").join(checkpoint).display().to_string()
}

/// The file of a configuration with both.
pub(super) fn on_partitions(state: &State) -> String {
    on_partitions_from(state, &demo("early"))
}

/// As [`on_partitions`], with what `early` is to be.
pub(super) fn on_partitions_from(state: &State, early: &str) -> String {
    let model = |name: &str, source: &str, partition: &str| {
        format!("[[models]]\nname = \"{name}\"\nsource = \"{source}\"\npartition = \"{partition}\"\n")
    };
    let config = state.path().join("config.toml");
    let models = format!("{}{}", model("early", early, "left"), model("final", &demo("final"), "right"));
    fs::write(&config, format!("{PARTITIONS}{models}")).expect("the folder is writable");
    config.to_str().expect("a plain path").to_owned()
}

pub(super) fn serve_on_partitions(state: &State) -> Served {
    Served::start(state, &["--config", &on_partitions(state)])
}

pub(super) fn serve_in_one_process(state: &State) -> Served {
    let models = ["early", "final"].map(|name| format!("{name}={}", demo(name)));
    Served::start(state, &["--threads", "1", "--model", &models[0], "--model", &models[1]])
}

/// Those of this server's workers that serve `partition`.
pub(super) fn workers(state: &State, partition: &str) -> Vec<u32> {
    let socket = format!("unix:{}", state.path().join("passerelle/workers.sock").display());
    let is_one = |process: &u32| {
        let Ok(arguments) = fs::read_to_string(format!("/proc/{process}/cmdline")) else { return false };
        let arguments: Vec<&str> = arguments.split('\0').collect();
        arguments.contains(&"worker") && arguments.contains(&partition) && arguments.contains(&socket.as_str())
    };
    let processes = fs::read_dir("/proc").expect("Linux has it");
    let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    ids.filter(is_one).collect()
}

pub(super) fn question(model: &str, max_tokens: u32) -> Value {
    json!({
        "model": model,
        "messages": [{"role": "user", "content": "Tell me a story about a cat and a dog."}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": true,
    })
}

pub(super) fn stream(served: &Served, model: &str, max_tokens: u32) -> Answer {
    let mut body = question(model, max_tokens);
    body["stream"] = json!(true);
    body["logprobs"] = json!(true);
    open(&served.address, "POST", "/v1/chat/completions", &body)
}

/// Of all its events: the choices, with the text, the log-probabilities and the reason of the end.
pub(super) fn choices(stream: &str) -> Vec<Value> {
    let events = stream.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    events.map(|data| serde_json::from_str::<Value>(data).expect("JSON")["choices"].clone()).collect()
}

/// Until it is so, or the test has waited too long.
pub(super) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) -> Duration {
    let clock = SystemClock::new();
    while !is_so() {
        assert!(clock.now() < PATIENCE, "waited in vain: {what}");
        thread::yield_now();
    }
    clock.now()
}

pub(super) fn is_ready(served: &Served) -> bool {
    request(&served.address, "GET", "/ready", &Value::Null).status == 200
}

#[test]
fn nobody_can_tell_a_model_on_a_partition_from_one_in_the_servers_own_process() {
    let (apart, together) = (State::new(), State::new());
    let (apart, together) = (serve_on_partitions(&apart), serve_in_one_process(&together));
    let chats = ["early", "final"].map(|model| ("/v1/chat/completions", question(model, 24)));
    let sampled = json!({"model": "final", "prompt": "Once", "max_tokens": 12, "n": 3, "seed": 7, "logprobs": 4,
                         "prompt_logprobs": 2, "logit_bias": {"40": 1.5}, "stop": [". "]});
    let held = json!({"model": "final", "prompt": "The answer:", "max_tokens": 40,
                      "structured_outputs": {"regex": "(yes|no), [0-9]{3}"}});
    let asked = chats.into_iter().chain([("/v1/completions", sampled), ("/v1/completions", held)]);
    for (path, body) in asked {
        let [apart, together] = [&apart, &together].map(|served| {
            let mut answer = request(&served.address, "POST", path, &body).json();
            for other in ["id", "created"] {
                answer[other] = Value::Null;
            }
            answer
        });
        assert_eq!(apart, together, "{body}");
    }
    let refused = request(&apart.address, "POST", "/v1/chat/completions", &question("early", 1 << 20));
    assert!(refused.refusal().contains("1048576"), "what fits nowhere is refused before it is sent");
}

#[test]
fn a_worker_that_is_killed_takes_its_streams_alone_with_it_and_another_takes_its_place() {
    let state = State::new();
    let served = Served::start_logging(&state, &["--config", &on_partitions(&state)], "warn");
    let undisturbed = choices(&stream(&served, "final", 200).text());
    let left = workers(&state, "left");
    assert_eq!(left.len(), 1, "one process for the partition");
    // Far longer than it takes until its worker is struck.
    let (struck, spared) = (stream(&served, "early", 1_900), stream(&served, "final", 200));
    let (spared, struck) = (spared.wait_for_events(3), struck.wait_for_events(3));
    signal(left[0], "KILL");
    let unready_after = wait_until("the replica is unready", || !is_ready(&served));
    assert!(unready_after < Duration::from_secs(5), "{unready_after:?}");
    let struck = struck.text();
    assert!(struck.contains("\"code\":\"worker_lost\""), "{struck}");
    assert!(!struck.contains("\"finish_reason\":\"length\""), "{struck}");
    assert_eq!(choices(&spared.text()), undisturbed, "the neighbour computed the very same");
    wait_until("another worker has come", || is_ready(&served));
    assert_ne!(workers(&state, "left"), left);
    assert_eq!(request(&served.address, "POST", "/v1/chat/completions", &question("early", 8)).status, 200);
    wait_until("operators see it", || {
        let metrics = request(&served.address, "GET", "/metrics", &Value::Null);
        let has = |line: &str| metrics.text().lines().any(|other| other == line);
        has("passerelle_partition_up{partition=\"left\"} 1")
            && has("passerelle_worker_arrivals_total{partition=\"left\"} 2")
            && has("passerelle_worker_ends_total{partition=\"left\"} 1")
            && has("passerelle_worker_arrivals_total{partition=\"right\"} 1")
    });
    let log = fs::read_to_string(state.log()).expect("it is there");
    assert!(log.contains("a worker ended; another is started") && log.contains("signal: 9"), "{log}");
}

/// The first worker is held before it has come, or the server is ready by then, and ends all the same.
#[test]
fn a_server_that_is_ended_while_its_workers_load_exits_with_0_and_leaves_none() {
    let state = State::new();
    let config = on_partitions(&state);
    let mut server = state.command(&["serve", "--listen", "127.0.0.1:0", "--config", &config]);
    let mut server = server.stdout(Stdio::null()).spawn().expect("the binary runs");
    wait_until("a worker is started", || !workers(&state, "left").is_empty());
    workers(&state, "left").into_iter().for_each(|worker| signal(worker, "STOP"));
    signal(server.id(), "TERM");
    assert_eq!(server.wait().expect("it was started here").code(), Some(0));
    wait_until("its workers are gone", || ["left", "right"].iter().all(|name| workers(&state, name).is_empty()));
}

/// By what its workers say when they have loaded.
#[test]
fn a_plan_of_the_partitions_is_what_their_workers_have() {
    let state = State::new();
    let config = on_partitions(&state);
    let narrow = fs::read_to_string(&config).expect("it was written").replacen("64MiB", "24MiB", 1);
    fs::write(&config, narrow).expect("the folder is writable");
    let plan = state.command(&["plan", "--json", "--config", &config]).output().expect("the binary runs");
    assert!(plan.status.success(), "{}", String::from_utf8_lossy(&plan.stderr));
    let plan: Value = serde_json::from_slice(&plan.stdout).expect("it is JSON");
    drop(Served::start_logging(&state, &["--config", &config], "info"));
    let log = fs::read_to_string(state.log()).expect("it is there");
    let compared = [("left (cpu)", "early"), ("right (cpu)", "final")].into_iter().enumerate().map(|(at, names)| {
        let (is, (partition, model)) = (&plan["partitions"][at], names);
        let of_model = &is["models"][0];
        assert_eq!((&is["partition"], &of_model["model"]), (&partition.into(), &model.into()), "{plan}");
        let loaded = loaded(&log, model);
        for (said, planned) in [
            ("memory", &of_model["weight_bytes"]),
            ("kv_memory", &of_model["kv_bytes"]),
            ("step_memory", &is["activation_bytes"]),
        ] {
            let (found, planned) = (said_bytes(loaded, said), planned.as_f64().expect("a number"));
            assert!((planned - found).abs() <= 0.03 * found, "{model}: {said} is {found}, planned were {planned}");
        }
        said_bytes(loaded, "kv_memory")
    });
    let found: Vec<f64> = compared.collect();
    assert!(found[0] < found[1], "the memory of a partition decides: {found:?}");
}

/// What a worker says of a model that it has loaded.
fn loaded<'a>(log: &'a str, model: &str) -> &'a str {
    log.lines().find(|line| line.contains(&format!("loaded model={model} "))).expect("it was loaded")
}

/// A size in such a line, as ` memory=3.8 MiB`.
fn said_bytes(line: &str, field: &str) -> f64 {
    let said = line.split(&format!(" {field}=")).nth(1).expect("it is said");
    let mut words = said.split(' ');
    let number: f64 = words.next().and_then(|number| number.parse().ok()).expect("a number");
    let unit = words.next().unwrap_or_default().trim_end();
    number * ["KiB", "MiB", "GiB"].iter().zip([KIB, MIB, KIB * MIB]).find(|(name, _)| **name == unit).expect("a unit").1
}

#[test]
fn two_models_of_one_partition_have_one_worker_and_share_its_memory() {
    let state = State::new();
    let names = ["early", "final"];
    let models =
        names.map(|name| format!("[[models]]\nname = \"{name}\"\nsource = \"{}\"\npartition = \"both\"\n", demo(name)));
    let config = state.path().join("config.toml");
    let partition = "[[partitions]]\nname = \"both\"\nthreads = 1\nmemory = \"40MiB\"\n";
    fs::write(&config, format!("{partition}{}", models.concat())).expect("the folder is writable");
    let served = Served::start_logging(&state, &["--config", &config.display().to_string()], "info");
    for name in names {
        assert_eq!(request(&served.address, "POST", "/v1/chat/completions", &question(name, 8)).status, 200, "{name}");
    }
    assert_eq!(workers(&state, "both").len(), 1, "one process for the partition");
    let log = fs::read_to_string(state.log()).expect("it is there");
    let of_each = names.map(|name| ["memory", "kv_memory"].map(|field| said_bytes(loaded(&log, name), field)));
    let taken: f64 = of_each.iter().flatten().sum();
    // The log rounds each of the four by less than a twentieth of a MiB.
    assert!(taken > 39.0 * MIB && taken <= 40.2 * MIB, "{of_each:?}");
    assert!((of_each[0][1] - of_each[1][1]).abs() < MIB, "room for as many tokens of each: {of_each:?}");
}

/// What a partition computes and bills stands in its own hours, in the metrics and in the entries of the ledger.
#[test]
fn the_time_of_each_partition_adds_up_by_itself() {
    let state = State::new();
    let run = |line: &str| {
        let output = state.command(&line.split(' ').collect::<Vec<_>>()).output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let key = run("key create alice").trim().to_owned();
    let mut served = serve_on_partitions(&state);
    let asked = binary::open_as(&served.address, "/v1/chat/completions", &question("early", 24), &key).whole();
    assert_eq!(asked.status, 200, "{}", asked.text());
    let hours: Value = serde_json::from_str(&run("usage hours --json")).expect("JSON");
    let rows = hours["data"].as_array().expect("a list");
    let sum = |partition: &str, part: &str| -> f64 {
        let of_partition = rows.iter().filter(|row| row["partition"] == partition);
        of_partition.map(|row| row[part].as_f64().expect("a number")).sum()
    };
    for name in ["left", "right"] {
        let parts = sum(name, "billed") + sum(name, "under_use") + sum(name, "idle");
        assert!(sum(name, "elapsed") > 0.0 && (parts - sum(name, "elapsed")).abs() < 1e-6, "{hours}");
        assert!(sum(name, "idle") >= 0.0, "no worker computes for longer than elapses: {hours}");
    }
    assert!(sum("left", "billed") > 0.0 && sum("left", "idle") < sum("left", "elapsed"), "{hours}");
    assert_eq!((sum("right", "billed"), sum("right", "under_use")), (0.0, 0.0), "{hours}");
    assert!(rows.iter().all(|row| row["partition"] != "cpu"), "nothing runs in the gateway: {hours}");
    let metrics = binary::get_as(&served.address, "/metrics", Some(&key));
    let shown = |part: &str| {
        let series = format!("passerelle_gpu_time_seconds{{partition=\"left\",part=\"{part}\"}} ");
        let line = metrics.text().lines().find_map(|line| line.strip_prefix(&series)?.parse::<f64>().ok());
        line.unwrap_or_else(|| panic!("{series} is missing in {}", metrics.text()))
    };
    let parts = shown("billed") + shown("under_use") + shown("idle");
    assert!(shown("billed") > 0.0 && (parts - shown("elapsed")).abs() < 1e-6);
    served.signal("TERM");
    assert_eq!(served.exit_code(), Some(0));
    let ledger = run("usage export");
    let columns: Vec<&str> = ledger.lines().next().expect("a heading").split(',').collect();
    let at = columns.iter().position(|column| *column == "partition").expect("a column");
    let entry: Vec<&str> = ledger.lines().nth(1).expect("an entry").split(',').collect();
    assert_eq!(entry[at], "left");
}

#[test]
fn models_of_workers_are_compared_by_nobody_and_the_refusal_names_the_model() {
    let state = State::new();
    let served = serve_on_partitions(&state);
    let body = json!({"models": ["early", "final"], "prompt": "Once", "max_tokens": 4});
    let refused = request(&served.address, "POST", "/v1/compare", &body);
    assert_eq!(refused.status, 400, "{}", refused.text());
    let error = serde_json::from_str::<Value>(refused.text()).expect("JSON")["error"].clone();
    assert!(
        error["message"].as_str().is_some_and(|said| said.contains("`early`: this model runs in a worker process")),
        "{error}"
    );
    assert_eq!(error["param"], "models[0]");
    let body = json!({"model": "early", "prompt": "Once", "max_tokens": 0,
                      "prompt_scores_against": "final"});
    let refused = request(&served.address, "POST", "/v1/completions", &body);
    assert!(refused.status == 400 && refused.text().contains("`early`: this model runs"), "{}", refused.text());
}

fn planned(state: &State, config: &str) -> Value {
    fs::write(state.path().join("plan.toml"), config).expect("the folder is writable");
    let output = state.command(&["plan", "--json", "--config", "plan.toml"]).output().expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("it is JSON")
}

#[test]
fn a_plan_for_a_device_that_is_not_here_says_so_unless_its_worker_is_elsewhere() {
    let state = State::new();
    let config = |worker: &str| {
        format!(
            "[[partitions]]\nname = \"far\"\ndevice = \"cuda:7\"\nmemory = \"4GiB\"\n{worker}[[models]]\nname = \"m\"\n\
             source = \"demo\"\npartition = \"far\"\n"
        )
    };
    let plan = planned(&state, &config(""));
    let notes = plan["notes"].as_array().expect("a list");
    assert!(notes.len() == 1 && notes[0].as_str().is_some_and(|note| note.contains("cuda:7")), "{plan}");
    assert_eq!(plan["partitions"][0]["models"][0]["model"], "m", "it is planned all the same");
    let elsewhere =
        planned(&state, &format!("{}[workers]\nlisten = \"127.0.0.1:0\"\n", config("worker = \"remote\"\n")));
    assert_eq!(elsewhere["notes"], json!([]));
    fs::write(state.path().join("one.toml"), "[engine]\ndevice = \"cuda:7\"\n").expect("the folder is writable");
    let output = state.command(&["plan", "demo", "--config", "one.toml"]).output().expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("--devices"), "{said}");
}

#[test]
fn partitions_that_share_this_machines_memory_are_planned_for_what_the_others_leave() {
    let state = State::new();
    let part = |name: &str| {
        format!(
            "[[partitions]]\nname = \"{name}\"\n[[models]]\nname = \"of-{name}\"\nsource = \"demo\"\npartition = \"{name}\"\n"
        )
    };
    let own = "[[models]]\nname = \"own\"\nsource = \"demo\"\n";
    let plan = planned(&state, &format!("{}{}{own}", part("left"), part("right")));
    let bytes = |at: usize, of: &str| plan["partitions"][at][of].as_u64().expect("a number");
    for at in [1, 2] {
        let before = bytes(at - 1, "memory_bytes");
        assert_eq!(bytes(at, "memory_bytes"), bytes(at - 1, "free_bytes"), "of {before}: {plan}");
        assert!(bytes(at, "memory_bytes") < before);
    }
}

/// Clients that ask for one stream after the other while `rounds` workers leave; every stream must be whole.
fn hand_over(rounds: usize) {
    let state = State::new();
    let served = serve_on_partitions(&state);
    let (is_over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..STREAMING_CLIENTS {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let text = stream(&served, "early", 48).text();
                    assert!(text.contains("\"finish_reason\":\"length\""), "{text}");
                    assert!(text.trim_end().ends_with("data: [DONE]"), "{text}");
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..rounds {
            let before = answered.load(Ordering::Relaxed);
            wait_until("streams are answered", || answered.load(Ordering::Relaxed) >= before + STREAMING_CLIENTS);
            let leaving = workers(&state, "left");
            assert_eq!(leaving.len(), 1, "one process for the partition");
            signal(leaving[0], "TERM");
            wait_until("the successor alone is there", || {
                let now = workers(&state, "left");
                now.len() == 1 && now != leaving
            });
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn workers_that_leave_under_streaming_load_lose_no_request() {
    hand_over(2);
}

#[test]
#[ignore = "a minute; .ci/full runs it"]
fn twenty_workers_that_leave_under_streaming_load_lose_no_request() {
    hand_over(20);
}

#[test]
fn a_worker_ends_with_its_server_also_before_it_has_been_let_in() {
    let (state, clock) = (State::new(), SystemClock::new());
    let socket = state.path().join("silent.sock");
    let silent = UnixListener::bind(&socket).expect("the folder is writable");
    let (config, dials) = (on_partitions(&state), format!("unix:{}", socket.display()));
    let worker = ["worker", "--end-with-input", "--partition", "left", "--connect", &dials, "--config", &config];
    let mut worker = state.command(&worker).stdin(Stdio::piped()).spawn().expect("the binary runs");
    let _unanswered = silent.accept().expect("it has loaded, and dials");
    let dialled = clock.now();
    drop(worker.stdin.take());
    assert_eq!(worker.wait().expect("it was started here").code(), Some(1));
    assert!(clock.now() - dialled < Duration::from_secs(8), "sooner than it gives up waiting for a welcome");
}

#[test]
fn more_threads_than_any_machine_has_are_refused_by_the_partition_s_name() {
    let state = State::new();
    let config = state.path().join("config.toml");
    let text = format!(
        "[[partitions]]\nname = \"wide\"\nthreads = 5000\n[[models]]\nsource = \"{}\"\npartition = \"wide\"\n",
        demo("final")
    );
    fs::write(&config, text).expect("the folder is writable");
    let refused = state
        .command(&["serve", "--listen", "127.0.0.1:0", "--config", config.to_str().expect("a plain path")])
        .output();
    let refused = refused.expect("the binary runs");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.lines().count() == 1, "{said}");
    assert!(said.contains("partitions[0].threads") && said.contains("`wide`") && said.contains("1024"), "{said}");
}

#[test]
fn a_partition_whose_models_do_not_fit_is_refused_at_the_start_by_its_key() {
    let state = State::new();
    let config = state.path().join("config.toml");
    let text = format!(
        "[[partitions]]\nname = \"tiny\"\nmemory = \"1MiB\"\n[[models]]\nsource = \"{}\"\npartition = \"tiny\"\n",
        demo("final")
    );
    fs::write(&config, text).expect("the folder is writable");
    let config = config.to_str().expect("a plain path");
    let refused = state.command(&["serve", "--listen", "127.0.0.1:0", "--config", config]).output();
    let refused = refused.expect("the binary runs");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && refused.stdout.is_empty());
    assert!(said.contains("partitions[0].memory") && said.contains("partition `tiny`"), "{said}");
}

#[test]
fn a_device_that_no_partition_can_be_is_refused_by_the_key_that_names_it() {
    let state = State::new();
    let config = state.path().join("config.toml");
    let refusal = |device: &str| {
        let partitions = format!("[[partitions]]\nname = \"a\"\n[[partitions]]\nname = \"b\"\ndevice = \"{device}\"\n");
        let model =
            |at: &str| format!("[[models]]\nname = \"{at}\"\nsource = \"{}\"\npartition = \"{at}\"\n", demo("final"));
        fs::write(&config, format!("{partitions}{}{}", model("a"), model("b"))).expect("the folder is writable");
        let config = config.to_str().expect("a plain path");
        let refused = state.command(&["serve", "--listen", "127.0.0.1:0", "--config", config]).output();
        let refused = refused.expect("the binary runs");
        assert!(!refused.status.success() && refused.stdout.is_empty());
        String::from_utf8_lossy(&refused.stderr).into_owned()
    };
    for odd in ["auto", "tpu", "cuda"] {
        let said = refusal(odd);
        assert!(said.contains("config.toml:5:") && !said.contains("rocm") && !said.contains("auto,"), "{said}");
    }
    // No machine has so many, whatever it was built for.
    let said = refusal("cuda:99");
    assert!(said.contains("partitions[1].device: ") && !said.contains("engine.device"), "{said}");
    assert!(said.contains("cuda:99") && !said.contains("auto"), "{said}");
}
