//! Embeddings, scores and labels over HTTP: what the reference implementation says, in the shapes that clients expect, and
//! paid for on every way out.

mod lanes;

use std::sync::Arc;

use crate::batches;
use crate::common::client::Client;
use crate::common::encoders::{BERT, CLASSIFIER, EncoderServer, QWEN3, RERANKER, texts};
use crate::common::model::Gate;
use crate::common::{MODEL, Options, limit, until};
use passerelle::api::{ApiConfig, RequestBounds, run_batches};
use passerelle::gateway::account::{ModelAccess, Scopes, ServiceClass};
use passerelle::gateway::directory::NewKey;
use passerelle::gateway::quota::Bound;
use passerelle::gateway::{AccountPath, DataDir, Directory, Limit, Quota, Scope};
use passerelle_engine::EncoderConfig;
use passerelle_engine::clock::{ManualClock, SystemClock};
use serde_json::{Value, json};

const EMBEDDINGS: &str = "/v1/embeddings";

async fn answered(client: &Client, path: &str, body: Value) -> Value {
    let reply = client.post(path, &body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

/// The error's code and the parameter that it names.
async fn refused(client: &Client, path: &str, body: Value) -> (String, Option<String>, String) {
    let reply = client.post(path, &body).await;
    assert_eq!(reply.status, 400, "{}", reply.text());
    (reply.error_code(), reply.param(), reply.message())
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

fn assert_close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 2e-4 + 1e-3 * expected.abs(), "{what}: {found} instead of {expected}");
    }
}

/// Where somebody typed a special token the reference reads it as one, and this server as text.
fn is_plain(text: &Value) -> bool {
    !text["text"].as_str().unwrap().contains("[SEP]")
}

#[tokio::test]
async fn embeddings_are_those_of_sentence_transformers_with_and_without_prompts() {
    let server = EncoderServer::start().await;
    for model in [BERT, QWEN3] {
        let expected = texts(model);
        for case in expected.iter().filter(|case| is_plain(case)) {
            let body = json!({ "model": model, "input": case["text"], "prompt_name": case["prompt_name"] });
            let answer = answered(&server.client(), EMBEDDINGS, body).await;
            assert_close(&case.to_string(), &floats(&answer["data"][0]["embedding"]), &floats(&case["embedding"]));
        }
    }
    server.assert_at_rest().await;
}

#[tokio::test]
async fn a_list_is_answered_in_its_order_with_the_bits_of_each_text_alone() {
    let server = EncoderServer::start().await;
    let client = server.client();
    let inputs: Vec<String> = (0..150).map(|n| format!("text {n} {}", "and more ".repeat(n % 13))).collect();
    let answer = answered(&client, EMBEDDINGS, json!({ "model": BERT, "input": inputs })).await;
    assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!(BERT)));
    let data = answer["data"].as_array().unwrap();
    assert_eq!(data.len(), 150);
    for (index, entry) in data.iter().enumerate() {
        assert_eq!((&entry["object"], &entry["index"]), (&json!("embedding"), &json!(index)));
    }
    for index in [0, 77, 149] {
        let alone = answered(&client, EMBEDDINGS, json!({ "model": BERT, "input": inputs[index] })).await;
        assert_eq!(alone["data"][0]["embedding"], data[index]["embedding"]);
    }
    let (prompt, total) = (&answer["usage"]["prompt_tokens"], &answer["usage"]["total_tokens"]);
    assert!(prompt.as_u64().unwrap() > 150 && prompt == total);
    server.assert_at_rest().await;
}

#[tokio::test]
async fn token_ids_are_read_as_they_are() {
    let server = EncoderServer::start().await;
    let client = server.client();
    let text = answered(&client, EMBEDDINGS, json!({ "model": QWEN3, "input": "la mairie" })).await;
    let tokens = answered(&client, "/tokenize", json!({ "model": QWEN3, "prompt": "la mairie" })).await;
    let ids = answered(&client, EMBEDDINGS, json!({ "model": QWEN3, "input": tokens["tokens"] })).await;
    assert_eq!(ids["data"], text["data"]);
    let lists = json!({ "model": QWEN3, "input": [tokens["tokens"], [7, 8, 9]] });
    let lists = answered(&client, EMBEDDINGS, lists).await;
    assert_eq!(lists["data"][0]["embedding"], text["data"][0]["embedding"]);
    assert_eq!(lists["usage"]["prompt_tokens"], tokens["count"].as_u64().unwrap() + 3);
    let bare = json!({ "model": QWEN3, "input": "la mairie", "add_special_tokens": false });
    let bare = answered(&client, EMBEDDINGS, bare).await;
    assert_eq!(bare["usage"]["prompt_tokens"], tokens["count"].as_u64().unwrap() - 2);
}

