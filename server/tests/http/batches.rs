//! Files and batches: many requests from one file, answered when there is room, also across a restart.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::client::{Client, Reply};
use crate::common::model::Gate;
use crate::common::{MODEL, Options, PATIENCE, Seen, Server, limit, until};
use passerelle::api::{ApiConfig, run_batches};
use passerelle::batches::{BatchBounds, Disk};
use passerelle::gateway::Limit;
use passerelle_engine::Class;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Builder;
use tokio::time::timeout;

const CHAT: &str = "/v1/chat/completions";

fn line(id: &str, say: &str) -> Value {
    let messages = json!([{"role": "user", "content": format!("say:{say}")}]);
    let body = json!({"model": MODEL, "messages": messages, "max_tokens": 20});
    json!({"custom_id": id, "method": "POST", "url": CHAT, "body": body})
}

fn jsonl(lines: &[Value]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

pub(crate) async fn upload(client: &Client, content: &str) -> Reply {
    let form = format!(
        "--edge\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--edge\r\ncontent-disposition: \
         form-data; name=\"file\"; filename=\"in.jsonl\"\r\n\r\n{content}\r\n--edge--\r\n"
    );
    let client = client.clone().with("content-type", "multipart/form-data; boundary=edge");
    client.post_raw("/v1/files", form.as_bytes()).await
}

async fn create(client: &Client, content: &str) -> Value {
    create_from(client, CHAT, content).await
}

pub(crate) async fn create_at(client: &Client, endpoint: &str, lines: &[Value]) -> Value {
    create_from(client, endpoint, &jsonl(lines)).await
}

async fn create_from(client: &Client, endpoint: &str, content: &str) -> Value {
    let file = upload(client, content).await;
    assert_eq!(file.status, 200, "{}", file.text());
    let asked = json!({"input_file_id": file.json()["id"], "endpoint": endpoint, "completion_window": "24h", "metadata": {"a": "b"}});
    let batch = client.post("/v1/batches", &asked).await;
    assert_eq!(batch.status, 200, "{}", batch.text());
    batch.json()
}

/// Asks how the batch stands until it is as wanted.
pub(crate) async fn wait_until(client: &Client, batch: &Value, wanted: impl Fn(&Value) -> bool) -> Value {
    let path = format!("/v1/batches/{}", batch["id"].as_str().unwrap());
    let waiting = async {
        loop {
            let now = client.get(&path).await.json();
            if wanted(&now) {
                return now;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, waiting).await.expect("the batch gets there")
}

fn is(status: &'static str) -> impl Fn(&Value) -> bool {
    move |batch| batch["status"] == status
}

pub(crate) async fn lines_of(client: &Client, file: &Value) -> Vec<Value> {
    let reply = client.get(&format!("/v1/files/{}/content", file.as_str().unwrap())).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn keeping(folder: &TempDir) -> Options {
    Options { data_dir: Some(folder.path().to_owned()), ..Options::default() }
}

/// One that can be filled and emptied.
#[derive(Debug, Default)]
struct FillingDisk {
    is_full: AtomicBool,
    refused: AtomicUsize,
}

impl Disk for FillingDisk {
    fn write(&self, file: &mut File, bytes: &[u8]) -> io::Result<()> {
        if !self.is_full.load(Ordering::SeqCst) {
            return file.write_all(bytes);
        }
        file.write_all(&bytes[..bytes.len() / 2])?;
        self.refused.fetch_add(1, Ordering::SeqCst);
        Err(io::ErrorKind::StorageFull.into())
    }
}

#[tokio::test]
async fn a_batch_is_answered_line_by_line_and_refusals_go_apart() {
    let folder = tempfile::tempdir().unwrap();
    let seen = Seen::default();
    let server = Server::with(Options { seen: seen.clone(), ..keeping(&folder) }).await;
    let client = server.client();
    let runner = tokio::spawn(run_batches(server.state.clone()));
    let mut refused = line("c", "x");
    refused["body"]["temperature"] = json!("hot");
    let mut streamed = line("d", "x");
    streamed["body"]["stream"] = json!(true);
    let mut urgent = line("b", "two");
    urgent["body"]["service_tier"] = json!("priority");
    let batch = create(&client, &jsonl(&[line("a", "one"), urgent, refused, streamed])).await;
    assert_eq!((&batch["object"], &batch["metadata"]), (&json!("batch"), &json!({"a": "b"})));
    let batch = wait_until(&client, &batch, is("completed")).await;
    assert_eq!(batch["request_counts"], json!({"total": 4, "completed": 2, "failed": 2}));
    let said = |line: &Value| {
        let content = line["response"]["body"]["choices"][0]["message"]["content"].as_str().unwrap();
        (line["custom_id"].as_str().unwrap().to_owned(), content.to_owned())
    };
    let output: BTreeSet<_> = lines_of(&client, &batch["output_file_id"]).await.iter().map(said).collect();
    assert_eq!(output, [("a", "one"), ("b", "two")].map(|(id, said)| (id.to_owned(), said.to_owned())).into());
    let errors = lines_of(&client, &batch["error_file_id"]).await;
    let param = |id: &str| {
        let line = errors.iter().find(|line| line["custom_id"] == id).unwrap();
        assert_eq!(line["response"]["status_code"], 400);
        line["response"]["body"]["error"]["param"].clone()
    };
    assert_eq!((param("c"), param("d")), (json!("temperature"), json!("stream")));
    assert!(seen.take().iter().all(|asked| asked.class == Class::Batch), "whatever a line's tier is");
    let metrics = client.get("/metrics").await.text();
    let counted =
        format!(r#"passerelle_requests_total{{route="/v1/chat/completions",status="200",model="{MODEL}"}} 2"#);
    assert!(metrics.lines().any(|line| line == counted), "{metrics}");
    runner.abort();
    server.assert_at_rest().await;
}

#[tokio::test]
async fn an_input_that_cannot_be_used_fails_with_its_lines() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::with(keeping(&folder)).await;
    let runner = tokio::spawn(run_batches(server.state.clone()));
    let client = server.client();
    let mut elsewhere = line("b", "x");
    elsewhere["url"] = json!("/v1/completions");
    let text = format!("{}nonsense\n\n{}", jsonl(&[line("a", "x"), line("a", "y")]), jsonl(&[elsewhere]));
    let batch = create(&client, &text).await;
    let batch = wait_until(&client, &batch, is("failed")).await;
    let lines: Vec<&Value> = batch["errors"]["data"].as_array().unwrap().iter().map(|error| &error["line"]).collect();
    assert_eq!(lines, [2, 3, 5]);
    runner.abort();
}

#[tokio::test]
async fn a_batch_that_a_restart_interrupts_goes_on_and_runs_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let batch = stopped_half_way(&folder);
    let server = Server::with(keeping(&folder)).await;
    let client = server.client();
    let found = client.get("/v1/batches").await.json();
    assert_eq!(found["data"][0]["id"], batch["id"]);
    let answered = found["data"][0]["request_counts"]["completed"].as_u64();
    assert!(answered >= Some(5), "known before anything runs: {found}");
    let runner = tokio::spawn(run_batches(server.state.clone()));
    let batch = wait_until(&client, &batch, is("completed")).await;
    assert_eq!(batch["request_counts"], json!({"total": 40, "completed": 40, "failed": 0}));
    let output = lines_of(&client, &batch["output_file_id"]).await;
    let ids: BTreeSet<String> = output.iter().map(|line| line["custom_id"].to_string()).collect();
    assert_eq!((output.len(), ids.len()), (40, 40));
    runner.abort();
}

#[tokio::test]
async fn a_drain_waits_for_the_requests_of_batches_that_run_and_begins_no_more() {
    let (folder, gate, seen) = (tempfile::tempdir().unwrap(), Gate::closed(), Seen::default());
    let batches = BatchBounds { max_running_requests: 3, ..BatchBounds::default() };
    let options = Options { batches, gate: gate.clone(), seen: seen.clone(), ..keeping(&folder) };
    let server = Server::with(options).await;
    let runner = tokio::spawn(run_batches(server.state.clone()));
    let lines: Vec<Value> = (0..8).map(|n| line(&format!("r{n}"), &format!("answer {n}"))).collect();
    let batch = create(&server.client(), &jsonl(&lines)).await;
    until(|| seen.count(Class::Batch) == 3).await;
    server.state.readiness().start_draining();
    gate.release();
    timeout(PATIENCE, runner).await.expect("it ends with what runs").unwrap();
    let stands = server.client().get(&format!("/v1/batches/{}", batch["id"].as_str().unwrap())).await.json();
    assert_eq!(stands["request_counts"], json!({"total": 8, "completed": 3, "failed": 0}));
    drop(server);

    let server = Server::with(Options { seen: seen.clone(), ..keeping(&folder) }).await;
    let runner = tokio::spawn(run_batches(server.state.clone()));
    let batch = wait_until(&server.client(), &batch, is("completed")).await;
    assert_eq!(batch["request_counts"], json!({"total": 8, "completed": 8, "failed": 0}));
    assert_eq!(seen.count(Class::Batch), 8, "each was run once");
    runner.abort();
}

/// What it was refused is no answer, and would be kept for good.
#[tokio::test]
async fn a_request_of_a_batch_that_waits_for_room_waits_no_longer_than_the_server_drains() {
    let (folder, gate, seen) = (tempfile::tempdir().unwrap(), Gate::closed(), Seen::default());
    let key_limits = Some(vec![limit(Limit::concurrent_requests, 1)]);
    let server = Server::with(Options { key_limits, gate: gate.clone(), seen: seen.clone(), ..keeping(&folder) }).await;
    let client = server.client().with_key();
    let runner = tokio::spawn(run_batches(server.state.clone()));
    let batch = create(&client, &jsonl(&[line("a", "x"), line("b", "y")])).await;
    until(|| seen.count(Class::Batch) == 1).await;
    // Whoever was not refused yet would find the room that the other leaves.
    until(|| server.state.ledger().totals().refused > 0).await;
    server.state.readiness().start_draining();
    gate.release();
    timeout(PATIENCE, runner).await.expect("nobody waits for room").unwrap();
    let stands = client.get(&format!("/v1/batches/{}", batch["id"].as_str().unwrap())).await.json();
    assert_eq!((&stands["status"], &stands["request_counts"]["failed"]), (&json!("in_progress"), &json!(0)));
    assert_eq!(stands["request_counts"]["completed"], 1);
}

/// The batch of a server that is gone. It had a runtime of its own, which ends when its last write has: nothing of it is
/// written while the next server reads.
fn stopped_half_way(folder: &TempDir) -> Value {
    let live = || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(stop_half_way(folder))
    };
    thread::scope(|scope| scope.spawn(live).join().unwrap())
}

/// Stops a server once some of 40 requests are answered.
async fn stop_half_way(folder: &TempDir) -> Value {
    let lines: Vec<Value> = (0..40).map(|n| line(&format!("r{n}"), &format!("answer {n}"))).collect();
    let gate = Gate::closed();
    // As many at once as are waited for: however late one is noted, there are others for the next step.
    let batches = BatchBounds { max_running_requests: 5, ..BatchBounds::default() };
    let server = Server::with(Options { batches, gate: gate.clone(), ..keeping(folder) }).await;
    let runner = tokio::spawn(run_batches(server.state.clone()));
    let client = server.client();
    let batch = create(&client, &jsonl(&lines)).await;
    let path = format!("/v1/batches/{}", batch["id"].as_str().unwrap());
    // Step by step, so that not all of them are answered before anybody looks.
    while client.get(&path).await.json()["request_counts"]["completed"].as_u64() < Some(5) {
        gate.let_one_pass();
        until(|| gate.is_used_up()).await;
    }
    runner.abort();
    let _: Result<(), _> = runner.await;
    batch
}

#[tokio::test]
async fn a_limit_that_is_lowered_ends_no_batch_that_has_begun() {
    let folder = tempfile::tempdir().unwrap();
    let batch = stopped_half_way(&folder);
    let batches = BatchBounds { max_requests: 10, ..BatchBounds::default() };
    let server = Server::with(Options { batches, ..keeping(&folder) }).await;
    let runner = tokio::spawn(run_batches(server.state.clone()));
    let batch = wait_until(&server.client(), &batch, is("completed")).await;
    assert_eq!(batch["request_counts"], json!({"total": 40, "completed": 40, "failed": 0}));
    runner.abort();
}

/// Its requests that are left are refused one by one, as they would have been without the restart.
#[tokio::test]
async fn a_batch_whose_key_is_gone_ends_with_what_it_answered() {
    let folder = tempfile::tempdir().unwrap();
    let batch = stopped_half_way(&folder);
    let record = folder.path().join(format!("batches/{}.json", batch["id"].as_str().unwrap()));
    let read = || serde_json::from_slice::<Value>(&std::fs::read(&record).unwrap()).unwrap();
    let mut kept = read();
    kept["via"] = json!("sk-nobody");
    std::fs::write(&record, kept.to_string()).unwrap();
    let server = Server::with(Options { key_limits: Some(Vec::new()), ..keeping(&folder) }).await;
    let runner = tokio::spawn(run_batches(server.state.clone()));
    until(|| read()["status"] == "completed").await;
    runner.abort();
    let counts = &read()["counts"];
    let [completed, failed] = ["completed", "failed"].map(|count| counts[count].as_u64().unwrap());
    assert!(completed >= 5 && completed + failed == 40, "{counts}");
    let errors = folder.path().join(format!("files/{}.data", read()["error_file_id"].as_str().unwrap()));
    assert_eq!(std::fs::read_to_string(errors).unwrap().matches("invalid_api_key").count() as u64, failed);
}

#[tokio::test]
async fn a_batch_whose_input_is_gone_ends_and_what_it_answered_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let batch = stopped_half_way(&folder);
    let input = batch["input_file_id"].as_str().unwrap();
    std::fs::remove_file(folder.path().join(format!("files/{input}.data"))).unwrap();
    let server = Server::with(keeping(&folder)).await;
    let client = server.client();
    let runner = tokio::spawn(run_batches(server.state.clone()));
    let batch = wait_until(&client, &batch, is("failed")).await;
    assert!(batch["errors"]["data"][0]["message"].as_str().unwrap().contains("input file"), "{batch}");
    let answered = lines_of(&client, &batch["output_file_id"]).await.len();
    assert!(answered >= 5);
    assert_eq!(batch["request_counts"], json!({"total": 40, "completed": answered, "failed": 0}));
    runner.abort();
}

#[tokio::test]
async fn a_batch_bounds_its_requests_and_the_time_for_an_answer_does_not() {
    let (folder, gate) = (tempfile::tempdir().unwrap(), Gate::closed());
    let api = ApiConfig { request_timeout: Duration::from_millis(20), ..ApiConfig::default() };
    let seen = Seen::default();
    let server = Server::with(Options { api, gate: gate.clone(), seen: seen.clone(), ..keeping(&folder) }).await;
    let client = server.client();
    let runner = tokio::spawn(run_batches(server.state.clone()));
    let batch = create(&client, &jsonl(&[line("a", "x")])).await;
    until(|| seen.count(Class::Batch) == 1).await;
    let late = client.post(CHAT, &line("b", "y")["body"]).await;
    assert_eq!((late.status, late.error_code().as_str()), (503, "request_timeout"));
    gate.release();
    let batch = wait_until(&client, &batch, is("completed")).await;
    assert_eq!(batch["request_counts"], json!({"total": 1, "completed": 1, "failed": 0}));
    assert_eq!(seen.count(Class::Batch), 1, "it was not asked again");
    runner.abort();
}

#[tokio::test]
async fn a_full_disk_is_told_and_a_batch_waits_for_room_and_runs_nothing_twice() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, gate, seen) = (Arc::new(FillingDisk::default()), Gate::closed(), Seen::default());
    let options = Options { disk: disk.clone(), gate: gate.clone(), seen: seen.clone(), ..keeping(&folder) };
    let server = Server::with(options).await;
    let runner = tokio::spawn(run_batches(server.state.clone()));
    let client = server.client();
    let spare = upload(&client, "{}").await.json();
    let batch = create(&client, &jsonl(&[line("a", "x"), line("b", "y"), line("c", "z")])).await;
    wait_until(&client, &batch, is("in_progress")).await;

    disk.is_full.store(true, Ordering::SeqCst);
    let path = format!("/v1/batches/{}", batch["id"].as_str().unwrap());
    let another = json!({"input_file_id": spare["id"], "endpoint": CHAT, "completion_window": "24h"});
    let refusals = [
        upload(&client, "{}").await,
        client.post("/v1/batches", &another).await,
        client.post(&format!("{path}/cancel"), &json!({})).await,
    ];
    for refused in refusals {
        assert_eq!((refused.status, refused.error_code().as_str()), (503, "storage_full"), "{}", refused.text());
        assert!(refused.headers.contains_key("retry-after"));
    }
    let left = std::fs::read_dir(folder.path().join("files")).unwrap().count();
    assert_eq!(left, 4, "two files, each with its record");
    let refused_before = disk.refused.load(Ordering::SeqCst);
    gate.release();
    until(|| disk.refused.load(Ordering::SeqCst) > refused_before).await;
    let waiting = client.get(&path).await.json();
    assert_eq!((&waiting["status"], &waiting["request_counts"]["completed"]), (&json!("in_progress"), &json!(0)));

    disk.is_full.store(false, Ordering::SeqCst);
    let spare = format!("/v1/files/{}", spare["id"].as_str().unwrap());
    assert_eq!(client.send("DELETE", &spare, b"").await.whole().await.status, 200);
    let batch = wait_until(&client, &batch, is("completed")).await;
    assert_eq!(batch["request_counts"], json!({"total": 3, "completed": 3, "failed": 0}));
    let output = lines_of(&client, &batch["output_file_id"]).await;
    let ids: BTreeSet<&str> = output.iter().map(|line| line["custom_id"].as_str().unwrap()).collect();
    assert_eq!((output.len(), ids), (3, ["a", "b", "c"].into()));
    assert_eq!(seen.take().len(), 3, "each was run once");
    runner.abort();
    server.assert_at_rest().await;
}

