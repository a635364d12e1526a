//! Other servers as replicas: what they say comes out as ours, what they break is tried elsewhere or told as it is, and
//! everything is counted once.

mod here_and_elsewhere;
mod lengths;
mod script;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use passerelle::api::{AppState, RemoteModel, Serving};
use passerelle::gateway::breaker::BreakerBounds;
use passerelle::gateway::quota::{Bound, Enforcement, Unit};
use passerelle::gateway::replica::{ReplicaId, UpstreamParts};
use passerelle::gateway::{Limit, Replica, Router};
use passerelle::upstream::{Timeouts, Upstream, UpstreamKind, UpstreamSettings};
use passerelle_engine::clock::{Clock, SystemClock};
use serde_json::{Value, json};
use tokio::net::TcpSocket;
use tokio::time::timeout;

use crate::common::{Options, PATIENCE, Server};
use script::{Act, Scripted, chat_answer, chat_piece, completion_answer};

const REMOTE: &str = "big";
const TIMEOUTS: Timeouts =
    Timeouts { connect: Duration::from_secs(5), first_byte: PATIENCE, idle: Duration::from_secs(30) };
/// How long an upstream is waited for that means never to begin, or never to end its refusal.
const WHAT_NEVER_COMES: Duration = Duration::from_millis(300);

/// A server whose model `big` runs on these.
async fn gateway(upstreams: &[SocketAddr]) -> Server {
    gateway_that_waits(TIMEOUTS, upstreams).await
}

async fn gateway_that_waits(timeouts: Timeouts, upstreams: &[SocketAddr]) -> Server {
    let server = Server::with(Options::default()).await;
    let replica = |(address, id): (&SocketAddr, u32)| replica_that_waits(timeouts, *address, REMOTE, id);
    serve(&server.state, upstreams.iter().zip(1..).map(replica).collect());
    server
}

/// Beside the engine's own replica.
fn serve(state: &AppState, upstreams: Vec<Arc<Replica>>) {
    serve_with_default(state, upstreams, 50);
}

fn serve_with_default(state: &AppState, upstreams: Vec<Arc<Replica>>, default_max_tokens: u32) {
    let engine: Vec<_> = state.serving().router.replicas().cloned().collect();
    let router = Router::new(engine.into_iter().chain(upstreams), Arc::new(SystemClock::new()), 7);
    let remote = RemoteModel { name: REMOTE.into(), text: None, max_model_len: Some(1000), default_max_tokens };
    state.serve(Serving::new(router, [remote]));
}

fn replica(address: SocketAddr, model: &str, id: u32) -> Arc<Replica> {
    replica_that_waits(TIMEOUTS, address, model, id)
}

fn replica_that_waits(timeouts: Timeouts, address: SocketAddr, model: &str, id: u32) -> Arc<Replica> {
    let settings = UpstreamSettings {
        kind: UpstreamKind::default(),
        url: &format!("http://{address}"),
        model: "org/big",
        key: Some("sk-theirs"),
        health_path: "/v1/models",
        timeouts,
    };
    let parts = UpstreamParts {
        name: address.to_string(),
        door: Box::new(Upstream::new(&settings).unwrap()),
        bounds: BreakerBounds { failures_to_open: 2, first_rest: Duration::from_secs(30), ..BreakerBounds::default() },
        clock: Arc::new(SystemClock::new()) as Arc<dyn Clock>,
        seed: 1,
    };
    Arc::new(Replica::upstream(ReplicaId(id), model, parts))
}

