//! One Passerelle before another: who asks is told, what it cost is answered, and what is asked twice is billed once.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use passerelle::api::{ApiConfig, RemoteModel, Serving};
use passerelle::gateway::account::{ModelAccess, Scopes, ServiceClass};
use passerelle::gateway::breaker::BreakerBounds;
use passerelle::gateway::directory::NewKey;
use passerelle::gateway::quota::{Bound, Period, Unit};
use passerelle::gateway::replica::{ReplicaId, UpstreamParts};
use passerelle::gateway::tariff::{Price, Tariff};
use passerelle::gateway::{DataDir, Directory, LedgerTotals, Limit, Quota, Replica, Router, Scope};
use passerelle::upstream::{Timeouts, Upstream, UpstreamKind, UpstreamSettings};
use passerelle_engine::EncoderConfig;
use passerelle_engine::clock::SystemClock;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::client::Client;
use crate::common::encoders::{BERT, CLASSIFIER, EncoderServer, RERANKER};
use crate::common::{MODEL, Options, PATIENCE, Server, digest, until};

const RESERVATION: &str = "x-passerelle-reservation";

/// A site that runs the model, with a key for gateways and one for everybody else.
struct Site {
    server: Server,
    gateway_key: String,
    plain_key: String,
}

/// A data directory with one account and its two keys: one for gateways and one for everybody else.
fn accounts() -> (TempDir, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let data = DataDir::open(folder.path()).unwrap();
    let directory = Directory::open(&data, Arc::new(SystemClock::new()), "test").unwrap();
    directory.create_account(&"south".parse().unwrap(), Quota::unlimited()).unwrap();
    let key = |name: &str, scopes: &[Scope]| {
        let (account, scopes) = ("south".parse().unwrap(), Scopes::new(scopes.iter().copied()).unwrap());
        let (name, models, class) = (name.to_owned(), ModelAccess::All, ServiceClass::Standard);
        let new = NewKey { account, name, scopes, models, class, valid_for: None };
        directory.create_key(new).unwrap().0.reveal().to_owned()
    };
    let gateway_key = key("gateway", &[Scope::Inference, Scope::Gateway]);
    let plain_key = key("plain", &[Scope::Inference]);
    let daily = Bound::Budget { unit: Unit::Requests, amount: NonZeroU64::new(100).unwrap(), period: Period::Day };
    directory.set_limit(&"south".parse().unwrap(), Limit::of(daily)).unwrap();
    (folder, gateway_key, plain_key)
}

async fn site() -> Site {
    let (folder, gateway_key, plain_key) = accounts();
    let api = ApiConfig { site: Some("north".to_owned()), ..ApiConfig::default() };
    let tariff = Arc::new(Tariff::new("test", [(MODEL.to_owned(), Price::flat(2_000_000, 1_000, 4_000_000))]));
    let server = Server::with(Options { administered: Some(folder), api, tariff, ..Options::default() }).await;
    Site { server, gateway_key, plain_key }
}

impl Site {
    fn with(&self, key: &str) -> Client {
        self.server.client().with("authorization", &format!("Bearer {key}"))
    }

    /// Of a day's 100, to the account of both keys.
    async fn requests_left(&self) -> Value {
        let limits = self.with(&self.plain_key).get("/v1/me/limits").await.json();
        limits["data"][0]["remaining"].clone()
    }

    async fn settled(&self) -> LedgerTotals {
        self.server.settle().await;
        self.server.state.ledger().totals()
    }
}

/// A gateway without the model, before the site.
async fn gateway_before(site: &Site) -> Server {
    gateway_with(site, Options::default()).await
}