#[tokio::test]
async fn a_cancelled_batch_ends_and_what_it_ran_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let gate = Gate::closed();
    let server = Server::with(Options { gate: gate.clone(), ..keeping(&folder) }).await;
    let runner = tokio::spawn(run_batches(server.state.clone()));
    let client = server.client();
    let batch = create(&client, &jsonl(&[line("a", "x"), line("b", "y")])).await;
    wait_until(&client, &batch, is("in_progress")).await;
    let path = format!("/v1/batches/{}/cancel", batch["id"].as_str().unwrap());
    assert_eq!(client.post(&path, &json!({})).await.json()["status"], "cancelling");
    gate.release();
    let batch = wait_until(&client, &batch, is("cancelled")).await;
    assert!(batch["cancelled_at"].is_u64());
    let mut told = Vec::new();
    for file in ["output_file_id", "error_file_id"].map(|name| &batch[name]).into_iter().filter(|file| file.is_string())
    {
        told.extend(lines_of(&client, file).await);
    }
    let unrun = told.iter().filter(|line| line["error"]["code"] == "batch_cancelled");
    assert_eq!((told.len(), json!(unrun.count())), (2, batch["request_counts"]["failed"].clone()), "{told:?}");
    let again = client.post(&path, &json!({})).await;
    assert_eq!((again.status, again.error_code().as_str()), (409, "conflict"), "{}", again.text());
    runner.abort();
    server.assert_at_rest().await;
}

