//! Many at once: each gets the answer it gets alone, limits hold exactly, and nothing is left behind.

use std::sync::Arc;
use std::time::Duration;

use crate::common::client::{Client, Stream};
use crate::common::model::Gate;
use crate::common::{KEY, MODEL, Options, Seen, Server, limit, until};
use passerelle::api::{ApiConfig, SseConfig};
use passerelle::gateway::Limit;
use passerelle::gateway::quota::{Bound, Enforcement, Percent, Period, Unit, UnixSeconds};
use passerelle::gateway::tariff::{Price, Tariff};
use passerelle_engine::clock::{Clock, SystemClock};
use passerelle_engine::{Class, EngineConfig};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

const CHAT: &str = "/v1/chat/completions";

fn chat(seed: usize, max_tokens: usize) -> Value {
    let content = format!("{seed} {}", "talk to me ".repeat(seed % 7));
    json!({"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": max_tokens,
           "temperature": 0, "stream": true})
}

async fn text_of(stream: Stream) -> String {
    let events = stream.events().await;
    let content = |event: &Value| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned);
    events.iter().filter_map(content).collect()
}

async fn ask(client: Client, seed: usize, max_tokens: usize) -> (usize, String) {
    (seed, text_of(client.stream(CHAT, &chat(seed, max_tokens)).await).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_streams_get_the_text_they_get_alone_while_others_leave() {
    let server = Server::start().await;
    let client = server.client();
    let length = |seed: usize| 5 + 7 * seed;
    let mut alone = Vec::new();
    for seed in 0..32 {
        alone.push(ask(client.clone(), seed, length(seed)).await.1);
    }
    let mut streams = JoinSet::new();
    for seed in 0..32 {
        streams.spawn(ask(client.clone(), seed, length(seed)));
    }
    let mut leavers = JoinSet::new();
    for seed in 100..110 {
        let client = client.clone();
        leavers.spawn(async move {
            let mut stream = client.stream(CHAT, &chat(seed, 1500)).await;
            stream.read_events(20).await;
        });
    }
    leavers.join_all().await;
    for (seed, text) in streams.join_all().await {
        assert_eq!(text.len(), length(seed));
        assert_eq!(text, alone[seed], "stream {seed}");
    }
    server.assert_at_rest().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_200_requests_with_room_for_20_exactly_20_are_admitted() {
    let gate = Gate::closed();
    let key_limits = Some(vec![limit(Limit::concurrent_requests, 20)]);
    let server = Server::with(Options { key_limits, gate: gate.clone(), ..Options::default() }).await;
    let client = server.client().with_key();
    let mut asked = JoinSet::new();
    for seed in 0..200 {
        let client = client.clone();
        let mut body = chat(seed, 4);
        body["stream"] = json!(false);
        asked.spawn(async move { client.post(CHAT, &body).await });
    }
    for _ in 0..180 {
        let reply = asked.join_next().await.unwrap().unwrap();
        assert_eq!((reply.status, reply.error_code().as_str()), (429, "rate_limit_exceeded"), "{}", reply.text());
        assert!(reply.headers["retry-after"].parse::<u64>().unwrap() >= 1);
        assert_eq!(reply.headers["x-ratelimit-limit-name"], "concurrent_requests");
        assert!(reply.message().contains("concurrent_requests"));
    }
    gate.release();
    let admitted = asked.join_all().await;
    assert_eq!(admitted.iter().map(|reply| reply.status).collect::<Vec<_>>(), [200; 20]);
    server.assert_at_rest().await;
}

fn one_at_a_time(gate: &Gate) -> Options {
    let sse = SseConfig { keep_alive: Duration::from_millis(20), ..SseConfig::default() };
    let api = ApiConfig { sse, ..ApiConfig::default() };
    let key_limits = Some(vec![limit(Limit::concurrent_requests, 1)]);
    Options { api, key_limits, gate: gate.clone(), ..Options::default() }
}

/// The head of its answer comes with the first comment: while it waits, before anybody knows how it will be answered.
#[tokio::test]
async fn a_stream_that_waits_for_its_turn_is_kept_alive_and_then_answered() {
    let gate = Gate::closed();
    let server = Server::with(one_at_a_time(&gate)).await;
    let client = server.client().with_key();
    let first = client.stream(CHAT, &chat(1, 4)).await;
    let second = client.stream(CHAT, &chat(2, 4)).await;
    // On a busy machine the first stream begins before it is admitted, too.
    until(|| server.state.ledger().totals().open == 1).await;
    assert_eq!(second.status, 200);
    gate.release();
    assert_eq!(text_of(first).await.len(), 4);
    assert_eq!(text_of(second).await.len(), 4);
    let totals = server.state.ledger().totals();
    assert_eq!((totals.reservations_taken, totals.refused), (2, 0));
    server.assert_at_rest().await;
}

#[tokio::test]
async fn a_client_that_leaves_the_line_takes_nothing() {
    let gate = Gate::closed();
    let server = Server::with(one_at_a_time(&gate)).await;
    let client = server.client().with_key();
    let first = client.stream(CHAT, &chat(1, 4)).await;
    until(|| server.state.ledger().totals().open == 1).await;
    let leaver = client.stream(CHAT, &chat(2, 4)).await;
    assert_eq!(leaver.status, 200);
    until(|| server.state.ledger().figures().in_line == 1).await;
    drop(leaver);
    until(|| server.state.ledger().figures().in_line == 0).await;
    gate.release();
    assert_eq!(text_of(first).await.len(), 4);
    server.assert_at_rest().await;
    let third = client.stream(CHAT, &chat(3, 4)).await;
    assert_eq!(text_of(third).await.len(), 4);
    server.assert_at_rest().await;
    assert_eq!(server.state.ledger().totals().reservations_taken, 2);
}

/// Past its grant an account runs in the class that gives way to everybody, and says so.
#[tokio::test]
async fn an_account_past_its_grant_runs_as_a_batch_up_to_a_quarter_more() {
    let until = UnixSeconds(4_000_000_000);
    let period = Period::Grant { from: UnixSeconds(0), until };
    let grant = Limit::of(Bound::Budget { unit: Unit::OutputTokens, amount: 40.try_into().unwrap(), period });
    let (seen, overrun) = (Seen::default(), Percent(25));
    let options = Options { key_limits: Some(vec![grant]), seen: seen.clone(), overrun, ..Options::default() };
    let server = Server::with(options).await;
    let client = server.client().with_key();
    let mut body = chat(1, 40);
    body["stream"] = json!(false);
    let left = async || {
        server.settle().await;
        let limits = client.get("/v1/me/limits").await.json();
        ["remaining", "overrun_remaining"].map(|field| limits["data"][0][field].as_f64())
    };
    assert_eq!(client.post(CHAT, &body).await.json()["service_tier"], "default");
    assert_eq!(left().await, [Some(0.0), Some(10.0)]);
    body["max_tokens"] = json!(8);
    assert_eq!(client.post(CHAT, &body).await.json()["service_tier"], "flex");
    assert_eq!(left().await, [Some(0.0), Some(2.0)]);
    let classes: Vec<_> = seen.take().iter().map(|asked| asked.class).collect();
    assert_eq!(classes, [Class::Standard, Class::Batch]);
    let refused = client.post(CHAT, &body).await;
    assert_eq!((refused.status, refused.error_code().as_str()), (429, "insufficient_quota"), "{}", refused.text());
    assert_eq!(refused.headers["x-should-retry"], "false");
    server.assert_at_rest().await;
}

#[tokio::test]
async fn without_the_right_key_nothing_is_told() {
    let server = Server::with(Options { key_limits: Some(Vec::new()), ..Options::default() }).await;
    let client = server.client();
    let odd = ["", "Bearer", "Bearer sk-wrong", "Basic abc"];
    for authorization in odd {
        let reply = client.clone().with("authorization", authorization).get("/v1/models").await;
        assert_eq!((reply.status, reply.error_code().as_str()), (401, "invalid_api_key"), "{authorization}");
        assert!(!reply.text().contains(KEY));
    }
    for path in [CHAT, "/v1/completions", "/tokenize", "/detokenize"] {
        assert_eq!(client.post(path, &json!({})).await.status, 401, "{path}");
    }
    assert_eq!(client.clone().with_key().get("/v1/models").await.status, 200);
    assert_eq!(client.with("host", "models.example").with_key().get("/v1/models").await.status, 200);
}

#[tokio::test]
async fn a_full_server_answers_503_at_once() {
    let gate = Gate::closed();
    let api = ApiConfig { max_concurrent_requests: 1, ..ApiConfig::default() };
    let server = Server::with(Options { api, gate: gate.clone(), ..Options::default() }).await;
    let client = server.client();
    let running = client.stream(CHAT, &chat(1, 4)).await;
    let reply = client.post(CHAT, &chat(2, 4)).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (503, "queue_full"));
    assert!(reply.headers.contains_key("retry-after"));
    gate.release();
    assert_eq!(text_of(running).await.len(), 4);
    server.assert_at_rest().await;
}

/// What could never run, and is known to before a prompt is read.
fn senseless() -> [(&'static str, Value, u16, &'static str); 8] {
    let completion = |field: &str, value: Value| {
        let mut body = json!({"model": MODEL, "prompt": "say:hi"});
        body[field] = value;
        body
    };
    let no_such_model = json!({"model": "nobody", "messages": [{"role": "user", "content": "say:hi"}]});
    [
        (CHAT, no_such_model, 404, "model_not_found"),
        (CHAT, chat(3, 1_000_000), 400, "context_length_exceeded"),
        ("/v1/completions", completion("temperature", json!(-1)), 400, "invalid_value"),
        ("/v1/completions", completion("no_such_field", json!(1)), 400, "unknown_parameter"),
        ("/v1/completions", completion("logit_bias", json!({"1000000": 1})), 400, "invalid_value"),
        ("/v1/completions", completion("stop_token_ids", json!([1_000_000])), 400, "invalid_value"),
        ("/v1/completions", completion("prompt", json!([[1, 1_000_000]])), 400, "invalid_value"),
        ("/v1/completions", completion("prompt", json!(vec![1; 3_000])), 400, "context_length_exceeded"),
    ]
}

/// Most are refused under load, and what that takes is taken from those who are served.
#[tokio::test]
async fn a_full_queue_refuses_before_the_prompt_is_read_and_after_what_could_never_run() {
    let gate = Gate::closed();
    let options = Options::default();
    let engine = EngineConfig { max_num_seqs: 1, max_waiting_requests: 1, ..options.engine.clone() };
    let server = Server::with(Options { engine, gate: gate.clone(), ..options }).await;
    let client = server.client();
    let running = client.stream(CHAT, &chat(1, 4)).await;
    until(|| server.engine.stats().waiting == 0).await;
    let waiting = client.stream(CHAT, &chat(2, 4)).await;
    let never_fits = json!({"model": MODEL, "messages": [{"role": "user", "content": "a b ".repeat(4_000)}]});
    let refused = client.post(CHAT, &never_fits).await;
    assert_eq!((refused.status, refused.error_code().as_str()), (503, "queue_full"));
    for (path, senseless, status, code) in senseless() {
        let refused = client.post(path, &senseless).await;
        assert_eq!((refused.status, refused.error_code().as_str()), (status, code), "{senseless}");
    }
    gate.release();
    for stream in [running, waiting] {
        assert_eq!(text_of(stream).await.len(), 4);
    }
    let read = client.post(CHAT, &never_fits).await;
    assert_eq!((read.status, read.error_code().as_str()), (400, "context_length_exceeded"));
    server.assert_at_rest().await;
}

#[tokio::test]
async fn a_full_server_reads_no_further_body() {
    let gate = Gate::closed();
    let api = ApiConfig { max_concurrent_requests: 1, ..ApiConfig::default() };
    let server = Server::with(Options { api, gate: gate.clone(), ..Options::default() }).await;
    let running = server.client().stream(CHAT, &chat(1, 4)).await;
    for path in [CHAT, "/tokenize", "/detokenize"] {
        let mut connection = TcpStream::connect(server.address).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n"
        );
        connection.write_all(head.as_bytes()).await.unwrap();
        let mut status = [0; 12];
        connection.read_exact(&mut status).await.unwrap();
        assert_eq!(&status, b"HTTP/1.1 503", "{path}");
    }
    gate.release();
    assert_eq!(text_of(running).await.len(), 4);
}

#[tokio::test]
async fn requests_that_state_no_length_run_together_under_a_token_rate() {
    let gate = Gate::closed();
    let key_limits = Some(vec![limit(Limit::tokens_per_minute, 3000)]);
    let server = Server::with(Options { key_limits, gate: gate.clone(), ..Options::default() }).await;
    let client = server.client().with_key();
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "say:hi"}], "stream": true});
    let mut streams = Vec::new();
    for _ in 0..2 {
        streams.push(client.stream(CHAT, &body).await);
    }
    gate.release();
    for stream in streams {
        assert_eq!((stream.status, text_of(stream).await.as_str()), (200, "hi"));
    }
    server.assert_at_rest().await;
}