#[tokio::test]
async fn base64_holds_the_bytes_of_the_floats() {
    use base64::Engine as _;
    let server = EncoderServer::start().await;
    let body =
        |format: &str| json!({ "model": BERT, "input": "the town hall", "encoding_format": format, "user": "ada" });
    let plain = answered(&server.client(), EMBEDDINGS, body("float")).await;
    let packed = answered(&server.client(), EMBEDDINGS, body("base64")).await;
    let packed = packed["data"][0]["embedding"].as_str().unwrap().to_owned();
    let bytes = base64::engine::general_purpose::STANDARD.decode(packed).unwrap();
    let unpacked: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect();
    assert_eq!(unpacked, floats(&plain["data"][0]["embedding"]));
}

#[tokio::test]
async fn fewer_dimensions_are_the_first_ones_scaled_to_length_one() {
    let server = EncoderServer::start().await;
    let client = server.client();
    let whole = answered(&client, EMBEDDINGS, json!({ "model": BERT, "input": "mairie" })).await;
    let short = answered(&client, EMBEDDINGS, json!({ "model": BERT, "input": "mairie", "dimensions": 7 })).await;
    let (whole, short) = (floats(&whole["data"][0]["embedding"]), floats(&short["data"][0]["embedding"]));
    assert_eq!((whole.len(), short.len()), (20, 7));
    let length = whole[..7].iter().map(|x| x * x).sum::<f32>().sqrt();
    assert_close("scaled", &short, &whole[..7].iter().map(|x| x / length).collect::<Vec<_>>());
    for dimensions in [0, 21] {
        let body = json!({ "model": BERT, "input": "mairie", "dimensions": dimensions });
        assert_eq!(refused(&client, EMBEDDINGS, body).await.1.as_deref(), Some("dimensions"));
    }
}

#[tokio::test]
async fn a_text_that_is_too_long_is_refused_with_both_numbers_unless_it_may_be_cut() {
    let server = EncoderServer::start().await;
    let client = server.client();
    let long = "la mairie ouvre ".repeat(60);
    let (code, param, message) = refused(&client, EMBEDDINGS, json!({ "model": BERT, "input": ["short", long] })).await;
    assert_eq!((code.as_str(), param.as_deref()), ("context_length_exceeded", Some("input[1]")));
    // Its default prompt adds two tokens to the text, its frame another two.
    assert!(message.contains("at most 100 tokens") && message.contains("has 184"), "{message}");
    for (truncate, tokens) in [(-1, 100), (40, 40), (1000, 100)] {
        let body = json!({ "model": BERT, "input": long, "truncate_prompt_tokens": truncate });
        assert_eq!(answered(&client, EMBEDDINGS, body).await["usage"]["prompt_tokens"], tokens);
    }
    let ids = json!({ "model": BERT, "input": vec![9; 101] });
    assert_eq!(refused(&client, EMBEDDINGS, ids).await.0, "context_length_exceeded");
    let zero = json!({ "model": BERT, "input": "a", "truncate_prompt_tokens": 0 });
    assert_eq!(refused(&client, EMBEDDINGS, zero).await.1.as_deref(), Some("truncate_prompt_tokens"));
    server.assert_at_rest().await;
}

#[tokio::test]
async fn what_cannot_be_honoured_is_refused_by_name() {
    let server = EncoderServer::start().await;
    let client = server.client();
    for (field, value) in [
        ("input", json!(null)),
        ("input", json!([])),
        ("input", json!([[]])),
        ("input", json!([211])),
        ("input", json!({ "text": "a" })),
        ("encoding_format", json!("int8")),
        ("dimensions", json!("7")),
        ("prompt_name", json!("none of them")),
        ("normalize", json!(false)),
        ("user", json!(7)),
        ("stream", json!(true)),
    ] {
        let mut body = json!({ "model": BERT, "input": "a" });
        body[field] = value;
        let (_, param, message) = refused(&client, EMBEDDINGS, body).await;
        assert!(param.is_some_and(|param| param.starts_with(field)), "{field}: {message}");
    }
    let mixed = json!({ "model": BERT, "input": ["a", 7] });
    assert_eq!(refused(&client, EMBEDDINGS, mixed).await.1.as_deref(), Some("input[1]"));
}

