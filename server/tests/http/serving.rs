//! How the server listens, waits and ends.

use std::sync::Arc;
use std::time::Duration;

use crate::common::client::Stream;
use crate::common::model::Gate;
use crate::common::{MODEL, Options, PATIENCE, Server, assemble, until};
use axum::body::Body;
use axum::http::Request;
use passerelle::api::{ApiConfig, Drained, Listener, ServeConfig, SseConfig, UnixSocket, router, serve};
use passerelle::gateway::health::LOOK_EVERY;
use passerelle_engine::clock::ManualClock;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::oneshot;
use tower::ServiceExt;

const CHAT: &str = "/v1/chat/completions";

fn chat(max_tokens: usize) -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": "talk"}], "max_tokens": max_tokens, "stream": true})
}

async fn text_of(stream: Stream) -> String {
    let events = stream.events().await;
    let content = |event: &Value| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned);
    events.iter().filter_map(content).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_finishes_what_runs_and_admits_nothing_more() {
    let gate = Gate::closed();
    let mut server = Server::with(Options { gate: gate.clone(), ..Options::default() }).await;
    let client = server.client();
    let mut streams = Vec::new();
    for _ in 0..16 {
        streams.push(client.stream(CHAT, &chat(40)).await);
    }
    server.state.readiness().start_draining();
    let refused = client.post(CHAT, &chat(4)).await;
    assert_eq!((refused.status, refused.error_code().as_str()), (503, "draining"));
    assert_eq!(client.get("/ready").await.status, 503);
    assert_eq!(client.get("/health").await.status, 200);
    let drained = server.begin_drain();
    gate.release();
    for stream in streams {
        assert_eq!(text_of(stream).await.len(), 40);
    }
    assert_eq!(drained.await.unwrap(), Drained::Completely);
    server.assert_at_rest().await;
}

/// Of a step that ends when the test lets it, looked at as often as a server looks at its replicas.
#[tokio::test]
async fn an_engine_that_stands_still_is_unready_within_two_seconds_and_one_that_is_busy_never() {
    let (gate, clock) = (Gate::closed(), ManualClock::default());
    let options = Options { gate: gate.clone(), clock: Arc::new(clock.clone()), ..Options::default() };
    let server = Server::with(options).await;
    let client = server.client();
    let is_ready = async || {
        clock.advance(LOOK_EVERY);
        client.get("/ready").await.status == 200
    };
    let stream = client.stream(CHAT, &chat(40)).await;
    until(|| server.engine.stats().step_started.is_some()).await;
    for look in 0..100 {
        gate.beat();
        assert!(is_ready().await, "a long step gets on, look {look}");
    }
    let mut stands_still_for = Duration::ZERO;
    while is_ready().await {
        stands_still_for += LOOK_EVERY;
        assert!(stands_still_for < Duration::from_secs(2));
    }
    let refused = client.post(CHAT, &chat(4)).await;
    assert_eq!((refused.status, refused.error_code().as_str()), (503, "no_replica"));
    assert!(refused.headers.contains_key("retry-after"));
    assert_eq!(client.get("/health").await.status, 200, "the process lives");
    gate.release();
    assert_eq!(text_of(stream).await.len(), 40, "it goes on where it stood");
    assert!(is_ready().await);
    server.assert_at_rest().await;
}

/// From the steps that fail to what an orchestrator is told.
#[tokio::test]
async fn after_three_failures_within_a_minute_a_replica_is_unready_until_they_are_long_ago() {
    let clock = ManualClock::default();
    let server = Server::with(Options { clock: Arc::new(clock.clone()), ..Options::default() }).await;
    let client = server.client();
    let is_ready = async || client.get("/ready").await.status == 200;
    let state = async || client.get("/v1/models").await.json()["data"][0]["state"].clone();
    for failure in 1..=3 {
        assert!(is_ready().await, "before failure {failure}");
        let fails = json!({"model": MODEL, "prompt": "break: it", "max_tokens": 2, "prompt_logprobs": 1});
        let reply = client.post("/v1/completions", &fails).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (500, "engine_failed"));
        server.settle().await;
        clock.advance(Duration::from_secs(15));
    }
    // 45 seconds after the first of them.
    assert!(!is_ready().await);
    assert_eq!(state().await, "unready");
    assert_eq!(client.get("/health").await.status, 200, "the process lives");
    assert_eq!(text_of(client.stream(CHAT, &chat(40)).await).await.len(), 40, "it serves while there is no other");
    server.settle().await;
    clock.advance(Duration::from_secs(14));
    assert!(!is_ready().await, "the minute is not over");
    clock.advance(Duration::from_secs(1));
    assert!(is_ready().await);
    assert_eq!(state().await, "ready");
}