#[tokio::test]
async fn requests_that_state_no_length_fit_limits_on_gpu_time_and_on_batches() {
    let gpu = Bound::Rate { unit: Unit::GpuMicros, per_minute: 3_000.try_into().unwrap() };
    let batch = Bound::BatchTokens(200.try_into().unwrap());
    for (bound, tier) in [(gpu, "default"), (batch, "flex")] {
        let tariff = Arc::new(Tariff::new("1", [(MODEL.to_owned(), Price::flat(1_000, 100, 10_000))]));
        let key_limits = Some(vec![Limit::of(bound)]);
        let server = Server::with(Options { key_limits, tariff, ..Options::default() }).await;
        let client = server.client().with_key();
        for prompt in [json!("say:hi"), json!(["say:hi", "say:hi"])] {
            let body = json!({"model": MODEL, "prompt": prompt, "service_tier": tier});
            let reply = client.post("/v1/completions", &body).await;
            assert_eq!(reply.status, 200, "{tier} {prompt}: {}", reply.text());
        }
        server.assert_at_rest().await;
    }
}

/// One that ran before it has used a part of the budget; what is left of it ends the second in its middle.
#[tokio::test]
async fn a_spent_budget_ends_a_stream_with_the_length_its_cause_and_usage() {
    let budget = Bound::Budget { unit: Unit::OutputTokens, amount: 100.try_into().unwrap(), period: Period::Month };
    let server = Server::with(Options { key_limits: Some(vec![Limit::of(budget)]), ..Options::default() }).await;
    let client = server.client().with_key();
    let mut first = chat(1, 20);
    first["stream"] = json!(false);
    assert_eq!(client.post(CHAT, &first).await.status, 200);
    let mut body = chat(2, 100);
    body["stream_options"] = json!({"include_usage": true});
    let events = client.stream(CHAT, &body).await.events().await;
    let end = events.iter().find(|event| !event["choices"][0]["finish_reason"].is_null()).unwrap();
    assert_eq!(
        (&end["choices"][0]["finish_reason"], &end["choices"][0]["stop_reason"]),
        (&json!("length"), &json!("quota"))
    );
    assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], 80);
    let refused = client.post(CHAT, &body).await;
    assert_eq!((refused.status, refused.error_code().as_str()), (429, "insufficient_quota"), "{}", refused.text());
    server.assert_at_rest().await;
}

