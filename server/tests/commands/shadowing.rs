//! A candidate behind an alias of a real server: what users were answered becomes a report, and the operator pays for it.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::binary::{Served, State, get_as, open_as, root};

const QUESTIONS: [&str; 5] =
    ["What is 12 + 7?", "What is 3 + 4?", "What is 20 + 5?", "What is 8 + 8?", "What is 6 + 1?"];

fn run(state: &State, arguments: &[&str]) -> String {
    let output = state.command(arguments).output().expect("the binary runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn configuration(state: &State) -> String {
    let model = |name: &str| {
        let source = root().join("models/demo").join(name);
        format!("[[models]]\nname = \"{name}\"\nsource = \"{}\"\n", source.display())
    };
    let shadow = "[aliases]\nchat = { final = 1 }\n[shadow]\nfolder = \"kept\"\nmax_tokens = 24\n\
                  aliases = { chat = { model = \"early\", share = 1.0, account = \"ops\" } }\n";
    let file = state.path().join("passerelle.toml");
    fs::write(&file, [&model("final"), &model("early"), shadow].concat()).expect("the folder is writable");
    file.display().to_string()
}

fn compared(served: &Served, key: &str) -> Option<u64> {
    let shown = get_as(&served.address, "/metrics", Some(key));
    let series = "passerelle_shadowed_requests_total{alias=\"chat\",outcome=\"compared\"} ";
    shown.text().lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
}

/// The files of the one pair.
fn only_pair(kept: &Path) -> String {
    let mut pairs = fs::read_dir(kept).expect("the server made it");
    let pair = pairs.next().expect("a pair was compared").expect("an entry").path();
    assert!(pairs.next().is_none(), "one pair");
    pair.display().to_string()
}

#[test]
fn what_users_were_answered_becomes_a_report_and_the_operator_pays_for_it() {
    let state = State::new();
    run(&state, &["account", "create", "acme"]);
    run(&state, &["account", "create", "ops"]);
    let key = run(&state, &["key", "create", "alice", "--account", "acme"]).trim().to_owned();
    let mut served = Served::start(&state, &["--config", &configuration(&state)]);
    let (mut read, mut written) = (0, 0);
    for question in QUESTIONS {
        let body = json!({"model": "chat", "messages": [{"role": "user", "content": question}], "temperature": 0,
            "max_tokens": 24});
        let answer = open_as(&served.address, "/v1/chat/completions", &body, &key).whole().json();
        read += answer["usage"]["prompt_tokens"].as_u64().expect("a count");
        written += answer["usage"]["completion_tokens"].as_u64().expect("a count");
    }
    let is_compared = |_: &u32| compared(&served, &key) == Some(QUESTIONS.len() as u64);
    assert!((0..100_000).any(|turn| is_compared(&turn)), "{:?} were compared", compared(&served, &key));
    served.signal("TERM");
    assert_eq!(served.exit_code(), Some(0));

    let pair = only_pair(&state.path().join("kept"));
    let page = state.path().join("report.html").display().to_string();
    let report: Value =
        serde_json::from_str(&run(&state, &["compare", &pair, "--json", "--html", &page])).expect("JSON");
    assert_eq!((&report["num_compared"], &report["num_items"]), (&json!(QUESTIONS.len()), &Value::Null));
    assert_eq!([&report["ranking"][0]["name"], &report["ranking"][1]["name"]], ["final", "early"]);
    let bits = |place: usize| report["ranking"][place]["metrics"][0]["interval"]["value"].as_f64().expect("a number");
    assert!(bits(0) < bits(1), "{report}");
    assert!(fs::read_to_string(&page).expect("it was written").contains("early"));

    let usage = |account: &str| -> Value {
        serde_json::from_str(&run(&state, &["usage", "show", account, "--json"])).expect("JSON")
    };
    let sum = |account: &str, name: &str| -> u64 {
        usage(account).as_array().expect("a list").iter().map(|row| row[name].as_u64().expect("a count")).sum()
    };
    assert_eq!(
        (sum("acme", "input_tokens"), sum("acme", "output_tokens")),
        (read, written),
        "as if nobody else was asked"
    );
    assert!(sum("ops", "input_tokens") > 2 * read, "each model reads each prompt twice");
}
