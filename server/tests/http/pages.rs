//! What browsers get, and the description of every route.

use crate::common::{Options, Server};
use serde_json::json;

#[tokio::test]
async fn whoever_asks_for_a_page_gets_it_under_a_policy() {
    let server = Server::start().await;
    let client = server.client();
    for path in ["/", "/docs", "/compare"] {
        let page = client.get(path).await;
        assert!(page.headers["content-type"].starts_with("text/html"), "{path}");
        let policy = &page.headers["content-security-policy"];
        assert!(policy.starts_with("default-src 'none'; script-src 'nonce-") && !policy.contains("unsafe"), "{policy}");
        let nonce = policy.split("'nonce-").nth(1).unwrap().split('\'').next().unwrap();
        assert_eq!(page.text().matches(&format!("nonce=\"{nonce}\"")).count(), 2, "{path}");
    }
}

#[tokio::test]
async fn the_description_is_there_without_a_key_and_names_every_field() {
    let server = Server::with(Options { key_limits: Some(Vec::new()), ..Options::default() }).await;
    let document = server.client().get("/openapi.json").await.json();
    assert_eq!(document["openapi"], "3.1.0");
    let chat =
        &document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"];
    assert_eq!(chat["properties"]["temperature"]["type"], json!(["number", "null"]));
    assert_eq!(chat["required"], json!(["model", "messages"]));
    assert_eq!(chat["additionalProperties"], false);
}

#[tokio::test]
async fn the_list_of_models_says_what_is_left_of_a_keys_limits() {
    let key_limits = Some(vec![crate::common::limit(passerelle::gateway::Limit::requests_per_minute, 7)]);
    let server = Server::with(Options { key_limits, ..Options::default() }).await;
    let reply = server.client().with_key().get("/v1/models").await;
    assert_eq!(reply.headers["x-ratelimit-remaining-requests"], "7", "looking costs nothing");
}
