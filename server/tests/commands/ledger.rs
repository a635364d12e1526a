//! What is kept, over restarts and on full disks, and what the commands say of it.

use super::binary::{Served, State, open_as, send};
use serde_json::{Value, json};

pub(super) fn run(state: &State, arguments: &[&str]) -> String {
    let output = state.command(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(super) fn make_key(state: &State) -> String {
    run(state, &["account", "create", "acme", "--gpu-hours", "5000", "--until", "2099-01-01"]);
    run(state, &["key", "create", "alice", "--account", "acme"]).trim().to_owned()
}

pub(super) fn entries(state: &State) -> Vec<Vec<String>> {
    let csv = state.path().join("ledger.csv");
    run(state, &["usage", "export", csv.to_str().unwrap()]);
    let verified = run(state, &["usage", "verify", csv.to_str().unwrap(), "--json"]);
    let verified: Value = serde_json::from_str(&verified).unwrap();
    let text = std::fs::read_to_string(&csv).unwrap();
    std::fs::remove_file(csv).unwrap();
    assert_eq!(verified["entries"], text.lines().count() - 1);
    text.lines().skip(1).map(|line| line.split(',').map(str::to_owned).collect()).collect()
}

fn restarted(state: &State, mut served: Served) -> Served {
    served.signal("TERM");
    assert_eq!(served.exit_code(), Some(0));
    Served::start(state, &[])
}

#[test]
fn a_restart_forgets_what_was_used_of_a_rate_and_nothing_of_a_budget() {
    let state = State::new();
    run(&state, &["account", "create", "acme", "--requests-per-minute", "1"]);
    run(&state, &["quota", "set", "acme", "requests_per_day", "2"]);
    let key = run(&state, &["key", "create", "alice", "--account", "acme"]).trim().to_owned();
    let body = json!({"model": "demo", "prompt": "Once", "max_tokens": 1});
    let ask = |served: &Served| open_as(&served.address, "/v1/completions", &body, &key).text_with_head();
    let first = Served::start(&state, &[]);
    assert!(ask(&first).starts_with("HTTP/1.1 200"));
    assert!(ask(&first).contains("requests_per_minute of 'acme'"));
    let second = restarted(&state, first);
    assert!(ask(&second).starts_with("HTTP/1.1 200"), "the minute is forgotten");
    let third = restarted(&state, second);
    let refused = ask(&third);
    assert!(refused.starts_with("HTTP/1.1 429") && refused.contains("requests_per_day of 'acme'"), "{refused}");
}

#[test]
fn a_budget_is_still_spent_after_a_restart_and_its_refusal_says_not_to_retry() {
    let state = State::new();
    run(&state, &["account", "create", "acme"]);
    run(&state, &["quota", "set", "acme", "output_tokens_granted", "60", "--until", "2099-01-01"]);
    let key = run(&state, &["key", "create", "alice", "--account", "acme"]).trim().to_owned();
    let body = json!({"model": "demo", "prompt": "Once", "max_tokens": 50, "ignore_eos": true});
    let mut served = Served::start(&state, &[]);
    let answer = open_as(&served.address, "/v1/completions", &body, &key).whole();
    assert_eq!(answer.json()["usage"]["completion_tokens"], 50);
    served.signal("TERM");
    assert_eq!(served.exit_code(), Some(0));
    let restarted = Served::start(&state, &[]);
    let refused = open_as(&restarted.address, "/v1/completions", &body, &key).text_with_head();
    assert!(refused.starts_with("HTTP/1.1 429"), "{refused}");
    for part in ["x-should-retry: false", "insufficient_quota", "output_tokens_granted", "of 'acme'"] {
        assert!(refused.contains(part), "{part} is missing: {refused}");
    }
    let shown = run(&state, &["usage", "show", "acme", "--json"]);
    let sums: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((sums[0]["account"].as_str(), sums[0]["output_tokens"].as_u64()), (Some("acme"), Some(50)));
    assert!(sums[0]["billed_gpu_us"].as_u64().unwrap() > 0, "{sums}");
}

#[test]
fn a_second_server_on_the_same_ledger_is_refused() {
    let state = State::new();
    make_key(&state);
    let _served = Served::start(&state, &[]);
    let output = state.command(&["serve", "--listen", "127.0.0.1:0"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("--data-dir"), "{said}");
}

#[test]
fn explain_says_which_limit_would_refuse_a_request_and_when_it_would_pass() {
    let state = State::new();
    run(&state, &["account", "create", "acme"]);
    run(&state, &["quota", "set", "acme", "tokens_per_day", "100"]);
    run(
        &state,
        &["quota", "set", "acme", "input_tokens_granted", "50", "--from", "2098-01-01", "--until", "2099-01-01"],
    );
    run(&state, &["key", "create", "alice", "--account", "acme"]);
    let explain = |tokens: &str, output: &str| {
        let ask = ["quota", "explain", "alice", "--tokens", tokens, "--output-tokens", output];
        let json: Value = serde_json::from_slice(&explained(&state, &[&ask[..], &["--json"]].concat()).1).unwrap();
        let (fits, said) = explained(&state, &ask);
        assert_eq!((json["fits"].as_bool(), &json["account"]), (Some(fits), &"acme".into()), "{json}");
        String::from_utf8(said).unwrap()
    };
    let early = explain("10", "10");
    assert!(
        early.contains("input_tokens_granted of 'acme'") && early.contains("it would pass at 2098-01-01"),
        "{early}"
    );
    run(&state, &["quota", "remove", "acme", "input_tokens_granted"]);
    run(&state, &["quota", "set", "acme", "requests_per_minute", "1"]);
    let passes = explain("60", "40");
    assert!(passes.contains("every limit that was looked at has room for it"), "{passes}");
    assert!(passes.contains("not looked at: requests_per_minute of acme"), "{passes}");
    let never = explain("60", "41");
    assert!(never.contains("tokens_per_day of 'acme'") && never.contains("can never fit"), "{never}");
    assert!(never.contains("with an answer of at most 40 tokens it could pass"), "{never}");
    assert!(!explain("101", "1").contains("it could pass"), "no answer would be short enough");
}

#[test]
fn explain_prices_gpu_time_by_a_published_tariff_also_where_no_server_runs() {
    let state = State::new();
    let price = |model: &str, partition: &str| {
        let band = "bands = [{ input_ns = 1000000000, cached_ns = 1, output_ns = 1000000000 }]";
        format!("[[prices]]\nmodel = \"{model}\"\n{partition}{band}\n")
    };
    let head = "version = \"1\"\nsince = \"2026-01-01\"\nreference = \"a test\"\n";
    std::fs::write(state.path().join("tariff.toml"), format!("{head}{}", price("demo", ""))).unwrap();
    let file = state.path().join("p.toml");
    std::fs::write(&file, "[ledger]\ntariff = \"tariff.toml\"\n").unwrap();
    run(&state, &["account", "create", "acme"]);
    run(&state, &["quota", "set", "acme", "gpu_seconds_per_day", "100"]);
    run(&state, &["key", "create", "alice", "--account", "acme"]);
    let explain = |model: &str, tokens: &str| {
        let ask = ["quota", "explain", "alice", "--tokens", tokens, "--model", model, "--config"];
        String::from_utf8(explained(&state, &[&ask[..], &[file.to_str().unwrap()]].concat()).1).unwrap()
    };
    let passes = explain("demo", "100");
    assert!(passes.contains("has room for it") && !passes.contains("not looked at: gpu_seconds"), "{passes}");
    assert!(explain("demo", "101").contains("gpu_seconds_per_day of 'acme'"));
    let unpriced = explain("other", "101");
    assert!(unpriced.contains("not looked at: gpu_seconds_per_day of acme"), "{unpriced}");
}

/// Whether the request would be admitted, by the exit status, and what is said of it.
pub(super) fn explained(state: &State, arguments: &[&str]) -> (bool, Vec<u8>) {
    let output = state.command(arguments).output().unwrap();
    match output.status.code() {
        Some(0) => (true, output.stdout),
        Some(3) => (false, output.stdout),
        other => panic!("{other:?}: {}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// Each of the last three questions would be refused whatever the limits were.
#[test]
fn explain_names_the_scopes_the_list_of_models_and_the_context_length_that_would_refuse() {
    let state = State::new();
    run(&state, &["account", "create", "acme"]);
    run(&state, &["key", "create", "alice", "--account", "acme", "--model", "demo"]);
    run(&state, &["key", "create", "looker", "--account", "acme", "--scope", "read-only"]);
    run(&state, &["key", "create", "night", "--account", "acme", "--scope", "batch"]);
    let explain = |key: &str, more: &[&str]| {
        let (fits, said) = explained(&state, &[&["quota", "explain", key, "--tokens"][..], more].concat());
        (fits, String::from_utf8(said).unwrap())
    };
    let of_any_kind = || {
        assert!(explain("alice", &["10", "--model", "demo"]).0 && explain("night", &["10", "--model", "demo"]).0);
        let (fits, said) = explain("alice", &["10"]);
        assert!(fits && said.contains("not looked at: models of acme, because no model was named"), "{said}");
        let (fits, said) = explain("alice", &["10", "--model", "other"]);
        assert!(!fits && said.contains("`other` is not among them"), "{said}");
        let (fits, said) = explain("looker", &["10", "--model", "demo"]);
        assert!(!fits && said.contains("neither the scope `inference` nor `batch`"), "{said}");
    };
    of_any_kind();
    let (fits, unknown) = explain("alice", &["100000", "--model", "demo"]);
    let told = "not looked at: context_length of demo, which only a running server knows";
    assert!(fits && unknown.contains(told), "{unknown}");
    let _served = Served::start(&state, &[]);
    of_any_kind();
    let (fits, said) = explain("alice", &["100000", "--model", "demo"]);
    assert!(!fits && said.contains("context length is") && !said.contains("has room"), "{said}");
    let (fits, said) = explain("night", &["10", "--model", "nobodys"]);
    assert!(!fits && said.contains("No model `nobodys` is served to `acme`"), "{said}");
}

/// Whoever administers a part of the tree learns no names of models that belong to others.
#[test]
fn explain_tells_a_model_of_another_account_from_none_no_more_than_a_request_would() {
    let state = State::new();
    let file = state.path().join("p.toml");
    std::fs::write(&file, "[[models]]\nname = \"secret\"\nsource = \"demo\"\naccount = \"other\"\n").unwrap();
    for account in ["acme", "other"] {
        run(&state, &["account", "create", account]);
        run(&state, &["key", "create", &format!("of-{account}"), "--account", account]);
    }
    let explain = |key: &str, model: &str| {
        let ask = ["quota", "explain", key, "--tokens", "10", "--model", model, "--config", file.to_str().unwrap()];
        let (fits, said) = explained(&state, &ask);
        (fits, String::from_utf8(said).unwrap())
    };
    assert!(explain("of-other", "secret").0);
    let (fits, said) = explain("of-acme", "secret");
    assert!(!fits && said == "No model `secret` is served to `acme`.\n", "{said}");
}

fn refusal(state: &State, arguments: &[&str]) -> String {
    let output = state.command(arguments).output().unwrap();
    assert!(!output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

/// As a server would derive it, from the checkpoint's parameters.
#[test]
fn explain_derives_a_price_where_none_is_published_and_says_what_the_server_says() {
    let state = State::new();
    run(&state, &["account", "create", "acme"]);
    run(&state, &["quota", "set", "acme", "gpu_seconds_per_day", "0.0005"]);
    run(&state, &["key", "create", "alice", "--account", "acme"]);
    let explain = |model: &str, tokens: &str| {
        explained(&state, &["quota", "explain", "alice", "--model", model, "--tokens", tokens, "--json"])
    };
    let refusal = |(_, said): (bool, Vec<u8>)| serde_json::from_slice::<Value>(&said).unwrap()["refusal"].take();
    let asks = || ["1", "1000", "30000", "1000000"].map(|tokens| refusal(explain("demo", tokens)));
    let on_ledger = asks();
    assert!(on_ledger[0].is_null() && on_ledger[3].is_object(), "{on_ledger:?}");
    let unpriced: Value = serde_json::from_slice(&explain("other", "1000000").1).unwrap();
    assert_eq!(unpriced["not_looked_at"][0]["limit"], "gpu_seconds_per_day", "{unpriced}");
    let said = explained(&state, &["quota", "explain", "alice", "--model", "other", "--tokens", "9"]).1;
    let said = String::from_utf8(said).unwrap();
    assert!(said.contains("no price of this model") && !said.contains("--model"), "{said}");
    let _served = Served::start(&state, &[]);
    assert_eq!(asks(), on_ledger);
    // Without a model there is no price, with a server or without one.
    let of_no_model = explained(&state, &["quota", "explain", "alice", "--tokens", "1000000"]).1;
    let of_no_model = String::from_utf8(of_no_model).unwrap();
    assert!(of_no_model.contains("not looked at: gpu_seconds_per_day of acme, because no price"), "{of_no_model}");
}

#[test]
fn a_directory_that_was_mistyped_is_named_and_not_made() {
    let state = State::new();
    make_key(&state);
    for command in [&["usage"][..], &["key", "list"], &["account", "list"], &["backup", "b.db"], &["model", "list"]] {
        let said = refusal(&state, &[command, &["--data-dir", "elsewhere"]].concat());
        assert!(said.contains("nothing is kept in elsewhere"), "{command:?}: {said}");
        assert!(!state.path().join("elsewhere").exists() && !state.path().join("b.db").exists(), "{command:?}");
    }
    let said = refusal(&state, &["reload"]);
    assert!(said.contains("No server runs") && said.contains("admin.sock"), "{said}");
}

#[test]
fn an_account_that_was_mistyped_has_not_used_nothing() {
    let state = State::new();
    run(&state, &["account", "create", "acme"]);
    for more in [&["--by", "model"][..], &["--by", "user"], &["--since", "2026-01-01"]] {
        let said = refusal(&state, &[&["usage", "show", "acne"][..], more].concat());
        assert!(said.contains("no account 'acne'"), "{said}");
        assert!(run(&state, &[&["usage", "show", "acme"][..], more].concat()).is_empty());
    }
}

#[test]
fn a_grant_that_is_over_before_it_begins_is_refused() {
    let state = State::new();
    let past = refusal(&state, &["account", "create", "acme", "--gpu-hours", "5", "--until", "2020-01-01"]);
    assert!(past.contains("--until") && past.contains("is past"), "{past}");
    assert!(!run(&state, &["account", "create", "acme"]).is_empty());
    let set = ["quota", "set", "acme", "tokens_granted", "5", "--until", "2020-01-01"];
    assert!(refusal(&state, &set).contains("is past"));
}

#[test]
fn an_export_replaces_no_earlier_one() {
    let state = State::new();
    make_key(&state);
    std::fs::write(state.path().join("ledger.csv"), "an earlier one").unwrap();
    assert!(refusal(&state, &["usage", "export", "ledger.csv"]).contains("ledger.csv"));
    assert_eq!(std::fs::read_to_string(state.path().join("ledger.csv")).unwrap(), "an earlier one");
}

#[test]
fn explain_asks_the_server_that_runs_and_sees_its_rates_and_its_gpu_time() {
    let state = State::new();
    run(&state, &["account", "create", "acme", "--requests-per-minute", "1"]);
    let key = run(&state, &["key", "create", "alice", "--account", "acme"]).trim().to_owned();
    let served = Served::start(&state, &[]);
    let explain = |tokens: &str| {
        let ask = ["quota", "explain", "alice", "--model", "demo", "--tokens", tokens];
        String::from_utf8(explained(&state, &ask).1).unwrap()
    };
    assert_eq!(explain("10"), "acme: every limit that was looked at has room for it\n");
    let body = json!({"model": "demo", "prompt": "Once", "max_tokens": 1});
    open_as(&served.address, "/v1/completions", &body, &key).whole();
    let refused = explain("10");
    assert!(refused.contains("requests_per_minute of 'acme'") && refused.contains("it would pass at"), "{refused}");
    run(&state, &["quota", "remove", "acme", "requests_per_minute"]);
    run(&state, &["quota", "set", "acme", "gpu_seconds_per_day", "0.000001"]);
    let never = (0..100).map(|_| explain("100000")).find(|said| said.contains("gpu_seconds_per_day"));
    assert!(never.is_some_and(|said| said.contains("can never fit")), "{}", explain("100000"));
}

#[test]
fn explain_tells_what_a_limit_on_trial_would_have_refused() {
    let state = State::new();
    run(&state, &["account", "create", "acme"]);
    run(&state, &["quota", "set", "acme", "requests_per_day", "1", "--dry-run"]);
    let key = run(&state, &["key", "create", "alice", "--account", "acme"]).trim().to_owned();
    let explain = || String::from_utf8(explained(&state, &["quota", "explain", "alice", "--tokens", "1"]).1).unwrap();
    assert!(!explain().contains("on trial"), "without a server nobody has counted");
    let served = Served::start(&state, &[]);
    let body = json!({"model": "demo", "prompt": "Once", "max_tokens": 1});
    for _ in 0..3 {
        assert_eq!(open_as(&served.address, "/v1/completions", &body, &key).whole().status, 200);
    }
    let said = explain();
    assert!(said.contains("on trial: requests_per_day of acme would have refused 2 requests"), "{said}");
}

#[test]
fn a_copy_that_is_restored_brings_no_revoked_key_back() {
    let state = State::new();
    for name in ["alice", "bob"] {
        run(&state, &["key", "create", name]);
    }
    let served = Served::start(&state, &[]);
    run(&state, &["backup", "copy.db"]);
    run(&state, &["key", "revoke", "alice"]);
    drop(served);
    run(&state, &["account", "create", "later"]);
    let said = run(&state, &["restore", "copy.db"]);
    assert!(said.contains("revoked again: alice of alice") && !said.contains("bob"), "{said}");
    let acts = run(&state, &["account", "audit"]);
    let is_told = |act: &str| acts.lines().any(|line| line.contains(act));
    assert!(
        is_told("back up everything asked") && is_told("restore everything from copy.db; what was there"),
        "{acts}"
    );
    let keys: Vec<Value> = serde_json::from_str(&run(&state, &["key", "list", "--json"])).unwrap();
    let status = |name: &str| keys.iter().find(|key| key["name"] == name).map(|key| key["status"].clone());
    assert_eq!((status("alice"), status("bob")), (Some(json!("revoked")), Some(json!("active"))));
    assert!(!run(&state, &["account", "list"]).contains("later"), "the rest is as it was");
}

#[test]
fn the_ledger_is_exported_to_a_new_file_a_pipe_or_standard_output_and_the_audit_log_says_so() {
    let state = State::new();
    make_key(&state);
    let served = Served::start(&state, &["--model", "demo"]);
    let header = |text: String| assert!(text.starts_with("seq,reservation,account"), "{text}");
    for to in ["-", "/dev/stdout", "/dev/fd/1"] {
        header(run(&state, &["usage", "export", to]));
    }
    run(&state, &["usage", "export", "new.csv"]);
    header(std::fs::read_to_string(state.path().join("new.csv")).unwrap());
    assert!(refusal(&state, &["usage", "export", "new.csv"]).contains("is there already"), "an earlier export is kept");
    assert!(refusal(&state, &["usage", "export", "."]).contains("directory"));
    drop(served);
    let acts = run(&state, &["account", "audit"]);
    let done = format!("export ledger done: 0 entries, to {}", "0".repeat(64));
    assert!(acts.contains("export ledger asked") && acts.contains(&done), "{acts}");
}

#[test]
fn an_export_is_verified_as_it_comes_from_a_pipe() {
    let state = State::new();
    make_key(&state);
    let csv = run(&state, &["usage", "export", "-"]);
    let verified = |csv: &str| super::binary::with_input(&mut state.command(&["usage", "verify", "-"]), csv);
    let whole = verified(&csv);
    assert!(whole.status.success() && String::from_utf8_lossy(&whole.stdout).contains("0 entries, unbroken"));
    assert!(!verified(&format!("{csv}1,of nobody\n")).status.success());
}

#[test]
fn a_restore_that_fails_makes_no_data_directory_and_one_that_succeeds_says_what_was_there() {
    let state = State::new();
    make_key(&state);
    run(&state, &["backup", "copy.db"]);
    std::fs::write(state.path().join("no-copy.db"), "no database, but long enough for one to be looked for").unwrap();
    for file in ["no-copy.db", "nowhere.db"] {
        assert!(refusal(&state, &["restore", file, "--data-dir", "new"]).contains(file));
        assert!(!state.path().join("new").exists(), "{file}");
    }
    assert!(run(&state, &["restore", "copy.db", "--data-dir", "new"]).contains("nothing was there"));
    assert!(run(&state, &["key", "list", "--data-dir", "new"]).contains("alice"));
}

/// Two servers, one before the other, each with a ledger of its own.
#[test]
fn a_gateway_writes_down_what_the_one_that_ran_a_request_says_of_it() {
    let (north, south) = (State::new(), State::new());
    std::fs::write(north.path().join("p.toml"), "[server]\nsite = \"north\"\n").unwrap();
    run(&north, &["account", "create", "south"]);
    let scopes = ["--scope", "inference", "--scope", "gateway"];
    let for_south = run(&north, &[&["key", "create", "gate", "--account", "south"][..], &scopes].concat());
    let site = Served::start(&north, &["--config", "p.toml"]);
    std::fs::write(south.path().join("north.key"), for_south).unwrap();
    let upstream = format!(
        "[[upstreams]]\nmodel = \"far\"\nupstream_model = \"demo\"\nkind = \"passerelle\"\nurl = \"http://{}\"\n\
         key_file = \"north.key\"\n",
        site.address
    );
    std::fs::write(south.path().join("p.toml"), upstream).unwrap();
    // Without a limit in GPU time, which no tariff here says how to keep for `far`.
    run(&south, &["account", "create", "acme"]);
    let key = run(&south, &["key", "create", "alice", "--account", "acme"]).trim().to_owned();
    let gateway = Served::start(&south, &["--config", "p.toml"]);
    let body = json!({"model": "far", "prompt": "Once", "max_tokens": 4, "ignore_eos": true});
    assert_eq!(open_as(&gateway.address, "/v1/completions", &body, &key).whole().status, 200);
    let settled = |state: &State| (0..1_000).map(|_| entries(state)).find(|entries| !entries.is_empty()).unwrap();
    let (here, there) = (&settled(&south)[0], &settled(&north)[0]);
    assert_eq!((here[18].as_str(), here[19].as_str()), (there[5].as_str(), "north"));
    assert!(there[5].len() > 8 && here[20].parse::<u64>().unwrap() > 0, "{here:?}");
    assert_eq!(here[20], there[14], "what it says is what it billed");
    assert!(there[24].starts_with(&format!("rsv_{}_", here[1])), "{} names entry {}", there[24], here[1]);
    assert_eq!(there[25..27], [here[2].as_str(), "1"], "for whom, and as how many requests it counts");
    assert_eq!(here[24..27], ["", "", "1"], "nobody asked the first one for somebody");
}

#[test]
fn what_another_gateway_asks_again_after_a_restart_is_billed_and_counted_once() {
    let state = State::new();
    run(&state, &["account", "create", "south"]);
    let scopes = ["--scope", "inference", "--scope", "gateway"];
    let key = run(&state, &[&["key", "create", "gate", "--account", "south"][..], &scopes].concat());
    let body = json!({"model": "demo", "prompt": "Once", "max_tokens": 4, "ignore_eos": true}).to_string();
    let request = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nauthorization: Bearer {}\r\n\
         x-passerelle-reservation: rsv_1_a\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        key.trim(),
        body.len()
    );
    let told = |served: &Served| send(&served.address, &request).whole().json()["usage"]["passerelle"].clone();
    let first = Served::start(&state, &[]);
    let once = told(&first);
    let second = restarted(&state, first);
    assert_eq!(told(&second), once);
    drop(restarted(&state, second));
    let entries = entries(&state);
    let of_entries = |column: usize| entries.iter().map(|entry| entry[column].as_str()).collect::<Vec<_>>();
    assert_eq!((of_entries(13), of_entries(24), of_entries(26)), (vec!["4", "0"], vec!["rsv_1_a"; 2], vec!["1", "0"]));
    assert!(once["billed_gpu_ms"].as_f64() > Some(0.0) && of_entries(14)[1] == "0", "{once}");
}

/// Who asked, for whom and for what: kept beside what it used, through every door, and nowhere else.
#[test]
fn what_requests_are_for_is_accounted_and_neither_logged_nor_measured() {
    let state = State::new();
    let key = make_key(&state);
    let bert = super::binary::root().join("models/tests/fixtures/encoders/bert");
    let models = ["--model", "demo", "--model", &format!("bert={}", bert.display())];
    let mut served = Served::start_logging(&state, &models, "trace");
    let messages = json!([{"role": "user", "content": "hi"}]);
    let bodies = [
        (
            "/v1/chat/completions",
            json!({"model": "demo", "messages": messages, "max_tokens": 2, "user": "zoe@lab.example"}),
        ),
        (
            "/v1/completions",
            json!({"model": "demo", "prompt": "Once", "max_tokens": 2, "safety_identifier": "zoe@lab.example",
                                   "metadata": {"ticket": "xyzzy-4711"}}),
        ),
        ("/v1/responses", json!({"model": "demo", "input": "hi", "max_output_tokens": 2, "user": "yann"})),
        ("/v1/embeddings", json!({"model": "bert", "input": "hi", "user": "yann"})),
        ("/v1/completions", json!({"model": "demo", "prompt": "Once", "max_tokens": 2})),
    ];
    for (path, body) in &bodies {
        let answer = open_as(&served.address, path, body, &key).text_with_head();
        assert!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    }
    let metrics = super::binary::get_as(&served.address, "/metrics", Some(&key));
    assert!(metrics.status == 200 && !metrics.text().contains("zoe"));
    served.signal("TERM");
    assert_eq!(served.exit_code(), Some(0));
    let log = std::fs::read_to_string(state.log()).unwrap();
    assert!(!log.contains("zoe") && !log.contains("xyzzy"), "{log}");
    let sums: Vec<Value> = serde_json::from_str(&run(&state, &["usage", "show", "--by", "user", "--json"])).unwrap();
    let shown: Vec<_> = sums.iter().map(|sum| (sum["user"].as_str(), sum["requests"].as_u64())).collect();
    assert_eq!(shown, [(Some("yann"), Some(2)), (Some("zoe@lab.example"), Some(2)), (None, Some(1))]);
    assert!(run(&state, &["usage", "show", "acme", "--by", "user"]).contains("zoe@lab.example"));
    let metadata: Vec<String> = entries(&state).into_iter().map(|entry| entry[22].clone()).collect();
    assert_eq!(
        metadata.iter().filter(|said| !said.is_empty()).collect::<Vec<_>>(),
        [r#""{""ticket"":""xyzzy-4711""}""#]
    );
    let restarted = Served::start(&state, &[]);
    let own = super::binary::get_as(&restarted.address, "/v1/me/usage?by=user", Some(&key)).json();
    assert_eq!(own["data"], json!(sums));
    assert_eq!(super::binary::get_as(&restarted.address, "/v1/me/usage?by=colour", Some(&key)).status, 400);
}
