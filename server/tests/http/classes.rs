//! How urgent a request is and how large its share: what the engine is really asked.

use std::num::NonZeroU32;
use std::sync::Arc;

use passerelle::gateway::account::{ModelAccess, Scopes, ServiceClass};
use passerelle::gateway::directory::NewKey;
use passerelle::gateway::{AccountPath, DataDir, Directory, Quota, Scope};
use passerelle_engine::Class;
use passerelle_engine::clock::SystemClock;
use serde_json::{Value, json};

use crate::common::{Asked, MODEL, Options, Seen, Server};

const CHAT: &str = "/v1/chat/completions";

fn chat(extra: &Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "say:hi"}]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// The one request that the engine was asked since the last look.
fn asked(seen: &Seen) -> Asked {
    let [asked] = seen.take()[..] else { panic!("one request reaches the engine") };
    asked
}

#[tokio::test]
async fn an_open_door_serves_each_tier_and_priority_in_its_class_and_says_which() {
    let seen = Seen::default();
    let server = Server::with(Options { seen: seen.clone(), ..Options::default() }).await;
    let cases = [
        (json!({}), Class::Standard, "default"),
        (json!({"service_tier": "auto"}), Class::Standard, "default"),
        (json!({"service_tier": "flex"}), Class::Batch, "flex"),
        (json!({"service_tier": "priority"}), Class::Interactive, "priority"),
        (json!({"priority": -5}), Class::Interactive, "priority"),
        (json!({"priority": 5}), Class::Batch, "flex"),
    ];
    for (extra, class, tier) in cases {
        let answer = server.client().post(CHAT, &chat(&extra)).await.json();
        assert_eq!((asked(&seen).class, answer["service_tier"].as_str()), (class, Some(tier)), "{extra}");
    }
    let body = json!({"model": MODEL, "input": "say:hi", "service_tier": "flex"});
    let answer = server.client().post("/v1/responses", &body).await.json();
    assert_eq!((asked(&seen).class, answer["service_tier"].as_str()), (Class::Batch, Some("flex")));
    let body = json!({"model": MODEL, "prompt": "say:hi", "priority": -1});
    assert_eq!(server.client().post("/v1/completions", &body).await.status, 200);
    assert_eq!(asked(&seen).class, Class::Interactive);
    let refused = server.client().post(CHAT, &chat(&json!({"service_tier": "scale"}))).await;
    assert_eq!((refused.status, refused.param().as_deref()), (400, Some("service_tier")));
}

#[tokio::test]
async fn a_key_has_a_class_at_best_and_its_account_a_share_and_a_weight() {
    let folder = tempfile::tempdir().unwrap();
    let data = DataDir::open(folder.path()).unwrap();
    let directory = Directory::open(&data, Arc::new(SystemClock::new()), "test").unwrap();
    let account = |path: &str| path.parse::<AccountPath>().unwrap();
    for path in ["acme", "other"] {
        directory.create_account(&account(path), Quota::unlimited()).unwrap();
    }
    directory.set_weight(&account("acme"), NonZeroU32::new(3).unwrap()).unwrap();
    let key = |path: &str, class: ServiceClass| {
        let (scopes, models) = (Scopes::new([Scope::Inference]).unwrap(), ModelAccess::All);
        let new = NewKey { account: account(path), name: class.to_string(), scopes, models, class, valid_for: None };
        directory.create_key(new).unwrap().0.reveal().to_owned()
    };
    let keys = [
        (key("acme", ServiceClass::Interactive), [Class::Interactive, Class::Interactive, Class::Batch]),
        (key("acme", ServiceClass::Standard), [Class::Standard, Class::Standard, Class::Batch]),
        (key("other", ServiceClass::Batch), [Class::Batch, Class::Batch, Class::Batch]),
    ];
    let seen = Seen::default();
    let server = Server::with(Options { administered: Some(folder), seen: seen.clone(), ..Options::default() }).await;
    let mut shares = Vec::new();
    for (key, classes) in &keys {
        let client = server.client().with("authorization", &format!("Bearer {key}"));
        for (extra, class) in
            [json!({}), json!({"service_tier": "priority"}), json!({"priority": 1})].iter().zip(classes)
        {
            assert_eq!(client.post(CHAT, &chat(extra)).await.status, 200);
            let asked = asked(&seen);
            assert_eq!(asked.class, *class, "{extra}");
            shares.push((asked.share_key, asked.weight));
        }
    }
    assert!(shares[..6].iter().all(|share| *share == shares[0]), "one account, one share");
    assert_ne!(shares[0].0, shares[6].0);
    assert_eq!((shares[0].1, shares[6].1), (3, 1));
}
