//! What administration works on, by whichever way it comes: accounts, keys and usage.

use std::sync::Arc;

use super::data::{DataDir, DataError};
use super::directory::Directory;
use super::journal::UsageReader;

#[derive(Debug, Clone)]
pub struct Administration {
    pub directory: Directory,
    pub usage: Arc<UsageReader>,
}

impl Administration {
    pub fn open(data: &DataDir, directory: Directory) -> Result<Self, DataError> {
        Ok(Self { directory, usage: Arc::new(UsageReader::open(data)?) })
    }
}
