//! Administration does the same at a server that runs, through its socket, and on the ledger itself where none runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::binary::{self, Served, State, open_as};
use super::ledger::{explained, run};

const ACCOUNTS: &str = "\
[[accounts]]
path = \"acme\"
weight = 3
limits = [{ limit = \"gpu_seconds_granted\", value = 60, until = \"2099-01-01\" }]
[[accounts]]
path = \"acme/speech\"
";

/// What somebody types in the course of a week. `FILE` is a file with [`ACCOUNTS`].
const SCRIPT: &[&str] = &[
    "account create acme --requests-per-minute 60",
    "account create acme/vision",
    "account create acme/vision",
    "account create nobody/x",
    "account weight acme/vision 4",
    "key create alice --account acme/vision --scope inference --scope batch --model demo --valid-for 720h --json",
    "key create alice --account acme/vision",
    "key create bob --concurrent-requests 2 --json",
    "key create carol --account nobody",
    "quota set acme tokens_per_day 2000000",
    "quota set acme/vision concurrent_requests 8 --model demo --dry-run",
    "quota set nobody tokens_per_day 1",
    "quota remove acme tokens_per_day",
    "quota remove acme tokens_per_day",
    "account create plain",
    "key create dora --account plain --json",
    "quota set plain tokens_per_day 100",
    "quota explain dora --tokens 4000",
    "quota explain dora --tokens 40",
    "quota explain nobody --tokens 40",
    "account apply FILE --dry-run",
    "account apply FILE",
    "account apply FILE",
    "account list",
    "account list --json",
    "key rotate alice --overlap 1h --json",
    "key rotate nobody",
    "key list",
    "key list --json",
    "key revoke alice",
    "key revoke alice",
    "key revoke x/y",
    "account remove acme",
    "account remove acme/speech",
    "usage",
    "usage show acme --json",
    "usage show acne",
    "usage export",
    "backup copy.db",
    "backup copy.db",
    "account audit",
];

/// What the script said, without what differs from one time to another: secrets, ids and dates.
fn outcomes(state: &State) -> Vec<String> {
    let file = state.path().join("accounts.toml");
    fs::write(&file, ACCOUNTS).expect("the folder is writable");
    let mut secrets: Vec<String> = Vec::new();
    let run = |line: &&str| {
        let line = line.replace("FILE", file.to_str().expect("a plain path"));
        let arguments: Vec<&str> = line.split(' ').collect();
        let output = state.command(&arguments).output().expect("it runs");
        let [said, told] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).expect("text"));
        if let Ok(made) = serde_json::from_str::<Value>(&said) {
            secrets.extend(["key", "id"].iter().filter_map(|field| Some(made[*field].as_str()?.to_owned())));
            // A key holds its id.
            secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        }
        let whole = format!("{:?}\n{said}{told}", output.status.code());
        let whole = secrets.iter().fold(whole, |text, secret| text.replace(secret, "SECRET"));
        whole.lines().map(|line| undated(line, arguments.as_slice())).collect()
    };
    SCRIPT.iter().map(run).collect()
}

fn undated(line: &str, command: &[&str]) -> String {
    let line = match line.split_once("  ") {
        Some((_, act)) if command == ["account", "audit"] => act,
        _ => line,
    };
    let is_hash = |word: &&str| word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_instant = |word: &&str| word.len() >= 10 && word.bytes().all(|byte| byte.is_ascii_digit());
    let words = line.split_inclusive([' ', ',']).map(|word| match word.trim_end_matches([' ', ',']) {
        bare if is_hash(&bare) => "HASH ".to_owned(),
        bare if is_instant(&bare) => "AT ".to_owned(),
        _ => word.to_owned(),
    });
    words.collect::<String>() + "\n"
}

#[test]
fn what_is_done_at_a_running_server_is_what_is_done_on_the_ledger() {
    let (quiet, busy) = (State::new(), State::new());
    let served = Served::start_logging(&busy, &[], "info");
    for ((line, on_ledger), at_server) in SCRIPT.iter().zip(outcomes(&quiet)).zip(outcomes(&busy)) {
        assert_eq!(on_ledger, at_server, "{line}");
    }
    let log = fs::read_to_string(busy.log()).expect("it was logged");
    assert!(log.contains("administered from the command line"), "the server was not asked: {log}");
    drop(served);
}

