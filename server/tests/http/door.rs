//! The door itself: HTTP/1.1 and HTTP/2, TLS, compression, headers, and which web pages are let in.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::common::client::{Client, Reply};
use crate::common::{MODEL, Options, Server, limit};
use axum::body::Body;
use flate2::read::GzDecoder;
use hyper::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use passerelle::api::{AllowedOrigins, ApiConfig, RouteSwitch, SseConfig, Tls, TlsError};
use passerelle::gateway::Limit;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::version::TLS12;
use tokio_rustls::rustls::{ALL_VERSIONS, ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion};

const CHAT: &str = "/v1/chat/completions";
const PAGE: &str = "https://app.example";

fn chat(extra: Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "say:hello"}], "max_tokens": 20});
    for (name, value) in extra.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn tls() -> Tls {
    Tls::load(&fixture("tls-certificate.pem"), &fixture("tls-key.pem")).unwrap()
}

/// A whole exchange over HTTP/2.
async fn ask_http2(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, uri: &str) -> Value {
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = Request::post(format!("{uri}{CHAT}")).header("content-type", "application/json");
    let answer = sender.send_request(request.body(Body::from(chat(json!({})).to_string())).unwrap()).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.version()), (200, hyper::Version::HTTP_2));
    let bytes = axum::body::to_bytes(Body::new(answer.into_body()), 1 << 20).await.unwrap();
    drop(sender);
    connection.await.unwrap().unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

async fn shake_hands(
    server: &Server,
    protocol: &[u8],
    versions: &[&'static SupportedProtocolVersion],
) -> tokio_rustls::client::TlsStream<TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(fixture("tls-certificate.pem")).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let stream = TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

#[tokio::test]
async fn http2_is_spoken_without_being_asked_for() {
    let server = Server::start().await;
    let stream = TcpStream::connect(server.address).await.unwrap();
    let answer = ask_http2(stream, &format!("http://{}", server.address)).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "hello");
    server.assert_at_rest().await;
}

#[tokio::test]
async fn tls_carries_http2_and_http1() {
    let server = Server::with(Options { tls: Some(tls()), ..Options::default() }).await;
    for (offered, spoken) in [(ALL_VERSIONS, ProtocolVersion::TLSv1_3), (&[&TLS12][..], ProtocolVersion::TLSv1_2)] {
        let stream = shake_hands(&server, b"h2", offered).await;
        assert_eq!(stream.get_ref().1.protocol_version(), Some(spoken));
        let answer = ask_http2(stream, "https://localhost").await;
        assert_eq!(answer["choices"][0]["message"]["content"], "hello");
    }
    let stream = shake_hands(&server, b"http/1.1", ALL_VERSIONS).await;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("/health").header("host", "localhost").body(Body::empty()).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status().as_u16(), 200);
}

#[test]
fn a_certificate_that_cannot_be_used_is_named() {
    let (certificate, key) = (fixture("tls-certificate.pem"), fixture("tls-key.pem"));
    assert!(matches!(Tls::load(&key, &key), Err(TlsError::NoCertificate(file)) if file == key));
    assert!(Tls::load(&certificate, &certificate).unwrap_err().to_string().contains("tls-certificate.pem"));
    assert!(Tls::load(Path::new("/nowhere.pem"), &key).unwrap_err().to_string().contains("/nowhere.pem"));
}

#[tokio::test]
async fn a_large_answer_is_compressed_for_who_asks_and_a_stream_never_is() {
    let api = ApiConfig { compress_above_bytes: 100, ..ApiConfig::default() };
    let server = Server::with(Options { api, ..Options::default() }).await;
    let plain = server.client();
    let packed = plain.clone().with("accept-encoding", "br, gzip");
    let reply = packed.post(CHAT, &chat(json!({"seed": 1}))).await;
    assert_eq!(
        (reply.headers["content-encoding"].as_str(), reply.headers["vary"].as_str()),
        ("gzip", "accept-encoding")
    );
    let mut text = String::new();
    GzDecoder::new(reply.body.as_slice()).read_to_string(&mut text).unwrap();
    let content = |text: &str| serde_json::from_str::<Value>(text).unwrap()["choices"].clone();
    let reply = plain.post(CHAT, &chat(json!({"seed": 1}))).await;
    assert!(!reply.headers.contains_key("content-encoding"));
    assert_eq!(content(&text), content(&reply.text()));
    let stream = packed.stream(CHAT, &chat(json!({"stream": true}))).await;
    assert!(!stream.headers.contains_key("content-encoding"));
    assert!(stream.events().await.len() > 5);
    assert!(!packed.get("/health").await.headers.contains_key("content-encoding"), "it is small");
}

#[tokio::test]
async fn a_compressed_body_is_refused() {
    let server = Server::start().await;
    let reply = server.client().with("content-encoding", "gzip").post(CHAT, &chat(json!({}))).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (415, "unsupported_media_type"));
}

