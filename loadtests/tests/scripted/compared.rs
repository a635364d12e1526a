//! Servers side by side, and answers beside themselves.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use passerelle_loadtests::compare::{
    Better, CompareError, CompareOptions, Comparison, Contender, PromptTokens, compare,
};
use passerelle_loadtests::correctness;
use passerelle_loadtests::scenario::{Leave, Scenario};
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
    compared_under(servers, &scenario()).await
}

async fn compared_under(servers: [Scripted; 2], scenario: &Scenario) -> Result<Comparison, CompareError> {
    let mut contenders = Vec::new();
    for (name, server) in ["a", "b"].into_iter().zip(servers) {
        // Both run in this very process.
        let pid = Some(std::process::id());
        contenders.push(Contender { name: name.to_owned(), session: server.session().await, pid });
    }
    let options = CompareOptions { rounds: 3, token_tolerance: 0, run: virtual_time(), threads: 1 };
    compare(&contenders, scenario, &options).await
}

#[tokio::test(start_paused = true)]
async fn ratios_are_those_of_the_delays() {
    let comparison =
        compared([Scripted::new(steady(50 * MS, 10 * MS)), Scripted::new(steady(100 * MS, 5 * MS))]).await.unwrap();
    let row = |name: &str| comparison.rows.iter().find(|row| row.figure.starts_with(name)).unwrap();
    let ratio = |name: &str| row(name).ratios[0].expect("there are enough requests");
    let first = ratio("time to first token, p50");
    assert!((first.estimate - 2.0).abs() < 0.05 && first.is_clear(), "{first}");
    let per_token = ratio("time per output token, p50");
    assert!((per_token.estimate - 0.5).abs() < 0.05 && per_token.is_clear(), "{per_token}");
    let gap = ratio("inter-token latency, p90");
    assert!((gap.estimate - 0.5).abs() < 0.05 && gap.is_clear(), "{gap}");
    assert_eq!(row("output tokens per second").better, Better::Higher);
    assert!((ratio("goodput").estimate - 1.0).abs() < 0.1, "both answer everything: {}", ratio("goodput"));
    assert_eq!(row("end to end, max").ratios, [None], "the worst of all has no interval");
    assert!(comparison.table().contains("requests not answered                      0           0\n"));
    assert!(comparison.table().contains("b/a"));
    let machine = comparison.machine.as_ref().expect("both processes are known");
    assert_eq!(machine.server_pids.len(), 2);
    assert!(comparison.table().contains("; other programs: "), "{}", comparison.table());
}

#[tokio::test(start_paused = true)]
async fn each_tenant_and_each_server_has_figures_of_its_own() {
    let traffic = |tenant: &str, output_tokens: u32| {
        format!(
            "[[traffic]]\nname = '{tenant}'\ntenant = '{tenant}'\narrivals = {{ kind = 'poisson', rate = 5.0 }}\n\
             workload = {{ kind = 'chat', prompt_tokens = 9, output_tokens = {output_tokens} }}\n"
        )
    };
    let text = format!("description = 'test'\nduration_s = 10\n{}{}", traffic("light", 11), traffic("greedy", 21));
    let scenario = Scenario::parse("test", &text).expect("the scenario is well formed");
    let slow_to_greedy = |seen: &Seen| {
        let gap = if seen.body["max_tokens"] == 21 { 20 * MS } else { 10 * MS };
        steady(50 * MS, gap)(seen)
    };
    let servers = [Scripted::new(steady(50 * MS, 10 * MS)), Scripted::new(slow_to_greedy)];
    let comparison = compared_under(servers, &scenario).await.unwrap();
    let ratio = |tenant: &str, figure: &str| {
        let row = comparison.tenants[tenant].iter().find(|row| row.figure.starts_with(figure)).expect("it is a figure");
        row.ratios[0].expect("there are enough requests").estimate
    };
    assert!((ratio("light", "time per output token, p50") - 1.0).abs() < 0.02);
    assert!((ratio("greedy", "time per output token, p50") - 2.0).abs() < 0.02);
    assert!((ratio("light", "output tokens") - 1.0).abs() < 0.1);
    assert_eq!(comparison.servers.len(), 2);
    assert!(comparison.servers.iter().all(|server| server.cpu_cores.is_some() && server.rss_max_bytes.is_some()));
    let table = comparison.table();
    for part in ["tenant greedy\n", "tenant light\n", "the server's cores ", "its resident size, max MiB "] {
        assert!(table.contains(part), "{part}: {table}");
    }
}