#[tokio::test]
async fn a_limit_on_trial_refuses_nothing_and_tells_what_it_would_have_refused() {
    let on_trial = Limit { enforcement: Enforcement::DryRun, ..limit(Limit::requests_per_minute, 2) };
    let server = Server::with(Options { key_limits: Some(vec![on_trial]), ..Options::default() }).await;
    let client = server.client().with_key();
    let mut body = chat(1, 2);
    body["stream"] = json!(false);
    for _ in 0..5 {
        assert_eq!(client.post(CHAT, &body).await.status, 200);
    }
    let limits = client.get("/v1/me/limits").await.json();
    assert_eq!(limits["data"][0]["would_have_refused"], 3, "{limits}");
}

#[tokio::test]
async fn gpu_time_is_left_of_a_grant_in_force_and_of_no_other_nor_of_a_limit_on_trial() {
    let grant = |from, until| {
        let period = Period::Grant { from: UnixSeconds(from), until: UnixSeconds(until) };
        Limit::of(Bound::Budget { unit: Unit::GpuMicros, amount: 5_000_000.try_into().unwrap(), period })
    };
    let (over, lasting, to_come) = (grant(0, 60), grant(0, 9_000_000_000), grant(8_000_000_000, 9_000_000_000));
    let on_trial = |limit| Limit { enforcement: Enforcement::DryRun, ..limit };
    let cases = [(over, Some(0.0)), (lasting.clone(), Some(5.0)), (to_come, Some(0.0)), (on_trial(lasting), None)];
    for (limit, seconds_left) in cases {
        let tariff = Arc::new(Tariff::new("1", [(MODEL.to_owned(), Price::flat(1_000, 100, 10_000))]));
        let options = Options { key_limits: Some(vec![limit]), tariff, ..Options::default() };
        let server = Server::with(options).await;
        let limits = server.client().with_key().get("/v1/me/limits").await.json();
        assert_eq!(limits["gpu_time"][0]["seconds_left"].as_f64(), seconds_left, "{limits}");
    }
}

