//! What is remembered of a file and of a batch. Times are seconds since the Unix epoch.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{BatchId, FileId};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredFile {
    pub id: FileId,
    /// The account that it belongs to; nobody else sees it.
    pub owner: String,
    pub filename: String,
    pub purpose: Purpose,
    pub bytes: u64,
    pub created_at: u64,
    /// Tells files of one second apart: the store counts what it is given.
    #[serde(default)]
    pub serial: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    Batch,
    BatchOutput,
}

impl Purpose {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::BatchOutput => "batch_output",
        }
    }
}

/// Where a batch's requests go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Endpoint {
    #[serde(rename = "/v1/chat/completions")]
    Chat,
    #[serde(rename = "/v1/completions")]
    Completions,
    #[serde(rename = "/v1/responses")]
    Responses,
    #[serde(rename = "/v1/embeddings")]
    Embeddings,
}

impl Endpoint {
    pub const ALL: [Self; 4] = [Self::Chat, Self::Completions, Self::Responses, Self::Embeddings];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completions => "/v1/completions",
            Self::Responses => "/v1/responses",
            Self::Embeddings => "/v1/embeddings",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    pub id: BatchId,
    pub owner: String,
    /// The key that made it; its requests are run as that key's.
    pub via: String,
    pub endpoint: Endpoint,
    pub input_file_id: FileId,
    pub metadata: BTreeMap<String, String>,
    pub status: BatchStatus,
    /// Why the input could not be used.
    pub errors: Vec<LineError>,
    pub counts: Counts,
    pub output_file_id: Option<FileId>,
    pub error_file_id: Option<FileId>,
    pub created_at: u64,
    /// As that of files.
    #[serde(default)]
    pub serial: u64,
    pub expires_at: u64,
    /// When it came into each state that it has been in.
    pub reached_at: BTreeMap<BatchStatus, u64>,
    /// Once every request is over. What a crash keeps from being done is done at the next start.
    #[serde(default)]
    pub ending: Option<Ending>,
}

/// How a batch ends: written down before its answers become files, so that whoever finds them half made makes the rest of them
/// and does not run the batch again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    pub status: BatchStatus,
    pub at: u64,
    pub counts: Counts,
    /// Names of the files to be; an empty one is none.
    pub output: Option<FileId>,
    pub errors: Option<FileId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchStatus {
    Validating,
    InProgress,
    Finalizing,
    Cancelling,
    Completed,
    Failed,
    Expired,
    Cancelled,
}

impl BatchStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Validating => "validating",
            Self::InProgress => "in_progress",
            Self::Finalizing => "finalizing",
            Self::Cancelling => "cancelling",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }

    pub fn is_over(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Expired | Self::Cancelled)
    }
}

/// Requests of a batch. `completed + failed` never passes `total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    pub total: usize,
    pub completed: usize,
    pub failed: usize,
}

/// What is wrong with a line of an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LineError {
    /// From 1.
    pub line: usize,
    pub message: String,
}
