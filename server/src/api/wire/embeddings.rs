//! `POST /v1/embeddings`: its fields, and its answer.

use std::num::NonZeroUsize;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use passerelle_engine::Usage;
use serde::Serialize;
use serde_json::Value;

use super::texts::{TEXT_FIELDS, Texts, read_inputs, read_model};
use crate::api::errors::ApiError;
use crate::api::fields::{Field, Reader, honoured, invalid, required};

pub(crate) const EMBEDDING_FIELDS: &[Field] = &[
    honoured("input"),
    honoured("encoding_format"),
    honoured("dimensions"),
    honoured("prompt_name"),
    honoured("normalize"),
];

#[derive(Debug)]
pub(crate) struct ReadEmbeddings {
    pub(crate) model: String,
    pub(crate) texts: Texts,
    pub(crate) format: VectorFormat,
    pub(crate) dimensions: Option<NonZeroUsize>,
    /// To length 1; as the model has it where nothing is said.
    pub(crate) normalize: Option<bool>,
    pub(crate) ignored: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VectorFormat {
    Float,
    /// Of little-endian f32.
    Base64,
}

#[derive(Debug, Serialize)]
pub(crate) struct EmbeddingsAnswer {
    object: &'static str,
    data: Vec<Embedding>,
    model: String,
    usage: EncoderUsage,
}

#[derive(Debug, Serialize)]
struct Embedding {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

/// Nothing is generated, so all tokens are of the prompt.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct EncoderUsage {
    prompt_tokens: u32,
    total_tokens: u32,
}

pub(crate) fn read_embeddings(body: Value, mut reader: Reader, max_inputs: usize) -> Result<ReadEmbeddings, ApiError> {
    let mut fields = reader.open(body, "", &[TEXT_FIELDS, EMBEDDING_FIELDS])?;
    let model = read_model(&mut fields)?;
    let items = read_inputs("input", required(fields.value("input"), "input")?, max_inputs)?;
    let prompt_name = fields.string("prompt_name")?;
    let texts = Texts { prompt_name, ..Texts::read(&mut fields, "input", items)? };
    let format = match fields.string("encoding_format")?.as_deref() {
        None | Some("float") => VectorFormat::Float,
        Some("base64") => VectorFormat::Base64,
        Some(_) => return Err(invalid("encoding_format", "must be `float` or `base64`")),
    };
    let dimensions = fields.integer("dimensions", 1..=i64::from(u32::MAX))?;
    let dimensions = dimensions.and_then(|count| usize::try_from(count).ok()).and_then(NonZeroUsize::new);
    let normalize = fields.boolean("normalize")?;
    reader.finish(fields)?;
    Ok(ReadEmbeddings { model, texts, format, dimensions, normalize, ignored: reader.into_ignored() })
}

impl EmbeddingsAnswer {
    pub(crate) fn new(model: String, vectors: Vec<Vec<f32>>, format: VectorFormat, usage: Usage) -> Self {
        let shown = |vector: Vec<f32>| match format {
            VectorFormat::Float => Vector::Float(vector),
            VectorFormat::Base64 => {
                let bytes: Vec<u8> = vector.into_iter().flat_map(f32::to_le_bytes).collect();
                Vector::Base64(STANDARD.encode(bytes))
            }
        };
        let data = vectors.into_iter().enumerate();
        let data = data.map(|(index, vector)| Embedding { object: "embedding", index, embedding: shown(vector) });
        Self { object: "list", data: data.collect(), model, usage: usage.into() }
    }
}

impl From<Usage> for EncoderUsage {
    fn from(usage: Usage) -> Self {
        Self { prompt_tokens: usage.prompt_tokens, total_tokens: usage.prompt_tokens }
    }
}