#[tokio::test]
async fn a_list_of_prompts_that_can_never_fit_is_a_400() {
    let cases = [
        (limit(Limit::requests_per_minute, 3), "requests_per_minute"),
        (limit(Limit::concurrent_requests, 3), "concurrent_requests"),
        (limit(Limit::tokens_per_minute, 40), "tokens_per_minute"),
    ];
    for (limit, name) in cases {
        let server = Server::with(Options { key_limits: Some(vec![limit]), ..Options::default() }).await;
        let body = json!({"model": MODEL, "prompt": ["a", "b", "c", "d"], "max_tokens": 10});
        let reply = server.client().with_key().post("/v1/completions", &body).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (400, "request_exceeds_limit"), "{}", reply.text());
        assert_eq!(reply.headers["x-ratelimit-limit-name"], name);
        assert_eq!(reply.param().as_deref(), Some("prompt"));
    }
}

#[tokio::test]
async fn tokenizing_counts_as_a_request() {
    let key_limits = Some(vec![limit(Limit::requests_per_minute, 2)]);
    let server = Server::with(Options { key_limits, ..Options::default() }).await;
    let client = server.client().with_key();
    assert_eq!(client.post("/tokenize", &json!({"prompt": "a"})).await.status, 200);
    assert_eq!(client.post("/detokenize", &json!({"tokens": [97]})).await.status, 200);
    for (path, body) in [("/tokenize", json!({"prompt": "a"})), ("/detokenize", json!({"tokens": [97]}))] {
        let reply = client.post(path, &body).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (429, "rate_limit_exceeded"), "{path}");
    }
    server.assert_at_rest().await;
}

