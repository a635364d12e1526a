//! Sequences for this crate's own tests.

use std::sync::Arc;

use passerelle_models::TokenId;

use crate::admission::Admission;
use crate::config::EngineConfig;
use crate::event_stream::{EventStream, event_channel};
use crate::request::{CacheSalt, Request, RequestId, SamplingParams, ShareKey};
use crate::sequence::{NewSequence, Sequence, SequenceId};

pub(crate) const SALT: CacheSalt = CacheSalt([0; 32]);

pub(crate) fn request(id: u64, prompt: &[TokenId]) -> Request {
    Request {
        id: RequestId(id),
        prompt: prompt.to_vec(),
        sampling: SamplingParams { max_tokens: 100, ..SamplingParams::default() },
        share_key: ShareKey(0),
        cache_salt: SALT,
        constraint: None,
    }
}

/// The id doubles as age. The stream must be kept, or the request counts as aborted.
pub(crate) fn sequence(request: Request) -> (Sequence, EventStream) {
    let admission = Arc::new(Admission::new(&EngineConfig::default()));
    let ticket = admission.enter(request.prompt.len()).unwrap();
    let (events, stream) = event_channel(request.prompt.len(), request.sampling.max_tokens as usize);
    let id = SequenceId(request.id.0);
    (Sequence::new(NewSequence { id, request, seed: 0, events, ticket }), stream)
}