#[test]
fn a_limit_on_trial_is_said_to_be_one_when_it_is_set_and_removed() {
    let state = State::new();
    let says = |line: &str| {
        let output = state.command(&line.split(' ').collect::<Vec<_>>()).output().expect("it runs");
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    };
    assert_eq!(says("account create acme"), "created acme");
    assert_eq!(says("quota set acme tokens_per_day 9"), "set tokens_per_day of acme");
    assert_eq!(says("quota set acme tokens_per_day 9 --dry-run"), "set tokens_per_day of acme (on trial)");
    assert_eq!(says("quota remove acme tokens_per_day --dry-run"), "removed tokens_per_day of acme (on trial)");
}

#[test]
fn keys_that_are_made_and_revoked_through_the_socket_are_so_for_the_server_that_runs() {
    let state = State::new();
    let run = |line: &str| {
        let output = state.command(&line.split(' ').collect::<Vec<_>>()).output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    };
    run("key create alice");
    let served = Served::start(&state, &[]);
    let bob = run("key create bob");
    let models = || binary::get_as(&served.address, "/v1/models", Some(&bob)).status;
    assert!((0..100_000).any(|_| models() == 200), "a key made through the socket is not accepted");
    run("key revoke bob");
    assert!((0..100_000).any(|_| models() == 401), "a revoked key is still accepted");
}

#[test]
fn an_audit_log_whose_end_was_cut_off_does_not_hold_the_end_that_was_printed() {
    let state = State::new();
    let audit = |more: &[&str]| {
        let output = state.command(&[&["account", "audit"][..], more].concat()).output().expect("it runs");
        (output.status.success(), String::from_utf8(output.stderr).expect("text"))
    };
    for account in ["one", "two"] {
        assert!(state.command(&["account", "create", account]).status().expect("it runs").success());
    }
    let (_, said) = audit(&[]);
    let head = said.split_whitespace().last().expect("the end of the chain").to_owned();
    assert!(state.command(&["account", "create", "three"]).status().expect("it runs").success());
    assert!(audit(&["--head", &head]).0, "a log that grew holds its former end");
    let database = rusqlite::Connection::open(state.path().join("passerelle/passerelle.db")).expect("it is there");
    assert_eq!(database.execute("DELETE FROM audit WHERE seq > 1", []).expect("it is a table"), 2);
    assert!(audit(&[]).0, "what is left is unbroken");
    let (is_fine, said) = audit(&["--head", &head]);
    assert!(!is_fine && said.contains("its end was cut off"), "{said}");
}

fn socket_of(state: &State) -> PathBuf {
    state.path().join("passerelle/admin.sock")
}

