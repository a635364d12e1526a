//! Sequences for this crate's own tests.

use std::sync::Arc;

use passerelle_models::{KvCacheSpec, KvGroup, KvReach, TokenId};

use crate::admission::Admission;
use crate::config::EngineConfig;
use crate::doorbell::{Doorbell, RungFlag};
use crate::event_stream::{ChannelSpec, EventStream, event_channel};
use crate::request::{Request, RequestId, SamplingParams};
use crate::sequence::{NewSequence, Sequence};
use crate::testing::full_kv_cache;

pub(crate) fn request(id: u64, prompt: &[TokenId]) -> Request {
    let sampling = SamplingParams { max_tokens: 100, ..SamplingParams::default() };
    Request::new(RequestId(id), prompt.to_vec(), sampling)
}

/// The id doubles as age. The stream must be kept, or the request counts as aborted.
pub(crate) fn sequence(request: Request) -> (Sequence, EventStream) {
    let admission = Arc::new(Admission::new(EngineConfig::default().admission()));
    let ticket = admission.enter(request.prompt.len()).unwrap();
    let doorbell = Doorbell::new(std::sync::mpsc::sync_channel(1).0, RungFlag::default());
    let (events, stream) = event_channel(ChannelSpec::of(&request), doorbell);
    let arrival = request.id.0;
    (Sequence::new(NewSequence { arrival, request, seed: 0, events, ticket }), stream)
}

/// A layer of each reach.
pub(crate) fn kv_cache(block_size: usize, reaches: &[KvReach]) -> KvCacheSpec {
    let groups = KvGroup::of_layers(reaches.iter().copied());
    KvCacheSpec { groups, ..full_kv_cache(block_size) }
}
