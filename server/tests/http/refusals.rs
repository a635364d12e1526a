//! What those are told whom a limit refuses.

use std::sync::Arc;
use std::time::Duration;

use passerelle::api::ApiConfig;
use passerelle::gateway::Limit;
use passerelle_engine::clock::ManualClock;
use serde_json::{Value, json};

use crate::common::model::Gate;
use crate::common::{MODEL, Options, Server, limit, until};

const CHAT: &str = "/v1/chat/completions";

fn chat(max_tokens: usize) -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": "talk to me"}], "max_tokens": max_tokens})
}

#[tokio::test]
async fn what_is_left_of_the_rates_is_in_the_headers_and_an_ask_that_never_fits_is_a_400() {
    let limits = vec![limit(Limit::requests_per_minute, 2), limit(Limit::tokens_per_minute, 1000)];
    let server = Server::with(Options { key_limits: Some(limits), ..Options::default() }).await;
    let client = server.client().with_key();
    let never = client.post(CHAT, &chat(1001)).await;
    assert_eq!((never.status, never.error_code().as_str()), (400, "request_exceeds_limit"), "{}", never.text());
    let first = client.post(CHAT, &chat(4)).await;
    assert_eq!((first.status, first.headers["x-ratelimit-remaining-requests"].as_str()), (200, "1"));
    assert_eq!(first.headers["x-ratelimit-limit-tokens"], "1000");
    assert_eq!(client.post(CHAT, &chat(4)).await.status, 200);
    let refused = client.post(CHAT, &chat(4)).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.headers["x-ratelimit-limit-name"], "requests_per_minute");
    assert!((1..=38).contains(&refused.headers["retry-after"].parse::<u64>().unwrap()), "a quarter later at most");
    let mut limit = refused.json()["error"]["limit"].take();
    let wait = limit["retry_after_seconds"].take().as_f64().unwrap();
    assert!((0.0..=30.0).contains(&wait), "{wait}");
    let expected = json!({
        "name": "requests_per_minute", "scope": "lab", "model": null, "window": "minute", "window_start": null,
        "window_end": null, "limit": 2.0, "used": 2.0, "asked": 1.0, "retry_after_seconds": null,
    });
    assert_eq!(limit, expected);
    assert_eq!(never.json()["error"]["limit"]["name"], "tokens_per_minute", "a 400 for good says which one too");
}

#[tokio::test]
async fn equal_asks_that_are_refused_together_are_told_different_instants_at_which_each_of_them_would_fit() {
    let key_limits = Some(vec![limit(Limit::requests_per_minute, 3)]);
    let server = Server::with(Options { key_limits, ..Options::default() }).await;
    let client = server.client().with_key();
    for _ in 0..3 {
        assert_eq!(client.post(CHAT, &chat(4)).await.status, 200);
    }
    let mut beyond = Vec::new();
    for _ in 0..8 {
        let refused = client.post(CHAT, &chat(4)).await;
        let fits_in = refused.json()["error"]["limit"]["retry_after_seconds"].as_f64().unwrap();
        let [seconds, millis] = ["retry-after", "retry-after-ms"].map(|name| refused.headers[name].parse::<f64>());
        let come_back_in = millis.unwrap() / 1000.0;
        assert_eq!(seconds.unwrap(), come_back_in.ceil());
        assert!((fits_in..=60.0).contains(&come_back_in), "{come_back_in} for {fits_in}");
        beyond.push(come_back_in - fits_in);
    }
    beyond.sort_by(f64::total_cmp);
    assert!(beyond.windows(2).all(|pair| pair[1] - pair[0] > 0.05) && beyond[7] < 10.0, "{beyond:?}");
}

/// The engine's step waits meanwhile, so nothing else takes time.
#[tokio::test]
async fn the_time_that_a_request_may_take_begins_with_its_head_and_not_when_it_is_admitted() {
    let (gate, clock) = (Gate::closed(), ManualClock::default());
    let api = ApiConfig { request_timeout: Duration::from_secs(3), ..ApiConfig::default() };
    let key_limits = Some(vec![limit(Limit::concurrent_requests, 1)]);
    let options = Options { api, gate: gate.clone(), key_limits, clock: Arc::new(clock.clone()), ..Options::default() };
    let server = Server::with(options).await;
    let client = server.client().with_key();
    let ask = || {
        let client = client.clone();
        tokio::spawn(async move { client.post(CHAT, &chat(1)).await })
    };
    let first = ask();
    until(|| server.state.ledger().totals().open == 1).await;
    let second = ask();
    until(|| server.state.ledger().figures().in_line == 1).await;
    clock.advance(Duration::from_secs(4));
    gate.release();
    assert_eq!(first.await.unwrap().status, 200);
    let late = second.await.unwrap();
    assert_eq!((late.status, late.error_code().as_str()), (503, "request_timeout"), "{}", late.text());
}
