//! Logs go to standard error, and never hold what was asked or answered.

use std::io;
use std::panic::{self, Location};
use std::thread;

use passerelle::config::{LogConfig, LogFormat, LogLevel};
use tracing_subscriber::EnvFilter;

/// Once a process. Other crates are heard from `warn` up, whatever the level: some of them would log bytes that they
/// transport.
pub(crate) fn start(config: &LogConfig) {
    hide_panic_messages();
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
    // A line that cannot be written is lost, and ends nothing.
    let base = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).log_internal_errors(false);
    // The one way to fail is that somebody has set a subscriber already, and then that one is wanted.
    let _ = match config.format {
        LogFormat::Text => base.with_ansi(config.color && io::IsTerminal::is_terminal(&io::stderr())).try_init(),
        LogFormat::Json => base.json().flatten_event(true).try_init(),
    };
}

/// What a panic says may quote a prompt: only where it happened is told.
fn hide_panic_messages() {
    panic::set_hook(Box::new(|panicked| {
        tell!("{}", panic_line(thread::current().name(), panicked.location()));
    }));
}

fn panic_line(thread: Option<&str>, place: Option<&Location<'_>>) -> String {
    let place = place.map_or_else(|| "an unknown place".to_owned(), Location::to_string);
    format!("thread `{}` panicked at {place}; its message may quote a request and is not shown", thread.unwrap_or("?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_by_thread_and_place() {
        let line = panic_line(Some("engine demo"), Some(Location::caller()));
        assert!(line.contains("`engine demo`") && line.contains(file!()), "{line}");
    }
}
