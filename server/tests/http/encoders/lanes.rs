//! What a lane of texts has no room for, and what it cannot read.

use passerelle_engine::EncoderConfig;
use serde_json::{Value, json};

use super::{EMBEDDINGS, answered, refused};
use crate::common::encoders::{BERT, EncoderServer, RERANKER};
use crate::common::model::Gate;
use crate::common::{Options, until};

/// Others fill the queue while the list's only text in it is answered, so that the next finds no room and nothing to wait for.
#[tokio::test]
async fn a_list_that_finds_the_queue_full_half_way_is_refused_and_free() {
    let gate = Gate::closed();
    let options = Options { gate: gate.clone(), ..Options::default() };
    let lane = EncoderConfig { max_waiting_tokens: 10, max_batch_texts: 1, ..EncoderConfig::default() };
    let server = EncoderServer::with(options, lane).await;
    let lane = &server.encoders[0];
    let ask = |input: Value| {
        let client = server.client();
        tokio::spawn(async move { client.post(EMBEDDINGS, &json!({ "model": BERT, "input": input })).await })
    };
    let ids = |count: usize| json!(vec![9; count]);
    let first = ask(ids(1));
    until(|| lane.stats().texts_total == 1).await;
    let list = ask(json!([ids(2), ids(9)]));
    until(|| lane.stats().waiting == 1).await;
    gate.let_one_pass();
    assert_eq!(first.await.unwrap().status, 200);
    until(|| lane.stats().texts_total == 2).await;
    let second = ask(ids(1));
    until(|| lane.stats().waiting == 1).await;
    let third = ask(ids(8));
    until(|| lane.stats().waiting == 2).await;
    // Whether the second has left the queue then or not: beside what waits there is no room for nine tokens.
    gate.let_one_pass();
    let refused = list.await.unwrap();
    assert_eq!((refused.status, refused.error_code().as_str()), (503, "queue_full"), "{}", refused.text());
    gate.release();
    for other in [second, third] {
        assert_eq!(other.await.unwrap().status, 200);
    }
    until(|| server.state.ledger().totals().open == 0).await;
    let (read, totals) = (lane.stats().prompt_tokens_total, server.state.ledger().totals());
    assert_eq!((read, totals.prompt_tokens), (12, 10), "the list's first text was read, and nobody pays for it");
    assert_eq!(totals.settled, totals.reservations_taken);
}

#[tokio::test]
async fn a_text_of_a_pair_that_is_too_long_is_named_by_the_field_and_the_place_that_it_came_in() {
    let server = EncoderServer::start().await;
    let long = "mairie ".repeat(120);
    for (path, body, named) in [
        ("/rerank", json!({ "model": RERANKER, "query": "q", "documents": ["a", long] }), "documents[1]"),
        ("/rerank", json!({ "model": BERT, "query": "q", "documents": ["a", "b", long] }), "documents[2]"),
        ("/rerank", json!({ "model": BERT, "query": "q", "texts": long }), "texts"),
        ("/rerank", json!({ "model": BERT, "query": long, "documents": ["a", "b"] }), "query"),
        ("/score", json!({ "model": BERT, "text_1": "a", "text_2": ["b", long] }), "text_2[1]"),
        ("/score", json!({ "model": BERT, "text_1": long, "text_2": "b" }), "text_1"),
        ("/score", json!({ "model": BERT, "text_1": ["a", long], "text_2": ["b", "c"] }), "text_1[1]"),
    ] {
        let (code, param, message) = refused(&server.client(), path, body).await;
        assert_eq!((code.as_str(), param.as_deref()), ("context_length_exceeded", Some(named)), "{message}");
        assert!(message.contains(&format!("`{named}` has ")), "{message}");
    }
    server.assert_at_rest().await;
}

#[tokio::test]
async fn a_text_that_is_too_long_for_its_lane_alone_is_named_as_one_that_is_too_long_for_its_model() {
    let lane = EncoderConfig { max_text_tokens: 20, ..EncoderConfig::default() };
    let server = EncoderServer::with(Options::default(), lane).await;
    let ids = |count: usize| vec![9; count];
    for (input, named) in [(json!(ids(30)), "input"), (json!([ids(3), ids(30)]), "input[1]")] {
        let body = json!({ "model": BERT, "input": input });
        let (code, param, message) = refused(&server.client(), EMBEDDINGS, body).await;
        assert_eq!((code.as_str(), param.as_deref()), ("context_length_exceeded", Some(named)), "{message}");
        assert!(message.contains("`truncate_prompt_tokens`"), "{message}");
    }
    server.assert_at_rest().await;
}

/// Above what is written where it was asked for.
#[tokio::test]
async fn many_vectors_are_written_like_one() {
    let server = EncoderServer::start().await;
    let client = server.client();
    let inputs = vec![vec![9]; 1000];
    let many = answered(&client, EMBEDDINGS, json!({ "model": BERT, "input": inputs, "dimensions": 18 })).await;
    let one = answered(&client, EMBEDDINGS, json!({ "model": BERT, "input": [9], "dimensions": 18 })).await;
    let data = many["data"].as_array().unwrap();
    assert_eq!((data.len(), &many["usage"]["prompt_tokens"]), (1000, &json!(1000)));
    assert!(data.iter().all(|entry| entry["embedding"] == one["data"][0]["embedding"]));
    server.assert_at_rest().await;
}
