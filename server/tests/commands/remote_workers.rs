//! Workers that somebody else starts, on this machine or another.

use std::fs;
use std::time::Duration;

use passerelle_engine::clock::{Clock, SystemClock};
use serde_json::Value;

use super::binary::{Served, State, request, signal};
use super::workers::{demo, is_ready, question, wait_until};

/// The file of a configuration with a checkpoint of the demo model under the name `early`, for a worker that somebody starts.
fn awaits_a_worker(state: &State, checkpoint: &str) -> String {
    let text = format!(
        "[workers]\nlisten = \"127.0.0.1:0\"\nfirst_restart = \"20ms\"\nlongest_restart = \"100ms\"\n\
         [[partitions]]\nname = \"far\"\nthreads = 1\nworker = \"remote\"\n\
         [[models]]\nname = \"early\"\nsource = \"{}\"\npartition = \"far\"\n",
        demo(checkpoint)
    );
    let file = state.path().join("config.toml");
    fs::write(&file, text).expect("the folder is writable");
    file.display().to_string()
}

fn socket(state: &State) -> String {
    format!("unix:{}", state.path().join("passerelle/workers.sock").display())
}

/// As on another machine, but for the way there.
#[test]
fn a_worker_that_somebody_else_started_outlives_its_gateway_and_serves_the_next() {
    let (state, elsewhere) = (State::new(), State::new());
    let (here, there) = (awaits_a_worker(&state, "early"), awaits_a_worker(&elsewhere, "early"));
    let socket = socket(&state);
    let mut worker = elsewhere.command(&["worker", "--partition", "far", "--connect", &socket, "--config", &there]);
    let mut worker = worker.spawn().expect("the binary runs");
    for _ in 0..2 {
        let served = Served::start(&state, &["--config", &here]);
        wait_until("the worker's model is served", || is_ready(&served));
        assert_eq!(request(&served.address, "POST", "/v1/chat/completions", &question("early", 8)).status, 200);
        served.signal("KILL");
    }
    signal(worker.id(), "TERM");
    assert!(worker.wait().expect("it was started here").success(), "it leaves and exits with 0, without a gateway");
}

/// Of the configurations here.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

#[test]
fn a_worker_leaves_by_itself_before_its_time_is_over_and_exits_with_0() {
    let (state, elsewhere) = (State::new(), State::new());
    let (here, there) = (awaits_a_worker(&state, "early"), awaits_a_worker(&elsewhere, "early"));
    let served = Served::start(&state, &["--config", &here]);
    let (socket, clock) = (socket(&state), SystemClock::new());
    let until = clock.wall() + DRAIN_TIMEOUT + Duration::from_secs(6);
    let until_text = until.as_secs().to_string();
    let dial = ["worker", "--partition", "far", "--connect", &socket, "--config", &there, "--until", &until_text];
    let mut worker = elsewhere.command(&dial).spawn().expect("the binary runs");
    wait_until("the worker's model is served", || is_ready(&served));
    assert_eq!(request(&served.address, "POST", "/v1/chat/completions", &question("early", 8)).status, 200);
    assert!(worker.wait().expect("it was started here").success());
    assert!(clock.wall() < until, "it left before");
    assert!(!is_ready(&served), "it said so");
    let alone = request(&served.address, "POST", "/v1/chat/completions", &question("early", 8));
    assert!(alone.status == 503 && alone.text().contains("\"code\":\"no_replica\""), "{}", alone.text());
}

#[test]
fn a_worker_of_another_machine_that_comes_first_brings_no_other_checkpoint_under_the_name() {
    let (state, elsewhere) = (State::new(), State::new());
    let (here, there) = (awaits_a_worker(&state, "early"), awaits_a_worker(&elsewhere, "final"));
    let served = Served::start(&state, &["--config", &here]);
    let socket = socket(&state);
    let dial = ["worker", "--partition", "far", "--connect", &socket, "--config", &there];
    let sent_away = elsewhere.command(&dial).output().expect("the binary runs");
    let said = String::from_utf8_lossy(&sent_away.stderr);
    assert!(!sent_away.status.success() && said.contains("another checkpoint"), "{said}");
    assert!(!is_ready(&served));
}