#[tokio::test]
async fn a_model_of_the_other_kind_says_which_routes_it_has() {
    let server = EncoderServer::start().await;
    let client = server.client();
    let chat = json!({ "model": BERT, "messages": [{ "role": "user", "content": "hi" }] });
    let text = json!({ "model": BERT, "prompt": "hi" });
    let embed = |model: &str| json!({ "model": model, "input": "hi" });
    let rerank = |model: &str| json!({ "model": model, "query": "q", "documents": ["d"] });
    for (path, body, named) in [
        ("/v1/chat/completions", chat, "/v1/embeddings"),
        ("/v1/completions", text, "/v1/embeddings"),
        (EMBEDDINGS, embed(MODEL), "/v1/chat/completions"),
        (EMBEDDINGS, embed(RERANKER), "/v1/rerank"),
        ("/v1/rerank", rerank(CLASSIFIER), "/v1/classify"),
        ("/v1/rerank", rerank(MODEL), "/v1/completions"),
        ("/classify", embed(BERT), "/v1/embeddings"),
    ] {
        let (_, param, message) = refused(&client, path, body).await;
        assert!(param.as_deref() == Some("model") && message.contains(named), "{path}: {message}");
    }
    let unknown = client.post(EMBEDDINGS, &embed("nobody")).await;
    assert_eq!((unknown.status, unknown.error_code().as_str()), (404, "model_not_found"));
    let models = client.get("/v1/models").await.json();
    let of = |name: &str| {
        let listed = models["data"].as_array().unwrap().iter().find(|model| model["id"] == name).unwrap();
        (listed["max_model_len"].clone(), listed["capabilities"].clone())
    };
    assert_eq!(of(BERT), (json!(100), json!(["embeddings", "rerank", "score"])));
    assert_eq!(of(CLASSIFIER).1, json!(["classify"]));
    assert_eq!(of(MODEL).1, json!(["chat", "completions"]));
}

#[tokio::test]
async fn scores_are_those_of_the_cross_encoder_and_order_the_documents() {
    let server = EncoderServer::start().await;
    let client = server.client();
    let cases: Vec<Value> = texts(RERANKER).into_iter().filter(is_plain).collect();
    let documents: Vec<_> = cases.iter().map(|case| case["text"].clone()).collect();
    let expected: Vec<f32> = cases.iter().map(|case| case["score"].as_f64().unwrap() as f32).collect();
    for path in ["/rerank", "/v1/rerank"] {
        let body = json!({ "model": RERANKER, "query": cases[0]["query"], "documents": documents });
        let answer = answered(&client, path, body).await;
        let results = answer["results"].as_array().unwrap();
        assert_eq!(results.len(), documents.len());
        for result in results {
            let index = result["index"].as_u64().unwrap() as usize;
            assert_close("score", &[result["relevance_score"].as_f64().unwrap() as f32], &[expected[index]]);
            assert_eq!(result["document"]["text"], documents[index]);
        }
        let scores: Vec<_> = results.iter().map(|result| result["relevance_score"].as_f64().unwrap()).collect();
        assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
    }
    for path in ["/score", "/v1/score"] {
        let body = json!({ "model": RERANKER, "text_1": cases[0]["query"], "text_2": documents });
        let answer = answered(&client, path, body).await;
        let scores: Vec<f32> =
            answer["data"].as_array().unwrap().iter().map(|entry| entry["score"].as_f64().unwrap() as f32).collect();
        assert_close(path, &scores, &expected);
    }
    server.assert_at_rest().await;
}

