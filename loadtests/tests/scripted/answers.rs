//! Answers as servers spell them, and what servers do not take.

use std::time::Duration;

use passerelle_loadtests::figures::RunFigures;
use passerelle_loadtests::plan::{Keys, Vocabulary};
use passerelle_loadtests::process::MachineFigures;
use passerelle_loadtests::report::Report;
use passerelle_loadtests::run::RunOptions;
use passerelle_loadtests::scenario::Scenario;
use serde_json::{Value, json};

use crate::server::{Fault, Reply, Scripted, Seen, steady, virtual_time};

const MS: Duration = Duration::from_millis(1);
const CHAT: &str = "{ kind = 'chat', prompt_tokens = 9, output_tokens = 2 }";

/// Ten seconds of one request a second.
fn scenario(workload: &str, rest: &str) -> Scenario {
    let text = format!(
        "description = 'test'\nduration_s = 10\ntimeout_s = 5\n[[traffic]]\nname = 'chat'\n\
         arrivals = {{ kind = 'constant', rate = 1.0 }}\nworkload = {workload}\n{rest}"
    );
    Scenario::parse("test", &text).expect("the test's scenario is well formed")
}

async fn figures_of(server: &Scripted, scenario: &Scenario) -> RunFigures {
    server.session().await.run(scenario, &virtual_time()).await.expect("prompts can be made").2
}

fn stream(events: &[Value]) -> String {
    events.iter().map(|event| format!("data: {event}\n\n")).collect()
}

fn said(delta: &Value) -> Value {
    json!({"choices": [{"index": 0, "delta": delta, "finish_reason": null}]})
}

fn finish() -> Value {
    json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
}

