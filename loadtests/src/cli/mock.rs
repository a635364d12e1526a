//! `mock`.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use passerelle_loadtests::mock::{Pace, serve};
use tokio::net::TcpListener;

use super::say;

/// An hour.
const MAX_MS: u64 = 3_600_000;

#[derive(Debug, Args)]
pub(super) struct MockArgs {
    /// Where; port 0 is any that is free
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Until the first token of a generation
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=MAX_MS))]
    first: u64,
    /// Between two tokens
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=MAX_MS))]
    gap: u64,
}

impl MockArgs {
    pub(super) fn execute(self) -> anyhow::Result<ExitCode> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let listener = TcpListener::bind(self.listen).await?;
            say(&format!("ready: http://{}", listener.local_addr()?));
            let pace = Pace { first: Duration::from_millis(self.first), gap: Duration::from_millis(self.gap) };
            serve(listener, move |_| pace).await?;
            Ok(ExitCode::SUCCESS)
        })
    }
}