#[test]
fn one_data_directory_has_one_server_and_a_killed_ones_socket_is_replaced() {
    let state = State::new();
    let served = Served::start(&state, &[]);
    let mode = socket_of(&state).metadata().expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = state.command(&["serve", "--listen", "127.0.0.1:0"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && said.contains("a server runs on"), "{said}");
    assert!(UnixStream::connect(socket_of(&state)).is_ok(), "the second took nothing away");
    drop(served);
    assert!(socket_of(&state).exists(), "a killed server leaves its socket");
    assert!(state.command(&["account", "list"]).status().expect("it runs").success());
    let mut served = Served::start(&state, &[]);
    assert!(UnixStream::connect(socket_of(&state)).is_ok());
    served.signal("TERM");
    assert_eq!(served.exit_code(), Some(0));
    assert!(!socket_of(&state).exists());
}

/// Two checkpoints of one run, and what else the file says.
fn write_configuration(state: &State, more: &str) -> PathBuf {
    let demo = binary::root().join("models/demo");
    let model = |name: &str| format!("[[models]]\nname = \"{name}\"\nsource = \"{}\"\n", demo.join(name).display());
    let file = state.path().join("p.toml");
    fs::write(&file, format!("{}{}{more}", model("early"), model("final"))).expect("the folder is writable");
    file
}

/// The model that answers a user who calls for `chat`.
fn model_of(served: &Served, user: &str) -> String {
    let messages = json!([{"role": "user", "content": "What is 12 + 7?"}]);
    let body = json!({"model": "chat", "messages": messages, "max_tokens": 1, "user": user});
    let answer = binary::request(&served.address, "POST", "/v1/chat/completions", &body).json();
    answer["model"].as_str().expect("a name").to_owned()
}

#[test]
fn a_configuration_that_is_read_again_drops_no_stream_and_a_wrong_one_changes_nothing() {
    let state = State::new();
    let file = write_configuration(&state, "");
    let served = Served::start_logging(&state, &["--config", file.to_str().expect("a plain path")], "info");
    let mut long = json!({"model": "final", "prompt": "Once", "max_tokens": 1_900, "ignore_eos": true, "stream": true});
    long["temperature"] = json!(0);
    let stream = binary::open(&served.address, "POST", "/v1/completions", &long).wait_for_event();
    let reload = || state.command(&["reload"]).output().expect("it runs");

    write_configuration(&state, "[aliases]\nchat = { early = 1, final = 1 }\n[engine]\nmax_num_seqs = 7\n");
    let said = String::from_utf8(reload().stdout).expect("text");
    assert_eq!(said, "changed: aliases\nneeds a restart: engine\n");
    let listed = binary::request(&served.address, "GET", "/v1/models/chat", &Value::Null).json();
    assert_eq!(listed["alias_of"], json!(["early", "final"]));
    let models: Vec<_> = (0..12).map(|user| model_of(&served, &user.to_string())).collect();
    assert!(["early", "final"].iter().all(|name| models.contains(&(*name).to_owned())), "{models:?}");
    assert_eq!(models, (0..12).map(|user| model_of(&served, &user.to_string())).collect::<Vec<_>>(), "a session stays");

    // All but the first would keep the server from starting again.
    let not_served = ("[aliases]\nchat = { nobody = 1 }\n", "`nobody`, which is not served");
    let no_zone = ("[ledger]\ntime_zone = \"Europe/Atlantis\"\n", "ledger.time_zone: 'Europe/Atlantis'");
    let tariff = "version = \"1\"\nsince = \"2999-01-01\"\nreference = \"a test\"\nprices = []\n";
    fs::write(state.path().join("later.toml"), tariff).expect("the folder is writable");
    let too_early = ("[ledger]\ntariff = \"later.toml\"\n", "tariff 1 begins on 2999-01-01 only");
    let no_account = ("[ledger]\nreserve_whole = [\"a b\"]\n", "ledger.reserve_whole: `a b`");
    let neither = ("[api]\nshared_prefixes = [\"a b\"]\n", "api.shared_prefixes: `a b`");
    let too_large =
        ("[engine]\ndevice = \"cpu\"\nkv_cache_memory = \"900TiB\"\n", "p.toml:9:1: engine.kv_cache_memory");
    for (wrong, why) in [not_served, no_zone, too_early, no_account, neither, too_large] {
        write_configuration(&state, wrong);
        let refused = reload();
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1));
        assert!(said.contains("stays as it was") && said.contains(why), "{said}");
        assert_eq!(model_of(&served, "0"), models[0]);
    }

    write_configuration(&state, "");
    served.signal("HUP");
    let is_gone = || binary::request(&served.address, "GET", "/v1/models/chat", &Value::Null).status == 404;
    assert!((0..100_000).any(|_| is_gone()), "SIGHUP is not heard");
    let text = stream.text();
    assert!(text.trim_end().ends_with("data: [DONE]") && text.contains("\"length\""), "{text}");
    // Carried out after the one that the signal asked for.
    assert!(reload().status.success());
    let log = String::from_utf8(state.command(&["account", "audit"]).output().expect("it runs").stdout).expect("text");
    for (asked, came) in [("command line", "done: aliases"), ("command line", "failed: "), ("SIGHUP", "done: aliases")]
    {
        assert!(log.contains(&format!("{asked}: reload configuration {came}")), "{log}");
    }
}

#[test]
fn a_signal_to_read_the_configuration_again_that_comes_before_the_server_is_ready_is_heard() {
    let state = State::new();
    let file = write_configuration(&state, "");
    let hang_up = |process| {
        while !binary::hears_hangups(process) {
            std::thread::yield_now();
        }
        binary::signal(process, "HUP");
    };
    let _served = Served::start_while(&state, &["--config", file.to_str().expect("a plain path")], hang_up);
    let audit = || String::from_utf8(state.command(&["account", "audit"]).output().expect("it runs").stdout);
    let is_heard = || audit().expect("text").contains("SIGHUP: reload configuration done: nothing changed");
    assert!((0..1_000).any(|_| is_heard()), "{:?}", audit());
}

