//! Accounts, keys and limits over HTTP: each key within its own part of the tree, and no further.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::batches::upload;
use crate::common::client::{Client, Reply};
use crate::common::{MODEL, Options, Server};
use axum::body::{Body, to_bytes};
use axum::http::Request;
use passerelle::api::{ApiConfig, OperatorBackend};
use passerelle::gateway::account::{ModelAccess, PrefixSharing, Scopes, ServiceClass};
use passerelle::gateway::directory::NewKey;
use passerelle::gateway::{AccountPath, DataDir, Directory, Quota, Scope};
use passerelle_engine::clock::{ManualClock, SystemClock};
use serde_json::{Value, json};
use tower::ServiceExt;

/// A server over a tree of two organisations, and a key for each of the places named.
struct Bench {
    server: Server,
    operator: String,
    owner: String,
    user: String,
    colleague: String,
    stranger: String,
}

async fn bench() -> Bench {
    bench_with(Options::default()).await
}

async fn bench_with(options: Options) -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let data = DataDir::open(folder.path()).unwrap();
    let directory = Directory::open(&data, Arc::new(SystemClock::new()), "test").unwrap();
    for account in ["acme", "acme/vision", "other"] {
        directory.create_account(&account.parse().unwrap(), Quota::unlimited()).unwrap();
    }
    let key = |account: &str, scope: Scope| {
        let account: AccountPath = account.parse().unwrap();
        let (scopes, models, name) = (Scopes::new([scope]).unwrap(), ModelAccess::All, scope.to_string());
        let new = NewKey { account, name, scopes, models, class: ServiceClass::Standard, valid_for: None };
        directory.create_key(new).unwrap().0.reveal().to_owned()
    };
    let (operator, owner) = (key("/", Scope::Admin), key("acme", Scope::Admin));
    let [user, colleague, stranger] = ["acme/vision", "acme", "other"].map(|account| key(account, Scope::Inference));
    let server = Server::with(Options { administered: Some(folder), ..options }).await;
    Bench { server, operator, owner, user, colleague, stranger }
}

impl Bench {
    fn with(&self, key: &str) -> Client {
        self.server.client().with("authorization", &format!("Bearer {key}"))
    }

    async fn limit(&self, key: &str, account: &str, value: u32) -> Reply {
        let limit = json!({"limit": "requests_per_minute", "value": value});
        self.with(key).post("/admin/v1/limits", &json!({"account": account, "set": limit})).await
    }
}

#[tokio::test]
async fn accounts_find_each_others_cached_prefixes_only_below_one_that_the_operator_named() {
    let prompt = format!("say:{}", "long ".repeat(20));
    let chat = json!({"model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": 2});
    for named in [None, Some("acme")] {
        let prefix_sharing = PrefixSharing::below(named.iter().map(|path| path.parse().unwrap()).collect());
        let api = ApiConfig { prefix_sharing, ..ApiConfig::default() };
        let bench = bench_with(Options { api, ..Options::default() }).await;
        let cached_for = async |key: &str| {
            let answer = bench.with(key).post("/v1/chat/completions", &chat).await.json();
            answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
        };
        assert_eq!(cached_for(&bench.user).await, 0);
        assert_eq!(cached_for(&bench.colleague).await > 0, named.is_some(), "{named:?}");
        assert_eq!(cached_for(&bench.stranger).await, 0, "{named:?}");
    }
}

async fn delete(client: &Client, path: &str) -> u16 {
    client.send("DELETE", path, b"").await.whole().await.status
}