async fn gateway_with(site: &Site, options: Options) -> Server {
    let gateway = Server::with(options).await;
    let upstream = Upstream::new(&UpstreamSettings {
        kind: UpstreamKind::Passerelle,
        url: &format!("http://{}", site.server.address),
        model: MODEL,
        key: Some(&site.gateway_key),
        health_path: "/v1/models",
        timeouts: Timeouts { connect: Duration::from_secs(5), first_byte: PATIENCE, idle: PATIENCE },
    });
    let parts = UpstreamParts {
        name: "north".to_owned(),
        door: Box::new(upstream.unwrap()),
        bounds: BreakerBounds::default(),
        clock: Arc::new(SystemClock::new()),
        seed: 1,
    };
    let replica = Arc::new(Replica::upstream(ReplicaId(1), "far", parts));
    let remote = RemoteModel { name: "far".into(), text: None, max_model_len: Some(1000), default_max_tokens: 50 };
    gateway.state.serve(Serving::new(Router::new([replica], Arc::new(SystemClock::new()), 7), [remote]));
    gateway
}

fn chat(model: &str) -> Value {
    // Longer than a block, so that a cache holds some of it.
    let content = format!("{}say:hi there", "Once upon a time. ".repeat(4));
    json!({"model": model, "messages": [{"role": "user", "content": content}]})
}

#[tokio::test]
async fn both_gateways_settle_the_same_request_once() {
    let site = site().await;
    let gateway = gateway_before(&site).await;
    let answer = gateway.client().post("/v1/chat/completions", &chat("far")).await.json();
    assert_eq!((answer["model"].as_str(), answer["choices"][0]["finish_reason"].as_str()), (Some("far"), Some("stop")));
    gateway.settle().await;
    let (here, there) = (gateway.state.ledger().totals(), site.settled().await);
    assert_eq!((here.settled, there.settled), (1, 1));
    assert_eq!((here.prompt_tokens, here.generated_tokens), (there.prompt_tokens, there.generated_tokens));
    assert!(there.generated_tokens > 0);
}

/// Its ledger has the entry that the one of whoever asked is matched with.
#[tokio::test]
async fn a_gateway_between_two_others_passes_on_the_digest_that_it_was_told_and_names_its_own_site() {
    let site = site().await;
    let (folder, gateway_key, _) = accounts();
    let api = ApiConfig { site: Some("middle".to_owned()), ..ApiConfig::default() };
    let middle = gateway_with(&site, Options { administered: Some(folder), api, ..Options::default() }).await;
    let client = middle.client().with("authorization", &format!("Bearer {gateway_key}")).with(RESERVATION, "rsv_1");
    let told = |answer: &Value| ["model_digest", "site"].map(|field| answer["usage"]["passerelle"][field].clone());
    let whole = client.post("/v1/chat/completions", &chat("far")).await.json();
    assert_eq!(told(&whole), [json!(digest()), json!("middle")], "{whole}");
    let mut streamed = chat("far");
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let events = client.stream("/v1/chat/completions", &streamed).await.events().await;
    let last = events.last().expect("a stream has events");
    assert_eq!(told(last), [json!(digest()), json!("middle")], "{last}");
}

#[tokio::test]
async fn a_reservation_that_asks_twice_is_billed_once_and_told_what_it_cost() {
    let site = site().await;
    let ask = |key: &str, id: &str| {
        let client = site.with(key).with(RESERVATION, id);
        async move { client.post("/v1/chat/completions", &chat(MODEL)).await }
    };
    let first = ask(&site.gateway_key, "rsv_1").await.json();
    let told = &first["usage"]["passerelle"];
    assert_eq!((&told["site"], &told["model_digest"]), (&json!("north"), &json!(digest())));
    assert!(told["billed_gpu_ms"].is_number(), "{told}");
    let once = site.settled().await;
    assert_eq!(site.requests_left().await, json!(99.0));
    let again = ask(&site.gateway_key, "rsv_1").await.json();
    assert_eq!(again["choices"], first["choices"], "it is answered all the same");
    assert_eq!(again["usage"]["passerelle"], *told, "what was billed, though its prompt is cached by now");
    assert!(again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64() > Some(0), "{again}");
    let twice = site.settled().await;
    assert_eq!((twice.prompt_tokens, twice.generated_tokens), (once.prompt_tokens, once.generated_tokens));
    assert_eq!(site.requests_left().await, json!(99.0), "one request");
    ask(&site.gateway_key, "rsv_2").await.json();
    assert_eq!(site.settled().await.generated_tokens, 2 * once.generated_tokens, "another one pays");
    assert_eq!(ask(&site.gateway_key, "two words").await.status, 400);
    let nobody = site.with(&site.gateway_key).with(RESERVATION, "rsv_3").with("x-passerelle-account", "a//b");
    let refused = nobody.post("/v1/chat/completions", &chat(MODEL)).await;
    assert_eq!((refused.status, refused.param().as_deref()), (400, Some("x-passerelle-account")));
}