#[tokio::test(start_paused = true)]
async fn few_requests_have_no_tail_and_the_unanswered_are_counted() {
    let servers = [
        |_: &Seen| said("w "),
        |seen: &Seen| match seen.number {
            0 => Reply::Status { status: 503, body: "{}".to_owned() },
            _ => said("w "),
        },
    ];
    let few = Scenario { rate_scale: 0.2, ..scenario() };
    let comparison = compared_under(servers.map(Scripted::new), &few).await.unwrap();
    assert!(comparison.requests < 100, "{}", comparison.requests);
    let row = |name: &str| comparison.rows.iter().find(|row| row.figure.starts_with(name)).unwrap();
    assert_eq!(row("end to end, p99").ratios, [None]);
    assert!(row("end to end, p50").ratios[0].is_some());
    assert_eq!(comparison.unanswered, [0, 1]);
    assert!(comparison.table().contains("requests not answered                      0           1\n"));
}

#[tokio::test(start_paused = true)]
async fn what_is_sent_in_the_warm_up_is_in_no_figure_of_a_comparison() {
    let text = "description = 'test'\nduration_s = 10\nwarmup_s = 5\n[[traffic]]\nname = 'chat'\n\
                arrivals = { kind = 'burst', size = 20, every_s = 6.0 }\n\
                workload = { kind = 'chat', prompt_tokens = 9, output_tokens = 11 }\n";
    let scenario = Scenario::parse("test", text).expect("the scenario is well formed");
    // Twenty in the warm-up, and twenty after it.
    let cold = |seen: &Seen| match seen.number {
        0..5 => Reply::Status { status: 503, body: "{}".to_owned() },
        _ => steady(50 * MS, 10 * MS)(seen),
    };
    let servers = [Scripted::new(steady(50 * MS, 10 * MS)), Scripted::new(cold)];
    let comparison = compared_under(servers, &scenario).await.unwrap();
    assert_eq!((comparison.requests, comparison.unanswered.as_slice()), (60, &[0, 0][..]));
    let row = comparison.rows.iter().find(|row| row.figure == "output tokens per second").expect("it is a figure");
    // From the end of the warm-up to that of the last answer, which was asked for a second later and took 150 ms.
    let expected = 20.0 * 11.0 / 1.15;
    assert!(row.values.iter().all(|rate| (rate / expected - 1.0).abs() < 0.03), "{:?}", row.values);
}