#[tokio::test]
async fn an_owner_manages_keys_and_lower_limits_under_its_own_node_and_nothing_else() {
    let bench = bench().await;
    let owner = bench.with(&bench.owner);
    let limit = json!({"limit": "requests_per_minute", "value": 5});
    let set = |account: &str| json!({"account": account, "set": limit});
    for door in ["/v1/me/limits", "/admin/v1/limits"] {
        assert_eq!(owner.post(door, &set("acme/vision")).await.status, 200, "{door}");
        let refused = [owner.post(door, &set("acme")).await, owner.post(door, &set("other")).await];
        let refused = refused.into_iter().chain([bench.with(&bench.user).post(door, &set("acme/vision")).await]);
        refused.for_each(|reply| assert_eq!((reply.status, reply.error_code().as_str()), (403, "insufficient_scope")));
    }
    let gone = json!({"account": "acme/vision", "remove": {"limit": "requests_per_minute"}});
    assert_eq!(owner.post("/v1/me/limits", &gone).await.status, 200);
    assert_eq!(owner.post("/v1/me/limits", &gone).await.status, 404, "it is gone");
    for beyond in ["acme", "other", "/"] {
        let refused = bench.limit(&bench.owner, beyond, 5).await;
        assert_eq!((refused.status, refused.error_code().as_str()), (403, "insufficient_scope"), "{beyond}");
        let key = owner.post("/v1/me/keys", &json!({"account": beyond, "name": "k"})).await;
        assert_eq!(key.status, if beyond == "acme" { 200 } else { 403 }, "{beyond}");
    }
    let listed = owner.get("/v1/me/keys").await.json();
    let accounts: Vec<_> = listed["data"].as_array().unwrap().iter().map(|key| key["account"].clone()).collect();
    assert!(accounts.len() == 4 && accounts.iter().all(|account| account.as_str().unwrap().starts_with("acme")));
    assert_eq!(bench.limit(&bench.operator, "other", 5).await.status, 200);
    let seen = |reply: Reply| reply.json()["data"].as_array().unwrap().len();
    assert_eq!(seen(bench.with(&bench.operator).get("/admin/v1/accounts").await), 4);
    assert_eq!(seen(owner.get("/admin/v1/accounts").await), 2);
    assert_eq!(owner.get("/admin/v1/audit").await.status, 403);
    assert!(seen(bench.with(&bench.operator).get("/admin/v1/audit").await) >= 6);
}

#[tokio::test]
async fn a_key_without_the_scope_runs_no_model_and_administers_nothing() {
    let bench = bench().await;
    let chat = json!({"model": MODEL, "messages": [{"role": "user", "content": "say:hi"}]});
    assert_eq!(bench.with(&bench.user).post("/v1/chat/completions", &chat).await.status, 200);
    let refused = bench.with(&bench.owner).post("/v1/chat/completions", &chat).await;
    assert_eq!((refused.status, refused.error_code().as_str()), (403, "insufficient_scope"));
    for path in ["/admin/v1/accounts", "/admin/v1/usage", "/admin/v1/audit"] {
        assert_eq!(bench.with(&bench.user).get(path).await.status, 403, "{path}");
        assert_eq!(bench.server.client().get(path).await.status, 401, "{path}");
    }
    let own = bench.with(&bench.user).get("/v1/me/keys").await.json();
    assert_eq!(own["data"].as_array().unwrap().len(), 1, "its own");
}

/// The clock stands still, so nothing is known because time has passed.
#[tokio::test]
async fn what_the_server_changed_itself_it_knows_before_it_answers() {
    let bench = bench_with(Options { clock: Arc::new(ManualClock::default()), ..Options::default() }).await;
    let operator = bench.with(&bench.operator);
    let made = operator.post("/admin/v1/keys", &json!({"account": "other", "name": "k"})).await.json();
    let (key, id) = (made["key"].as_str().unwrap(), made["id"].as_str().unwrap());
    assert_eq!(bench.with(key).get("/v1/models").await.status, 200);
    assert_eq!(bench.limit(&bench.operator, "other", 5).await.status, 200);
    let limits = bench.with(key).get("/v1/me/limits").await.json();
    assert_eq!(limits["data"][0]["value"].as_f64(), Some(5.0), "{limits}");
    assert_eq!(delete(&operator, &format!("/admin/v1/keys/{id}")).await, 200);
    assert_eq!(bench.with(key).get("/v1/models").await.status, 401);

    let socket = OperatorBackend::of_server(bench.server.state.clone()).unwrap().router();
    let body = json!({"account": "other", "name": "l"}).to_string();
    let request = Request::post("/admin/v1/keys").header("content-type", "application/json").body(Body::from(body));
    let answer = socket.oneshot(request.unwrap()).await.unwrap();
    let made: Value = serde_json::from_slice(&to_bytes(answer.into_body(), 1 << 20).await.unwrap()).unwrap();
    assert_eq!(bench.with(made["key"].as_str().unwrap()).get("/v1/models").await.status, 200, "{made}");
}