#[tokio::test]
async fn rerank_and_score_honour_their_fields() {
    let server = EncoderServer::start().await;
    let client = server.client();
    let body = json!({
        "model": RERANKER, "query": "q", "documents": ["a", { "text": "bb" }, "ccc"], "top_n": 2,
        "return_documents": false, "raw_scores": true,
    });
    let answer = answered(&client, "/v1/rerank", body.clone()).await;
    let results = answer["results"].as_array().unwrap();
    assert!(results.len() == 2 && results.iter().all(|result| result.get("document").is_none()), "{answer}");
    let mut activated = body;
    activated["raw_scores"] = json!(false);
    let probability = answered(&client, "/v1/rerank", activated).await["results"][0]["relevance_score"].clone();
    let logit = results[0]["relevance_score"].as_f64().unwrap();
    assert_close("sigmoid", &[probability.as_f64().unwrap() as f32], &[(1.0 / (1.0 + (-logit).exp())) as f32]);
    let pairs = json!({ "model": RERANKER, "text_1": ["a", "b"], "text_2": ["c", "d"] });
    assert_eq!(answered(&client, "/score", pairs).await["data"].as_array().unwrap().len(), 2);
    let uneven = json!({ "model": RERANKER, "text_1": ["a", "b"], "text_2": ["c"] });
    assert_eq!(refused(&client, "/score", uneven).await.1.as_deref(), Some("text_2"));
    let unframed = json!({ "model": RERANKER, "query": "q", "documents": ["a"], "add_special_tokens": false });
    assert_eq!(refused(&client, "/rerank", unframed).await.1.as_deref(), Some("add_special_tokens"));
    let object = json!({ "model": RERANKER, "query": "q", "documents": [{ "title": "a" }] });
    assert_eq!(refused(&client, "/rerank", object).await.1.as_deref(), Some("documents[0]"));
    let long = json!({ "model": RERANKER, "query": "q", "documents": ["mairie ".repeat(120)] });
    assert_eq!(refused(&client, "/rerank", long).await.0, "context_length_exceeded");
}

/// As its users ask: `texts`, no model where one is served, and a bare list as the answer.
#[tokio::test]
async fn a_ranking_is_given_as_tei_gives_it_to_who_asks_as_tei_is_asked() {
    let server = EncoderServer::start().await;
    let client = server.client();
    let documents = json!(["ccc", "a", "bb"]);
    let as_jina = json!({ "model": RERANKER, "query": "q", "documents": documents });
    let ranked = answered(&client, "/rerank", as_jina).await;
    let order = |list: &Value| list.as_array().unwrap().iter().map(|one| one["index"].clone()).collect::<Vec<_>>();
    let as_tei = json!({ "model": RERANKER, "query": "q", "texts": documents, "return_text": true, "truncate": true });
    let tei = answered(&client, "/rerank", as_tei).await;
    assert_eq!(order(&tei), order(&ranked["results"]));
    assert_eq!(tei[0]["score"], ranked["results"][0]["relevance_score"]);
    assert_eq!(tei[0]["text"], ranked["results"][0]["document"]["text"]);
    let plain = answered(&client, "/rerank", json!({ "model": RERANKER, "query": "q", "texts": ["a"] })).await;
    assert_eq!(plain.as_array().unwrap().len(), 1);
    assert!(plain[0].get("text").is_none(), "{plain}");
    let both = json!({ "model": RERANKER, "query": "q", "texts": ["a"], "documents": ["a"] });
    assert_eq!(refused(&client, "/rerank", both).await.1.as_deref(), Some("documents"));
    let unnamed = json!({ "query": "q", "texts": ["a"] });
    assert_eq!(refused(&client, "/rerank", unnamed).await.1.as_deref(), Some("model"), "several are served");
}

#[tokio::test]
async fn a_document_is_cut_to_what_cohere_calls_its_tokens_and_the_query_is_not() {
    let server = EncoderServer::start().await;
    let client = server.client();
    for model in [RERANKER, BERT] {
        let ask = async |document: &str, most: Option<u32>| {
            let body = json!({ "model": model, "query": "mairie de la commune", "documents": [document],
                               "max_tokens_per_doc": most });
            answered(&client, "/v2/rerank", body).await
        };
        let (short, long) = ("a", "a a a a a a a a");
        let cut = ask(long, Some(1)).await;
        assert_eq!(cut["results"][0]["relevance_score"], ask(short, None).await["results"][0]["relevance_score"]);
        assert_eq!(cut["results"][0]["document"]["text"], long, "it is shown as it was written");
        assert!(cut["usage"]["total_tokens"].as_u64() < ask(long, None).await["usage"]["total_tokens"].as_u64());
    }
    server.assert_at_rest().await;
}

