//! Logs go to standard error, and never hold what was asked or answered.

use std::io;

use passerelle::config::{LogConfig, LogFormat, LogLevel};
use tracing_subscriber::EnvFilter;

/// Once a process. Other crates are heard from `warn` up, whatever the level: some of them would log bytes that they
/// transport.
pub(crate) fn start(config: &LogConfig) {
    let level = match config.level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    };
    let others = if config.level == LogLevel::Error { "error" } else { "warn" };
    let filter =
        EnvFilter::new(format!("{others},passerelle={level},passerelle_engine={level},passerelle_models={level}"));
    let base = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // The one way to fail is that somebody has set a subscriber already, and then that one is wanted.
    let _ = match config.format {
        LogFormat::Text => base.with_ansi(config.color && io::IsTerminal::is_terminal(&io::stderr())).try_init(),
        LogFormat::Json => base.json().flatten_event(true).try_init(),
    };
}
