//! Every way in which a request ends is told apart, and what was sent is what the scenario says.

use std::collections::BTreeSet;
use std::time::Duration;

use passerelle_loadtests::figures::RunFigures;
use passerelle_loadtests::plan::{Keys, Plan, Script};
use passerelle_loadtests::scenario::Scenario;

use crate::server::{Reply, Scripted, Seen, steady, virtual_time};

const MS: Duration = Duration::from_millis(1);

fn scenario(traffic: &str) -> Scenario {
    let text = format!("description = 'test'\nduration_s = 10\ntimeout_s = 5\n{traffic}");
    Scenario::parse("test", &text).expect("the test's scenario is well formed")
}

fn chat(rest: &str) -> Scenario {
    scenario(&format!(
        "[[traffic]]\nname = 'chat'\narrivals = {{ kind = 'constant', rate = 1.0 }}\n\
         workload = {{ kind = 'chat', prompt_tokens = 9, output_tokens = 12 }}\n{rest}"
    ))
}

async fn figures_of(server: &Scripted, scenario: &Scenario) -> RunFigures {
    server.session().await.run(scenario, &virtual_time()).await.expect("prompts can be made").2
}

#[tokio::test(start_paused = true)]
async fn errors_are_told_apart() {
    let replies = || {
        vec![
            Reply::Status { status: 429, body: r#"{"error":{"code":"rate_limit_exceeded","type":"x"}}"#.to_owned() },
            Reply::Status { status: 503, body: "down".to_owned() },
            Reply::Raw("data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n".to_owned()),
            Reply::Raw("data: {\"error\":{\"message\":\"x\"}}\n\ndata: [DONE]\n\n".to_owned()),
            Reply::Raw("data: {not json}\n\ndata: [DONE]\n\n".to_owned()),
            Reply::Silence,
            Reply::Raw("data: {\"choices\":[{\"delta\":{\"content\":\"\"}}]}\n\ndata: [DONE]\n\n".to_owned()),
            Reply::Tokens { delays: vec![MS; 12], text: "w ".to_owned() },
        ]
    };
    let server = Scripted::new(move |seen| replies().swap_remove(seen.number.min(7)));
    let figures = figures_of(&server, &chat("")).await.total;
    assert_eq!((figures.requests, figures.finished, figures.good), (10, 3, 3));
    assert_eq!((figures.refused["429 rate_limit_exceeded"], figures.refused["503"]), (1, 1));
    for kind in ["stream cut", "error in the stream", "malformed answer", "timeout", "empty answer"] {
        assert_eq!(figures.errors.get(kind), Some(&1), "{kind}: {:?}", figures.errors);
    }
}

#[tokio::test(start_paused = true)]
async fn no_answer_ends_well_in_which_an_event_is_named_error() {
    let said = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\nevent: error\ndata: {\"message\":\"x\"}\n\n\
                data: [DONE]\n\n";
    let server = Scripted::new(move |_| Reply::Raw(said.to_owned()));
    let figures = figures_of(&server, &chat("")).await.total;
    assert_eq!((figures.finished, figures.errors["error in the stream"]), (0, figures.requests));
}

#[tokio::test(start_paused = true)]
async fn who_leaves_is_no_error_and_closes_the_connection() {
    let server = Scripted::new(steady(20 * MS, 10 * MS));
    let figures = figures_of(&server, &chat("leave = { share = 1.0, after_events = 3 }")).await.total;
    assert_eq!((figures.left, figures.finished, figures.error_count()), (10, 0, 0));
    assert_eq!(figures.output_tokens, 30);
    assert_eq!(figures.good_share, 0.0);
}

#[tokio::test(start_paused = true)]
async fn who_would_leave_an_answer_that_is_over_has_it_and_hides_no_error() {
    let chunk = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n".repeat(4);
    let leaving = chat("leave = { share = 1.0, after_events = 3 }");
    let ended = |last: &str| {
        let said = format!("{chunk}{last}data: [DONE]\n\n");
        let leaving = &leaving;
        async move { figures_of(&Scripted::new(move |_| Reply::Raw(said.clone())), leaving).await.total }
    };
    let whole = ended("").await;
    assert_eq!((whole.finished, whole.left), (10, 0));
    let failed = ended("data: {\"error\":{\"message\":\"x\"}}\n\n").await;
    assert_eq!((failed.left, failed.errors["error in the stream"]), (0, 10));
}

#[tokio::test(start_paused = true)]
async fn a_run_of_which_all_was_refused_was_not_served() {
    let served = |status: u16| async move {
        let server = Scripted::new(move |seen| match seen.number {
            9 => Reply::Tokens { delays: vec![MS], text: "w ".to_owned() },
            _ => Reply::Status { status, body: "{}".to_owned() },
        });
        let one_less = Scenario { duration_s: 9.0, ..chat("") };
        (
            figures_of(&server, &one_less).await.total.was_served(),
            figures_of(&server, &chat("")).await.total.was_served(),
        )
    };
    assert_eq!(served(401).await, (false, true));
}

#[tokio::test(start_paused = true)]
async fn connections_are_kept_between_requests() {
    let server = Scripted::new(steady(20 * MS, 10 * MS));
    figures_of(&server, &chat("")).await;
    assert_eq!(server.connections(), 1);
}

#[tokio::test(start_paused = true)]
async fn prompts_are_exact_and_no_two_are_the_same() {
    let server = Scripted::new(steady(20 * MS, 10 * MS));
    figures_of(&server, &chat("")).await;
    let mut prompts: Vec<String> =
        server.seen().iter().map(|seen| seen.body["messages"][0]["content"].as_str().unwrap().to_owned()).collect();
    assert!(prompts.iter().all(|prompt| prompt.split_whitespace().count() == 9), "{prompts:?}");
    prompts.sort();
    prompts.dedup();
    assert_eq!(prompts.len(), 10);
}

fn bodies(plan: &Plan) -> BTreeSet<&str> {
    let bodies = plan.jobs().filter_map(|job| match &job.script {
        Script::Single(call) => Some(call.body.as_str()),
        Script::Conversation(_) => None,
    });
    bodies.collect()
}

/// The cache of a server that is asked one after the other would know the second one's prompts.
#[tokio::test(start_paused = true)]
async fn two_scenarios_of_one_seed_have_no_prompt_in_common() {
    let session = Scripted::new(steady(20 * MS, 10 * MS)).session().await;
    let one = chat("");
    let other = Scenario { description: "of another kind".to_owned(), ..one.clone() };
    let first = session.plan(&one).await.unwrap();
    let again = session.plan(&one).await.unwrap();
    let second = session.plan(&other).await.unwrap();
    assert_eq!(bodies(&first), bodies(&again), "a scenario and a seed are one load");
    assert!(bodies(&first).is_disjoint(&bodies(&second)));
}

#[tokio::test(start_paused = true)]
async fn conversations_carry_what_was_said() {
    let server = Scripted::new(steady(20 * MS, 10 * MS));
    let figures = figures_of(
        &server,
        &scenario(
            "[[traffic]]\nname = 'talk'\narrivals = { kind = 'constant', rate = 0.1 }\n\
             workload = { kind = 'multi_turn', turns = 3, think_s = 2.0, prompt_tokens = 5, output_tokens = 4 }",
        ),
    )
    .await;
    let seen = server.seen();
    let counts: Vec<usize> = seen.iter().map(|seen| seen.body["messages"].as_array().unwrap().len()).collect();
    assert_eq!(counts, [1, 3, 5]);
    assert_eq!(seen[2].body["messages"][1]["content"], "w w w w ");
    let ttft = figures.total.ttft_ms.unwrap();
    assert!((19.0..=22.0).contains(&ttft.max), "thinking is not the server's time: {ttft:?}");
}

#[tokio::test(start_paused = true)]
async fn shared_prefixes_are_few_and_shared() {
    let server = Scripted::new(steady(20 * MS, 10 * MS));
    figures_of(
        &server,
        &scenario(
            "[[traffic]]\nname = 'a'\narrivals = { kind = 'constant', rate = 4.0 }\nworkload = { kind = \
             'shared_prefix', prefixes = 3, prefix_tokens = 30, prompt_tokens = 5, output_tokens = 4 }",
        ),
    )
    .await;
    let mut systems: Vec<String> =
        server.seen().iter().map(|seen| seen.body["messages"][0]["content"].to_string()).collect();
    systems.sort();
    systems.dedup();
    assert_eq!(systems.len(), 3);
    assert!(systems.iter().all(|system| system.split_whitespace().count() == 30));
}

#[tokio::test(start_paused = true)]
async fn prompts_of_ids_begin_with_those_they_share_and_go_on_with_their_own() {
    let server = Scripted::new(steady(20 * MS, 10 * MS));
    figures_of(
        &server,
        &scenario(
            "[[traffic]]\nname = 'a'\narrivals = { kind = 'constant', rate = 4.0 }\nworkload = { kind = \
             'completions', token_ids = true, shared_tokens = 30, prompt_tokens = 50, output_tokens = 4 }",
        ),
    )
    .await;
    let prompts: Vec<Vec<u64>> =
        server.seen().iter().map(|seen| serde_json::from_value(seen.body["prompt"].clone()).unwrap()).collect();
    assert!(prompts.len() > 2 && prompts.iter().all(|prompt| prompt.len() == 80 && prompt[..30] == prompts[0][..30]));
    let own: BTreeSet<_> = prompts.iter().map(|prompt| &prompt[30..]).collect();
    assert_eq!(own.len(), prompts.len());
}

#[tokio::test(start_paused = true)]
async fn each_tenant_uses_its_key_and_has_its_figures() {
    let server = Scripted::new(|seen| {
        let first = if seen.api_key.as_deref() == Some("key-l") { 20 * MS } else { 200 * MS };
        Reply::Tokens { delays: vec![first], text: "w".to_owned() }
    });
    let by_tenant = [("light", "key-l"), ("greedy", "key-g")];
    let by_tenant = by_tenant.map(|(name, key)| (name.to_owned(), key.to_owned())).into();
    let session = server.session_with(Keys { default: None, by_tenant }).await;
    let entry = |name: &str, rate: f64| {
        format!(
            "[[traffic]]\nname = '{name}'\ntenant = '{name}'\narrivals = {{ kind = 'constant', rate = {rate:.1} }}\n\
             workload = {{ kind = 'chat', prompt_tokens = 9, output_tokens = 1 }}\n"
        )
    };
    let scenario = scenario(&(entry("light", 1.0) + &entry("greedy", 5.0)));
    let figures = session.run(&scenario, &virtual_time()).await.unwrap().2;
    assert_eq!((figures.tenants["light"].finished, figures.tenants["greedy"].finished), (10, 50));
    assert!(figures.tenants["light"].ttft_ms.unwrap().max < 25.0);
    assert!(figures.tenants["greedy"].ttft_ms.unwrap().p50 >= 200.0);
}

#[tokio::test(start_paused = true)]
async fn poison_must_be_refused_and_structure_must_hold() {
    let server = Scripted::new(|seen| match seen.body.get("response_format") {
        Some(_) => Reply::Tokens { delays: vec![MS], text: r#"{"name":"x"}"#.to_owned() },
        None if seen.number % 2 == 0 => Reply::Status { status: 400, body: "{}".to_owned() },
        None => Reply::Status { status: 500, body: "{}".to_owned() },
    });
    let poison =
        "[[traffic]]\nname = 'p'\narrivals = { kind = 'constant', rate = 1.0 }\nworkload = { kind = 'poison' }\n";
    let figures = figures_of(&server, &scenario(poison)).await.total;
    assert_eq!((figures.poison_refused, figures.errors["poison not refused"]), (5, 5));
    let structured = |required: &str| {
        scenario(&format!(
            "[[traffic]]\nname = 'j'\narrivals = {{ kind = 'constant', rate = 1.0 }}\n[traffic.workload]\n\
             kind = 'structured'\nprompt = 'x'\noutput_tokens = 9\nschema = {{ required = ['{required}'] }}\n"
        ))
    };
    assert_eq!(figures_of(&server, &structured("name")).await.total.finished, 10);
    let without_city = figures_of(&server, &structured("city")).await.total;
    assert_eq!(without_city.errors["answer is not the asked JSON"], 10);
}

#[tokio::test(start_paused = true)]
async fn a_trace_is_replayed_at_its_times() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trace.jsonl");
    let lines = [
        r#"{"at_s": 3.0, "messages": [{"role": "user", "content": "Hello there"}], "output_tokens": 2}"#,
        r#"{"at_s": 1.0, "prompt_tokens": 700, "output_tokens": 3, "hash_ids": [5, 6]}"#,
        r#"{"at_s": 2.0, "prompt_tokens": 600, "output_tokens": 3, "hash_ids": [5, 7], "tenant": "light"}"#,
        r#"{"at_s": 99.0, "prompt_tokens": 5, "output_tokens": 3}"#,
    ];
    std::fs::write(&file, lines.join("\n")).unwrap();
    let server = Scripted::new(steady(20 * MS, 10 * MS));
    let scenario = scenario(&format!(
        "[[traffic]]\nname = 't'\narrivals = {{ kind = 'trace' }}\nworkload = {{ kind = 'trace', file = '{}' }}\n",
        file.display()
    ));
    let figures = figures_of(&server, &scenario).await;
    let seen = server.seen();
    let words_of = |seen: &Seen| -> Vec<String> {
        let text = seen.body["messages"][0]["content"].as_str().unwrap();
        text.split_whitespace().map(str::to_owned).collect()
    };
    let words = |index: usize| words_of(&seen[index]);
    assert_eq!((words(0).len(), words(1).len(), words(2).len()), (700, 600, 2));
    assert_eq!(words(0)[..512], words(1)[..512], "the same block is the same words");
    assert_ne!(words(0)[512..600], words(1)[512..600]);
    let other = Scripted::new(steady(20 * MS, 10 * MS));
    figures_of(&other, &Scenario { seed: 2, ..scenario.clone() }).await;
    assert_ne!(words_of(&other.seen()[0])[..512], words(0)[..512], "of another seed they are others");
    assert!(
        (figures.wall_s - 3.03).abs() < 0.01,
        "what lies beyond the scenario's end is not sent: {}",
        figures.wall_s
    );
    assert_eq!((figures.traffic["t"].finished, figures.tenants["light"].finished), (3, 1));
}