#[tokio::test]
async fn a_batch_whose_time_is_over_says_which_requests_never_ran() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::with(keeping(&folder)).await;
    let batch = create(&server.client(), &jsonl(&[line("a", "x"), line("b", "y")])).await;
    drop(server);
    let record = folder.path().join("batches").join(format!("{}.json", batch["id"].as_str().unwrap()));
    let mut kept: Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    kept["expires_at"] = json!(1);
    std::fs::write(&record, kept.to_string()).unwrap();

    let gate = Gate::closed();
    let server = Server::with(Options { gate: gate.clone(), ..keeping(&folder) }).await;
    let client = server.client();
    let runner = tokio::spawn(run_batches(server.state.clone()));
    let batch = wait_until(&client, &batch, is("expired")).await;
    gate.release();
    assert_eq!(batch["request_counts"], json!({"total": 2, "completed": 0, "failed": 2}));
    let errors = lines_of(&client, &batch["error_file_id"]).await;
    assert_eq!(errors.iter().map(|line| &line["custom_id"]).collect::<Vec<_>>(), ["a", "b"]);
    assert!(errors.iter().all(|line| line["response"].is_null() && line["error"]["code"] == "batch_expired"));
    runner.abort();
}

#[tokio::test]
async fn a_list_of_files_is_what_its_query_asks_for() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::with(keeping(&folder)).await;
    let client = server.client();
    for _ in 0..3 {
        upload(&client, "{}").await;
    }
    let listed = async |query: &str| {
        let list = client.get(&format!("/v1/files{query}")).await.json();
        let ids = list["data"].as_array().unwrap().iter().map(|file| file["id"].as_str().unwrap().to_owned());
        (ids.collect::<Vec<_>>(), list)
    };
    let (all, list) = listed("").await;
    assert_eq!((all.len(), &list["has_more"], &list["last_id"]), (3, &json!(false), &json!(all[2])));
    let (first, list) = listed("?limit=2&purpose=batch").await;
    assert_eq!((&first[..], &list["has_more"]), (&all[..2], &json!(true)));
    assert_eq!(listed(&format!("?after={}", all[1])).await.0, all[2..]);
    assert_eq!(listed("?order=asc").await.0, all.iter().rev().cloned().collect::<Vec<_>>());
    assert!(listed("?purpose=batch_output").await.0.is_empty());
    for (query, param) in [("limit=0", "limit"), ("order=up", "order"), ("after=x", "after"), ("colour=red", "colour")]
    {
        let reply = client.get(&format!("/v1/files?{query}")).await;
        assert_eq!((reply.status, reply.param().as_deref()), (400, Some(param)), "{query}");
    }
}