#[test]
fn a_key_file_that_was_rotated_is_read_and_reported() {
    let state = State::new();
    let key_file = state.path().join("far.key");
    fs::write(&key_file, "sk-one\n").expect("the folder is writable");
    let upstream = "[[upstreams]]\nmodel = \"far\"\nurl = \"http://127.0.0.1:9\"\nkey_file = \"far.key\"\n";
    let file = write_configuration(&state, upstream);
    let _served = Served::start(&state, &["--config", file.to_str().expect("a plain path")]);
    let reload = || String::from_utf8(state.command(&["reload"]).output().expect("it runs").stdout).expect("text");
    assert_eq!(reload(), "changed: nothing\nneeds a restart: nothing\n");
    fs::write(&key_file, "sk-two\n").expect("the folder is writable");
    assert_eq!(reload(), "changed: upstreams.key_file\nneeds a restart: nothing\n");
    assert_eq!(reload(), "changed: nothing\nneeds a restart: nothing\n");
}

#[test]
fn a_certificate_that_was_renewed_waits_for_a_restart_and_one_that_is_wrong_refuses_the_reload() {
    let state = State::new();
    let renew = || {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("the name is plain");
        fs::write(state.path().join("c.pem"), made.cert.pem()).expect("the folder is writable");
        fs::write(state.path().join("k.pem"), made.signing_key.serialize_pem()).expect("the folder is writable");
    };
    let over_tls = "[server]\ntls_certificate = \"c.pem\"\ntls_key = \"k.pem\"\n";
    renew();
    let file = write_configuration(&state, over_tls);
    let _served = Served::start(&state, &["--config", file.to_str().expect("a plain path")]);
    let reload = || state.command(&["reload"]).output().expect("it runs");
    let said = || String::from_utf8(reload().stdout).expect("text");
    assert_eq!(said(), "changed: nothing\nneeds a restart: nothing\n");
    renew();
    assert_eq!(said(), "changed: nothing\nneeds a restart: server.tls_certificate\n");
    write_configuration(&state, "");
    assert_eq!(said(), "changed: nothing\nneeds a restart: server.tls_certificate\n");
    write_configuration(&state, &format!("{over_tls}[aliases]\nchat = {{ final = 1 }}\n"));
    fs::write(state.path().join("c.pem"), "no certificate").expect("the folder is writable");
    let refused = String::from_utf8_lossy(&reload().stderr).into_owned();
    assert!(refused.contains("stays as it was") && refused.contains("server.tls_certificate"), "{refused}");
    renew();
    assert_eq!(said(), "changed: aliases\nneeds a restart: server.tls_certificate\n", "it was refused whole");
}

/// Midnight there is half past six in the evening in universal time, on every day.
#[test]
fn the_time_zone_of_windows_and_the_instant_at_which_they_end_are_in_the_answers() {
    let state = State::new();
    let file = write_configuration(&state, "[ledger]\ntime_zone = \"Asia/Kolkata\"\n");
    let run = |line: &str| {
        let output = state.command(&line.split(' ').collect::<Vec<_>>()).output().expect("it runs");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    };
    run("account create acme");
    run("quota set acme output_tokens_per_day 10");
    let key = run("key create alice --account acme");
    let served = Served::start(&state, &["--config", file.to_str().expect("a plain path")]);
    let limits = binary::get_as(&served.address, "/v1/me/limits", Some(key.trim())).json();
    let resets_at = &limits["data"][0]["resets_at"];
    assert_eq!(
        (&limits["time_zone"], resets_at.as_u64().map(|at| at % 86_400)),
        (&json!("Asia/Kolkata"), Some(66_600))
    );
    let too_long = json!({"model": "final", "prompt": "Once", "max_tokens": 11});
    let refused = binary::open_as(&served.address, "/v1/completions", &too_long, key.trim()).whole();
    let refused: serde_json::Value = serde_json::from_str(refused.text()).expect("JSON");
    assert_eq!(&refused["error"]["limit"]["window_end"], resets_at, "{refused}");
}

#[test]
fn a_time_zone_that_is_none_is_told_with_its_line_by_the_commands_too() {
    let state = State::new();
    let file = write_configuration(&state, "[ledger]\ntime_zone = \"Atlantis\"\n");
    let command = ["account", "list", "--config", file.to_str().expect("a plain path")];
    let refused = state.command(&command).output().expect("it runs");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("p.toml:8:1: ledger.time_zone: 'Atlantis' is no time zone"), "{said}");
}

