//! Why a file or a batch is not kept, found or changed.

use std::io;

use super::BatchStatus;

#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    #[error("there is no such file")]
    NoFile,
    #[error("there is no such batch")]
    NoBatch,
    #[error("a batch that is not over still reads this file")]
    FileInUse,
    #[error("the file is larger than the limit of {0} bytes")]
    FileTooLarge(u64),
    #[error("this account keeps {0} files, which is as many as it may; delete some")]
    TooManyFiles(usize),
    #[error("{0} batches of this account are not over, which is as many as may be")]
    TooManyBatches(usize),
    #[error("the server keeps as much as it may; delete files that are not needed")]
    Full,
    #[error("the batch is over already: it is {}", .0.as_str())]
    Over(BatchStatus),
    #[error("the system gave no randomness")]
    NoRandomness,
    #[error("the data directory: {0}")]
    Disk(#[from] io::Error),
}

impl BatchError {
    /// What was to be read is not there.
    pub fn is_for_want_of_the_file(&self) -> bool {
        match self {
            Self::NoFile => true,
            Self::Disk(error) => error.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }

    /// Of the disk, or left to this user of it: another time may be better.
    pub fn is_for_want_of_room(&self) -> bool {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        matches!(self, Self::Disk(error) if matches!(error.kind(), StorageFull | QuotaExceeded))
    }
}
