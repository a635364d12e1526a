//! Loads that the command line describes: rising levels, and prompts of a file.

use std::sync::Mutex;
use std::time::Duration;

use passerelle_loadtests::arrivals::Arrivals;
use passerelle_loadtests::clock::now;
use passerelle_loadtests::plan::PlanError;
use passerelle_loadtests::scenario::Scenario;
use passerelle_loadtests::sweep::{Levels, Sweep, SweepOptions, Until, sweep};
use serde_json::json;

use crate::server::{Reply, Scripted, Seen, steady, virtual_time};

const MS: Duration = Duration::from_millis(1);

fn scenario(workload: &str) -> Scenario {
    let text = format!(
        "description = 'test'\nduration_s = 20\n[[traffic]]\nname = 'chat'\n\
         arrivals = {{ kind = 'constant', rate = 1.0 }}\nworkload = {workload}\n"
    );
    Scenario::parse("test", &text).expect("the test's scenario is well formed")
}

/// Ten requests a second, one after the other.
fn one_at_a_time() -> Scripted {
    let free = Mutex::new(now());
    Scripted::new(move |_| {
        let mut free = free.lock().expect("no test panics while it holds the lock");
        *free = (*free).max(now()) + 100 * MS;
        Reply::Tokens { delays: vec![free.saturating_duration_since(now())], text: "w ".to_owned() }
    })
}

async fn swept(server: &Scripted, levels: Levels, until: Until) -> Sweep {
    let options = SweepOptions { until, run: virtual_time(), threads: 1, server_pid: None };
    let load = scenario("{ kind = 'chat', prompt_tokens = 9, output_tokens = 11 }");
    sweep(&server.session().await, &load, &levels, &options).await.expect("prompts can be made")
}

#[tokio::test(start_paused = true)]
async fn a_sweep_ends_at_the_first_rate_that_is_too_much() {
    let rates = Levels::Rates(vec![2.0, 4.0, 20.0, 40.0]);
    let ended = swept(&one_at_a_time(), rates.clone(), Until::Saturation).await;
    assert_eq!((ended.levels.len(), ended.best), (3, Some(1)), "{}", ended.table());
    assert!(ended.table().contains("at 20.0 requests/s the server does not keep up: "), "{}", ended.table());
    assert!(ended.table().contains("best: 4.00 requests/s"), "{}", ended.table());
    let all = swept(&one_at_a_time(), rates.clone(), Until::End).await;
    assert_eq!((all.levels.len(), all.best), (4, Some(1)), "{}", all.table());
    let keeps_up = swept(&Scripted::new(steady(50 * MS, 10 * MS)), rates, Until::Saturation).await;
    assert_eq!((keeps_up.levels.len(), keeps_up.best), (4, Some(3)), "{}", keeps_up.table());
    assert!(keeps_up.table().contains("it was not saturated"), "{}", keeps_up.table());
}

#[tokio::test(start_paused = true)]
async fn a_sweep_ends_where_requests_are_refused() {
    let refuses = Scripted::new(|seen: &Seen| match seen.in_flight {
        0..=4 => steady(500 * MS, 10 * MS)(seen),
        _ => Reply::Status { status: 503, body: "{}".to_owned() },
    });
    let ended = swept(&refuses, Levels::Rates(vec![1.0, 30.0, 60.0]), Until::Saturation).await;
    assert_eq!((ended.levels.len(), ended.best), (2, Some(0)), "{}", ended.table());
    let why = ended.levels[1].saturated.as_deref().unwrap_or_default();
    assert!(why.contains("of the requests were refused or failed"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn further_users_who_only_wait_for_each_other_end_a_sweep() {
    let users = || Levels::Concurrencies(vec![1, 2, 4, 8]);
    let ended = swept(&one_at_a_time(), users(), Until::Saturation).await;
    assert_eq!(ended.levels.len(), 2, "{}", ended.table());
    assert!(
        ended.table().contains("at 2.00 users the server does not keep up: 100 % more users got "),
        "{}",
        ended.table()
    );
    let batches = swept(&Scripted::new(steady(50 * MS, 10 * MS)), users(), Until::Saturation).await;
    assert_eq!((batches.levels.len(), batches.best), (4, Some(3)), "{}", batches.table());
    let json = json!(batches);
    assert_eq!((&json["of"], &json["levels"][3]["offered"]), (&"users".into(), &8.0.into()));
    assert!(json["levels"][3]["report"]["figures"]["total"]["ttft_ms"]["p50"].is_number());
}

#[tokio::test(start_paused = true)]
async fn a_level_at_which_many_are_refused_is_not_the_best_however_many_tokens_it_brings() {
    let refuses = Scripted::new(|seen: &Seen| match seen.in_flight > 4 && seen.number.is_multiple_of(2) {
        true => Reply::Status { status: 503, body: "{}".to_owned() },
        false => steady(500 * MS, 10 * MS)(seen),
    });
    let ended = swept(&refuses, Levels::Concurrencies(vec![2, 4, 8]), Until::Saturation).await;
    let tokens: Vec<f64> = ended.levels.iter().map(|level| level.report.figures.total.output_tokens_per_s).collect();
    assert!(tokens.len() == 3 && tokens[2] > tokens[1], "{}", ended.table());
    assert_eq!(ended.best, Some(1), "{}", ended.table());
}

#[tokio::test(start_paused = true)]
async fn the_prompts_of_a_file_are_asked_as_they_are_and_as_long_as_its_answers() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("prompts.jsonl");
    let lines = [
        r#"{"prompt": "one two three", "output_tokens": 2}"#,
        r#"{"messages": [{"role": "user", "content": "four"}, {"role": "assistant", "content": "a b c"}]}"#,
        r#"{"prompt": "much too long for that many tokens", "output_tokens": 2}"#,
    ];
    std::fs::write(&file, lines.join("\n")).unwrap();
    let asked = |rest: &str| {
        let workload = format!("{{ kind = 'dataset', file = '{}', {rest} }}", file.display());
        let mut scenario = scenario(&workload);
        scenario.traffic[0].arrivals = Arrivals::Constant { rate: 0.5 };
        async move {
            let server = Scripted::new(steady(20 * MS, 10 * MS));
            let run = server.session().await.run(&scenario, &virtual_time()).await.map(|(_, _, figures)| figures);
            let of = |seen: &Seen| (seen.body["messages"].clone(), seen.body["max_tokens"].as_u64());
            run.map(|_| server.seen().iter().map(of).collect::<Vec<_>>())
        }
    };
    let seen = asked("max_prompt_tokens = 3").await.unwrap();
    let user = |text: &str| json!([{"role": "user", "content": text}]);
    assert_eq!(seen.len(), 10);
    let (one, four) = ((user("one two three"), Some(2)), (user("four"), Some(3)));
    for pair in seen.chunks(2) {
        assert!(pair.contains(&one) && pair.contains(&four), "each once before any comes again: {pair:?}");
    }
    assert_eq!(asked("max_prompt_tokens = 3").await.unwrap(), seen, "the same seed is the same load");
    let limited = asked("output_tokens = 7").await.unwrap();
    assert!(limited.iter().all(|(_, tokens)| *tokens == Some(7)) && limited.iter().any(|(asked, _)| *asked != one.0));
    std::fs::write(&file, r#"{"prompt": "one"}"#).unwrap();
    assert!(matches!(asked("max_prompt_tokens = 3").await, Err(PlanError::Dataset(_))), "how long is the answer?");
}
