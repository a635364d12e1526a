//! From a checked configuration to a server that answers, and back down.
//!
//! The order is deliberate: keys before models (a server that may not open its door loads nothing), models before the
//! listener (nothing listens that cannot answer), and on the way down the listener before the engines.

mod engines;
mod listener;
mod logging;
mod memory;
mod models;
mod report;
mod signals;

use std::sync::Arc;

use anyhow::{Context, Result};
use passerelle::api::{
    self, ApiConfig, AppParts, AppState, BrowserGuard, Listener, Readiness, RequestBounds, ServeConfig, SseConfig,
};
use passerelle::config::{Config, UnknownFields};
use passerelle::gateway::keys::{KeyRing, KeyStore, read_key_file};
use passerelle::gateway::{Account, Authenticator, Ledger, Limit, Quota};
use passerelle_engine::Engine;
use passerelle_engine::clock::{Clock, SystemClock};
use tokio::runtime::Runtime;

use crate::cli::output;

pub(crate) use engines::EngineBounds;
pub(crate) use models::{Loaded, compute, find_files, load};

/// HTTP and text need little beside the threads that compute.
const ASYNC_THREADS: usize = 2;

/// Who is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// Whoever has a key, if the configuration or the data directory holds any; else everybody on this machine.
    AsConfigured,
    /// Everybody on this machine. Only for a listener that this process itself talks to.
    Open,
}

/// Loaded, listening, not yet answering.
pub(crate) struct Server {
    /// `http://ADDR:PORT` or `unix:PATH`.
    pub(crate) url: String,
    listener: Listener,
    router: axum::Router,
    readiness: Readiness,
    config: ServeConfig,
    /// Dropped last: every answer needs its engine to the end.
    _engines: Vec<Engine>,
}

/// Serves until a signal, then drains. Returns when everything has ended well.
pub(crate) fn run(config: &Config) -> Result<()> {
    logging::start(&config.log);
    let runtime = runtime()?;
    let server = start(config, Door::AsConfigured, &runtime)?;
    output::line(format_args!("ready: {}", server.url))?;
    runtime.block_on(server.serve(signals::first()));
    tracing::info!("ended");
    Ok(())
}

pub(crate) fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(ASYNC_THREADS)
        .enable_all()
        .build()
        .context("cannot start the async threads")
}

/// Keys, models, engines, listener, in this order.
pub(crate) fn start(config: &Config, door: Door, runtime: &Runtime) -> Result<Server> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let authenticator = authenticator(config, door, &clock)?;
    let guard = match &authenticator {
        Authenticator::Open(_) => BrowserGuard::LocalOnly,
        Authenticator::Keys(_) => BrowserGuard::Off,
    };
    let reserved = listener::reserve(&config.server.listen)?;
    let compute = compute(&config.engine);
    let loaded = models::load_all(config, &compute)?;
    let fleet = engines::start(loaded, &config.engine, &compute, &clock)?;
    let readiness = Readiness::default();
    let state = AppState::new(AppParts {
        models: fleet.served,
        authenticator,
        ledger: Ledger::new(Arc::clone(&clock)),
        router: fleet.router,
        clock,
        metrics: fleet.metrics,
        config: api_config(config, guard),
        readiness: readiness.clone(),
    });
    let (listener, url) = runtime.block_on(async { reserved.listen() })?;
    Ok(Server {
        url,
        listener,
        router: api::router(state),
        readiness,
        config: serve_config(config),
        _engines: fleet.engines,
    })
}

impl Server {
    /// Answers until `shutdown`, then admits nothing more and lets what runs finish, for a bounded time. A signal that
    /// comes meanwhile ends the process at once.
    pub(crate) async fn serve(self, shutdown: impl Future<Output = ()>) {
        let readiness = self.readiness;
        let shutdown = async {
            shutdown.await;
            readiness.start_draining();
            tracing::info!("admitting nothing more; what runs may finish");
            tokio::spawn(signals::end_at_once());
        };
        let drained = api::serve(self.listener, self.router, self.config, shutdown).await;
        tracing::info!(?drained, "the listener is closed");
    }
}

/// Refuses a listener that other machines can reach and that nobody needs a key for.
fn authenticator(config: &Config, door: Door, clock: &Arc<dyn Clock>) -> Result<Authenticator> {
    let limits = quota(config)?;
    if door == Door::Open {
        return Ok(Authenticator::open(Account::local(limits)));
    }
    let from_file = config.server.api_key_file.as_deref().map(|file| read_key_file(file, &limits)).transpose()?;
    let store = KeyStore::open(&config.server.data_dir, Arc::clone(clock))?;
    let ring = KeyRing::new(Some(store), from_file.unwrap_or_default(), Arc::clone(clock))?;
    config.check_door(!ring.is_empty())?;
    if ring.is_empty() {
        return Ok(Authenticator::open(Account::local(limits)));
    }
    Ok(Authenticator::Keys(ring))
}

fn quota(config: &Config) -> Result<Quota> {
    let written = &config.limits;
    let limits = [
        written.requests_per_minute.map(Limit::RequestsPerMinute),
        written.tokens_per_minute.map(Limit::TokensPerMinute),
        written.concurrent_requests.map(Limit::ConcurrentRequests),
    ];
    Ok(Quota::new(limits.into_iter().flatten().collect())?)
}

fn api_config(config: &Config, guard: BrowserGuard) -> ApiConfig {
    let written = &config.api;
    ApiConfig {
        unknown_fields: match written.unknown_fields {
            UnknownFields::Refuse => api::UnknownFields::Error,
            UnknownFields::Warn => api::UnknownFields::Warn,
        },
        max_body_bytes: written.max_body.0 as usize,
        body_timeout: written.read_timeout,
        request_timeout: written.request_timeout,
        max_concurrent_requests: written.max_concurrent_requests,
        max_concurrent_encodes: written.max_concurrent_encodes,
        bounds: RequestBounds {
            max_messages: written.max_messages,
            max_tools: written.max_tools,
            max_stop_strings: written.max_stop_strings,
            max_stop_bytes: written.max_stop_bytes,
            max_stop_token_ids: written.max_stop_token_ids,
            max_logit_bias: written.max_logit_bias,
            max_prompts: written.max_prompts,
        },
        sse: SseConfig {
            max_pending_frames: written.max_pending_frames,
            write_timeout: written.stalled_reader_timeout,
            keep_alive: written.keep_alive,
        },
        guard,
    }
}

fn serve_config(config: &Config) -> ServeConfig {
    ServeConfig {
        max_connections: config.server.max_connections,
        header_timeout: config.api.read_timeout,
        write_timeout: config.api.stalled_reader_timeout,
        drain_timeout: config.server.drain_timeout,
    }
}
