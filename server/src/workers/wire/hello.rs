//! How a worker introduces itself.

use std::time::Duration;

use super::figures::count;
use super::{Hello, Malformed, Model, PROTOCOL};
use crate::workers::facts::{OfferedKind, OfferedModel, WorkerFacts};

/// Models of one worker; more are no configuration that anybody wrote.
const MAX_MODELS: usize = 1024;
/// Of a name, and of what else is short.
const MAX_TEXT_BYTES: usize = 1024;

impl From<&WorkerFacts> for Hello {
    fn from(facts: &WorkerFacts) -> Self {
        Self {
            protocol: PROTOCOL,
            version: facts.version.clone(),
            partition: facts.partition.clone(),
            device: facts.device.clone(),
            kernels: facts.kernels.clone(),
            threads: u32::try_from(facts.threads).unwrap_or(u32::MAX),
            models: facts.models.iter().map(Model::from).collect(),
            ends_in_ms: facts.ends_in.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

impl TryFrom<Hello> for WorkerFacts {
    type Error = Malformed;

    fn try_from(sent: Hello) -> Result<Self, Malformed> {
        if sent.protocol != PROTOCOL {
            return Err(Malformed("protocol"));
        }
        let texts = [&sent.version, &sent.partition, &sent.device, &sent.kernels];
        if texts.iter().any(|text| text.len() > MAX_TEXT_BYTES) || sent.models.len() > MAX_MODELS {
            return Err(Malformed("hello"));
        }
        Ok(Self {
            version: sent.version,
            partition: sent.partition,
            device: sent.device,
            kernels: sent.kernels,
            threads: sent.threads as usize,
            models: sent.models.into_iter().map(OfferedModel::try_from).collect::<Result<_, _>>()?,
            ends_in: sent.ends_in_ms.map(Duration::from_millis),
        })
    }
}

impl From<&OfferedModel> for Model {
    fn from(model: &OfferedModel) -> Self {
        let vocab_size = match model.kind {
            OfferedKind::Generator { vocab_size } => Some(vocab_size as u64),
            OfferedKind::Encoder => None,
        };
        Self {
            name: model.name.clone(),
            digest: model.digest.to_string(),
            fingerprint: model.fingerprint.clone(),
            weights_bytes: model.weights_bytes,
            kv_cache_bytes: model.kv_cache_bytes,
            input_vocab_size: model.input_vocab_size as u64,
            max_model_len: model.max_model_len as u64,
            max_waiting_requests: model.max_waiting_requests as u64,
            max_waiting_tokens: model.max_waiting_tokens as u64,
            max_running: model.max_running as u64,
            vocab_size,
        }
    }
}

impl TryFrom<Model> for OfferedModel {
    type Error = Malformed;

    fn try_from(sent: Model) -> Result<Self, Malformed> {
        if sent.name.len() > MAX_TEXT_BYTES || sent.fingerprint.len() > MAX_TEXT_BYTES {
            return Err(Malformed("model"));
        }
        let kind = match sent.vocab_size {
            Some(vocab_size) => OfferedKind::Generator { vocab_size: count(vocab_size) },
            None => OfferedKind::Encoder,
        };
        Ok(Self {
            name: sent.name,
            digest: sent.digest.parse().map_err(|_| Malformed("digest"))?,
            fingerprint: sent.fingerprint,
            weights_bytes: sent.weights_bytes,
            kv_cache_bytes: sent.kv_cache_bytes,
            input_vocab_size: count(sent.input_vocab_size),
            max_model_len: count(sent.max_model_len),
            max_waiting_requests: count(sent.max_waiting_requests),
            max_waiting_tokens: count(sent.max_waiting_tokens),
            max_running: count(sent.max_running),
            kind,
        })
    }
}