async fn preflight(client: &Client, origin: &str) -> Reply {
    let asks = client.clone().with("origin", origin).with("access-control-request-method", "POST");
    let asks = asks.with("access-control-request-headers", "authorization,x-stainless-os");
    asks.send("OPTIONS", CHAT, b"").await.whole().await
}

#[tokio::test]
async fn no_web_page_is_let_in_unless_it_is_listed() {
    let closed = Server::with(Options { key_limits: Some(Vec::new()), ..Options::default() }).await;
    let reply = preflight(&closed.client(), PAGE).await;
    assert_eq!(reply.status, 405);
    assert!(!reply.headers.keys().any(|name| name.starts_with("access-control-")), "{:?}", reply.headers);

    let allowed_origins = AllowedOrigins::new([PAGE.to_owned()]).unwrap();
    let api = ApiConfig { allowed_origins, ..ApiConfig::default() };
    for key_limits in [None, Some(Vec::new())] {
        let open = Server::with(Options { api: api.clone(), key_limits, ..Options::default() }).await;
        let reply = preflight(&open.client(), PAGE).await;
        assert_eq!((reply.status, reply.headers["access-control-allow-origin"].as_str()), (200, PAGE));
        assert_eq!(reply.headers["access-control-allow-headers"], "authorization,x-stainless-os");
        assert!(!reply.headers.contains_key("access-control-allow-credentials"));
        let page = open.client().with_key().with("origin", PAGE);
        let reply = page.post(CHAT, &chat(json!({}))).await;
        assert_eq!((reply.status, reply.headers["access-control-allow-origin"].as_str()), (200, PAGE));
        let readable = &reply.headers["access-control-expose-headers"];
        assert!(readable.contains("retry-after") && readable.contains("x-ratelimit-remaining-requests"), "{readable}");
        let stranger = preflight(&open.client(), "https://evil.example").await;
        assert!(!stranger.headers.contains_key("access-control-allow-origin"));
    }
}

#[tokio::test]
async fn every_answer_says_how_long_it_took_and_a_limited_key_what_is_left() {
    let key_limits = Some(vec![limit(Limit::requests_per_minute, 5), limit(Limit::tokens_per_minute, 1000)]);
    let server = Server::with(Options { key_limits, ..Options::default() }).await;
    let client = server.client().with_key();
    assert!(client.get("/v1/models").await.headers["openai-processing-ms"].parse::<u64>().is_ok());
    let stream = client.stream(CHAT, &chat(json!({"stream": true}))).await;
    assert_eq!(stream.headers["x-ratelimit-limit-requests"], "5");
    assert_eq!(stream.headers["x-ratelimit-remaining-requests"], "4");
    assert!(stream.headers["x-ratelimit-remaining-tokens"].parse::<u64>().unwrap() < 1000);
    stream.events().await;
    let reply = client.post("/tokenize", &json!({"prompt": "hi"})).await;
    assert_eq!(reply.headers["x-ratelimit-remaining-requests"], "3");
}

#[tokio::test]
async fn asking_for_tokens_is_a_request_and_takes_no_tokens() {
    let of_model = Limit { model: Some(MODEL.into()), ..limit(Limit::requests_per_minute, 1) };
    let key_limits = Some(vec![limit(Limit::requests_per_minute, 3), limit(Limit::tokens_per_minute, 100), of_model]);
    let server = Server::with(Options { key_limits, ..Options::default() }).await;
    let client = server.client().with_key();
    let asked = client.post("/tokenize", &json!({"prompt": "hi"})).await;
    assert_eq!((asked.status, asked.headers["x-ratelimit-remaining-tokens"].as_str()), (200, "100"));
    let spelt = json!({"tokens": asked.json()["tokens"]});
    assert_eq!(client.post("/detokenize", &spelt).await.status, 200);
    let short = chat(json!({"max_tokens": 1}));
    assert_eq!(client.post(CHAT, &short).await.status, 200, "the model has its one request left");
    for (route, body) in [("/tokenize", json!({"prompt": "hi"})), ("/detokenize", spelt), (CHAT, short)] {
        let refused = client.post(route, &body).await;
        assert_eq!((refused.status, refused.headers["x-ratelimit-limit-name"].as_str()), (429, "requests_per_minute"));
        let left = |header| refused.headers.get(header).map(String::as_str);
        assert_eq!(left("x-ratelimit-remaining-requests"), Some("0"), "{route}");
        for header in
            ["x-ratelimit-limit-requests", "x-ratelimit-reset-requests", "x-ratelimit-limit-tokens", "retry-after"]
        {
            assert!(left(header).is_some(), "{header} of {route}");
        }
    }
}

#[tokio::test]
async fn a_stream_that_waits_says_so_until_it_goes_on() {
    let gate = crate::common::model::Gate::closed();
    let sse = SseConfig { keep_alive: Duration::from_millis(1), ..SseConfig::default() };
    let api = ApiConfig { sse, ..ApiConfig::default() };
    let server = Server::with(Options { api, gate: gate.clone(), ..Options::default() }).await;
    let mut stream = server.client().stream(CHAT, &chat(json!({"stream": true}))).await;
    stream.read_until(b": waiting\n\n: waiting\n\n").await;
    gate.release();
    stream.read_until(b"data: [DONE]").await;
}