#[tokio::test]
async fn administration_needs_a_key_where_nothing_else_does() {
    let server = Server::start().await;
    let client = server.client();
    assert_eq!(client.get("/v1/models").await.status, 200);
    assert_eq!(client.get("/admin/v1/accounts").await.status, 401);
    assert_eq!(client.with_key().get("/admin/v1/keys").await.status, 401);
}

#[tokio::test]
async fn a_made_key_is_shown_once_and_a_foreign_one_is_not_told_from_one_that_is_not() {
    let bench = bench().await;
    let operator = bench.with(&bench.operator);
    let made =
        operator.post("/admin/v1/keys", &json!({"account": "other", "name": "k", "scopes": ["batch"]})).await.json();
    assert!(made["key"].as_str().unwrap().starts_with("sk-psl-"));
    let listed = operator.get("/admin/v1/keys").await.text();
    assert!(listed.contains(made["id"].as_str().unwrap()) && !listed.contains(made["key"].as_str().unwrap()));
    let path = format!("/v1/me/keys/{}", made["id"].as_str().unwrap());
    assert_eq!(delete(&bench.with(&bench.owner), &path).await, 404);
    assert_eq!(delete(&bench.with(&bench.owner), "/v1/me/keys/nobody").await, 404);
    assert_eq!(delete(&operator, &path).await, 200);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_and_named() {
    let bench = bench().await;
    let operator = bench.with(&bench.operator);
    let cases: [(&str, Value, u16, &str); 6] = [
        ("/admin/v1/accounts", json!({"path": "a b"}), 400, "is no account"),
        ("/admin/v1/accounts", json!({"path": "acme"}), 409, "exists"),
        ("/admin/v1/accounts", json!({"path": "nobody/x"}), 404, "no account 'nobody'"),
        ("/admin/v1/limits", json!({"account": "acme", "set": {"limit": "x", "value": 1}}), 400, "is no limit"),
        ("/admin/v1/limits", json!({"account": "acme"}), 400, "either"),
        ("/admin/v1/keys", json!({"name": "k", "scopes": []}), 400, "scope"),
    ];
    for (path, body, status, reason) in cases {
        let reply = operator.post(path, &body).await;
        assert_eq!(reply.status, status, "{}", reply.text());
        assert!(reply.message().contains(reason), "{}", reply.text());
    }
}

#[tokio::test]
async fn an_account_is_asked_for_by_its_path_however_its_client_writes_that_in_a_query() {
    let bench = bench().await;
    let operator = bench.with(&bench.operator);
    for written in ["acme/vision", "acme%2Fvision", "acme%2fvision"] {
        let usage = operator.get(&format!("/admin/v1/usage?account={written}")).await;
        assert_eq!((usage.status, &usage.json()["account"]), (200, &json!("acme/vision")), "{}", usage.text());
    }
}

#[tokio::test]
async fn no_query_of_administration_is_passed_over() {
    let bench = bench().await;
    let operator = bench.with(&bench.operator);
    let document = operator.get("/openapi.json").await.json();
    let read = document["paths"].as_object().unwrap().iter().filter(|(_, methods)| methods.get("get").is_some());
    let ours = read.map(|(path, _)| path).filter(|path| path.starts_with("/admin/") || path.starts_with("/v1/me/"));
    let mut asked = 0;
    for path in ours {
        let refused = operator.get(&format!("{path}?colour=1")).await;
        let told = (refused.status, refused.error_code(), refused.param());
        assert_eq!(told, (400, "unknown_parameter".to_owned(), Some("colour".to_owned())), "{path}");
        asked += 1;
    }
    assert!(asked > 5, "{asked}");
}

/// Whoever asks with a field that nobody knows is told those that the handler knows.
#[tokio::test]
async fn what_is_described_of_administration_is_what_its_handlers_read() {
    let bench = bench().await;
    let operator = bench.with(&bench.operator);
    let document = operator.get("/openapi.json").await.json();
    let mut bodies = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        let body = &methods["post"]["requestBody"]["content"]["application/json"]["schema"];
        if !(path.starts_with("/admin/") || path.starts_with("/v1/me/")) || body.is_null() {
            continue;
        }
        let asked = path.replace("{act}", "pin").replace("{id}", "nobody");
        let refused = operator.post(&asked, &json!({"colour": 1})).await;
        assert_eq!((refused.status, refused.error_code().as_str()), (400, "unknown_parameter"), "{path}");
        let message = refused.message();
        let known: BTreeSet<&str> = message.split('`').skip(3).step_by(2).collect();
        let described: BTreeSet<&str> = body["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(described, known, "{path}: {message}");
        bodies += 1;
    }
    assert_eq!(bodies, 11);
}

#[tokio::test]
async fn a_caller_sees_every_limit_on_its_path_as_it_stands() {
    let bench = bench().await;
    assert_eq!(bench.limit(&bench.operator, "acme", 7).await.status, 200);
    let user = bench.with(&bench.user);
    let limits = user.get("/v1/me/limits").await.json();
    assert_eq!(limits["data"].as_array().unwrap().len(), 1);
    let (limit, account) = (&limits["data"][0], &limits["account"]);
    assert_eq!((account.as_str(), limit["scope"].as_str()), (Some("acme/vision"), Some("acme")));
    assert_eq!((limit["value"].as_f64(), limit["remaining"].as_f64()), (Some(7.0), Some(7.0)));
    assert_eq!(user.get("/v1/me/usage?since=yesterday").await.status, 400);
    assert_eq!(user.get("/v1/me/usage").await.json()["data"], json!([]));
}

#[tokio::test]
async fn to_other_accounts_a_model_that_belongs_to_one_is_as_a_model_that_is_not_there() {
    let bench = bench_with(Options { owner: Some("acme".parse().unwrap()), ..Options::default() }).await;
    let operator = bench.with(&bench.operator);
    let made = operator.post("/admin/v1/keys", &json!({"account": "other", "name": "k"})).await.json();
    let (insider, outsider) = (bench.with(&bench.user), bench.with(made["key"].as_str().unwrap()));
    let listed = |reply: Reply| reply.json()["data"].as_array().unwrap().len();
    assert_eq!((listed(insider.get("/v1/models").await), listed(outsider.get("/v1/models").await)), (1, 0));
    let ghost = "test/nobody";
    let messages = json!([{"role": "user", "content": "say:hi"}]);
    let asks = |model: &str| {
        [
            ("/v1/chat/completions", json!({"model": model, "messages": messages})),
            ("/v1/responses", json!({"model": model, "input": "say:hi"})),
            ("/v1/completions", json!({"model": model, "prompt": "say:hi"})),
            ("/v1/embeddings", json!({"model": model, "input": "say:hi"})),
            ("/tokenize", json!({"model": model, "prompt": "say:hi"})),
        ]
    };
    for ((path, owned), (_, unknown)) in asks(MODEL).into_iter().zip(asks(ghost)) {
        let (owned, unknown) = (outsider.post(path, &owned).await, outsider.post(path, &unknown).await);
        assert_eq!((owned.status, owned.text().replace(MODEL, ghost)), (404, unknown.text()), "{path}");
        let names = |reply: &Reply| reply.headers.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&owned), names(&unknown), "{path}");
    }
    let shown = outsider.get(&format!("/v1/models/{MODEL}")).await;
    assert_eq!(
        (shown.status, shown.text().replace(MODEL, ghost)),
        (404, outsider.get(&format!("/v1/models/{ghost}")).await.text())
    );
    let counted = outsider.get("/metrics").await.text();
    let denied = |line: &&str| line.starts_with("passerelle_requests_total") && line.contains(r#"status="404""#);
    let denied: Vec<_> = counted.lines().filter(denied).collect();
    assert!(denied.iter().any(|line| line.contains(r#"model="unknown""#)), "{denied:?}");
    assert!(!denied.iter().any(|line| line.contains(MODEL)), "the model of another account is none: {denied:?}");
    assert_eq!(insider.post("/v1/chat/completions", &asks(MODEL)[0].1).await.status, 200);
}

#[tokio::test]
async fn whoever_limits_a_model_is_not_told_whether_it_belongs_to_others() {
    let bench = bench_with(Options { owner: Some("acme".parse().unwrap()), ..Options::default() }).await;
    let operator = bench.with(&bench.operator);
    let boss = json!({"account": "other", "name": "boss", "scopes": ["admin"]});
    let made = operator.post("/admin/v1/keys", &boss).await.json();
    let boss = bench.with(made["key"].as_str().unwrap());
    assert_eq!(boss.post("/admin/v1/accounts", &json!({"path": "other/x"})).await.status, 200);
    let limit = async |client: &Client, account: &str, model: &str| {
        let limit = json!({"limit": "tokens_per_day", "value": 5, "model": model});
        client.post("/admin/v1/limits", &json!({"account": account, "set": limit})).await
    };
    let ghost = "test/nobody";
    let (owned, unknown) = (limit(&boss, "other/x", MODEL).await, limit(&boss, "other/x", ghost).await);
    assert_eq!((owned.status, owned.text().replace(MODEL, ghost)), (200, unknown.text()));
    assert!(unknown.text().contains("no model `test/nobody` is served"), "{}", unknown.text());
    for (key, account) in [(&bench.operator, "acme"), (&bench.owner, "acme/vision")] {
        let stated = limit(&bench.with(key), account, MODEL).await;
        assert_eq!(stated.json(), json!({"changed": true}), "whoever governs its owner may know of it");
    }
}

#[tokio::test]
async fn files_and_batches_need_the_scope_for_batches_and_requests_that_for_inference() {
    let files = tempfile::tempdir().unwrap();
    let bench = bench_with(Options { data_dir: Some(files.path().to_owned()), ..Options::default() }).await;
    let asked = json!({"input_file_id": "file-1", "endpoint": "/v1/chat/completions", "completion_window": "24h"});
    let user = bench.with(&bench.user);
    for refused in [user.post("/v1/batches", &asked).await, user.post_raw("/v1/files", b"").await] {
        assert_eq!((refused.status, refused.error_code().as_str()), (403, "insufficient_scope"));
        assert!(refused.message().contains("`batch`"), "{}", refused.text());
    }
    let operator = bench.with(&bench.operator);
    let new = json!({"account": "acme", "name": "nightly", "scopes": ["batch"]});
    let made = operator.post("/admin/v1/keys", &new).await.json();
    let nightly = bench.with(made["key"].as_str().unwrap());
    assert_eq!(
        nightly.post("/v1/batches", &asked).await.error_code(),
        "not_found",
        "past the door, to the missing file"
    );
    let chat = json!({"model": MODEL, "messages": [{"role": "user", "content": "say:hi"}]});
    assert_eq!(nightly.post("/v1/chat/completions", &chat).await.error_code(), "insufficient_scope");
}

#[tokio::test]
async fn a_whole_file_of_accounts_is_applied_once_and_shown_before() {
    let bench = bench().await;
    let owner = bench.with(&bench.owner);
    let limits = json!([{"limit": "tokens_per_day", "value": 5}, {"limit": "requests_per_minute", "value": 6}]);
    let file = |dry_run: bool| {
        let accounts = json!([{"path": "acme/vision", "weight": 2, "limits": limits}, {"path": "acme/speech"}]);
        json!({"accounts": accounts, "dry_run": dry_run})
    };
    let changes = |reply: Reply| reply.json()["data"].as_array().unwrap().len();
    assert_eq!(changes(owner.post("/admin/v1/apply", &file(true)).await), 3);
    assert_eq!(changes(owner.post("/admin/v1/apply", &file(false)).await), 3, "the look changed nothing");
    assert_eq!(changes(owner.post("/admin/v1/apply", &file(false)).await), 0, "twice is once");
    let beyond = json!({"accounts": [{"path": "other", "limits": limits}]});
    assert_eq!(owner.post("/admin/v1/apply", &beyond).await.error_code(), "insufficient_scope");
    assert_eq!(delete(&owner, "/admin/v1/accounts/acme/speech").await, 200);
    assert_eq!(delete(&owner, "/admin/v1/accounts/acme/speech").await, 404);
    assert_eq!(delete(&owner, "/admin/v1/accounts/acme").await, 403, "its own node is changed from above");
    assert_eq!(bench.with(&bench.operator).post("/admin/v1/reload", &json!({})).await.error_code(), "no_server");
}

#[tokio::test]
async fn a_key_makes_none_that_may_do_more_than_itself() {
    let bench = bench().await;
    let gateway = json!({"account": "acme", "name": "g", "scopes": ["inference", "gateway"]});
    let refused = bench.with(&bench.owner).post("/v1/me/keys", &gateway).await;
    assert_eq!((refused.status, refused.error_code().as_str()), (403, "insufficient_scope"));
    let operator = bench.with(&bench.operator);
    assert_eq!(operator.post("/admin/v1/keys", &gateway).await.status, 200);

    let narrow = json!({"account": "acme", "name": "n", "scopes": ["admin"], "models": [MODEL], "class": "batch"});
    let made = operator.post("/admin/v1/keys", &narrow).await.json();
    let narrow = bench.with(made["key"].as_str().unwrap());
    let make = async |asked: Value| narrow.post("/v1/me/keys", &asked).await.status;
    assert_eq!(make(json!({"name": "a", "class": "batch"})).await, 403, "every model");
    assert_eq!(make(json!({"name": "b", "models": [MODEL], "class": "interactive"})).await, 403);
    assert_eq!(make(json!({"name": "c", "models": [MODEL], "class": "batch"})).await, 200);
}

#[tokio::test]
async fn a_key_that_is_rotated_hands_on_no_more_than_the_key_that_rotates_it_has() {
    let bench = bench().await;
    let operator = bench.with(&bench.operator);
    let make = async |asked: Value| operator.post("/admin/v1/keys", &asked).await.json();
    let asked = |name: &str, scope: &str| json!({"account": "acme", "name": name, "scopes": [scope]});
    let narrowed = |name: &str, scope: &str| json!({"account": "acme", "name": name, "scopes": [scope], "models": [MODEL], "class": "batch"});
    make(asked("gate", "gateway")).await;
    make(asked("wide", "inference")).await;
    make(narrowed("like", "inference")).await;
    let made = make(narrowed("narrow", "admin")).await;
    let narrow = bench.with(made["key"].as_str().unwrap());
    for door in ["/v1/me/keys", "/admin/v1/keys"] {
        let rotate = async |client: &Client, name: &str| {
            client.post(&format!("{door}/{name}/rotate"), &json!({"overlap_seconds": 60})).await
        };
        for more in ["gate", "wide"] {
            let refused = rotate(&narrow, more).await;
            assert_eq!((refused.status, refused.error_code().as_str()), (403, "insufficient_scope"), "{door}: {more}");
        }
        assert_eq!(rotate(&narrow, "like").await.status, 200, "{door}");
        assert_eq!(rotate(&narrow, "narrow").await.status, 200, "{door}: itself");
        assert_eq!(rotate(&bench.with(&bench.owner), "gate").await.status, 403, "{door}");
        assert_eq!(rotate(&operator, "gate").await.status, 200, "{door}");
    }
}

#[tokio::test]
async fn what_one_account_uploaded_is_to_another_as_what_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let bench = bench_with(Options { data_dir: Some(folder.path().to_owned()), ..Options::default() }).await;
    let operator = bench.with(&bench.operator);
    let make = async |account: &str| {
        let asked = json!({"account": account, "name": "files", "scopes": ["batch", "inference"]});
        let made = operator.post("/admin/v1/keys", &asked).await.json();
        bench.with(made["key"].as_str().unwrap())
    };
    let (owner, stranger) = (make("acme").await, make("other").await);
    let file = upload(&owner, "{}").await.json()["id"].as_str().unwrap().to_owned();
    let batch = json!({"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"});
    let begun = owner.post("/v1/batches", &batch).await;
    assert_eq!(begun.status, 200, "{}", begun.text());
    let begun = begun.json()["id"].as_str().unwrap().to_owned();
    let refused = stranger.post("/v1/batches", &batch).await;
    assert_eq!((refused.status, refused.error_code().as_str()), (404, "not_found"), "{}", refused.text());
    let cancel = format!("/v1/batches/{begun}/cancel");
    assert_eq!(stranger.post(&cancel, &json!({})).await.status, 404);
    for path in [format!("/v1/files/{file}"), format!("/v1/files/{file}/content"), format!("/v1/batches/{begun}")] {
        assert_eq!((stranger.get(&path).await.status, owner.get(&path).await.status), (404, 200), "{path}");
    }
    assert_eq!(delete(&stranger, &format!("/v1/files/{file}")).await, 404);
    for list in ["/v1/files", "/v1/batches"] {
        let listed = async |client: &Client| client.get(list).await.json()["data"].as_array().unwrap().len();
        assert_eq!((listed(&stranger).await, listed(&owner).await), (0, 1), "{list}");
    }
}

#[tokio::test]
async fn a_limit_for_a_model_that_is_not_served_is_stated_with_a_warning() {
    let bench = bench().await;
    let operator = bench.with(&bench.operator);
    let warning = async |model: &str| {
        let limit = json!({"limit": "requests_per_minute", "value": 5, "model": model});
        let stated = operator.post("/admin/v1/limits", &json!({"account": "acme", "set": limit})).await;
        assert_eq!(stated.status, 200, "{}", stated.text());
        stated.json().get("warning").map(ToString::to_string)
    };
    assert_eq!(warning(MODEL).await, None);
    assert!(warning("mistyped").await.is_some_and(|said| said.contains("no model `mistyped`")));
    let of_a_key = async |name: &str, model: &str| {
        let made = operator.post("/admin/v1/keys", &json!({"account": "acme", "name": name, "models": [model]})).await;
        assert_eq!(made.status, 200, "{}", made.text());
        made.json().get("warning").map(ToString::to_string)
    };
    assert_eq!(of_a_key("right", MODEL).await, None);
    assert!(of_a_key("wrong", "mistyped").await.is_some_and(|said| said.contains("no model `mistyped`")));
}

#[tokio::test]
async fn a_warning_does_not_tell_of_a_model_that_belongs_to_another_account() {
    let bench = bench_with(Options { owner: Some("acme".parse().unwrap()), ..Options::default() }).await;
    let operator = bench.with(&bench.operator);
    let new = json!({"account": "other", "name": "k", "scopes": ["admin"]});
    let made = operator.post("/admin/v1/keys", &new).await.json();
    let outsider = bench.with(made["key"].as_str().unwrap());
    let warning = async |client: &Client, path: &str, body: Value| {
        let reply = client.post(path, &body).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json().get("warning").map(ToString::to_string)
    };
    let key = |name: &str, model: &str| json!({"name": name, "models": [model]});
    let hidden = warning(&outsider, "/admin/v1/keys", key("a", MODEL)).await.expect("it is none of theirs");
    let absent = warning(&outsider, "/admin/v1/keys", key("b", "test/nobody")).await.expect("there is none");
    assert_eq!(hidden.replace(MODEL, "test/nobody"), absent);
    assert_eq!(warning(&bench.with(&bench.owner), "/admin/v1/keys", key("c", MODEL)).await, None);
    assert_eq!(warning(&operator, "/admin/v1/keys", key("d", MODEL)).await, None);
}