fn chat(more: Value) -> Value {
    let mut body = json!({"model": REMOTE, "messages": [{"role": "user", "content": "hello"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// Returns once nothing is reserved.
async fn settled(server: &Server) -> passerelle::gateway::LedgerTotals {
    server.settle().await;
    server.state.ledger().totals()
}

#[tokio::test]
async fn a_streamed_answer_reads_as_ours() {
    let upstream = Scripted::always(Act::Say(chat_answer(&["bon", "jour"], 9))).await;
    let server = gateway(&[upstream.address]).await;
    let body = chat(json!({"stream": true, "stream_options": {"include_usage": true}, "user": "ada", "seed": 4}));
    let events = server.client().stream("/v1/chat/completions", &body).await.events().await;
    for event in &events {
        assert!(event["id"].as_str().unwrap().starts_with("chatcmpl-"), "{event}");
        assert_eq!(event["model"], REMOTE);
    }
    let text: String = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, "bonjour");
    assert_eq!(events.last().unwrap()["usage"]["completion_tokens"], 2);
    assert_eq!(events[events.len() - 2]["choices"][0]["finish_reason"], "stop");
    let asked = &upstream.asked()[0];
    assert!(asked.head.starts_with("post /v1/chat/completions "), "{}", asked.head);
    assert!(asked.head.contains("authorization: bearer sk-theirs"), "{}", asked.head);
    let expected = json!({
        "model": "org/big", "messages": [{"role": "user", "content": "hello"}], "seed": 4, "max_tokens": 50,
        "stream": true, "stream_options": {"include_usage": true},
    });
    assert_eq!(asked.body, expected, "and nothing about who asks");
}

#[tokio::test]
async fn who_states_no_length_asks_an_upstream_for_no_more_than_its_context() {
    let upstream = Scripted::always(Act::Say(chat_answer(&["bon"], 9))).await;
    let server = Server::with(Options::default()).await;
    serve_with_default(&server.state, vec![replica(upstream.address, REMOTE, 1)], 4096);
    for prompt in ["hello".to_owned(), "hello ".repeat(150)] {
        let body = chat(json!({"messages": [{"role": "user", "content": prompt}]}));
        assert_eq!(server.client().post("/v1/chat/completions", &body).await.status, 200);
    }
    let asked: Vec<_> = upstream.asked().iter().map(|asked| asked.body["max_tokens"].as_u64().unwrap()).collect();
    assert!((500..1000).contains(&asked[0]), "what the prompt surely leaves: {asked:?}");
    assert_eq!(asked[1], 500, "half, where its bytes could be the whole context");
}

#[tokio::test]
async fn a_whole_answer_reads_as_ours_and_settles_what_the_upstream_counted() {
    let upstream = Scripted::always(Act::Say(chat_answer(&["bon", "jour"], 9))).await;
    let server = gateway(&[upstream.address]).await;
    let reply = server.client().post("/v1/chat/completions", &chat(json!({"max_tokens": 20}))).await;
    let answer = reply.json();
    assert_eq!((reply.status, &answer["object"], &answer["model"]), (200, &json!("chat.completion"), &json!(REMOTE)));
    assert_eq!(answer["choices"][0]["message"]["content"], "bonjour");
    assert_eq!((&answer["usage"]["prompt_tokens"], &answer["usage"]["completion_tokens"]), (&json!(9), &json!(2)));
    let totals = settled(&server).await;
    assert_eq!((totals.settled, totals.prompt_tokens, totals.generated_tokens), (1, 9, 2));
}

#[tokio::test]
async fn each_prompt_of_a_completion_is_a_call_and_a_choice() {
    let upstream = Scripted::start(|number| Act::Say(completion_answer(["x", "y"][number], 3))).await;
    let server = gateway(&[upstream.address]).await;
    let body = json!({"model": REMOTE, "prompt": ["a", "b"], "max_tokens": 5});
    let answer = server.client().post("/v1/completions", &body).await.json();
    let texts: Vec<_> = answer["choices"].as_array().unwrap().iter().map(|choice| &choice["text"]).collect();
    assert_eq!(texts, ["x", "y"]);
    assert_eq!(answer["usage"]["total_tokens"], 8);
    assert_eq!(upstream.asked().iter().map(|asked| &asked.body["prompt"]).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(settled(&server).await.settled, 2);
}

#[tokio::test]
async fn tool_calls_and_log_probabilities_pass() {
    let call = json!({"index": 0, "id": "call_7", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let logprobs = json!({"content": [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}]});
    let upstream = Scripted::always(Act::Say(vec![
        json!({"choices": [{"delta": {"content": "a"}, "logprobs": logprobs}]}),
        json!({"choices": [{"delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]}),
    ]))
    .await;
    let server = gateway(&[upstream.address]).await;
    let answer = server.client().post("/v1/chat/completions", &chat(json!({"logprobs": true}))).await.json();
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["tool_calls"][0]["id"], "call_7");
    assert_eq!(choice["logprobs"]["content"][0]["logprob"], -0.5);
    assert_eq!(choice["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn whatever_an_upstream_does_is_told_in_openais_shape_and_bills_nothing() {
    // Bound, so that nobody else gets the port, and not listened on.
    let nobody = TcpSocket::new_v4().unwrap();
    nobody.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let cases = [
        (Act::Break, 502, "upstream_failed"),
        (Act::Refuse(500, "", "Traceback"), 502, "upstream_failed"),
        (Act::Refuse(401, "", ""), 502, "upstream_failed"),
        (Act::Refuse(404, "", ""), 502, "upstream_failed"),
        (Act::Refuse(302, "location: http://example.org/\r\n", ""), 502, "upstream_failed"),
        (Act::Refuse(200, "content-type: text/html\r\n", "<html>"), 502, "upstream_failed"),
        (Act::Say(vec![json!({"error": {"message": "CUDA"}})]), 502, "upstream_failed"),
        (Act::Say(vec![json!("what")]), 502, "upstream_failed"),
        (Act::Say(Vec::new()), 502, "upstream_failed"),
        (Act::SayAndWait(Vec::new()), 504, "upstream_timeout"),
        (Act::Refuse(429, "retry-after: 7\r\n", ""), 503, "queue_full"),
        (Act::Refuse(503, "", ""), 503, "queue_full"),
        (Act::RefuseAndWait(429, "retry-after: 7\r\n"), 503, "queue_full"),
        (Act::RefuseAndWait(400, ""), 400, "invalid_value"),
        (Act::Refuse(400, "", r#"{"error": {"message": "no", "param": "top_p"}}"#), 400, "invalid_value"),
    ];
    for (act, status, code) in cases {
        let upstream = Scripted::always(act.clone()).await;
        let timeouts = match act {
            Act::SayAndWait(_) => Timeouts { first_byte: WHAT_NEVER_COMES, ..TIMEOUTS },
            // Its end is waited for as a connection is. Its head comes, however late.
            Act::RefuseAndWait(..) => Timeouts { connect: WHAT_NEVER_COMES, ..TIMEOUTS },
            _ => TIMEOUTS,
        };
        let server = gateway_that_waits(timeouts, &[upstream.address]).await;
        for stream in [false, true] {
            if stream && status == 503 {
                continue; // it rests now
            }
            let reply = server.client().post("/v1/chat/completions", &chat(json!({"stream": stream}))).await;
            assert_eq!((reply.status, reply.error_code().as_str()), (status, code), "{act:?}: {}", reply.text());
            assert!(!reply.text().contains("Traceback") && !reply.text().contains("CUDA"), "{}", reply.text());
        }
        let totals = settled(&server).await;
        assert_eq!((totals.prompt_tokens, totals.generated_tokens), (0, 0), "{act:?}");
    }
    let gateway = gateway(&[nobody.local_addr().unwrap()]).await;
    let reply = gateway.client().post("/v1/chat/completions", &chat(json!({}))).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (502, "upstream_failed"));
}

#[tokio::test]
async fn a_redirect_of_an_upstream_is_not_followed() {
    let elsewhere = Scripted::always(Act::Say(chat_answer(&["there"], 9))).await;
    let location: &str = format!("location: http://{}/v1/chat/completions\r\n", elsewhere.address).leak();
    // Those that have the same request sent again, body and all.
    for status in [307, 308] {
        let upstream = Scripted::always(Act::Refuse(status, location, "")).await;
        let server = gateway(&[upstream.address]).await;
        let reply = server.client().post("/v1/chat/completions", &chat(json!({}))).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (502, "upstream_failed"), "{}", reply.text());
        assert!(!upstream.asked().is_empty() && elsewhere.asked().is_empty(), "{status}");
    }
}

#[tokio::test]
async fn what_one_upstream_breaks_another_answers_under_the_same_reservation() {
    let broken = Scripted::always(Act::Break).await;
    let well = Scripted::always(Act::Say(chat_answer(&["fine"], 9))).await;
    let server = gateway(&[broken.address, well.address]).await;
    for seed in 0..8 {
        let reply = server.client().post("/v1/chat/completions", &chat(json!({"seed": seed}))).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
    let totals = settled(&server).await;
    assert_eq!((totals.reservations_taken, totals.settled, totals.generated_tokens), (8, 8, 8));
    assert_eq!(broken.asked().len(), 2, "after two failures it rests");
}

/// It breaks whatever it is sent to; others ask in between.
#[tokio::test]
async fn a_request_that_is_poison_takes_a_model_from_nobody_else_however_often_it_comes() {
    let act = |body: &Value| match body["seed"].as_u64() {
        Some(13) => Act::Refuse(500, "", ""),
        _ => Act::Say(chat_answer(&["fine"], 9)),
    };
    let (one, other) = (Scripted::by_body(act).await, Scripted::by_body(act).await);
    let server = gateway(&[one.address, other.address]).await;
    for round in 0..10 {
        for _ in 0..4 {
            let poison = server.client().post("/v1/chat/completions", &chat(json!({"seed": 13}))).await;
            assert_eq!((poison.status, poison.error_code().as_str()), (502, "upstream_failed"), "{round}");
        }
        let good = server.client().post("/v1/chat/completions", &chat(json!({"seed": round + 100}))).await;
        assert_eq!(good.status, 200, "{round}: {}", good.text());
    }
}

#[tokio::test]
async fn an_upstream_that_breaks_off_in_its_answers_rests_and_metrics_say_so() {
    let breaks = Scripted::always(Act::SayAndBreak(vec![chat_piece("a")])).await;
    let server = gateway(&[breaks.address]).await;
    let up = |is_up: u8| format!("passerelle_upstream_up{{model=\"big\",upstream=\"{}\"}} {is_up}", breaks.address);
    assert!(server.client().get("/metrics").await.text().contains(&up(1)));
    for seed in 0..2 {
        let reply = server.client().post("/v1/chat/completions", &chat(json!({"seed": seed}))).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (502, "upstream_failed"));
    }
    let rested = server.client().post("/v1/chat/completions", &chat(json!({"seed": 2}))).await;
    assert_eq!((rested.status, rested.error_code().as_str()), (503, "no_replica"));
    assert_eq!(breaks.asked().len(), 2);
    let metrics = server.client().get("/metrics").await.text();
    let tries = format!("passerelle_upstream_tries_total{{model=\"big\",upstream=\"{}\",", breaks.address);
    for line in [up(0), format!("{tries}outcome=\"answered\"}} 2"), format!("{tries}outcome=\"broke_off\"}} 2")] {
        assert!(metrics.contains(&line), "{line} is missing in {metrics}");
    }
}

/// Of a stream it pays what came, since it has it.
#[tokio::test]
async fn a_whole_answer_that_an_upstream_breaks_off_costs_nothing() {
    let breaks = Scripted::always(Act::SayAndBreak(vec![chat_piece("a"), chat_piece("b")])).await;
    let server = gateway(&[breaks.address]).await;
    let reply = server.client().post("/v1/chat/completions", &chat(json!({}))).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (502, "upstream_failed"));
    let totals = settled(&server).await;
    assert_eq!((totals.settled, totals.prompt_tokens, totals.generated_tokens), (1, 0, 0));
    // Of two prompts, the first is answered.
    let one_of_two = Scripted::start(|number| match number {
        0 => Act::Say(completion_answer("x", 3)),
        _ => Act::SayAndBreak(completion_answer("y", 3)[..1].to_vec()),
    });
    let server = gateway(&[one_of_two.await.address]).await;
    let reply = server.client().post("/v1/completions", &json!({"model": REMOTE, "prompt": ["a", "b"]})).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (502, "upstream_failed"));
    let totals = settled(&server).await;
    assert_eq!((totals.settled, totals.prompt_tokens, totals.generated_tokens), (2, 0, 0));
}

/// As when another Passerelle's limit on tokens is too small for it.
#[tokio::test]
async fn a_request_that_an_upstream_has_no_room_for_silences_it_for_nobody_else() {
    const TOO_LARGE: Act = Act::Refuse(
        429,
        "retry-after: 9000\r\n",
        r#"{"error": {"code": "insufficient_quota", "limit": {"name": "tokens_per_day", "used": 5, "limit": 9}}}"#,
    );
    let upstream = Scripted::by_body(|body| match body["seed"].as_u64() {
        Some(1) => TOO_LARGE,
        _ => Act::Say(chat_answer(&["fine"], 9)),
    })
    .await;
    let server = gateway(&[upstream.address]).await;
    let large = server.client().post("/v1/chat/completions", &chat(json!({"seed": 1}))).await;
    assert_eq!((large.status, large.headers["retry-after"].as_str()), (503, "9000"), "{}", large.text());
    assert_eq!(large.headers["x-should-retry"], "false");
    let small = server.client().post("/v1/chat/completions", &chat(json!({"seed": 2}))).await;
    assert_eq!(small.status, 200, "{}", small.text());
    assert_eq!(server.client().get("/ready").await.status, 200);
}

/// The keys under which a server was asked.
fn keys_of(upstream: &Scripted) -> BTreeSet<String> {
    upstream
        .asked()
        .iter()
        .map(|asked| asked.body["prompt_cache_key"].as_str().unwrap_or_default().to_owned())
        .collect()
}

#[tokio::test]
async fn requests_of_one_prompt_cache_key_meet_on_one_replica_and_those_of_many_are_spread() {
    let say = || Scripted::always(Act::Say(chat_answer(&["fine"], 9)));
    let (one, other) = (say().await, say().await);
    let server = gateway(&[one.address, other.address]).await;
    let system = json!({"role": "system", "content": "Be brief. ".repeat(50)});
    for turn in 0..3 {
        for key in 0..16 {
            let messages = json!([system, {"role": "user", "content": format!("Turn {turn}")}]);
            let body = chat(json!({"messages": messages, "prompt_cache_key": format!("session {key}")}));
            let reply = server.client().post("/v1/chat/completions", &body).await;
            assert_eq!(reply.status, 200, "{}", reply.text());
        }
    }
    assert_eq!(one.asked().len() + other.asked().len(), 48);
    let (here, there) = (keys_of(&one), keys_of(&other));
    assert!(here.is_disjoint(&there), "each session stays where it began: {here:?}, {there:?}");
    assert!(!here.is_empty() && !there.is_empty(), "though all of them begin alike");
}

#[tokio::test]
async fn a_request_that_breaks_two_upstreams_is_not_tried_on_a_third() {
    let (a, b, c) =
        (Scripted::always(Act::Break).await, Scripted::always(Act::Break).await, Scripted::always(Act::Break).await);
    let server = gateway(&[a.address, b.address, c.address]).await;
    let reply = server.client().post("/v1/chat/completions", &chat(json!({}))).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (502, "upstream_failed"));
    assert_eq!(a.asked().len() + b.asked().len() + c.asked().len(), 2);
}

#[tokio::test]
async fn an_upstream_that_asks_for_a_pause_gets_it() {
    let busy = Scripted::always(Act::Refuse(503, "retry-after: 30\r\n", "")).await;
    let (server, clock) = (gateway(&[busy.address]).await, SystemClock::new());
    let first = server.client().post("/v1/chat/completions", &chat(json!({}))).await;
    assert_eq!((first.status, first.headers["retry-after"].as_str()), (503, "30"));
    let second = server.client().post("/v1/chat/completions", &chat(json!({}))).await;
    assert_eq!((second.status, second.error_code().as_str()), (503, "no_replica"));
    let least = 30_u64.saturating_sub(clock.now().as_secs() + 1);
    assert!((least..=30).contains(&second.headers["retry-after"].parse::<u64>().unwrap()), "{:?}", second.headers);
    assert_eq!(busy.asked().len(), 1);
    assert_eq!(server.client().get("/ready").await.status, 503);
    assert_eq!(server.client().get("/v1/models").await.json()["data"][0]["state"], "unready");
}

#[tokio::test]
async fn a_stream_that_breaks_off_says_so_is_not_begun_again_and_settles_what_came() {
    let breaks = || Scripted::always(Act::SayAndBreak(vec![chat_piece("a"), chat_piece("b"), chat_piece("c")]));
    let (one, other) = (breaks().await, breaks().await);
    let server = gateway(&[one.address, other.address]).await;
    let events = server.client().stream("/v1/chat/completions", &chat(json!({"stream": true}))).await.events().await;
    assert_eq!(events.last().unwrap()["error"]["code"], "upstream_failed");
    assert_eq!(one.asked().len() + other.asked().len(), 1);
    let totals = settled(&server).await;
    assert_eq!((totals.settled, totals.generated_tokens), (1, 3));
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_work_over_there_and_pays_what_came() {
    let upstream = Scripted::always(Act::SayAndWait(vec![chat_piece("a"), chat_piece("b")])).await;
    let server = gateway(&[upstream.address]).await;
    let mut stream = server.client().stream("/v1/chat/completions", &chat(json!({"stream": true}))).await;
    stream.read_events(3).await;
    drop(stream);
    timeout(PATIENCE, upstream.until_left(1)).await.expect("the connection closes");
    let totals = settled(&server).await;
    assert_eq!((totals.settled, totals.generated_tokens), (1, 2));
    assert!(server.state.serving().router.replicas().all(|replica| replica.tokens_in_flight() == 0));
}

/// An answer has begun when the other prompt of its list is refused: nobody sees it, and nobody pays.
#[tokio::test]
async fn a_list_that_an_upstream_cannot_begin_is_free() {
    let begins = |body: &Value| match &body["prompt"] {
        prompt if *prompt == json!("a") => Act::Say(completion_answer("theirs", 3)),
        _ => Act::Refuse(500, "", ""),
    };
    for stream in [false, true] {
        let upstream = Scripted::by_body(begins).await;
        let server = gateway(&[upstream.address]).await;
        let body = json!({"model": REMOTE, "prompt": ["a", "b"], "max_tokens": 2, "stream": stream});
        let reply = server.client().post("/v1/completions", &body).await;
        assert_eq!(reply.status, 502, "{}", reply.text());
        let totals = settled(&server).await;
        assert_eq!((totals.prompt_tokens, totals.generated_tokens), (0, 0), "streamed: {stream}");
    }
}

#[tokio::test]
async fn a_request_to_an_upstream_is_of_the_class_that_it_asks_for() {
    let upstream = Scripted::always(Act::Say(chat_answer(&["hello"], 3))).await;
    let key_limits = Some(vec![Limit::of(Bound::BatchTokens(NonZeroU64::new(20).unwrap()))]);
    let server = Server::with(Options { key_limits, ..Options::default() }).await;
    serve(&server.state, vec![replica(upstream.address, REMOTE, 1)]);
    let client = server.client().with_key();
    for (tier, status) in [("default", 200), ("flex", 400)] {
        let body = chat(json!({"service_tier": tier, "max_tokens": 50}));
        let reply = client.post("/v1/chat/completions", &body).await;
        assert_eq!(reply.status, status, "{tier}: {}", reply.text());
        assert_eq!(status == 400, reply.text().contains("batch_tokens"));
    }
}

/// Nothing would be counted of it, and so nothing be refused.
#[tokio::test]
async fn a_model_that_no_tariff_prices_is_refused_to_whoever_is_limited_in_gpu_time_and_to_nobody_else() {
    let upstream = Scripted::always(Act::Say(chat_answer(&["hello"], 3))).await;
    let gpu = Bound::Rate { unit: Unit::GpuMicros, per_minute: NonZeroU64::new(1_000_000).unwrap() };
    let enforced = Limit::of(gpu);
    let on_trial = Limit { enforcement: Enforcement::DryRun, ..enforced.clone() };
    let of_another = Limit { model: Some("another".into()), ..enforced.clone() };
    for (limit, status) in [(enforced, 400), (on_trial, 200), (of_another, 200)] {
        let server = Server::with(Options { key_limits: Some(vec![limit.clone()]), ..Options::default() }).await;
        serve(&server.state, vec![replica(upstream.address, REMOTE, 1)]);
        let reply = server.client().with_key().post("/v1/chat/completions", &chat(json!({"max_tokens": 5}))).await;
        assert_eq!(reply.status, status, "{limit:?}: {}", reply.text());
        if status == 400 {
            assert_eq!(reply.error_code(), "request_exceeds_limit");
            assert!(reply.message().contains("gpu_seconds_per_minute") && reply.message().contains("ledger.tariff"));
        }
    }
    assert_eq!(upstream.asked().len(), 2);
}

#[tokio::test]
async fn what_only_an_engine_here_can_show_is_refused_by_name() {
    let upstream = Scripted::always(Act::Break).await;
    let server = gateway(&[upstream.address]).await;
    for (field, value) in [("return_token_ids", json!(true)), ("max_tokens", json!(5000))] {
        let reply = server.client().post("/v1/chat/completions", &chat(json!({field: value}))).await;
        assert_eq!((reply.status, reply.param().as_deref()), (400, Some(field)), "{}", reply.text());
    }
    let reply = server.client().post("/tokenize", &json!({"model": REMOTE, "prompt": "a"})).await;
    assert_eq!((reply.status, reply.param().as_deref()), (400, Some("model")));
    assert!(upstream.asked().is_empty());
}

#[tokio::test]
async fn models_that_run_elsewhere_are_listed() {
    let upstream = Scripted::always(Act::Break).await;
    let server = gateway(&[upstream.address]).await;
    let entry = server.client().get(&format!("/v1/models/{REMOTE}")).await.json();
    assert_eq!((&entry["id"], &entry["max_model_len"]), (&json!(REMOTE), &json!(1000)));
}
