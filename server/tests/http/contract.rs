//! What docs/quota-contract.md promises to whoever speaks HTTP.

use std::num::NonZeroU64;

use passerelle::gateway::Limit;
use passerelle::gateway::quota::{Bound, Period, Unit};
use serde_json::json;

use crate::common::{MODEL, Options, Server};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_prompt_is_counted_exactly_before_it_is_admitted() {
    let messages = json!([{"role": "user", "content": "Combien font 12 et 7 ?"}]);
    let body = json!({"model": MODEL, "messages": messages, "max_tokens": 1});
    let used = Server::start().await.client().post(CHAT, &body).await.json()["usage"]["prompt_tokens"].clone();
    let used = used.as_u64().unwrap();
    for (amount, status) in [(used, 200), (used - 1, 400)] {
        let amount = NonZeroU64::new(amount).unwrap();
        let limit = Limit::of(Bound::Budget { unit: Unit::InputTokens, amount, period: Period::Day });
        let server = Server::with(Options { key_limits: Some(vec![limit]), ..Options::default() }).await;
        let reply = server.client().with_key().post(CHAT, &body).await;
        assert_eq!(reply.status, status, "{}", reply.text());
    }
}