#[tokio::test(start_paused = true)]
async fn users_who_leave_as_the_scenario_says_are_no_failure_of_a_server() {
    let mut scenario = scenario();
    scenario.traffic[0].leave = Some(Leave { share: 0.5, after_events: 3 });
    let servers = [(); 2].map(|()| Scripted::new(steady(50 * MS, 10 * MS)));
    let comparison = compared_under(servers, &scenario).await.unwrap();
    assert_eq!(comparison.unanswered, [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_comparison_tells_what_each_server_took_from_its_cache() {
    let told = |cached: u64| {
        let usage = json!({
            "prompt_tokens": 10, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": cached},
        });
        let text = json!({"choices": [{"delta": {"content": "w"}}]});
        let last = json!({"choices": [{"delta": {}, "finish_reason": "length"}], "usage": usage});
        let said = format!("data: {text}\n\ndata: {last}\n\ndata: [DONE]\n\n");
        Scripted::new(move |_| Reply::Raw(said.clone()))
    };
    let comparison = compared([told(0), told(4)]).await.unwrap();
    let all = 10 * comparison.requests as u64;
    let expected = [PromptTokens { all, cached: 0 }, PromptTokens { all, cached: all / 10 * 4 }];
    assert_eq!(comparison.prompts, expected);
    let table = comparison.table();
    let row = table.lines().find(|line| line.starts_with("prompt tokens from a cache, %")).expect("it is a row");
    assert_eq!(row.split_whitespace().skip(6).collect::<Vec<_>>(), ["0.0", "40.0"], "{table}");
}

/// Two names for one backend are no unfair race: nobody is asked what another has put into its prefix cache.
#[tokio::test(start_paused = true)]
async fn servers_get_other_words_of_the_same_lengths() {
    let servers = [(); 2].map(|()| Scripted::new(|_| said("w ")));
    let mut scenario = scenario();
    scenario.traffic[0].request.ignore_eos = true;
    compared_under(servers.clone(), &scenario).await.unwrap();
    let prompts = servers.map(|server| {
        let of = |seen: &Seen| seen.body["messages"][0]["content"].as_str().expect("a text").to_owned();
        server.seen().iter().map(of).collect::<Vec<String>>()
    });
    assert_eq!(prompts[0].len(), prompts[1].len());
    assert!(prompts[0].iter().all(|prompt| !prompts[1].contains(prompt)));
    assert!(prompts.iter().flatten().all(|prompt| prompt.split_whitespace().count() == 9));
}

#[tokio::test(start_paused = true)]
async fn different_work_is_not_compared() {
    let short = Scripted::new(|_| Reply::Tokens { delays: vec![MS; 7], text: "w".to_owned() });
    let error = compared([Scripted::new(steady(50 * MS, MS)), short]).await.unwrap_err();
    assert!(matches!(error, CompareError::CountsDiffer { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_goes_wrong_in_a_late_round_leaves_the_rounds_before() {
    let counted = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let asked = std::sync::Arc::clone(&counted);
    compared([
        Scripted::new(|_| said("w ")),
        Scripted::new(move |_| {
            asked.fetch_add(1, SeqCst);
            said("w ")
        }),
    ])
    .await
    .unwrap();
    let (all, busy) = (counted.load(SeqCst), || Reply::Status { status: 503, body: "{}".to_owned() });
    // The last of three rounds has about a third of them.
    let late = Scripted::new(move |seen| if seen.number < all * 5 / 6 { said("w ") } else { busy() });
    let whole = compared([Scripted::new(|_| said("w ")), late]).await.unwrap();
    assert_eq!((whole.rounds, whole.stopped.is_none(), whole.unanswered[1] > 0), (3, true, true));
    assert_eq!(whole.endings[1]["refused 503"], whole.unanswered[1]);
    assert!(whole.table().contains("(refused 503: "), "{}", whole.table());
    let other = Scripted::new(move |seen| match seen.number < all * 5 / 6 {
        true => said("w "),
        false => Reply::Tokens { delays: vec![MS; 7], text: "w".to_owned() },
    });
    let comparison = compared([Scripted::new(|_| said("w ")), other]).await.unwrap();
    let stopped = comparison.stopped.as_ref().expect("it ended early");
    assert_eq!((comparison.rounds, stopped.round), (2, 3));
    assert!(comparison.table().contains("ended in round 3, which is left out: request"), "{}", comparison.table());
}

#[tokio::test(start_paused = true)]
async fn a_comparison_that_is_stopped_has_the_rounds_that_are_whole() {
    let mut contenders = Vec::new();
    for name in ["a", "b"] {
        let session = Scripted::new(|_| said("w ")).session().await;
        contenders.push(Contender { name: name.to_owned(), session, pid: None });
    }
    let run = virtual_time();
    let options = CompareOptions { rounds: 5, token_tolerance: 0, run: run.clone(), threads: 1 };
    let stop_after = |seconds: u64| {
        let stop = std::sync::Arc::clone(&run.stop);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            stop.notify_one();
        });
    };
    stop_after(5);
    let error = compare(&contenders, &scenario(), &options).await.unwrap_err();
    assert!(matches!(error, CompareError::Interrupted), "{error}");
    stop_after(50);
    let comparison = compare(&contenders, &scenario(), &options).await.unwrap();
    assert_eq!((comparison.rounds, comparison.stopped.map(|stopped| stopped.round)), (2, Some(3)));
}

#[tokio::test(start_paused = true)]
async fn a_server_without_usage_is_counted_by_the_tokenizer() {
    let servers = || (Scripted::new(steady(50 * MS, 10 * MS)), Scripted::new(steady(50 * MS, 10 * MS)));
    let (told, silent) = servers();
    let comparison = compared([told, silent.with(Fault::Silent)]).await.unwrap();
    assert_eq!(comparison.without_usage, ["b"]);
    let rate = comparison.rows.iter().find(|row| row.better == Better::Higher).unwrap();
    let ratio = rate.ratios[0].expect("a rate has an interval");
    assert!((ratio.estimate - 1.0).abs() < 0.01, "{ratio}");
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
    correctness::check(&Scripted::new(reply).session().await, &scenario, &virtual_time())
        .await
        .expect("the check can be made")
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