#[tokio::test]
async fn usage_can_come_with_every_chunk_and_only_grows() {
    let server = Server::start().await;
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let body = chat(json!({"stream": true, "stream_options": options}));
    let events = server.client().stream(CHAT, &body).await.events().await;
    let counts: Vec<u64> = events.iter().map(|event| event["usage"]["completion_tokens"].as_u64().unwrap()).collect();
    assert_eq!((counts.first(), counts.last()), (Some(&0), Some(&6)));
    assert!(counts.is_sorted(), "{counts:?}");
    let prompt = &events[0]["usage"]["prompt_tokens"];
    assert!(events.iter().all(|event| &event["usage"]["prompt_tokens"] == prompt));
    let body = chat(json!({"stream": true, "stream_options": {"continuous_usage_stats": true}}));
    let reply = server.client().post(CHAT, &body).await;
    assert_eq!(reply.param().as_deref(), Some("stream_options.continuous_usage_stats"));
}

#[tokio::test]
async fn what_a_remote_tokenizer_needs_is_told_to_who_has_a_key() {
    let server = Server::with(Options { key_limits: Some(Vec::new()), ..Options::default() }).await;
    assert_eq!(server.client().get("/tokenizer_info").await.status, 401);
    let client = server.client().with_key();
    let info = client.get("/tokenizer_info").await.json();
    assert_eq!((&info["eos_token"], &info["model_max_length"]), (&json!("<|im_end|>"), &json!(2048)));
    assert!(info["chat_template"].as_str().unwrap().contains("<|im_start|>"));
    assert_eq!(client.get(&format!("/tokenizer_info?model={MODEL}")).await.json(), info);
    assert_eq!(client.get("/tokenizer_info?model=test%2fparrot").await.json(), info);
    assert_eq!(client.get("/tokenizer_info?model=nobody").await.status, 404);
    let tokens = client.post("/tokenize", &json!({"prompt": "test", "add_special_tokens": false})).await.json();
    assert_eq!(tokens["count"], 4);

    let api = ApiConfig { tokenizer_info: RouteSwitch::Off, ..ApiConfig::default() };
    let silent = Server::with(Options { api, ..Options::default() }).await;
    assert_eq!(silent.client().get("/tokenizer_info").await.status, 404);
    let described = async |server: &Server| server.client().get("/openapi.json").await.json()["paths"].clone();
    assert!(described(&server).await.get("/tokenizer_info").is_some());
    assert!(described(&silent).await.get("/tokenizer_info").is_none(), "a route that is off is not described");
}

#[tokio::test]
async fn a_developer_speaks_as_the_system_to_a_model_that_knows_no_developers() {
    let server = Server::start().await;
    let count = async |role: &str| {
        let messages = json!([{"role": role, "content": "x"}, {"role": "user", "content": "y"}]);
        server.client().post("/tokenize", &json!({"messages": messages})).await.json()["tokens"].clone()
    };
    assert_eq!(count("developer").await, count("system").await);
}

#[tokio::test]
async fn an_effort_is_told_to_a_template_that_has_a_name_for_it() {
    let server = Server::start().await;
    let client = server.client();
    let ask = async |extra: Value| {
        let mut body = json!({"messages": [{"role": "user", "content": "y"}]});
        for (name, value) in extra.as_object().unwrap() {
            body[name] = value.clone();
        }
        client.post("/tokenize", &body).await
    };
    let told = ask(json!({"reasoning_effort": "none"})).await.json();
    assert_eq!(told["tokens"], ask(json!({"chat_template_kwargs": {"enable_thinking": false}})).await.json()["tokens"]);
    assert_ne!(told["tokens"], ask(json!({})).await.json()["tokens"]);
    let both = json!({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": true}});
    for (extra, code) in [
        (json!({"reasoning_effort": "high"}), "unsupported_parameter"),
        (json!({"reasoning_effort": "huge"}), "invalid_value"),
        (both, "invalid_value"),
    ] {
        let reply = ask(extra).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (400, code), "{}", reply.text());
        assert_eq!(reply.param().as_deref(), Some("reasoning_effort"));
    }
    let hidden = ask(json!({"chat_template_kwargs": {"messages": []}})).await;
    assert_eq!(
        (hidden.status, hidden.param().as_deref()),
        (400, Some("chat_template_kwargs.messages")),
        "not passed over"
    );
}

#[tokio::test]
async fn a_key_that_is_written_twice_is_refused() {
    let server = Server::start().await;
    let body = br#"{"model": "m", "messages": [], "temperature": 0, "temperature": 1}"#;
    let reply = server.client().post_raw(CHAT, body).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (400, "invalid_json"));
    assert_eq!(reply.param().as_deref(), Some("temperature"));
}