#[tokio::test]
async fn metrics_count_what_was_settled_for_those_who_left_and_those_who_stayed() {
    let server = Server::start().await;
    let client = server.client();
    let mut leaver = client.stream(CHAT, &chat(1, 1500)).await;
    leaver.read_events(20).await;
    drop(leaver);
    text_of(client.stream(CHAT, &chat(2, 7)).await).await;
    server.settle().await;
    let settled = server.state.ledger().totals().generated_tokens;
    assert!(settled > 7);
    let text = client.get("/metrics").await.text();
    let line = format!("passerelle_generated_tokens_total{{model=\"{MODEL}\"}} {settled}\n");
    assert!(text.contains(&line), "{line} is missing in {text}");
}

#[tokio::test]
async fn a_client_that_leaves_before_its_whole_answer_frees_its_place() {
    let gate = Gate::closed();
    let api = ApiConfig { max_concurrent_requests: 1, ..ApiConfig::default() };
    let server = Server::with(Options { api, gate: gate.clone(), ..Options::default() }).await;
    let client = server.client();
    let mut body = chat(1, 1500);
    body["stream"] = json!(false);
    let leaver = tokio::spawn({
        let (client, body) = (client.clone(), body.clone());
        async move { client.post(CHAT, &body).await }
    });
    while server.state.ledger().totals().open == 0 {
        tokio::task::yield_now().await;
    }
    leaver.abort();
    until(|| server.state.ledger().totals().open == 0).await;
    gate.release();
    server.assert_at_rest().await;
    assert!(server.engine.stats().generated_tokens_total < 1500);
    body["max_tokens"] = json!(2);
    assert_eq!(client.post(CHAT, &body).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disconnect_frees_its_blocks_within_50_ms() {
    let server = Server::start().await;
    let clock = SystemClock::new();
    let client = server.client();
    let (mut delays, mut round_trips) = (Vec::new(), Vec::new());
    let mut readers = 0;
    while delays.len() < 9 && readers < 64 {
        readers += 1;
        let mut stream = client.stream(CHAT, &chat(readers, 1900)).await;
        stream.read_events(5).await;
        // A reader that was held up until its answer had ended tells nothing.
        if server.state.ledger().totals().open == 0 {
            continue;
        }
        let left = clock.now();
        drop(stream);
        server.settle().await;
        delays.push(clock.now().saturating_sub(left));
        let asked = clock.now();
        client.get("/health").await;
        round_trips.push(clock.now().saturating_sub(asked));
    }
    assert!(delays.len() > 4, "some answers run when their readers leave");
    assert!(server.engine.stats().generated_tokens_total < (readers * 1900) as u64, "the readers left before the end");
    // Other processes hold up this one: now and then, which the median passes over, or always, which a round trip shows.
    let [delay, held_up] = [delays, round_trips].map(median);
    assert!(delay < Duration::from_millis(50) + held_up, "{delay:?}, and a round trip takes {held_up:?}");
}

fn median(mut durations: Vec<Duration>) -> Duration {
    durations.sort_unstable();
    durations[durations.len() / 2]
}

#[tokio::test]
async fn metrics_count_what_was_served() {
    let server = Server::start().await;
    let client = server.client();
    text_of(client.stream(CHAT, &chat(1, 4)).await).await;
    client.get("/nothing").await;
    server.settle().await;
    let reply = client.get("/metrics").await;
    assert!(reply.headers["content-type"].starts_with("text/plain"));
    let text = reply.text();
    for line in [
        format!("passerelle_requests_total{{route=\"{CHAT}\",status=\"200\",model=\"{MODEL}\"}} 1"),
        "passerelle_requests_total{route=\"unmatched\",status=\"404\",model=\"\"} 1".to_owned(),
        format!("passerelle_generated_tokens_total{{model=\"{MODEL}\"}} 4"),
        format!("passerelle_time_to_first_token_seconds_count{{model=\"{MODEL}\"}} 1"),
        format!("passerelle_inter_token_latency_seconds_count{{model=\"{MODEL}\"}} 3"),
    ] {
        assert!(text.contains(&line), "{line} is missing in {text}");
    }
}