#[tokio::test]
async fn a_list_of_prompts_that_is_sent_twice_is_told_what_was_billed_and_not_the_price_of_the_second_time() {
    let site = site().await;
    let prompt = |text: &str| format!("{}say:{text}", "Once upon a time. ".repeat(4));
    let body = json!({"model": MODEL, "prompt": [prompt("hi there"), prompt("no")], "max_tokens": 20});
    let ask = async |id: &str, body: &Value| {
        let answer = site.with(&site.gateway_key).with(RESERVATION, id).post("/v1/completions", body).await.json();
        answer["usage"]["passerelle"]["billed_gpu_ms"].as_f64().unwrap()
    };
    let first = ask("rsv_1", &body).await;
    let once = site.settled().await;
    assert!(first > 0.0 && once.settled == 2, "{first}");
    assert_eq!(ask("rsv_1", &body).await, first, "though both prompts are cached by now");
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let events = site.with(&site.gateway_key).with(RESERVATION, "rsv_1").stream("/v1/completions", &streamed).await;
    let events = events.events().await;
    let told = events.iter().rev().find_map(|event| event["usage"]["passerelle"]["billed_gpu_ms"].as_f64());
    assert_eq!(told, Some(first));
    let last = site.settled().await;
    assert_eq!((last.prompt_tokens, last.generated_tokens), (once.prompt_tokens, once.generated_tokens));
}

#[tokio::test]
async fn texts_that_are_sent_twice_under_one_reservation_are_billed_once() {
    let (folder, gateway_key, _) = accounts();
    let options = Options { administered: Some(folder), ..Options::default() };
    let server = EncoderServer::with(options, EncoderConfig::default()).await;
    let ask = async |path: &str, id: &str, body: &Value| {
        let client = server.client().with("authorization", &format!("Bearer {gateway_key}")).with(RESERVATION, id);
        let reply = client.post(path, body).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        until(|| server.state.ledger().totals().open == 0).await;
        server.state.ledger().totals().prompt_tokens
    };
    let cases = [
        ("/v1/embeddings", json!({"model": BERT, "input": ["one", "two"]})),
        ("/v1/rerank", json!({"model": RERANKER, "query": "one", "documents": ["two", "three"]})),
        ("/v1/score", json!({"model": RERANKER, "text_1": "one", "text_2": "two"})),
        ("/v1/classify", json!({"model": CLASSIFIER, "input": "one"})),
    ];
    let mut before = 0;
    for (path, body) in cases {
        let once = ask(path, &format!("first:{path}"), &body).await;
        assert!(once > before, "{path}");
        assert_eq!(ask(path, &format!("first:{path}"), &body).await, once, "{path}");
        let other = ask(path, &format!("second:{path}"), &body).await;
        assert_eq!(other - once, once - before, "{path}: another reservation pays as the first");
        before = other;
    }
}

#[tokio::test]
async fn a_key_that_is_not_for_gateways_pays_each_time_and_is_told_nothing() {
    let site = site().await;
    let client = site.with(&site.plain_key).with(RESERVATION, "rsv_1");
    let first = client.post("/v1/chat/completions", &chat(MODEL)).await.json();
    assert!(first["usage"].get("passerelle").is_none(), "{first}");
    let once = site.settled().await;
    client.post("/v1/chat/completions", &chat(MODEL)).await.json();
    assert_eq!(site.settled().await.generated_tokens, 2 * once.generated_tokens);
}
