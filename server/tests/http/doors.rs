//! Every door holds the same bounds, and whatever comes through one is answered with the right 4xx.

use crate::common::encoders::{BERT, EncoderServer};
use crate::common::{MODEL, Options, PATIENCE, Server};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The generating routes, with a body that each takes.
fn doors() -> [(&'static str, Value); 3] {
    let messages = json!([{"role": "user", "content": "say:hi"}]);
    [
        ("/v1/chat/completions", json!({"model": MODEL, "messages": messages, "max_tokens": 4})),
        ("/v1/completions", json!({"model": MODEL, "prompt": "say:hi", "max_tokens": 4})),
        ("/v1/responses", json!({"model": MODEL, "input": "say:hi", "max_output_tokens": 4})),
    ]
}

const BODIES: [&str; 9] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/batches",
    "/tokenize",
    "/detokenize",
    "/v1/files",
    "/v1/batches/batch_1/cancel",
    "/v1/models",
];

/// Values at and beyond the edges of what every generating route reads, and how each is answered.
fn extremes() -> Vec<(&'static str, Value, u16)> {
    let many = |count: usize| (0..count).map(|n| (n.to_string(), json!("x"))).collect::<Value>();
    let mut cases = vec![
        ("seed", json!(i64::MAX), 200),
        ("seed", json!(1e19), 400),
        ("stop", json!(vec!["x"; 16]), 200),
        ("stop", json!(vec!["x"; 17]), 400),
        ("stop", json!(""), 400),
        ("stop", json!("x".repeat(1025)), 400),
        ("stop", json!(["a", null]), 400),
        ("stop_token_ids", json!([258]), 200),
        ("stop_token_ids", json!([259]), 400),
        ("stop_token_ids", json!([-1]), 400),
        ("stop_token_ids", json!(vec![1; 65]), 400),
        ("logit_bias", json!({"258": 100}), 200),
        ("logit_bias", json!({"259": 1}), 400),
        ("logit_bias", json!({"x": 1}), 400),
        ("logit_bias", json!({"7": 1, "07": 2}), 400),
        ("logit_bias", json!({"1": 100.5}), 400),
        ("metadata", many(16), 200),
        ("metadata", many(17), 400),
        ("metadata", json!({"a": 1}), 400),
        ("user", json!(5), 400),
        ("cache_salt", json!(""), 400),
        ("cache_salt", json!("x".repeat(257)), 400),
        ("model", json!("nobody"), 404),
        ("model", json!("x".repeat(100_000)), 404),
        ("stream", json!("yes"), 400),
        ("chat_templates", json!({}), 400),
        ("\u{0}", json!(1), 400),
        ("min_tokens", json!(u64::MAX), 400),
    ];
    // Of the values below, by their place, those that are within the field's bounds.
    let numbers: [(&str, &[usize]); 7] = [
        ("temperature", &[0]),
        ("top_p", &[0]),
        ("top_k", &[0]),
        ("min_p", &[0]),
        ("frequency_penalty", &[0, 3]),
        ("presence_penalty", &[0, 3]),
        ("repetition_penalty", &[7]),
    ];
    for (name, within) in numbers {
        let values =
            [json!(0), json!(-1e300), json!(1e300), json!(-0.5), json!("1"), json!([]), json!(true), json!(2.5)];
        for (place, value) in values.into_iter().enumerate() {
            cases.push((name, value, if within.contains(&place) { 200 } else { 400 }));
        }
    }
    cases
}

#[tokio::test]
async fn the_same_extreme_request_gets_the_same_verdict_at_every_door() {
    let server = Server::start().await;
    let client = server.client();
    for (name, value, status) in extremes() {
        let mut verdicts = Vec::new();
        for (path, mut body) in doors() {
            body[name] = value.clone();
            let reply = client.post(path, &body).await;
            assert!(reply.status < 500, "{path}: {name}: {value}: {}", reply.text());
            let refusal = (reply.status != 200).then(|| (reply.error_code(), reply.param()));
            verdicts.push((reply.status, refusal));
        }
        assert_eq!(verdicts[0].0, status, "{name}: {value}: {verdicts:?}");
        assert!(verdicts.iter().all(|verdict| *verdict == verdicts[0]), "{name}: {value}: {verdicts:?}");
    }
    server.assert_at_rest().await;
}