/// `address=` of the line that says where workers of other machines come in.
fn entry(state: &State) -> String {
    let mut found = None;
    wait_until("the server says where workers may come", || {
        let log = fs::read_to_string(state.log()).unwrap_or_default();
        let line = log.lines().find(|line| line.contains("workers of other machines may come"));
        let address = line.and_then(|line| line.split("address=").nth(1)?.split_whitespace().next());
        found = address.map(str::to_owned);
        found.is_some()
    });
    found.expect("it was found")
}

#[test]
fn an_enrolment_replaces_no_other_and_says_so() {
    let state = State::new();
    let enrol = || {
        let output = state.command(&["worker", "enrol", "--partition", "far", "--out", "papers"]).output();
        let output = output.expect("the binary runs");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert!(enrol().0);
    let (is_made, said) = enrol();
    assert!(!is_made && said.contains("papers: an enrolment is there already; name another folder"), "{said}");
}

#[test]
fn nobody_is_enrolled_for_a_partition_that_no_configuration_can_have() {
    let state = State::new();
    let output = state.command(&["worker", "enrol", "--partition", "far away", "--out", "papers"]).output();
    let output = output.expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("--partition: `far away` is not a name; write one"), "{said}");
    assert!(!state.path().join("papers").exists());
}

#[test]
fn a_worker_of_another_machine_enrols_and_serves_over_mutual_tls() {
    let (state, elsewhere) = (State::new(), State::new());
    let config = |state: &State| {
        let text = format!(
            "[workers]\nlisten = \"127.0.0.1:0\"\n[[partitions]]\nname = \"far\"\nthreads = 1\nworker = \"remote\"\n\
             [[partitions]]\nname = \"farther\"\nworker = \"remote\"\n\
             [[models]]\nname = \"early\"\nsource = \"{}\"\npartition = \"far\"\n\
             [[models]]\nname = \"final\"\nsource = \"{}\"\npartition = \"farther\"\n",
            demo("early"),
            demo("final")
        );
        let file = state.path().join("config.toml");
        fs::write(&file, text).expect("the folder is writable");
        file.display().to_string()
    };
    let (here, there) = (config(&state), config(&elsewhere));
    let served = Served::start_logging(&state, &["--config", &here], "info");
    let papers = elsewhere.path().join("papers").display().to_string();
    let enrolled = state.command(&["worker", "enrol", "--partition", "far", "--out", &papers]).output();
    assert!(enrolled.expect("the binary runs").status.success());
    let address = entry(&state);
    let dial = |partition: &str| {
        let dial = ["worker", "--partition", partition, "--connect", &address, "--credentials", &papers];
        elsewhere.command(&[&dial[..], &["--config", &there]].concat())
    };
    let unwanted = dial("farther").output().expect("the binary runs");
    assert!(String::from_utf8_lossy(&unwanted.stderr).contains("its certificate is not for partition `farther`"));
    let ask = |model: &str| request(&served.address, "POST", "/v1/chat/completions", &question(model, 8));
    let state_of = |model: &str| {
        request(&served.address, "GET", &format!("/v1/models/{model}"), &Value::Null).json()["state"].clone()
    };
    let awaited = ask("early");
    assert_eq!((awaited.status, state_of("early"), state_of("final")), (503, "unready".into(), "unready".into()));
    assert!(awaited.text().contains("\"code\":\"no_replica\""), "{}", awaited.text());
    let mut worker = dial("far").spawn().expect("the binary runs");
    wait_until("the worker's model is served", || state_of("early") == "ready");
    assert_eq!((ask("early").status, ask("final").status), (200, 503));
    signal(worker.id(), "TERM");
    assert!(worker.wait().expect("it was started here").success(), "it leaves and exits with 0");
    let alone = ask("early");
    assert_eq!((alone.status, state_of("early")), (503, "unready".into()), "nobody is sure to follow");
    assert!(alone.text().contains("\"code\":\"no_replica\""), "{}", alone.text());
}