#[test]
fn a_reload_takes_no_upstream_that_the_tariff_in_force_does_not_price() {
    let state = State::new();
    let price = |model: &str| {
        format!("[[prices]]\nmodel = \"{model}\"\nbands = [{{ input_ns = 1, cached_ns = 1, output_ns = 1 }}]\n")
    };
    let tariff = "version = \"1\"\nsince = \"2026-01-01\"\nreference = \"a test\"\n";
    let prices = [price("early"), price("final")].concat();
    fs::write(state.path().join("tariff.toml"), format!("{tariff}{prices}")).expect("the folder is writable");
    let ledger = "[ledger]\ntariff = \"tariff.toml\"\n";
    let file = write_configuration(&state, ledger);
    let served = Served::start(&state, &["--config", file.to_str().expect("a plain path")]);
    // The next start would price it.
    let prices = [prices, price("far")].concat();
    fs::write(state.path().join("tariff.toml"), format!("{tariff}{prices}")).expect("the folder is writable");
    let upstream = "[[upstreams]]\nmodel = \"far\"\nurl = \"http://127.0.0.1:9\"\n";
    write_configuration(&state, &format!("{ledger}{upstream}"));
    let refused = state.command(&["reload"]).output().expect("it runs");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("`far` has no price"), "{said}");
    assert_eq!(binary::request(&served.address, "GET", "/v1/models/far", &Value::Null).status, 404);
}

/// Neither a limit nor a key can be for a name that stands for other models, whichever was there first.
#[test]
fn no_limit_and_no_key_is_for_an_alias() {
    let state = State::new();
    let file = write_configuration(&state, "[aliases]\nchat = { final = 1 }\n");
    let file = file.to_str().expect("a plain path");
    let run = |line: &str| {
        let output = state.command(&line.split(' ').collect::<Vec<_>>()).output().expect("it runs");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert!(run("account create acme").0);
    let for_alias =
        ["quota set acme requests_per_minute 5 --model chat", "key create alice --account acme --model chat"];
    for line in for_alias {
        let (is_done, said) = run(&format!("{line} --config {file}"));
        assert!(!is_done && said.contains("`chat` stands for other models"), "{line}: {said}");
    }
    let served = Served::start(&state, &["--config", file]);
    for line in for_alias {
        let (is_done, said) = run(line);
        assert!(!is_done && said.contains("`chat` stands for other models"), "{line}: {said}");
    }
    drop(served);
    assert!(run("quota set acme requests_per_minute 5 --model chat").0, "nothing says that it is an alias");
    let (is_done, said) = run(&format!("serve --listen 127.0.0.1:0 --config {file}"));
    assert!(!is_done && said.contains("aliases.chat: a limit of 'acme'"), "{said}");
}

#[test]
fn a_key_that_cannot_be_made_leaves_no_account_behind_and_takes_none_away() {
    let state = State::new();
    let file = write_configuration(&state, "[aliases]\nchat = { final = 1 }\n");
    let create = ["key", "create", "alice", "--model", "chat", "--config", file.to_str().expect("a plain path")];
    let accounts = || {
        let refused = state.command(&create).output().expect("it runs");
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains("`chat` stands for other models"), "{said}");
        run(&state, &["account", "list"])
    };
    assert!(!accounts().contains("alice"), "on the ledger");
    let _served = Served::start(&state, &["--config", file.to_str().expect("a plain path")]);
    assert!(!accounts().contains("alice"), "at the server");
    run(&state, &["account", "create", "alice"]);
    assert!(accounts().contains("alice"), "it was there before");
}

/// A quarter of four requests is one.
#[test]
fn explain_says_that_a_request_would_run_beyond_a_grant_and_what_is_left_there() {
    let state = State::new();
    run(&state, &["account", "create", "acme"]);
    run(&state, &["quota", "set", "acme", "requests_granted", "4", "--until", "2099-01-01"]);
    let key = run(&state, &["key", "create", "alice", "--account", "acme"]).trim().to_owned();
    let served = Served::start(&state, &[]);
    let explain = || explained(&state, &["quota", "explain", "alice", "--tokens", "1"]);
    assert!(!String::from_utf8(explain().1).unwrap().contains("as overrun"), "it is within the grant");
    let body = json!({"model": "demo", "prompt": "Once", "max_tokens": 1});
    for _ in 0..4 {
        assert_eq!(open_as(&served.address, "/v1/completions", &body, &key).whole().status, 200);
    }
    let (fits, said) = explain();
    let said = String::from_utf8(said).unwrap();
    assert!(fits && said.contains("beyond requests_granted of acme: it would run as overrun"), "{said}");
    assert!(said.contains("of it is left: 1\n") && said.contains("every other limit"), "{said}");
    assert_eq!(open_as(&served.address, "/v1/completions", &body, &key).whole().status, 200);
    assert!(!explain().0, "nothing is left");
}
