//! What administration over HTTP works on: the same accounts, keys and usage as the commands.

use std::sync::Arc;

use super::data::{DataDir, DataError};
use super::directory::Directory;
use super::journal::UsageReader;

#[derive(Debug)]
pub struct Administration {
    pub directory: Directory,
    pub usage: Arc<UsageReader>,
}

impl Administration {
    pub fn open(data: &DataDir, directory: Directory) -> Result<Self, DataError> {
        Ok(Self { directory, usage: Arc::new(UsageReader::open(data)?) })
    }
}
