//! One response, streamed and whole.

use serde_json::{Value, json};

use super::client::Client;

pub(crate) const RESPONSES: &str = "/v1/responses";

/// The named events of a stream, each checked against its name.
fn events(text: &str) -> Vec<Value> {
    let framed = text.split("\n\n").filter(|frame| !frame.is_empty() && !frame.starts_with(':'));
    let parsed = framed.map(|frame| {
        let (name, data) = frame.split_once('\n').expect("two lines");
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
        data
    });
    parsed.collect()
}

/// What differs between two askings: random names.
fn without_ids(mut item: Value) -> Value {
    for name in ["id", "call_id", "created_at"] {
        item.as_object_mut().unwrap().shift_remove(name);
    }
    item
}

/// Asks twice, streamed and not; checks that the events add up to the whole answer, and returns it.
pub(crate) async fn response_both_ways(client: &Client, body: Value) -> Value {
    let reply = client.post(RESPONSES, &body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let whole = reply.json();
    let mut streaming = body;
    streaming["stream"] = json!(true);
    let events = events(&client.post(RESPONSES, &streaming).await.text());
    let numbers: Vec<u64> = events.iter().map(|event| event["sequence_number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>());
    assert_eq!((&events[0]["type"], &events[1]["type"]), (&json!("response.created"), &json!("response.in_progress")));
    let last = &events.last().unwrap()["response"];
    assert_eq!(last["status"], whole["status"]);
    assert_eq!(last["usage"]["total_tokens"], whole["usage"]["total_tokens"]);
    let items =
        |response: &Value| response["output"].as_array().unwrap().iter().cloned().map(without_ids).collect::<Vec<_>>();
    assert_eq!(items(last), items(&whole));
    let done = events.iter().filter(|event| event["type"] == "response.output_item.done");
    assert_eq!(done.map(|event| without_ids(event["item"].clone())).collect::<Vec<_>>(), items(&whole));
    for (index, item) in whole["output"].as_array().unwrap().iter().enumerate() {
        let deltas =
            events.iter().filter(|event| event["output_index"] == index).filter_map(|event| event["delta"].as_str());
        let text = item["content"][0]["text"].as_str().or(item["arguments"].as_str()).unwrap();
        assert_eq!(deltas.collect::<String>(), text);
    }
    whole
}