#[tokio::test]
async fn a_batch_of_embeddings_is_answered_like_each_of_them_alone() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { data_dir: Some(folder.path().to_owned()), ..Options::default() };
    let server = EncoderServer::with(options, EncoderConfig::default()).await;
    let runner = tokio::spawn(run_batches(server.state.clone()));
    let client = server.client();
    let line = |id: &str, body: &Value| json!({"custom_id": id, "method": "POST", "url": EMBEDDINGS, "body": body});
    let (fits, generator) = (json!({"model": BERT, "input": ["a", "b"]}), json!({"model": MODEL, "input": "a"}));
    let batch = batches::create_at(&client, EMBEDDINGS, &[line("a", &fits), line("b", &generator)]).await;
    let batch = batches::wait_until(&client, &batch, |batch| batch["status"] == "completed").await;
    assert_eq!(batch["request_counts"], json!({"total": 2, "completed": 1, "failed": 1}));
    let output = batches::lines_of(&client, &batch["output_file_id"]).await;
    let alone = answered(&client, EMBEDDINGS, fits).await;
    assert_eq!(output[0]["response"]["body"]["data"], alone["data"]);
    let refused = batches::lines_of(&client, &batch["error_file_id"]).await;
    assert_eq!(refused[0]["response"]["body"]["error"]["param"], "model");
    runner.abort();
    server.assert_at_rest().await;
}

/// A bi-encoder ranks by the angle between the texts.
#[tokio::test]
async fn an_embedding_model_scores_by_cosine() {
    let server = EncoderServer::start().await;
    let client = server.client();
    let inputs = json!({ "model": QWEN3, "input": ["mairie", "town hall"] });
    let vectors = answered(&client, EMBEDDINGS, inputs).await;
    let (one, other) = (floats(&vectors["data"][0]["embedding"]), floats(&vectors["data"][1]["embedding"]));
    let dot: f32 = one.iter().zip(&other).map(|(a, b)| a * b).sum();
    let body = json!({ "model": QWEN3, "text_1": "mairie", "text_2": ["town hall", "mairie"] });
    let scores = answered(&client, "/v1/score", body).await;
    let score = |index: usize| scores["data"][index]["score"].as_f64().unwrap() as f32;
    assert_close("cosine", &[score(0), score(1)], &[dot, 1.0]);
}

#[tokio::test]
async fn labels_are_those_of_the_reference() {
    let server = EncoderServer::start().await;
    let client = server.client();
    for case in texts(CLASSIFIER).iter().filter(|case| is_plain(case)) {
        let answer = answered(&client, "/classify", json!({ "model": CLASSIFIER, "input": case["text"] })).await;
        let found = &answer["data"][0];
        assert_close("probabilities", &floats(&found["probs"]), &floats(&case["probs"]));
        assert_eq!((&found["label"], &found["num_classes"]), (&case["label"], &json!(3)));
    }
    let raw = json!({ "model": CLASSIFIER, "input": ["a", "b"], "use_activation": false });
    let raw = answered(&client, "/v1/classify", raw).await;
    assert!(raw["data"].as_array().unwrap().iter().any(|entry| floats(&entry["probs"]).iter().any(|x| *x < 0.0)));
}

#[tokio::test]
async fn limits_hold_for_texts_as_for_prompts() {
    // Room comes back with every second, so the clock stands still.
    let (key_limits, clock) = (Some(vec![limit(Limit::tokens_per_minute, 60)]), Arc::new(ManualClock::default()));
    let options = Options { key_limits, clock, ..Options::default() };
    let server = EncoderServer::with(options, EncoderConfig::default()).await;
    let client = server.client().with_key();
    assert_eq!(server.client().post(EMBEDDINGS, &json!({ "model": BERT, "input": "a" })).await.status, 401);
    let ids = |count: usize| json!({ "model": BERT, "input": vec![9; count] });
    let first = client.post(EMBEDDINGS, &ids(50)).await;
    assert_eq!(first.status, 200, "{}", first.text());
    assert_eq!(first.headers["x-ratelimit-remaining-tokens"], "10");
    let second = client.post(EMBEDDINGS, &ids(50)).await;
    assert_eq!((second.status, second.error_code().as_str()), (429, "rate_limit_exceeded"));
    let never = client.post(EMBEDDINGS, &ids(61)).await;
    assert_eq!((never.status, never.error_code().as_str()), (400, "request_exceeds_limit"));
    server.assert_at_rest().await;
}

