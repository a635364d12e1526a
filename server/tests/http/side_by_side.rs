//! `/v1/compare`: one prompt that several models answer, and what it costs when they cannot be compared.

use serde_json::{Value, json};

use crate::common::{LONGEST_COMPARED, MODEL, Options, Rival, Server, Vocabulary};

const ROUTE: &str = "/v1/compare";
const RIVAL: &str = "test/rival";
/// Of rows of logits one number longer.
const WIDER: &str = "test/wider";
/// Of as many tokens, one of which is spelt in another way.
const STRANGER: &str = "test/stranger";

fn with_rivals() -> Options {
    let rivals = vec![
        Rival { name: RIVAL, vocabulary: Vocabulary::Same },
        Rival { name: WIDER, vocabulary: Vocabulary::Padded },
        Rival { name: STRANGER, vocabulary: Vocabulary::Other },
    ];
    Options { rivals, ..Options::default() }
}

fn body(prompt: impl Into<Value>) -> Value {
    json!({"models": [MODEL, RIVAL], "prompt": prompt.into()})
}

fn assert_free(server: &Server) {
    let totals = server.state.ledger().totals();
    assert_eq!((totals.open, totals.prompt_tokens, totals.generated_tokens), (0, 0, 0));
}

#[tokio::test]
async fn what_is_too_long_to_compare_is_refused_before_anything_is_reserved() {
    let server = Server::with(with_rivals()).await;
    let client = server.client();
    for (prompt_tokens, max_tokens, param) in [
        (LONGEST_COMPARED - 10, json!(11), "max_tokens"),
        (LONGEST_COMPARED, json!(null), "prompt"),
        (LONGEST_COMPARED + 1, json!(0), "prompt"),
    ] {
        let mut asked = body("x".repeat(prompt_tokens));
        asked["max_tokens"] = max_tokens;
        let refused = client.post(ROUTE, &asked).await;
        assert_eq!((refused.status, refused.error_code().as_str()), (400, "context_length_exceeded"));
        assert_eq!(refused.param().as_deref(), Some(param));
        let numbers = [LONGEST_COMPARED.to_string(), prompt_tokens.to_string()];
        assert!(numbers.iter().all(|number| refused.message().contains(number)), "{}", refused.message());
    }
    let messages = json!([{"role": "user", "content": "x".repeat(LONGEST_COMPARED)}]);
    let conversation = json!({"models": [MODEL, RIVAL], "messages": messages, "max_tokens": 5});
    let refused = client.post(ROUTE, &conversation).await;
    assert_eq!((refused.status, refused.param().as_deref()), (400, Some("messages")));
    assert!(!refused.message().contains("lower"), "no answer is short enough: {}", refused.message());
    assert_eq!(server.state.ledger().totals().reservations_taken, 0);
}

#[tokio::test]
async fn who_leaves_the_length_open_gets_what_fits() {
    let server = Server::with(with_rivals()).await;
    let client = server.client();
    for (prompt_tokens, answer_tokens) in [(10, 64), (LONGEST_COMPARED - 10, 10)] {
        let answer = client.post(ROUTE, &body("x".repeat(prompt_tokens))).await.json();
        let said = |model: usize| answer["models"][model]["token_ids"].as_array().map(Vec::len);
        assert_eq!([said(0), said(1)], [Some(answer_tokens); 2], "{answer}");
    }
    let mut asked = body("x".repeat(LONGEST_COMPARED - 10));
    asked["min_tokens"] = json!(11);
    assert_eq!(client.post(ROUTE, &asked).await.param().as_deref(), Some("min_tokens"));
}

#[tokio::test]
async fn models_whose_distributions_are_not_as_wide_are_refused_before_anything_is_reserved() {
    let server = Server::with(with_rivals()).await;
    let mut asked = body("hello");
    asked["models"] = json!([MODEL, RIVAL, WIDER]);
    let refused = server.client().post(ROUTE, &asked).await;
    assert_eq!((refused.status, refused.param().as_deref()), (400, Some("models[2]")), "{}", refused.text());
    assert_eq!(server.state.ledger().totals().reservations_taken, 0);
}

#[tokio::test]
async fn a_model_that_is_not_there_is_named_by_its_place_too() {
    let server = Server::with(with_rivals()).await;
    let mut asked = body("hello");
    asked["models"] = json!([MODEL, "nobody"]);
    let refused = server.client().post(ROUTE, &asked).await;
    assert_eq!((refused.status, refused.param().as_deref()), (404, Some("models[1]")), "{}", refused.text());
    assert!(refused.message().contains("`nobody`"), "{}", refused.message());
}

/// Though they read the prompt as the same tokens, and their distributions are as wide.
#[tokio::test]
async fn models_of_different_vocabularies_are_refused_by_name_before_anything_is_reserved() {
    let server = Server::with(with_rivals()).await;
    let mut asked = body("hello");
    asked["models"] = json!([MODEL, RIVAL, STRANGER]);
    let refused = server.client().post(ROUTE, &asked).await;
    assert_eq!((refused.status, refused.param().as_deref()), (400, Some("models[2]")), "{}", refused.text());
    let why = "`test/parrot` and `test/stranger` have different vocabularies";
    assert!(refused.message().contains(why), "{}", refused.message());
    assert_eq!(server.state.ledger().totals().reservations_taken, 0);
}

#[tokio::test]
async fn nobody_pays_for_a_comparison_that_the_server_fails() {
    let server = Server::with(with_rivals()).await;
    let client = server.client();
    let failed = client.post(ROUTE, &body("break: it")).await;
    assert_eq!((failed.status, failed.error_code()), (500, "engine_failed".to_owned()));
    assert_free(&server);
    let mut streamed = body("break: it");
    streamed["stream"] = json!(true);
    let events = client.stream(ROUTE, &streamed).await.events().await;
    assert_eq!(events.last().unwrap()["error"]["code"], "engine_failed");
    assert!(events.len() > 1, "the answers came before");
    assert_free(&server);
}