#[tokio::test(start_paused = true)]
async fn every_spelling_of_a_whole_answer_is_read() {
    let usage = json!({"prompt_tokens": 9, "completion_tokens": 2});
    let done = "data: [DONE]\n\n";
    let both = said(&json!({"reasoning": "w ", "reasoning_content": "w "}));
    let one = said(&json!({"reasoning": "w "}));
    let parts = said(&json!({"content": [{"type": "text", "text": "w "}]}));
    let plain = said(&json!({"content": "w "}));
    let without_choices = json!({"choices": null, "usage": usage});
    for (name, said) in [
        ("both names of reasoning", stream(&[both.clone(), both, finish()]) + done),
        ("one name of reasoning", stream(&[one.clone(), one, finish()]) + done),
        ("a list of parts", stream(&[parts.clone(), parts, finish()]) + done),
        ("no choices beside the usage", stream(&[plain.clone(), plain.clone(), finish(), without_choices]) + done),
        ("no [DONE]", stream(&[plain.clone(), plain, finish()])),
    ] {
        let server = Scripted::new(move |_| Reply::Raw(said.clone()));
        let session = server.session().await;
        let (_, run, figures) = session.run(&scenario(CHAT, ""), &virtual_time()).await.expect("prompts can be made");
        assert_eq!(figures.total.finished, 10, "{name}: {:?}", figures.total.errors);
        assert_eq!((figures.total.output_tokens, run.records[0].text.as_str()), (20, "w w "), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_server_does_after_the_last_event_is_not_its_answer() {
    let whole = stream(&[said(&json!({"content": "w"})), finish()]) + "data: [DONE]\n\n";
    let server = Scripted::new(move |_| Reply::Lingers(whole.clone()));
    let figures = figures_of(&server, &scenario(CHAT, "")).await.total;
    assert_eq!(figures.finished, 10, "{:?}", figures.errors);
    let e2e = figures.e2e_ms.expect("all ended");
    assert!(e2e.max < 5.0, "{e2e:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_takes_only_openais_fields_gets_no_others() {
    let server = Scripted::new(|seen| {
        let is_plain = ["ignore_eos", "skip_special_tokens", "max_tokens"].iter().all(|name| seen.body[name].is_null());
        match is_plain && seen.body["max_completion_tokens"] == 2 {
            true => Reply::Tokens { delays: vec![MS; 2], text: "w ".to_owned() },
            false => Reply::Status { status: 400, body: "{}".to_owned() },
        }
    });
    let scenario = scenario(CHAT, "request = { ignore_eos = true }");
    let session = server.session().await;
    let refused = session.run(&scenario, &virtual_time()).await.expect("prompts can be made").2;
    assert_eq!(refused.total.refused["400"], 10);
    let session = session.speaking(Vocabulary::Plain);
    let figures = session.run(&scenario, &virtual_time()).await.expect("prompts can be made").2;
    assert_eq!((figures.total.finished, figures.total.output_tokens), (10, 20));
}

#[tokio::test(start_paused = true)]
async fn an_answer_in_one_piece_is_measured_and_has_no_first_token() {
    let server = Scripted::new(|seen| {
        let body = json!({
            "choices": [{"message": {"content": "w w"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 2},
        });
        match seen.body["stream"] == false && seen.body["stream_options"].is_null() {
            true => Reply::Status { status: 200, body: body.to_string() },
            false => Reply::Status { status: 400, body: "{}".to_owned() },
        }
    });
    let figures = figures_of(&server, &scenario(CHAT, "request = { extra = { stream = false } }")).await.total;
    assert_eq!((figures.finished, figures.good, figures.output_tokens), (10, 10, 20), "{:?}", figures.refused);
    assert_eq!((figures.ttft_ms, figures.itl_ms, figures.tpot_ms), (None, None, None));
    assert!(figures.e2e_ms.is_some());
}

#[tokio::test(start_paused = true)]
async fn prompts_that_nobody_counted_are_unknown_and_not_none() {
    let server = Scripted::new(steady(20 * MS, 10 * MS)).with(Fault::Silent);
    let scenario = scenario(CHAT, "");
    let (plan, run, _) = server.session().await.run(&scenario, &virtual_time()).await.expect("prompts can be made");
    let table = Report::of(&run, &scenario, &plan, MachineFigures::default(), 1).table();
    assert!(table.contains(" tokens/s out, tokens/s in unknown (the server told no usage)\n"), "{table}");
}

#[tokio::test(start_paused = true)]
async fn a_generator_that_may_open_no_more_connections_blames_itself() {
    let server = Scripted::new(steady(5000 * MS, MS)).with(Fault::OutOfFiles(3));
    let scenario = Scenario { timeout_s: 60.0, ..scenario(CHAT, "") };
    let session = server.session().await;
    let (plan, run, figures) = session.run(&scenario, &virtual_time()).await.expect("prompts can be made");
    let lost = figures.total.errors["the generator may open no more connections"];
    assert!(lost > 0 && figures.total.finished > 0, "{:?}", figures.total.errors);
    let report = Report::of(&run, &scenario, &plan, MachineFigures::default(), 1);
    let told = format!("no connection for {lost} requests; raise `ulimit -Hn`");
    assert!(report.warnings.iter().any(|warning| warning.contains(&told)), "{:?}", report.warnings);
    assert!(report.table().contains("generator: ? cores"), "{}", report.table());
}

#[tokio::test(start_paused = true)]
async fn a_generator_with_too_much_in_flight_blames_itself() {
    let server = Scripted::new(steady(3000 * MS, MS));
    let (scenario, session) = (scenario(CHAT, ""), server.session().await);
    let options = RunOptions { max_in_flight: 2, ..virtual_time() };
    let (plan, run, figures) = session.run(&scenario, &options).await.expect("prompts can be made");
    let unsent = figures.total.errors["not sent: too much in flight"];
    assert!(figures.total.finished > 0 && figures.total.own_errors == unsent, "{:?}", figures.total.errors);
    let report = Report::of(&run, &scenario, &plan, MachineFigures::default(), 1);
    let told = format!("too much in flight to send {unsent} requests");
    assert!(report.warnings.iter().any(|warning| warning.contains(&told)), "{:?}", report.warnings);
}

#[tokio::test(start_paused = true)]
async fn no_turn_of_a_conversation_comes_after_the_scenarios_end() {
    let server = Scripted::new(steady(20 * MS, 10 * MS));
    let talk = "{ kind = 'multi_turn', turns = 9, think_s = 4.0, prompt_tokens = 5, output_tokens = 4 }";
    let figures = figures_of(&server, &scenario(talk, "requests = 1")).await;
    assert_eq!(figures.total.finished, 3, "at 0, 4 and 8 s");
    assert!(figures.wall_s < 10.0, "{}", figures.wall_s);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_breaks_its_schema_is_an_error() {
    let structured = "{ kind = 'structured', prompt = 'x', output_tokens = 9, schema = { type = 'object', \
                      required = ['age'], additionalProperties = false, properties = { age = { type = 'integer' } } } }";
    for (answer, finished) in [(r#"{"age":3}"#, 10), (r#"{"age":"old"}"#, 0), (r#"{"age":3,"more":1}"#, 0)] {
        let server = Scripted::new(move |_| Reply::Tokens { delays: vec![MS], text: answer.to_owned() });
        assert_eq!(figures_of(&server, &scenario(structured, "")).await.total.finished, finished, "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_tokenize_is_told_with_what_helps() {
    for (status, what) in [
        (401, "/tokenize answered 401: it needs a key, or another one: OPENAI_API_KEY or --keys"),
        (
            404,
            "the server has no route that tokenizes, or none for this model; check --model, or give its tokenizer.json with --tokenizer",
        ),
        (429, "/tokenize answered 429: it limits how often it is asked; count with its tokenizer.json (--tokenizer)"),
        (503, "/tokenize answered 503: without a count no prompt is exact"),
    ] {
        let not_here = |_: &Seen| Reply::Status { status: 404, body: "{}".to_owned() };
        let server = Scripted::new(not_here).with(Fault::TokenizesNot(status));
        let error = server.open(Keys::default()).await.expect_err("it cannot be opened").to_string();
        assert!(error.starts_with(what), "{error}");
    }
    let unreachable = Scripted::new(|_| Reply::Silence).with(Fault::OutOfFiles(0));
    let error = unreachable.open(Keys::default()).await.expect_err("it cannot be opened").to_string();
    assert!(error.contains("cannot connect"), "{error}");
}
