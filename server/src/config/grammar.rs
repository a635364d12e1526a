//! How much the grammar of one answer may ask for, checked.

use std::time::Duration;

use super::checked::{count, some_period};
use super::{ByteSize, ConfigError, WrittenGrammar};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrammarConfig {
    pub max_bytes: ByteSize,
    pub max_depth: usize,
    pub max_size: usize,
    pub max_states: usize,
    pub compile_fuel: usize,
    pub token_fuel: usize,
    pub max_concurrent_compiles: usize,
    pub compile_timeout: Duration,
}

pub(super) fn check_grammar(written: &WrittenGrammar) -> Result<GrammarConfig, ConfigError> {
    Ok(GrammarConfig {
        max_bytes: written.max_bytes.unwrap_or(ByteSize(256 << 10)),
        max_depth: count(written.max_depth, 64),
        max_size: count(written.max_size, 200_000),
        max_states: count(written.max_states, 20_000),
        compile_fuel: count(written.compile_fuel, 1_000_000),
        token_fuel: count(written.token_fuel, 100_000),
        max_concurrent_compiles: count(written.max_concurrent_compiles, 2),
        compile_timeout: some_period(
            written.compile_timeout,
            Duration::from_secs(10),
            ("grammar.compile_timeout", "is over before any grammar is compiled; it refuses every one"),
        )?,
    })
}