#[tokio::test]
async fn an_answer_that_takes_too_long_ends_with_an_error() {
    let gate = Gate::closed();
    let api = ApiConfig { request_timeout: Duration::from_millis(50), ..ApiConfig::default() };
    let server = Server::with(Options { api, gate: gate.clone(), ..Options::default() }).await;
    let client = server.client();
    let mut body = chat(4);
    let events = client.stream(CHAT, &body).await.events().await;
    assert_eq!(events.last().unwrap()["error"]["code"], "request_timeout");
    body["stream"] = json!(false);
    let reply = client.post(CHAT, &body).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (503, "request_timeout"));
    assert_eq!(reply.headers["retry-after"], "5");
    gate.release();
    server.assert_at_rest().await;
}

#[tokio::test]
async fn an_answer_that_takes_too_long_ends_even_if_nobody_reads_it() {
    let sse = SseConfig { max_pending_frames: 1, write_timeout: 10 * PATIENCE, ..SseConfig::default() };
    let api = ApiConfig { request_timeout: Duration::from_millis(50), sse, ..ApiConfig::default() };
    let server = Server::with(Options { api, ..Options::default() }).await;
    let request = Request::post(CHAT).header("host", "localhost").header("content-type", "application/json");
    let request = request.body(Body::from(chat(1500).to_string())).unwrap();
    let response = router(server.state.clone()).oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    server.assert_at_rest().await;
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    let text = String::from_utf8_lossy(&body);
    assert!(text.contains("request_timeout") && text.ends_with("data: [DONE]\n\n"), "{text}");
}

#[tokio::test]
async fn a_reader_that_waits_is_told_so() {
    let gate = Gate::closed();
    let sse = SseConfig { keep_alive: Duration::from_millis(5), ..SseConfig::default() };
    let api = ApiConfig { sse, ..ApiConfig::default() };
    let server = Server::with(Options { api, gate: gate.clone(), ..Options::default() }).await;
    let mut stream = server.client().stream(CHAT, &chat(4)).await;
    stream.read_until(b": waiting\n\n").await;
    gate.release();
    assert_eq!(text_of(stream).await.len(), 4);
}

#[tokio::test]
async fn the_router_answers_in_process() {
    let (state, _engine) = assemble(&Options::default());
    let request = Request::get("/v1/models").header("host", "localhost").body(Body::empty()).unwrap();
    let response = router(state).oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn a_unix_socket_is_served_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("door.sock");
    let (state, _engine) = assemble(&Options::default());
    let listener = Listener::Unix(UnixSocket::new(UnixListener::bind(&path).unwrap(), path.clone()).unwrap());
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async {
        let _ = stopped.await;
    };
    let serving = tokio::spawn(serve(listener, router(state), ServeConfig::default(), shutdown));
    let mut connection = UnixStream::connect(&path).await.unwrap();
    connection.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop(connection);
    stop.send(()).unwrap();
    assert_eq!(serving.await.unwrap(), Drained::Completely);
    assert!(!path.exists());
}

/// What a connection says until its end.
async fn read_all(connection: &mut TcpStream) -> String {
    let mut told = Vec::new();
    // A reset instead of an end says no more.
    let _ = connection.read_to_end(&mut told).await;
    String::from_utf8(told).unwrap()
}

#[tokio::test]
async fn a_head_that_never_ends_is_not_waited_for() {
    let config = ServeConfig { header_timeout: Duration::from_millis(200), ..ServeConfig::default() };
    let server = Server::with(Options { serve: config, ..Options::default() }).await;
    let mut connection = TcpStream::connect(server.address).await.unwrap();
    connection.write_all(b"GET /health HTTP/1.1\r\nhost: local").await.unwrap();
    let told = read_all(&mut connection).await;
    assert!(told.starts_with("HTTP/1.1 408 ") && told.contains("head_timeout"), "{told}");
}

