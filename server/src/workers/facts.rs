//! What a worker has loaded, as it says when it comes.

use std::time::Duration;

use passerelle_engine::RequestRules;
use passerelle_models::ModelDigest;

/// One worker, at its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerFacts {
    pub version: String,
    pub partition: String,
    /// Where it computes, as in the ledger.
    pub device: String,
    pub kernels: String,
    pub threads: usize,
    /// In the order in which both ends count them.
    pub models: Vec<OfferedModel>,
    /// From now on; nothing runs beyond. `None`: as long as it is wanted.
    pub ends_in: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferedModel {
    pub name: String,
    pub digest: ModelDigest,
    pub fingerprint: String,
    pub weights_bytes: u64,
    /// 0 for a model that gives vectors.
    pub kv_cache_bytes: u64,
    pub input_vocab_size: usize,
    /// Prompt and answer together, in tokens.
    pub max_model_len: usize,
    /// Requests, or texts.
    pub max_waiting_requests: usize,
    pub max_waiting_tokens: usize,
    /// Sequences, or texts, that run at once.
    pub max_running: usize,
    pub kind: OfferedKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OfferedKind {
    Generator { vocab_size: usize },
    Encoder,
}

impl OfferedModel {
    /// What a request is checked against before it is sent. `None` for a model that generates nothing.
    pub(super) fn rules(&self) -> Option<RequestRules> {
        let OfferedKind::Generator { vocab_size } = self.kind else { return None };
        Some(RequestRules {
            max_model_len: self.max_model_len,
            max_num_seqs: self.max_running,
            input_vocab_size: self.input_vocab_size,
            vocab_size,
        })
    }
}