/// The routes of encoders and of tokens, with a body that each takes.
fn reading_doors() -> [(&'static str, &'static str, Value); 5] {
    [
        ("/v1/embeddings", "input", json!({"model": BERT, "input": "a"})),
        ("/v1/rerank", "documents", json!({"model": BERT, "query": "a", "documents": ["b"]})),
        ("/rerank", "texts", json!({"model": BERT, "query": "a", "texts": ["b"]})),
        ("/v1/score", "text_2", json!({"model": BERT, "text_1": "a", "text_2": "b"})),
        ("/tokenize", "prompt", json!({"model": BERT, "prompt": "a"})),
    ]
}

#[tokio::test]
async fn what_reads_texts_gives_the_same_verdict_at_every_door() {
    let server = EncoderServer::start().await;
    let client = server.client();
    let of_all = [
        ("model", json!("nobody")),
        ("model", json!("x".repeat(100_000))),
        ("model", json!(7)),
        ("model", json!([])),
        ("colour", json!(1)),
        ("\u{0}", json!(1)),
        ("add_special_tokens", json!("yes")),
        ("add_special_tokens", json!(1)),
    ];
    let of_encoders = [
        ("user", json!(5)),
        ("user", json!("x".repeat(100_000))),
        ("truncate_prompt_tokens", json!(0)),
        ("truncate_prompt_tokens", json!(-2)),
        ("truncate_prompt_tokens", json!(1e300)),
        ("truncate_prompt_tokens", json!("4")),
        ("truncate_prompt_tokens", json!(8)),
    ];
    let of_all = of_all.into_iter().map(|(name, value)| (name, value, 5));
    for (name, value, doors) in of_all.chain(of_encoders.into_iter().map(|(name, value)| (name, value, 4))) {
        let mut verdicts = Vec::new();
        for (path, _, mut body) in reading_doors().into_iter().take(doors) {
            body[name] = value.clone();
            let reply = client.post(path, &body).await;
            assert!(reply.status < 500, "{path}: {name}: {value}: {}", reply.text());
            verdicts.push((reply.status, (reply.status != 200).then(|| (reply.error_code(), reply.param()))));
        }
        assert!(verdicts.iter().all(|verdict| *verdict == verdicts[0]), "{name}: {value}: {verdicts:?}");
    }
    server.assert_at_rest().await;
}

#[tokio::test]
async fn what_is_no_text_is_refused_at_every_door_that_reads_texts_by_its_own_name() {
    let server = EncoderServer::start().await;
    for value in [json!(7), json!({}), json!([]), json!([[true]]), json!([{"a": 1}]), json!(true), Value::Null] {
        for (path, field, mut body) in reading_doors() {
            body[field] = value.clone();
            let reply = server.client().post(path, &body).await;
            assert_eq!(reply.status, 400, "{path}: {value}: {}", reply.text());
            // A field that is `null` is absent, and the other name of it is then missed.
            let param = reply.param().unwrap();
            assert!(param.starts_with(field) || value.is_null(), "{path}: {value}: {param}");
        }
    }
    let many = json!(vec!["a"; 2049]);
    for (path, field, mut body) in reading_doors().into_iter().take(4) {
        body[field] = many.clone();
        let reply = server.client().post(path, &body).await;
        assert_eq!((reply.status, reply.param().as_deref()), (400, Some(field)), "{path}");
    }
    server.assert_at_rest().await;
}

#[tokio::test]
async fn the_bound_on_the_answer_is_one_bound_under_three_names() {
    let server = Server::start().await;
    let names = ["max_tokens", "max_tokens", "max_output_tokens"];
    for value in [json!(-1), json!(4_294_967_296_u64), json!(1e300), json!("4"), json!(0.5), json!(4000), json!(2000)] {
        let mut statuses = Vec::new();
        for ((path, mut body), name) in doors().into_iter().zip(names) {
            body[name] = value.clone();
            statuses.push(server.client().post(path, &body).await.status);
        }
        assert!(statuses.iter().all(|status| *status == statuses[0] && *status < 500), "{value}: {statuses:?}");
    }
}