#[tokio::test]
async fn half_of_a_later_head_is_answered_as_half_of_the_first_is() {
    let config = ServeConfig { header_timeout: PATIENCE / 20, ..ServeConfig::default() };
    let server = Server::with(Options { serve: config, ..Options::default() }).await;
    let mut connection = TcpStream::connect(server.address).await.unwrap();
    connection.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    assert!(connection.read(&mut [0; 4096]).await.unwrap() > 0);
    connection.write_all(b"GET /health HTTP/1.1\r\nhost: local").await.unwrap();
    let told = read_all(&mut connection).await;
    assert!(told.contains("HTTP/1.1 408 ") && told.contains("head_timeout"), "{told}");
}

/// A request, of which no more is written than this.
fn said(length: usize, body: &str) -> String {
    format!(
        "POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

/// What somebody is answered who says this and no more.
async fn answer_to(server: &Server, said: &str) -> String {
    let mut connection = TcpStream::connect(server.address).await.unwrap();
    connection.write_all(said.as_bytes()).await.unwrap();
    connection.shutdown().await.unwrap();
    read_all(&mut connection).await
}

#[tokio::test]
async fn who_writes_no_more_is_answered_all_the_same() {
    // A moment that lasts as long as a loaded machine wants.
    let config = ServeConfig { half_closed_timeout: PATIENCE, ..ServeConfig::default() };
    let server = Server::with(Options { serve: config, ..Options::default() }).await;
    let body = chat(4).to_string();
    for (said, status, code) in [
        (said(10, "[[[[[[[[[["), 400, "invalid_json"),
        (said(2, "{}"), 400, "missing_required_parameter"),
        (said(body.len(), &body), 200, "[DONE]"),
        ("GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned(), 200, "ok"),
    ] {
        let told = answer_to(&server, &said).await;
        assert!(told.starts_with(&format!("HTTP/1.1 {status} ")) && told.contains(code), "{said}: {told}");
    }
    server.assert_at_rest().await;
}

#[tokio::test]
async fn what_ends_early_is_refused_however_short_the_moment() {
    let config = ServeConfig { half_closed_timeout: Duration::ZERO, ..ServeConfig::default() };
    let server = Server::with(Options { serve: config, ..Options::default() }).await;
    let body = chat(4).to_string();
    for (said, status, code) in [
        ("GET /health HTTP/1.1\r\nhost: loc".to_owned(), 400, "incomplete_head"),
        (said(body.len(), &body[..10]), 400, "invalid_json"),
        (said(body.len(), ""), 400, "invalid_json"),
        (said(1 << 40, ""), 413, "request_too_large"),
    ] {
        let told = answer_to(&server, &said).await;
        assert!(told.starts_with(&format!("HTTP/1.1 {status} ")) && told.contains(code), "{said}: {told}");
    }
    server.assert_at_rest().await;
}

/// Says this to a server whose model stands still.
async fn say_and_wait(server: &Server, is_streamed: bool) -> TcpStream {
    let mut body = chat(4);
    body["stream"] = json!(is_streamed);
    let body = body.to_string();
    let mut connection = TcpStream::connect(server.address).await.unwrap();
    connection.write_all(said(body.len(), &body).as_bytes()).await.unwrap();
    until(|| server.state.ledger().totals().open == 1).await;
    connection
}

#[tokio::test]
async fn who_writes_no_more_is_answered_however_long_that_takes() {
    for (is_streamed, waiting, end) in [(true, ": waiting\n\n", "[DONE]"), (false, " 100 Continue\r\n", "\"length\"")] {
        let gate = Gate::closed();
        let server = Server::with(Options { gate: gate.clone(), ..Options::default() }).await;
        let mut connection = say_and_wait(&server, is_streamed).await;
        connection.shutdown().await.unwrap();
        let mut told = String::new();
        while !told.contains(waiting) {
            let mut bytes = [0; 4096];
            let count = connection.read(&mut bytes).await.unwrap();
            assert!(count > 0, "{told}");
            told.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
        }
        gate.release();
        told.push_str(&read_all(&mut connection).await);
        assert!(told.contains("HTTP/1.1 200 OK\r\n") && told.contains(end), "{told}");
        server.assert_at_rest().await;
    }
}

#[tokio::test]
async fn who_is_gone_is_not_waited_for() {
    for is_streamed in [true, false] {
        let gate = Gate::closed();
        let server = Server::with(Options { gate: gate.clone(), ..Options::default() }).await;
        let mut connection = say_and_wait(&server, is_streamed).await;
        if is_streamed {
            assert!(connection.read(&mut [0; 4096]).await.unwrap() > 0, "it has begun");
        }
        drop(connection);
        until(|| server.state.ledger().totals().open == 0).await;
        gate.release();
        server.assert_at_rest().await;
    }
}
