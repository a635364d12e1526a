//! Stands in for `upstreams.rs` in a binary that was built without them.

use std::sync::Arc;

use anyhow::{Result, ensure};
use passerelle::api::RemoteModel;
use passerelle::config::Config;
use passerelle::gateway::Replica;
use passerelle_engine::clock::Clock;
use tokio::runtime::Handle;

#[derive(Debug)]
pub(crate) struct Upstreams;

#[derive(Debug)]
pub(crate) struct Planned;

#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) models: Vec<RemoteModel>,
}

pub(crate) fn prepare(config: &Config, _: &[String]) -> Result<Prepared> {
    ensure!(config.upstreams.is_empty(), "upstreams: this binary was built without the feature `upstream`");
    Ok(Prepared { models: Vec::new() })
}

impl Upstreams {
    pub(crate) fn new(_: Arc<dyn Clock>, _: Handle, _: u32) -> Self {
        Self
    }

    pub(crate) fn plan(&mut self, (): ()) -> Result<Planned> {
        Ok(Planned)
    }

    pub(crate) fn adopt(&mut self, Planned: Planned) {}

    pub(crate) fn have_other_keys(&self, (): &()) -> bool {
        false
    }
}

impl Planned {
    pub(crate) fn replicas(&self) -> Vec<Arc<Replica>> {
        Vec::new()
    }
}

impl Prepared {
    pub(crate) fn split(self) -> ((), Vec<RemoteModel>) {
        ((), self.models)
    }
}