#[tokio::test]
async fn a_limit_of_the_key_slows_a_batch_and_fails_none_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let key_limits = Some(vec![limit(Limit::concurrent_requests, 1)]);
    let server = Server::with(Options { key_limits, ..keeping(&folder) }).await;
    let runner = tokio::spawn(run_batches(server.state.clone()));
    let client = server.client().with_key();
    let lines: Vec<Value> = (0..3).map(|n| line(&n.to_string(), "hi")).collect();
    let batch = create(&client, &jsonl(&lines)).await;
    let batch = wait_until(&client, &batch, is("completed")).await;
    assert_eq!(batch["request_counts"], json!({"total": 3, "completed": 3, "failed": 0}));
    runner.abort();
}

#[tokio::test]
async fn what_is_kept_is_bounded_and_goes_when_it_is_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let batches = BatchBounds { max_file_bytes: 100, max_files: 1, ..BatchBounds::default() };
    let server = Server::with(Options { batches, ..keeping(&folder) }).await;
    let client = server.client();
    let large = upload(&client, &"x".repeat(101)).await;
    assert_eq!((large.status, large.error_code().as_str()), (413, "request_too_large"));
    let file = upload(&client, "{}").await.json();
    assert_eq!((&file["bytes"], &file["purpose"]), (&json!(2), &json!("batch")));
    assert_eq!(upload(&client, "{}").await.status, 400, "one file is all there may be");
    let path = format!("/v1/files/{}", file["id"].as_str().unwrap());
    assert_eq!(client.get(&path).await.json(), file);
    for stranger in ["/v1/files/file-000000000000000000000000", "/v1/files/..%2f..%2fkeys", "/v1/batches/batch_1"] {
        let reply = client.get(stranger).await;
        assert_eq!((reply.status, reply.error_code().as_str()), (404, "not_found"), "{stranger}");
    }
    assert_eq!(client.send("DELETE", &path, b"").await.whole().await.json()["deleted"], true);
    assert_eq!(client.get(&path).await.status, 404);
    let left = std::fs::read_dir(folder.path().join("files")).unwrap().count();
    assert_eq!(left, 0, "nothing stays of what was refused or deleted");
    let odd = client.clone().with("content-type", "multipart/form-data; boundary=edge");
    for form in
        ["", "--edge\r\n", "--edge\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--edge--\r\n"]
    {
        assert_eq!(odd.post_raw("/v1/files", form.as_bytes()).await.status, 400, "{form}");
    }
}