#[tokio::test]
async fn a_full_queue_refuses_newcomers_and_a_long_list_waits_for_its_own_texts() {
    let gate = Gate::closed();
    let options = Options { gate: gate.clone(), ..Options::default() };
    let lane = EncoderConfig { max_waiting_texts: 5, max_batch_texts: 2, ..EncoderConfig::default() };
    let server = EncoderServer::with(options, lane).await;
    // One text stands at the gate, so that whatever follows waits.
    let client = server.client();
    let first = tokio::spawn(async move { client.post(EMBEDDINGS, &json!({ "model": BERT, "input": "first" })).await });
    until(|| server.encoders[0].stats().running == 1).await;
    let client = server.client();
    let many = json!({ "model": BERT, "input": (0..40).map(|n| n.to_string()).collect::<Vec<_>>() });
    let long = tokio::spawn(async move { client.post(EMBEDDINGS, &many).await });
    until(|| server.encoders[0].stats().waiting == 5).await;
    let refused = server.client().post(EMBEDDINGS, &json!({ "model": BERT, "input": "one more" })).await;
    assert_eq!((refused.status, refused.error_code().as_str()), (503, "queue_full"));
    gate.release();
    assert_eq!(first.await.unwrap().status, 200);
    let answer = long.await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["data"].as_array().unwrap().len(), 40);
    server.assert_at_rest().await;
}

#[tokio::test]
async fn a_client_that_leaves_cancels_what_waits_and_pays_for_what_ran() {
    let gate = Gate::closed();
    let options = Options { gate: gate.clone(), ..Options::default() };
    let server = EncoderServer::with(options, EncoderConfig { max_batch_texts: 1, ..EncoderConfig::default() }).await;
    let client = server.client();
    let inputs = json!({ "model": BERT, "input": ["a", "b", "c", "d"] });
    let request = tokio::spawn(async move { client.post(EMBEDDINGS, &inputs).await });
    until(|| server.encoders[0].stats().running == 1 && server.encoders[0].stats().waiting == 3).await;
    request.abort();
    let _ = request.await;
    until(|| server.state.ledger().totals().open == 0).await;
    gate.release();
    server.assert_at_rest().await;
    assert_eq!(server.encoders[0].stats().texts_total, 1);
}

#[tokio::test]
async fn bounds_on_lists_are_those_of_the_configuration() {
    let bounds = RequestBounds { max_inputs: 3, ..RequestBounds::default() };
    let options = Options { api: ApiConfig { bounds, ..ApiConfig::default() }, ..Options::default() };
    let server = EncoderServer::with(options, EncoderConfig::default()).await;
    let client = server.client();
    let texts = ["a", "b", "c", "d"];
    for (path, body, named) in [
        (EMBEDDINGS, json!({ "model": BERT, "input": texts }), "input"),
        ("/rerank", json!({ "model": RERANKER, "query": "q", "documents": texts }), "documents"),
        ("/score", json!({ "model": RERANKER, "text_1": "q", "text_2": texts }), "text_2"),
        ("/classify", json!({ "model": CLASSIFIER, "input": texts }), "input"),
    ] {
        assert_eq!(refused(&client, path, body).await.1.as_deref(), Some(named));
    }
}

#[tokio::test]
async fn texts_are_of_the_class_that_their_key_has() {
    let folder = tempfile::tempdir().unwrap();
    let directory =
        Directory::open(&DataDir::open(folder.path()).unwrap(), Arc::new(SystemClock::new()), "test").unwrap();
    let acme: AccountPath = "acme".parse().unwrap();
    let few = Limit::of(Bound::BatchTokens(4.try_into().unwrap()));
    directory.create_account(&acme, Quota::new(vec![few]).unwrap()).unwrap();
    let key = |class: ServiceClass| {
        let (scopes, models) = (Scopes::new([Scope::Inference]).unwrap(), ModelAccess::All);
        let new = NewKey { account: acme.clone(), name: class.to_string(), scopes, models, class, valid_for: None };
        format!("Bearer {}", directory.create_key(new).unwrap().0.reveal())
    };
    let keys = [ServiceClass::Standard, ServiceClass::Batch].map(key);
    let server =
        EncoderServer::with(Options { administered: Some(folder), ..Options::default() }, EncoderConfig::default());
    let server = server.await;
    let [standard, batch] = keys.map(|key| server.client().with("authorization", &key));
    let text = json!({"model": BERT, "input": "a text of more tokens than four"});
    answered(&standard, EMBEDDINGS, text.clone()).await;
    let (_, _, message) = refused(&batch, EMBEDDINGS, text).await;
    assert!(message.contains("batch_tokens"), "{message}");
}
