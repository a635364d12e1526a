//! Servers side by side, and answers beside themselves.

use std::time::Duration;

use passerelle_loadtests::compare::{Better, CompareError, CompareOptions, Comparison, Contender, compare};
use passerelle_loadtests::correctness;
use passerelle_loadtests::scenario::Scenario;
use passerelle_loadtests::verdict::{Outcome, Verdict};
use serde_json::json;

use crate::server::{Fault, Reply, Scripted, Seen, steady, virtual_time};

const MS: Duration = Duration::from_millis(1);

fn scenario() -> Scenario {
    let text = "description = 'test'\nduration_s = 10\n[[traffic]]\nname = 'chat'\n\
                arrivals = { kind = 'poisson', rate = 5.0 }\n\
                workload = { kind = 'chat', prompt_tokens = 9, output_tokens = 11 }\n";
    Scenario::parse("test", text).expect("the scenario is well formed")
}

async fn compared(servers: [Scripted; 2]) -> Result<Comparison, CompareError> {
    let mut contenders = Vec::new();
    for (name, server) in ["a", "b"].into_iter().zip(servers) {
        // Both run in this very process.
        let pid = Some(std::process::id());
        contenders.push(Contender { name: name.to_owned(), session: server.session().await, pid });
    }
    let options = CompareOptions { rounds: 3, token_tolerance: 0, run: virtual_time(), threads: 1 };
    compare(&contenders, &scenario(), &options).await
}

#[tokio::test(start_paused = true)]
async fn ratios_are_those_of_the_delays() {
    let comparison =
        compared([Scripted::new(steady(50 * MS, 10 * MS)), Scripted::new(steady(100 * MS, 5 * MS))]).await.unwrap();
    let row = |name: &str| comparison.rows.iter().find(|row| row.figure.starts_with(name)).unwrap();
    let first = row("time to first token, p50").ratios[0];
    assert!((first.estimate - 2.0).abs() < 0.05 && first.is_clear(), "{first}");
    let per_token = row("time per output token, p50").ratios[0];
    assert!((per_token.estimate - 0.5).abs() < 0.05 && per_token.is_clear(), "{per_token}");
    assert_eq!(row("output tokens per second").better, Better::Higher);
    assert!(comparison.table().contains("b/a"));
    let machine = comparison.machine.as_ref().expect("both processes are known");
    assert_eq!(machine.server_pids.len(), 2);
    assert!(comparison.table().contains("; other programs: "), "{}", comparison.table());
}

#[tokio::test(start_paused = true)]
async fn different_work_is_not_compared() {
    let short = Scripted::new(|_| Reply::Tokens { delays: vec![MS; 7], text: "w".to_owned() });
    let error = compared([Scripted::new(steady(50 * MS, MS)), short]).await.unwrap_err();
    assert!(matches!(error, CompareError::CountsDiffer { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_server_without_usage_is_counted_by_the_tokenizer() {
    let servers = || (Scripted::new(steady(50 * MS, 10 * MS)), Scripted::new(steady(50 * MS, 10 * MS)));
    let (told, silent) = servers();
    let comparison = compared([told, silent.with(Fault::Silent)]).await.unwrap();
    assert_eq!(comparison.without_usage, ["b"]);
    let rate = comparison.rows.iter().find(|row| row.better == Better::Higher).unwrap();
    assert!((rate.ratios[0].estimate - 1.0).abs() < 0.01, "{}", rate.ratios[0]);
}

#[tokio::test(start_paused = true)]
async fn the_order_of_the_servers_changes_from_round_to_round() {
    let log = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
    let server = |name: char| {
        let log = std::sync::Arc::clone(&log);
        Scripted::new(move |seen| {
            let mut log = log.lock().unwrap();
            if !log.ends_with(name) {
                log.push(name);
            }
            drop(log);
            steady(5 * MS, MS)(seen)
        })
    };
    compared([server('a'), server('b')]).await.unwrap();
    assert_eq!(*log.lock().unwrap(), "abab", "a b, then b a, then a b");
}

/// At so many times the load of [`scenario`].
async fn correctness_of(reply: impl Fn(&Seen) -> Reply + Send + Sync + 'static, rate_scale: f64) -> Verdict {
    let scenario = Scenario { rate_scale, ..scenario() };
    correctness::check(&Scripted::new(reply).session().await, &scenario, &virtual_time()).await.unwrap()
}

fn said(text: &str) -> Reply {
    Reply::Tokens { delays: vec![100 * MS; 5], text: text.to_owned() }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_load_changes_or_cuts_is_found() {
    let verdict = correctness_of(|_| said("w "), 1.0).await;
    assert!(verdict.holds(), "{}", verdict.render());
    let changed = correctness_of(|seen| said(if seen.in_flight > 2 { "x " } else { "w " }), 1.0).await;
    assert!(changed.broken[0].contains("differs after 0 characters"), "{}", changed.render());
    let cut = |text: &'static str| {
        let chunk = format!("data: {}\n\n", json!({"choices": [{"delta": {"content": text}}]}));
        move |seen: &Seen| if seen.in_flight > 2 { Reply::Raw(chunk.clone()) } else { said("w ") }
    };
    let verdict = correctness_of(cut("w "), 1.0).await;
    assert!(verdict.broken[0].contains("ends after 2 characters: stream cut"), "{}", verdict.render());
    let verdict = correctness_of(cut("wrong"), 1.0).await;
    assert!(verdict.broken[0].contains("differs after 1 characters"), "{}", verdict.render());
}

#[tokio::test(start_paused = true)]
async fn a_load_that_batches_nothing_or_is_refused_tells_nothing() {
    let verdict = correctness_of(|_| said("w "), 0.05).await;
    assert_eq!(verdict.outcome(), Outcome::CannotTell, "{}", verdict.render());
    assert!(verdict.undecided[0].contains("requests were in flight; give a larger load"), "{}", verdict.render());
    let busy = || Reply::Status { status: 503, body: "{}".to_owned() };
    let verdict = correctness_of(move |seen| if seen.in_flight > 2 { busy() } else { said("w ") }, 1.0).await;
    assert_eq!(verdict.outcome(), Outcome::CannotTell, "{}", verdict.render());
    assert!(verdict.undecided[0].contains("refused requests"), "{}", verdict.render());
}
