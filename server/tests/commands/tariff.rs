//! What tokens cost, from a measurement to the ledger.

use std::fs;

use serde_json::json;

use super::binary::{self, Served, State};

#[test]
fn entries_name_the_tariff_that_bench_measured() {
    let state = State::new();
    let bench = "bench --prompt 32 --generate 4 --batch 2 --tariff 2026-11-01 --factor 0.5 --bands 64";
    let run = |line: &str| {
        let output = state.command(&line.split(' ').collect::<Vec<_>>()).output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    let tariff = run(bench);
    assert!(tariff.contains("2 sequences at once, 32 prompt and 4 generated tokens each"), "{tariff}");
    let bands: Vec<_> = tariff.lines().filter(|line| line.starts_with("output_ns")).collect();
    assert!(bands.len() == 2 && tariff.contains("below = 64"), "two bands, both measured: {tariff}");
    fs::write(state.path().join("tariff.toml"), &tariff).expect("the folder is writable");
    fs::write(state.path().join("p.toml"), "[ledger]\ntariff = \"tariff.toml\"\n").expect("the folder is writable");
    let key = run("key create alice").trim().to_owned();
    let mut served = Served::start(&state, &["--config", "p.toml"]);
    let messages = json!([{"role": "user", "content": "What is 12 + 7?"}]);
    let body = json!({"model": "demo", "messages": messages, "max_tokens": 4});
    assert_eq!(binary::open_as(&served.address, "/v1/chat/completions", &body, &key).whole().status, 200);
    let hours: serde_json::Value = serde_json::from_str(&run("usage hours --json")).expect("JSON");
    let hour = hours["data"].as_array().and_then(|hours| hours.last()).expect("the hour that runs");
    let seconds = |name: &str| hour[name].as_f64().expect("a number");
    let sum = seconds("billed") + seconds("under_use") + seconds("idle");
    assert!(seconds("billed") > 0.0 && (sum - seconds("elapsed")).abs() < 1e-6, "{hour}");
    served.signal("TERM");
    assert_eq!(served.exit_code(), Some(0));
    let ledger = run("usage export");
    assert!(ledger.lines().count() == 2 && ledger.contains(",2026-11-01,"), "{ledger}");
}

#[test]
fn a_tariff_that_bench_measured_is_json_for_whoever_asks_for_json() {
    let state = State::new();
    let bench = "bench --prompt 16 --generate 4 --batch 1 --tariff 2026-11-01 --factor 1 --bands 64 --json";
    let output = state.command(&bench.split(' ').collect::<Vec<_>>()).output().expect("it runs");
    let tariff: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&tariff["version"], &tariff["prices"][0]["model"]), (&json!("2026-11-01"), &json!("demo")));
    assert_eq!(tariff["prices"][0]["bands"].as_array().map(Vec::len), Some(2), "{tariff}");
}

#[test]
fn a_server_does_not_start_with_a_tariff_that_forgets_its_model() {
    let state = State::new();
    let tariff = "version = \"1\"\nsince = \"2026-11-01\"\nreference = \"a test\"\nprices = []\n";
    fs::write(state.path().join("tariff.toml"), tariff).expect("the folder is writable");
    fs::write(state.path().join("p.toml"), "[ledger]\ntariff = \"tariff.toml\"\n").expect("the folder is writable");
    let output = state.command(&["serve", "--listen", "127.0.0.1:0", "--config", "p.toml"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("no price for `demo` on `cpu`"), "{said}");
}

/// What it says of a tariff is what the next start would, and nothing of it is in force before.
#[test]
fn a_reload_refuses_a_tariff_with_which_the_server_would_not_start_and_names_one_that_is_another() {
    let state = State::new();
    let write = |version: &str, models: &[&str]| {
        let band = "bands = [{ input_ns = 1, cached_ns = 1, output_ns = 1 }]";
        let prices: String = models.iter().map(|model| format!("[[prices]]\nmodel = \"{model}\"\n{band}\n")).collect();
        let head = format!("version = \"{version}\"\nsince = \"2026-11-01\"\nreference = \"a test\"\n");
        let none = if models.is_empty() { "prices = []\n" } else { "" };
        fs::write(state.path().join("tariff.toml"), format!("{head}{none}{prices}")).expect("the folder is writable");
    };
    let configure = |more: &str| {
        let text = format!("[[models]]\nsource = \"demo\"\n[ledger]\ntariff = \"tariff.toml\"\n{more}");
        fs::write(state.path().join("p.toml"), text).expect("the folder is writable");
    };
    let reload = || {
        let output = state.command(&["reload"]).output().expect("it runs");
        let said = if output.status.success() { output.stdout } else { output.stderr };
        (output.status.success(), String::from_utf8(said).expect("text"))
    };
    let far = "[[upstreams]]\nmodel = \"far\"\nurl = \"http://127.0.0.1:9\"\n";
    write("1", &["demo", "far"]);
    configure("");
    assert!(state.command(&["key", "create", "alice"]).output().expect("it runs").status.success());
    let _served = Served::start(&state, &["--config", "p.toml"]);
    assert_eq!(reload(), (true, "changed: nothing\nneeds a restart: nothing\n".to_owned()));
    write("2", &[]);
    let (is_taken, said) = reload();
    assert!(!is_taken && said.contains("stays as it was") && said.contains("no price for `demo` on `cpu`"), "{said}");
    write("2", &["demo"]);
    assert_eq!(reload(), (true, "changed: nothing\nneeds a restart: ledger.tariff\n".to_owned()));
    configure(far);
    let (is_taken, said) = reload();
    assert!(!is_taken && said.contains("no price for `far` on `upstream`"), "the next start would refuse it: {said}");
    write("1", &["demo", "far"]);
    assert_eq!(
        reload(),
        (true, "changed: upstreams\nneeds a restart: nothing\n".to_owned()),
        "it was priced all along"
    );
}