#[tokio::test]
async fn what_is_no_json_is_refused_at_every_door() {
    let server = Server::start().await;
    let client = server.client();
    let deep = "[".repeat(100_000);
    let wide = format!("{{{}}}", (0..1000).map(|n| format!("\"{n}\":0")).collect::<Vec<_>>().join(","));
    let texts: [&[u8]; 40] = [
        b"",
        b" ",
        b"{",
        b"}",
        b"[",
        b"]",
        b"{]",
        b"[}",
        b"nul",
        b"nulll",
        b"true false",
        b"{\"a\"}",
        b"{\"a\":}",
        b"{\"a\":1,}",
        b"{,}",
        b"{a:1}",
        b"{'a':1}",
        b"[1,]",
        b"[,1]",
        b"[1 2]",
        b"\"",
        b"\"\\u12\"",
        b"\"\\x\"",
        b"\"\t\"",
        b"01",
        b"+1",
        b"1.",
        b".5",
        b"1e",
        b"1e999",
        b"NaN",
        b"Infinity",
        b"-",
        b"\xef\xbb\xbf{}",
        b"{\"a\":\"\xff\"}",
        b"\xff\xfe{\x00}\x00",
        b"{} {}",
        b"/* */{}",
        b"{\"a\":1,\"a\":2}",
        deep.as_bytes(),
    ];
    for path in BODIES {
        for text in texts.iter().copied().chain([b"null" as &[u8], b"[]", b"\"x\"", b"1", b"{}", wide.as_bytes()]) {
            let reply = client.post_raw(path, text).await;
            let shown = String::from_utf8_lossy(&text[..text.len().min(40)]).into_owned();
            assert!((400..500).contains(&reply.status), "{path}: {shown}: {}", reply.status);
            assert!(!reply.error_code().is_empty());
        }
    }
    server.assert_at_rest().await;
}

/// What the server answers to these very bytes: a status, or nothing if it hangs up.
async fn answer_to(server: &Server, bytes: &[u8]) -> Option<u16> {
    let exchange = async {
        let mut connection = TcpStream::connect(server.address).await.unwrap();
        // A server that has heard enough may hang up meanwhile.
        let _ = connection.write_all(bytes).await;
        let _ = connection.shutdown().await;
        let mut answer = Vec::new();
        let _ = connection.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).split(' ').nth(1).and_then(|status| status.parse().ok())
    };
    timeout(PATIENCE, exchange).await.expect("the server answers or hangs up")
}

#[tokio::test]
async fn a_request_has_one_host_also_where_no_name_is_asked_for() {
    let open = Server::start().await;
    let guarded = Server::with(Options { key_limits: Some(Vec::new()), ..Options::default() }).await;
    let (one, two) = ("host: localhost\r\n", "host: localhost\r\nhost: evil.example\r\n");
    for server in [&open, &guarded] {
        for (version, hosts, status) in
            [("1.1", one, "200"), ("1.1", two, "400"), ("1.1", "", "400"), ("1.0", two, "400"), ("1.0", one, "200")]
        {
            let request = format!("GET /health HTTP/{version}\r\n{hosts}connection: close\r\n\r\n");
            let mut connection = TcpStream::connect(server.address).await.unwrap();
            connection.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            connection.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer.split(' ').nth(1), Some(status), "{request:?}");
        }
    }
}

#[tokio::test]
async fn broken_heads_and_bodies_that_never_end_cost_their_sender_only() {
    let server = Server::start().await;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n";
    let bomb = format!("GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(200_000));
    let many = format!("GET / HTTP/1.1\r\nhost: localhost\r\n{}\r\n", "a: b\r\n".repeat(5000));
    let cases = [
        bomb,
        many,
        "\r\n\r\n".to_owned(),
        "GET\r\n\r\n".to_owned(),
        "GET / HTTP/9.9\r\n\r\n".to_owned(),
        "G\u{0}T / HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned(),
        format!("{head}content-length: -1\r\n\r\n"),
        format!("{head}content-length: 5\r\ncontent-length: 6\r\n\r\n{{}}"),
        format!("{head}content-length: 99999999999999999999\r\n\r\n{{}}"),
        format!("{head}content-length: 100\r\n\r\n{{\"model\""),
        format!("{head}transfer-encoding: chunked\r\n\r\nzz\r\n"),
        format!("{head}transfer-encoding: chunked\r\n\r\n5\r\n{{}}"),
        format!("{head}transfer-encoding: gzip\r\n\r\n{{}}"),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnot a frame".to_owned(),
    ];
    for case in cases {
        let status = answer_to(&server, case.as_bytes()).await;
        let shown: String = case.chars().take(60).collect();
        assert!(status.is_none_or(|status| (400..500).contains(&status)), "{shown:?}: {status:?}");
    }
    for (path, body) in doors() {
        assert_eq!(server.client().post(path, &body).await.status, 200, "and it goes on answering");
    }
    server.assert_at_rest().await;
}
